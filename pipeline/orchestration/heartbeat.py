"""Lines on stderr, one a minute, about a running stage that shows no progress bar."""

import contextlib
import datetime
import sys
from collections.abc import Iterator

from pipeline.artifacts.files import now
from pipeline.background import every
from pipeline.orchestration.context import Context

SECONDS = 60.0
"""Interval between two lines."""


@contextlib.contextmanager
def heartbeat(stage: str, context: Context) -> Iterator[None]:
    """Print what the stage is at every minute inside the context; nothing where it shows progress bars."""
    if context.show_progress:
        yield
        return
    began = now()

    def beat() -> None:
        print(line(stage, context.progress, began, now()), file=sys.stderr, flush=True)

    with every(SECONDS, "progress lines", beat):
        yield


def line(stage: str, progress: str, began: datetime.datetime, present: datetime.datetime) -> str:
    """One line: stage, progress, minutes so far, start."""
    minutes = (present - began) / datetime.timedelta(minutes=1)
    return f"{stage}: {progress or 'at work'}, {minutes:.0f} min since {began:%H:%M} UTC"
