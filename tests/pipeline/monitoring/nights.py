"""Small log in daily files with fabricated deliveries, on which the stage monitor runs in this process."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.artifacts.store import Artifact
from pipeline.config import Config, load_config
from pipeline.monitoring import ledger
from pipeline.monitoring.ledger import Promise
from pipeline.orchestration.runner import bring_up_to_date

START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
USERS, ITEMS = 40, 12
DAY = 86_400_000_000


def event_days(num_days: int, seed: int = 0) -> list[pl.DataFrame]:
    """Events of each day: user 1.., item 1.., a time at a full second, a type; the last at 23:59:59."""
    random = np.random.default_rng(seed)
    days = []
    for day in range(num_days):
        size = 120
        seconds = np.sort(random.choice(86_399, size, replace=False))
        seconds[-1] = 86_399
        days.append(
            pl.DataFrame(
                {
                    "user": random.integers(1, USERS + 1, size),
                    "item": random.integers(1, ITEMS + 1, size),
                    "at": int(START.timestamp()) + day * 86_400 + seconds,
                    "type": random.choice(["view", "like"], size),
                }
            )
        )
    return days


@dataclass
class Nights:
    """Folder with a log that grows by days, and deliveries made at its end."""

    folder: Path
    days: list[pl.DataFrame]
    shown: int = 0
    """Days of the log that are there."""

    def config(self, *overrides: str) -> Config:
        """Configuration without tracking."""
        columns = '{ user_id = "user", item_id = "item", timestamp = "at", event_type = "type" }'
        (self.folder / "log.toml").write_text(
            f'name = "log"\ndata_dir = "{self.folder}/data"\n[events]\npath = "{self.folder}/logs"\ncolumns = {columns}\n'
            "[tracking]\nenabled = false\n[evaluate]\nresamples = 100\n"
        )
        return load_config(self.folder / "log.toml", overrides)

    @property
    def score(self) -> Path:
        return self.folder / "data" / "log" / "score"

    def show(self, days: int) -> None:
        """Add days to the log."""
        (self.folder / "logs").mkdir(exist_ok=True)
        for day in range(self.shown, self.shown + days):
            self.days[day].write_csv(self.folder / "logs" / f"day-{day:02}.csv")
        self.shown += days

    def run(self, *overrides: str, stage: str = "monitor", force: bool = False) -> dict[str, Any]:
        """Bring a stage up to date; returns its summary."""
        config = self.config(*overrides)
        done = bring_up_to_date(config, [stage], force=force, show_progress=False, say=lambda _: None)
        return dict(done[-1])

    def log_time(self) -> int:
        """Time of the log's newest event, microseconds since the epoch."""
        return int(self.days[self.shown - 1]["at"].max()) * 1_000_000  # type: ignore[arg-type]

    def deliver(
        self,
        lists: Mapping[int, Sequence[int]] | pl.DataFrame,
        *,
        name: str,
        shadows: Mapping[str, Mapping[int, Sequence[int]] | pl.DataFrame] | None = None,
        promise: Sequence[float] = (),
        **facts: Any,
    ) -> Artifact:
        """Enter lists (user to items, best first, or a row per user and rank), made at the present end of the log."""
        features = self.run(stage="features")["fingerprint"]
        artifact = Artifact(self.score, name)
        artifact.prepare(resume=False)
        _write(artifact.workspace / "recommendations", lists)
        for shadow, own in (shadows or {}).items():
            _write(artifact.workspace / "shadows" / shadow, own)
        (artifact.workspace / "_SUCCESS").touch()
        created = datetime.datetime(2026, 4, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=self.shown)
        made = {"model_version": None, "bundle_digest": ""}
        manifest = {
            "created_utc": created.isoformat(),
            "request_time": self.log_time(),
            "settings": {"score.k": 3, "score.at": None},
            "inputs": {"features": features},
            "model_version": 1,
            "bundle_digest": "digest",
            "exclude_seen": False,
            "users": len(lists),
            "cold_users": 0,
            "short_lists": 0,
            "shadows": dict.fromkeys(shadows or {}, made),
            "fingerprint": name,
            "stage": "score",
        }
        artifact.commit(manifest | facts)
        promised = {"1": Promise("ndcg@3", tuple(promise))} if promise else {}
        ledger.enter(self.config(), artifact, promised)
        return artifact

    def table(self, name: str, *overrides: str) -> pl.DataFrame:
        """Table of the up-to-date monitor."""
        return pl.read_parquet(Path(self.run(*overrides)["folder"]) / name)

    def record(self, *overrides: str) -> Any:
        """monitor.json of the up-to-date monitor."""
        return json.loads((Path(self.run(*overrides)["folder"]) / "monitor.json").read_text())


def _write(folder: Path, lists: Mapping[int, Sequence[int]] | pl.DataFrame) -> None:
    folder.mkdir(parents=True)
    if isinstance(lists, pl.DataFrame):
        lists.write_parquet(folder / "part-00000.parquet")
        return
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "rank": pl.Int32}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "part-00000.parquet")


def some_lists(seed: int, users: Sequence[int] = range(1, USERS + 1)) -> dict[int, list[int]]:
    """Random lists of three items."""
    random = np.random.default_rng(seed)
    return {user: (random.permutation(ITEMS)[:3] + 1).tolist() for user in users}
