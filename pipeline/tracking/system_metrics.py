"""What the machine is doing while a stage runs: processor, memory, disk, network and GPU, as MLflow's own monitors see them."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord

PREFIX = "system/"
"""How MLflow's UI tells system metrics from others."""


@contextlib.contextmanager
def sampled(plan: RunRecord, live: LiveRun, seconds: float) -> Iterator[None]:
    """Sample every `seconds` while what is within runs, and once more when it ends; into the plan and the live run.

    Nothing where `seconds` is 0. Points are steps from 0: means over the time since the step before.
    """
    if not seconds:
        yield
        return
    monitors = _Monitors()
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(monitors, plan, live, seconds, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(
    monitors: "_Monitors", plan: RunRecord, live: LiveRun, seconds: float, ended: threading.Event
) -> None:
    step, over = 0, False
    while not over:
        over = ended.wait(seconds)
        values = monitors.sample()
        for name, value in values.items():
            plan.metric(name, value, step)
        live.system_metrics(values, step)
        step += 1


class _Monitors:
    """MLflow's monitors; a GPU's only where there is one and what asks it (nvidia-ml-py) is installed."""

    def __init__(self) -> None:
        import psutil
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        psutil.cpu_percent()  # counts from here; its first answer means nothing
        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
        self._all = [kind() for kind in kinds]
        on_gpu: Any = GPUMonitor
        with contextlib.suppress(Exception):  # whatever the driver says where there is no GPU
            self._all.append(on_gpu())

    def sample(self) -> dict[str, float]:
        """Name to value since the last sample."""
        found: dict[str, float] = {}
        for monitor in self._all:
            monitor.collect_metrics()
            found |= {f"{PREFIX}{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
