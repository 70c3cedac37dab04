"""Training that an update's night plans, its reason in a line, and starts that are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from features.settings import EventSettings, SplitSettings
from models.settings.training import TrainSettings
from pipeline.artifacts import source_files
from pipeline.commands import update
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError
from pipeline.sections import TrackingConfig
from tests.published_versions import COLUMNS, MODEL, Versions

Planned = Callable[..., tuple[str | None, str]]


@pytest.fixture
def planned(published: Callable[..., Versions], monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Plan of a night whose log is that of some days, from the newest version; what `change` did to its description."""

    def plan(
        days: str = "later", change: Callable[[dict[str, Any]], object] = lambda _: None, **sections: Any
    ) -> tuple[str | None, str]:
        versions = published()
        path = versions.bundles[0] / "bundle.json"
        change(description := json.loads(path.read_text()))
        path.write_text(json.dumps(description))
        inputs = {name: versions.folder / days / name for name in ("ingest", "features")}
        nodes = {
            name: SimpleNamespace(artifact=SimpleNamespace(folder=path)) for name, path in inputs.items()
        }
        monkeypatch.setattr(update, "of_start", lambda _: versions.newest)
        monkeypatch.setattr(update, "resolve", lambda *_: SimpleNamespace(nodes=nodes))
        train = TrainSettings(epochs=1, start="champion", full_every_days=sections.pop("full_every_days", 7))
        config = versions.context(days, "train", train=train, **sections).config
        return update._plan(config.model_copy(update={"data_dir": str(versions.folder / "data")}))

    return plan


def test_an_update_of_newer_events(planned: Planned) -> None:
    assert planned() == ("champion", "")


def test_nothing_is_trained(planned: Planned) -> None:
    start, reason = planned("first")
    assert start is None
    assert reason.startswith("nothing is trained: no history goes on after 1970-01-01T07:00:00")
    assert "models:/lookback-tiny/1" in reason


def test_nothing_is_trained_from_a_baseline(planned: Planned) -> None:
    start, reason = planned(change=lambda its: its.update(system="popularity", system_settings={}))
    assert start is None
    assert (
        "models:/lookback-tiny/1 is the baseline popularity, until a training from scratch is due" in reason
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"full_every_days": 0.5}, "the last one is 0.7 days old, train.full_every_days is 0.5"),
        ({"model": replace(MODEL, dim=8)}, "was trained with other settings: model.dim = 4 there, 8 here"),
        ({"change": lambda its: its.update(format_version=3)}, "has bundle format 3, expected 4"),
    ],
)
def test_a_training_from_scratch_instead(planned: Planned, given: dict[str, Any], message: str) -> None:
    start, reason = planned(**given)
    assert start == "scratch"
    assert reason.endswith(message)


def test_a_version_that_has_learned_from_an_erased_user(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_files, "excluded_users", lambda _: pl.Series(["u3"]))
    assert planned() == ("scratch", "models:/lookback-tiny/1 has learned from users of events.exclude_users")


@pytest.mark.parametrize(
    "given", [{}, {"model": replace(MODEL, dim=8)}, {"full_every_days": 0.5}, {"days": "first"}]
)
def test_a_version_of_another_log_is_refused_first(planned: Planned, given: dict[str, Any]) -> None:
    with pytest.raises(
        LookbackError, match=r"was trained on the log 'shop', expected a version of 'tiny'; name one"
    ):
        planned(change=lambda its: its.update(name="shop"), **given)


@pytest.mark.parametrize(
    ("unit", "is_tracked", "message"),
    [
        (
            "position",
            True,
            "events.timestamp_unit 'position', expected a log with times: .* lookback run publish",
        ),
        (
            "s",
            False,
            "tracking.enabled = false, expected true: .* train from scratch: lookback run publish",
        ),
    ],
)
def test_logs_and_settings_without_updates(tmp_path: Path, unit: Any, is_tracked: bool, message: str) -> None:
    config = Config(
        name="tiny",
        data_dir=str(tmp_path),
        events=EventSettings(path="log.csv", columns=COLUMNS, timestamp_unit=unit),
        split=SplitSettings(protocol="leave_one_out"),
        tracking=TrackingConfig(enabled=is_tracked),
    )
    with pytest.raises(ConfigError, match=message):
        update.update(config, show_progress=False, say=lambda _: None)
