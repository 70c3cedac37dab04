"""System metrics during a stage: processor, memory, disk, network and GPU, by MLflow's monitors."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from pipeline.background import every
from pipeline.errors import optional
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord

PREFIX = "system/"
"""Prefix by which MLflow's UI recognises system metrics."""


@contextlib.contextmanager
def sampled(record: RunRecord, live: LiveRun, seconds: float) -> Iterator[None]:
    """Sample every `seconds` inside the context and once at its end, into the record and the live run; 0: never.

    Points have steps from 0: means over the time since the previous step.
    """
    if not seconds:
        yield
        return
    made: list[_Monitors] = []
    with optional("system metrics"):
        made.append(_Monitors())
    if not made:
        yield
        return
    steps = itertools.count()

    def sample() -> None:
        step, values = next(steps), made[0].sample()
        for name, value in values.items():
            record.metric(name, value, step)
        live.system_metrics(values, step)

    with every(seconds, "system metrics", sample, at_end=True):
        yield


class _Monitors:
    """MLflow's monitors; the GPU's only with a GPU and nvidia-ml-py."""

    def __init__(self) -> None:
        import psutil
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        psutil.cpu_percent()  # starts the count; the first value is meaningless
        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
        self._all = [kind() for kind in kinds]
        gpu_monitor: Any = GPUMonitor
        with contextlib.suppress(Exception):  # any error of the driver means no GPU
            self._all.append(gpu_monitor())

    def sample(self) -> dict[str, float]:
        """Name to value since the last sample."""
        values: dict[str, float] = {}
        for monitor in self._all:
            monitor.collect_metrics()
            values |= {f"{PREFIX}{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
