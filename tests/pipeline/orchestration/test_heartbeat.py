"""Lines about a running stage: what, how far, since when."""

import datetime
import time
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.orchestration import heartbeat
from pipeline.orchestration.context import Context
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord


def a_context(folder: Path, *, show_progress: bool = False) -> Context:
    columns: dict[str, str | int] = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    config = Config.model_validate({"name": "tiny", "events": {"path": "log.csv", "columns": columns}})
    live = LiveRun(None, lambda _: None, lambda _: None)
    return Context(config, folder, {}, {}, None, RunRecord(), live, folder, show_progress=show_progress)


def test_a_stage_without_a_terminal_says_what_it_is_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    context, said = a_context(tmp_path), ""
    deadline = time.monotonic() + 60
    with heartbeat.heartbeat("score", context), context.counted(1200, "users") as advance:
        advance(7)
        while "score: 7 of 1,200 users, 0 min since " not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
    assert "score: 7 of 1,200 users, 0 min since " in said
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == "", "it ends with the stage"


def test_a_progress_bar_needs_no_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    with heartbeat.heartbeat("score", a_context(tmp_path, show_progress=True)):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_line() -> None:
    began = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    present = began + datetime.timedelta(hours=1, seconds=59)
    assert heartbeat.line("train", "epoch 3", began, present) == "train: epoch 3, 61 min since 03:04 UTC"
    assert heartbeat.line("features", "", began, began) == "features: at work, 0 min since 03:04 UTC"


def test_an_epoch_is_progress(tmp_path: Path) -> None:
    context = a_context(tmp_path)
    context.epoch({"loss": 3.25, "targets_per_second": 1e5, "validation_ndcg@10": 0.125}, 12)
    assert context.progress == "epoch 12 (loss 3.2500, validation_ndcg@10 0.1250)"
