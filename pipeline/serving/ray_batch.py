"""Scoring on Ray: a task per shard, in a cluster or in local processes; shards of a lost worker are restarted."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving import night_lists
from pipeline.serving.arms import Arm, Arms, ArmScorer
from pipeline.serving.assignment import Assignment
from pipeline.serving.batch import Job, NightPass, Scorer
from pipeline.serving.previous_lists import Reuse
from pipeline.serving.shards import Counts
from pipeline.serving.shown_items import NotAgain, ShownList

RETRIES = 5
"""Restarts of a shard whose worker is lost."""


def score(
    job: Job, num_shards: int, users: list[int], arms: Arms | None = None
) -> Iterator[tuple[int, Counts]]:
    """Yield (number of users, counts) of every shard as it finishes. users: number of users of each shard.

    Every process opens bundle and log by path, so paths must lead to the same files everywhere, and computes with one thread.
    Raises LookbackError where Ray is not installed, or a shard failed.
    """
    with session(job.settings.workers) as ray:
        try:
            task = ray.remote(num_cpus=1, max_retries=RETRIES)(_shard)
            plain = _PlainJob.of(job, arms)
            waiting = {task.remote(plain, number): number for number in range(num_shards)}
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(done)
                yield users[number], ray.get(done)
        except ray.exceptions.RayError as error:
            raise LookbackError(f"score: Ray: {getattr(error, 'cause', None) or error}") from None


@contextmanager
def session(workers: int) -> Iterator[Any]:
    """Ray, joined or started here unless it runs already; within a session several passes share its processes.

    Raises LookbackError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise LookbackError(
            "score.engine: received 'ray', but Ray is not installed; install it with `pip install 'lookback[ray]'`, or set "
            "score.engine = 'local'"
        ) from None
    own = _connect(ray, workers)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> bool:
    """Join the cluster of RAY_ADDRESS, or start a local one; True where Ray was started or joined here."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    alone: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    address = os.environ.get("RAY_ADDRESS")
    ray.init(**({"address": address} if address else alone), log_to_driver=False, logging_level="error")
    return True


class _PlainJob(NamedTuple):
    """Job in plain values, for any process."""

    bundle: str
    features: str
    ingest: str
    folder: str
    settings: str
    seed: int
    timed: bool
    timezone: str
    directory: str
    reuse: str
    """JSON of the folders of `Reuse`; empty where every list is made anew"""
    arms: str
    """JSON of their assignment and systems; empty without an experiment"""
    utilities: str
    """JSON of the job's"""
    not_again: str
    """JSON of the rule of `score.max_shown` and its lists; empty where it is off"""
    user_rules: str
    """Folder of rules for single users; empty where there are none"""
    night: str
    """Folder of the candidates of lists that are chosen together; empty where each is made by itself"""
    is_allocated: bool
    """Whether those lists have been chosen"""

    @classmethod
    def of(cls, job: Job, arms: Arms | None) -> "_PlainJob":
        bundle, features, ingest, folder = (
            str(path.absolute()) for path in (job.bundle, job.features, job.ingest, job.folder)
        )
        settings = job.settings.model_dump_json()
        here = str(Path.cwd())
        by_arm = "" if arms is None else json.dumps(asdict(arms), default=_absolute)
        reuse = "" if job.reuse is None else json.dumps(asdict(job.reuse), default=_absolute)
        return cls(
            *(bundle, features, ingest, folder, settings, job.seed, job.timed, job.timezone, here, reuse),
            *(by_arm, json.dumps(job.utilities)),
            "" if job.not_again is None else json.dumps(asdict(job.not_again), default=_absolute),
            "" if job.user_rules is None else _absolute(job.user_rules),
            "" if job.night is None else _absolute(job.night.folder),
            job.night is not None and job.night.is_allocated,
        )


def _shard(job: _PlainJob, number: int) -> Counts:
    """Score one shard in a worker process."""
    os.chdir(job.directory)  # relative paths of the settings start there
    return _opened(job).score(number, lambda _users: None)


@lru_cache(maxsize=1)
def _opened(job: _PlainJob) -> Scorer:
    """Open a job once per process."""
    import torch

    torch.set_num_threads(1)
    settings = ScoreConfig.model_validate_json(job.settings)
    bundle, features, ingest, folder = map(Path, (job.bundle, job.features, job.ingest, job.folder))
    of_job = Job(
        *(bundle, features, ingest, folder, settings, job.seed, job.timed, job.timezone, _reuse(job.reuse)),
        json.loads(job.utilities),
        _not_again(job.not_again),
        Path(job.user_rules) if job.user_rules else None,
        NightPass(Path(job.night), job.is_allocated) if job.night else None,
    )
    scorer = night_lists.opened(Scorer.open(of_job))
    return ArmScorer.of(scorer, _arms(job.arms)) if job.arms else scorer


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _reuse(text: str) -> Reuse | None:
    """Folders of their JSON."""
    if not text:
        return None
    folders = json.loads(text)
    return Reuse(Path(folders["histories"]), folders["previous"] and Path(folders["previous"]))


def _not_again(text: str) -> NotAgain | None:
    """Rule of its JSON."""
    if not text:
        return None
    rule = json.loads(text)
    lists = (ShownList(**own | {"folder": Path(own["folder"])}) for own in rule.pop("lists"))
    return NotAgain(**rule, lists=tuple(lists))


def _arms(text: str) -> Arms:
    """Arms of their JSON."""
    tree = json.loads(text)
    systems = {
        name: Arm(None if own["bundle"] is None else Path(own["bundle"]), own["settings"])
        for name, own in tree["systems"].items()
    }
    return Arms(Assignment(**tree["assignment"]), systems)
