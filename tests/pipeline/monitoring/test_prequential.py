"""Test of updates on the nights after them: which nights count, and the gate's rule."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.artifacts.store import Artifact
from pipeline.config import Config, load_config
from pipeline.monitoring import ledger, prequential
from pipeline.monitoring.ledger import DAY, Delivery, ShadowSource
from pipeline.monitoring.outcome_files import OutcomeFiles
from pipeline.monitoring.series import metrics_of
from pipeline.tracking.decisions import WAITING, Decision
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import Version
from tests.pipeline.monitoring.simulated_outcomes import FIRST, delivery, outcomes

CHAMPION = Version("lookback-log", 3, "champion", "run", "source", gate="first")
CANDIDATE = Version("lookback-log", 4, "candidate", "run", "source", gate=WAITING)
UPDATE = ShadowSource(4, "candidate", start="champion", model_time=FIRST)


def night(number: int, **changes: Any) -> Delivery:
    """The champion's lists of a night, with those of an update of it."""
    made = replace(
        delivery(number), bundle_digest="champion", model_time=FIRST - DAY, shadows={"challenger": UPDATE}
    )
    return replace(made, **changes)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    columns = '{ user_id = "user", item_id = "item", timestamp = "at" }'
    (tmp_path / "log.toml").write_text(
        f'name = "log"\ndata_dir = "{tmp_path}"\n[events]\npath = "log.csv"\ncolumns = {columns}\n'
        "[evaluate]\nresamples = 200\n"
    )
    return load_config(tmp_path / "log.toml")


def judged(tmp_path: Path, users: int, nights: int, share: float) -> tuple[OutcomeFiles, list[Delivery]]:
    """Outcomes of nights in which the candidate's lists miss everything for a share of the users."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    files = OutcomeFiles(tmp_path)
    for number in range(nights):
        own = outcomes(np.random.default_rng(number), users, range(number, number + 1))
        own = own.with_columns(folder=pl.lit(f"{number:016x}"))
        is_missed = pl.col("user_id") % 100 < 100 * share
        none = pl.lit([], pl.List(pl.Int32))
        other = own.with_columns(
            system=pl.lit("challenger"), places=pl.when(is_missed).then(none).otherwise("places")
        )
        files.write((FIRST + number * DAY, 1.0), pl.concat([own, other]))
    return files, [night(number) for number in range(nights)]


@pytest.mark.parametrize(("share", "outcome"), [(0.0, "passed"), (1.0, WAITING)])
def test_the_gates_rule_on_pooled_nights(config: Config, tmp_path: Path, share: float, outcome: str) -> None:
    """A candidate with the champion's lists differs by 0 [0, 0]; one whose lists all miss by the champion's NDCG."""
    files, nights = judged(tmp_path, 500, 4, share)
    decision = prequential.compare(config, nights, files, CHAMPION)
    assert decision.outcome == outcome, decision.reason
    rows = pl.concat([files.read((each.log_time, 1.0)) for each in nights]).filter(system="delivered")
    values = metrics_of(rows.filter(pl.col("list_length") > 0), by_place=False)["ndcg@10"]
    assert decision.figures["user_nights"] == len(values)
    assert decision.figures["difference"] == pytest.approx(-share * values.mean())
    assert "in 4 nights that neither had seen" in decision.reason


def test_nights_are_pooled_until_there_are_enough(config: Config, tmp_path: Path) -> None:
    files, nights = judged(tmp_path, 60, 3, 0.0)
    decision = prequential.compare(config, nights, files, CHAMPION)
    assert (decision.outcome, decision.moves) == (WAITING, False)
    assert re.match(r"\d+ of 500 user-nights", decision.reason)
    assert prequential.compare(config, [night(9)], files, CHAMPION).reason.startswith("0 of 500")


def test_only_the_champion_beside_its_updates_counts() -> None:
    others = [
        night(1, shadows={}),
        night(2, bundle_digest="another"),
        night(3, shadows={"challenger": replace(UPDATE, start="another")}),
        night(4, shadows={"challenger": replace(UPDATE, model_time=FIRST + 4 * DAY + 1)}),
        night(5, model_time=None),
        night(6, timed=False),
    ]
    assert list(prequential.nights_of([night(0), *others, night(7)], CHAMPION)) == [night(0), night(7)]


def test_a_candidate_that_passes_becomes_champion(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[tuple[Version, Decision]] = []
    files, nights = judged(tmp_path / "monitor" / "a", 500, 4, 0.0)
    assert files.all_keys()
    monkeypatch.setattr(Registry, "champion", lambda *_: CHAMPION)
    monkeypatch.setattr(Registry, "challenger", lambda *_: CANDIDATE)
    monkeypatch.setattr(
        Registry, "record", lambda _, version, decision, __: recorded.append((version, decision))
    )
    monkeypatch.setattr(ledger, "deliveries", lambda _: nights)
    line = prequential.decide(config, Artifact(tmp_path / "monitor", "a"))
    assert line is not None
    assert line.startswith("gate: lookback-log version 4 is champion; passed: not worse than version 3")
    assert [version for version, _ in recorded] == [CANDIDATE]
    monkeypatch.setattr(Registry, "challenger", lambda *_: replace(CANDIDATE, gate="refused"))
    assert prequential.decide(config, Artifact(tmp_path / "monitor", "a")) is None
