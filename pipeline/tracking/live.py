"""Metrics of a running stage: sent to its MLflow run, and shown to an observer."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType

from pipeline.tracking.record import Point, allowed, now_ms

LIVE_SECONDS = 5.0
"""Metrics of a running stage are sent at most this often."""


Observer = Callable[[Mapping[str, float], int], object]
"""Receives the metrics of a running stage and their step; may raise StopEarly."""


_observer: ContextVar[Observer] = ContextVar("observer", default=lambda *_: None)


class StopEarly(Exception):
    """Raised by an observer to end the stage: nothing is committed, and its workspace stays, to resume from."""


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Pass the metrics of every stage that begins within to an observer."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


class LiveRun:
    """The run of a running stage; as a context manager it ends a failed stage's run, and leaves a good one to replay."""

    def __init__(
        self, run_id: str | None, send: Callable[[list[Point]], object], end: Callable[[str], object]
    ) -> None:
        self.run_id = run_id
        self._send = send
        self._end = end
        self._observe = _observer.get()
        self._waiting: list[Point] = []
        self._sent = -math.inf
        self._lock = threading.Lock()  # the machine's own numbers come from another thread

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers at a step; sent together, at most every few seconds."""
        self.beside(values, step)
        self._observe(values, step)

    def beside(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers that are not the stage's own: no observer sees them."""
        now = now_ms()
        with self._lock:
            self._waiting += [Point(allowed(name), float(value), step, now) for name, value in values.items()]
            if time.monotonic() - self._sent > LIVE_SECONDS:
                self._flush()

    def failed(self, status: str = "FAILED") -> None:
        """End the run as FAILED or KILLED."""
        with self._lock:
            self._flush()
        self._end(status)

    def _flush(self) -> None:
        points, self._waiting, self._sent = self._waiting, [], time.monotonic()
        if points:
            self._send(points)

    def __enter__(self) -> "LiveRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.failed(
                "KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit | StopEarly) else "FAILED"
            )
