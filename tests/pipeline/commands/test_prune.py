"""Prune keeps what was used last and what links point to, whatever the clocks said."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts.store import Artifact
from pipeline.commands.prune import prune
from pipeline.config import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    return Config.model_validate(
        {
            "name": "tiny",
            "data_dir": str(tmp_path),
            "events": {"path": "log.csv", "columns": columns},
            "tracking": {"enabled": False},
        }
    )


def made(config: Config, stage: str, digit: str, created: str, **inputs: str) -> Artifact:
    artifact = Artifact(config.folder / stage, digit * 16)
    artifact.prepare(resume=False)
    artifact.commit({"created_utc": created, "inputs": inputs})
    return artifact


def left(config: Config, stage: str) -> set[str]:
    return {path.parent.name[0] for path in (config.folder / stage).glob("[0-9a-f]*/manifest.json")}


def test_what_was_used_last_stays_though_a_clock_was_ahead(config: Config) -> None:
    made(config, "ingest", "1", "2026-01-01")
    ahead = made(config, "ingest", "2", "2099-01-01")
    prune(config, keep=1, dry_run=False)
    assert left(config, "ingest") == {"2"}
    made(config, "ingest", "3", "2026-01-02")
    made(config, "ingest", "4", "2026-01-03")
    prune(config, keep=2, dry_run=False)
    assert left(config, "ingest") == {"3", "4"}
    assert not ahead.folder.exists()


def test_what_links_point_to_stays_with_its_lineage(config: Config) -> None:
    """Night 1 is live, night 2 is of some users: both stay with the logs they were made from."""
    for night in "123":
        made(config, "ingest", night, "2026-01-01")
    live = made(config, "score", "a", "2026-01-01", ingest="1" * 16)
    live.point_live()
    for digit in "bc":
        made(config, "score", digit, "2026-01-02", ingest="2" * 16)
    (config.folder / "score" / ".uses.json").write_text(json.dumps({"b" * 16: 9}))  # restored from elsewhere
    prune(config, keep=1, dry_run=False)
    assert left(config, "score") == {"a", "b", "c"}
    assert left(config, "ingest") == {"1", "2", "3"}
