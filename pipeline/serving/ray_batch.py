"""Scoring on Ray: a task per shard, in a cluster or in processes on this machine; what a lost worker had begun is begun again."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving.batch import Counts, Job, Scorer

RETRIES = 5
"""Times that a shard is begun again when the worker that scores it is lost."""


def score(job: Job, num_shards: int, users: list[int]) -> Iterator[tuple[int, Counts]]:
    """(users done, counts) of every shard, as they are finished. users: of each shard.

    Every process opens bundle and log by their paths, which must lead to the same files everywhere, and computes with one thread.
    Raises LookbackError where Ray is not installed, or a shard failed.
    """
    try:
        import ray
    except ImportError:
        raise LookbackError(
            "score.engine: received 'ray', but Ray is not installed; install it with `pip install 'lookback[ray]'`, or set "
            "score.engine = 'local'"
        ) from None
    own = _connect(ray, job.settings.workers)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_shard)
        plain = _PlainJob.of(job)
        waiting = {task.remote(plain, number): number for number in range(num_shards)}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            yield users[number], ray.get(done)
    except ray.exceptions.RayError as error:
        raise LookbackError(f"score: Ray: {getattr(error, 'cause', None) or error}") from None
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> bool:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; whether it is our own."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    alone: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    address = os.environ.get("RAY_ADDRESS")
    ray.init(**({"address": address} if address else alone), log_to_driver=False, logging_level="error")
    return True


class _PlainJob(NamedTuple):
    """A job in plain values, which any process can receive."""

    bundle: str
    features: str
    ingest: str
    folder: str
    settings: str
    seed: int
    directory: str

    @classmethod
    def of(cls, job: Job) -> "_PlainJob":
        bundle, features, ingest, folder = (
            str(path.absolute()) for path in (job.bundle, job.features, job.ingest, job.folder)
        )
        settings = job.settings.model_dump_json()
        return cls(bundle, features, ingest, folder, settings, job.seed, str(Path.cwd()))


def _shard(job: _PlainJob, number: int) -> Counts:
    """Score one shard in a worker process."""
    os.chdir(job.directory)  # where relative paths of the settings lead from
    return _opened(job).score(number, _silently)


def _silently(_users: int) -> None:
    """Nobody looks at a worker's progress."""


@lru_cache(maxsize=1)
def _opened(job: _PlainJob) -> Scorer:
    """The job, opened once per process."""
    import torch

    torch.set_num_threads(1)
    settings = ScoreConfig.model_validate_json(job.settings)
    bundle, features, ingest, folder = map(Path, (job.bundle, job.features, job.ingest, job.folder))
    return Scorer.open(Job(bundle, features, ingest, folder, settings, job.seed))
