"""Ranks of torchrun: all run the stages that train; rank 0 alone resolves, writes, tracks and reports."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from models.training import distributed
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.orchestration.context import Context
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord

TRAINING = ("train", "baselines", "publish")
"""Stages that train; on ranks other than 0 their `build` returns after training."""


@contextlib.contextmanager
def is_leader() -> Iterator[bool]:
    """Yield True on rank 0; other ranks join its training and yield False.

    If a rank fails and reports its error, the others exit with code 1.
    """
    if distributed.launched() == 1:
        yield True
        return
    with distributed.group():
        try:
            if distributed.rank() == 0:
                yield True
                distributed.broadcast(None)
            else:
                _follow()
                yield False
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            sys.exit(1)


def announce(stage: str, context: Context) -> None:
    """Make the other ranks build a stage that trains, as rank 0 does next."""
    if distributed.launched() > 1 and stage in TRAINING:
        distributed.broadcast(
            {
                "stage": stage,
                "config": context.config.model_dump_json(),
                "folder": str(context.folder),
                "inputs": {name: str(folder) for name, folder in context.inputs.items()},
            }
        )


def _follow() -> None:
    """Build every announced stage up to the end of its training."""
    while (work := distributed.broadcast(None)) is not None:
        context = Context(
            config=Config.model_validate_json(work["config"]),
            folder=Path(work["folder"]),
            inputs={name: Path(folder) for name, folder in work["inputs"].items()},
            sources={},
            model=None,
            track=RunRecord(),
            live=LiveRun(None, lambda _: None, lambda _: None),
            stage_folder=Path(work["folder"]).parent,
            show_progress=False,
        )
        try:
            importlib.import_module(f"pipeline.stages.{work['stage']}").build(context)
        except (ValueError, LookbackError):  # raised on rank 0 as well, which reports it
            distributed.broadcast(None)
            sys.exit(1)
