"""Ranks of torchrun, without torchrun: messages are handed over as JSON, as the group would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from features.settings import EventSettings, SplitSettings
from models.training import distributed
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.orchestration import process_group
from pipeline.orchestration.context import Context
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord

EVENTS = EventSettings(path="log.csv", columns={"user_id": 1, "item_id": 2, "timestamp": 3})
LOST = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


def context(tmp_path: Path) -> Context:
    return Context(
        config=Config(
            name="a", data_dir=str(tmp_path), events=EVENTS, split=SplitSettings(held_back=0.1 + 0.2)
        ),
        folder=tmp_path / "train" / ".building-1",
        inputs={"features": tmp_path / "features" / "f"},
        sources={"events": {"a": "b"}},
        model=None,
        track=RunRecord(),
        live=LiveRun(None, lambda _: None, lambda _: None),
        stage_folder=tmp_path / "train",
        show_progress=True,
    )


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Messages of rank 0 in the order they arrive; after the last one it is lost."""
    messages: list[Any] = []

    def broadcast(message: Any) -> Any:
        if message is not None:
            messages.append(json.loads(json.dumps(message)))
            return message
        if not messages:
            raise LOST
        return messages.pop(0)

    monkeypatch.setattr(distributed, "broadcast", broadcast)
    monkeypatch.setattr(distributed, "launched", lambda: 2)
    return messages


def built_by(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.stages.train", SimpleNamespace(build=build))


def test_one_process_leads_and_announces_nothing(tmp_path):
    with process_group.is_leader() as leads:
        assert leads
    process_group.announce("train", context(tmp_path))


def test_other_ranks_build_what_rank_0_announces(monkeypatch, group, tmp_path):
    seen: list[Context] = []
    built_by(monkeypatch, seen.append)
    announced = context(tmp_path)
    process_group.announce("evaluate", announced)
    assert not group  # it trains nothing
    process_group.announce("train", announced)
    group.append(None)
    process_group._follow()
    (received,) = seen
    for name in ("config", "folder", "inputs", "stage_folder", "model"):
        assert getattr(received, name) == getattr(announced, name)
    assert not received.show_progress


@pytest.mark.parametrize("error", [ValueError("not finite"), LookbackError("no validation targets")])
def test_what_fails_on_all_ranks_is_left_to_rank_0(monkeypatch, group, tmp_path, error):
    def build(_: Context) -> None:
        raise error

    built_by(monkeypatch, build)
    process_group.announce("train", context(tmp_path))
    with pytest.raises(RuntimeError) as raised:
        process_group._follow()
    assert distributed.is_lost(raised.value)  # it waited for rank 0 to end
    assert not group


def test_an_error_of_a_rank_s_own_is_no_lost_connection(monkeypatch, group, tmp_path):
    def build(_: Context) -> None:
        raise RuntimeError("out of memory")

    built_by(monkeypatch, build)
    process_group.announce("train", context(tmp_path))
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        process_group._follow()
    assert not distributed.is_lost(raised.value)


IN_EACH_PROCESS = """
import os, sys
from pathlib import Path
from types import SimpleNamespace

from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import distributed
from models.training.loop import fit
from pipeline.orchestration import process_group

settings = TrainSettings(batch_histories=2, checkpoint_seconds=0, precision="fp32", compile="off")
sizes = {"num_items": 3, "num_event_types": 0, "max_length": 5}
encoder = EncoderSettings(dim=4, num_blocks=1)


def build(context):
    fit(histories_from_lists([[1, 2, 3]] * 10), encoder=encoder, train=settings, **sizes, on_checkpoint=lambda _: os._exit(0))


def follow():
    build(None)


process_group._follow = follow
try:
    with process_group.is_leader() as leads:
        build(None)
except SystemExit as end:
    Path(sys.argv[1], "ended").write_text(f"{distributed.rank()} {end.code}")
    os._exit(0)
"""


@pytest.mark.slow
def test_rank_0_ends_within_a_training(tmp_path):
    script = tmp_path / "each.py"
    script.write_text(IN_EACH_PROCESS)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ended").read_text() == "1 1"
