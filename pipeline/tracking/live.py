"""Live metrics of a running stage: sent to its MLflow run and to an observer."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType

from pipeline.tracking.record import Point, allowed, now_ms

LIVE_SECONDS = 5.0
"""Minimum interval between two batches of metrics."""
Observer = Callable[[Mapping[str, float], int], object]
"""Callback with the metrics of a running stage and their step; may raise StopEarly."""
_observer: ContextVar[Observer] = ContextVar("observer", default=lambda *_: None)


class StopEarly(Exception):
    """Raised by an observer to end the stage: nothing is committed, and its workspace stays to resume from."""


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Pass the metrics of every stage started inside the context to an observer."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


class LiveRun:
    """MLflow run of a running stage; as a context manager it ends the run of a failed stage alone."""

    def __init__(
        self, run_id: str | None, send: Callable[[list[Point]], object], end: Callable[[str], object]
    ) -> None:
        self.run_id = run_id
        self._send = send
        self._end = end
        self._observe = _observer.get()
        self._pending: list[Point] = []
        self._sent = -math.inf
        self._lock = threading.Lock()  # system metrics come from another thread

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step and pass them to the observer; batches are sent every few seconds."""
        self.system_metrics(values, step)
        self._observe(values, step)

    def system_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step that no observer sees."""
        now = now_ms()
        with self._lock:
            self._pending += [Point(allowed(name), float(value), step, now) for name, value in values.items()]
            if time.monotonic() - self._sent > LIVE_SECONDS:
                self._flush()

    def failed(self, status: str = "FAILED") -> None:
        """End the run as FAILED or KILLED."""
        with self._lock:
            self._flush()
        self._end(status)

    def _flush(self) -> None:
        points, self._pending, self._sent = self._pending, [], time.monotonic()
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
