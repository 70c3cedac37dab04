"""`lookback update`: the night with a training that goes on from the champion, judged before it is champion itself."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from models.settings.training import SCRATCH
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.orchestration.graph import resolve
from pipeline.orchestration.registered_systems import of_start
from pipeline.orchestration.runner import Summary, bring_up_to_date
from pipeline.tracking.decisions import WAITING
from pipeline.tracking.registry import CHALLENGER, CHAMPION, Registry, model_name

DAY = 86_400_000_000
"""Microseconds."""


def update(config: Config, *, show_progress: bool, say: Callable[[str], None]) -> list[Summary]:
    """Read new events, judge the candidates of earlier nights, train the next one, score; returns the summaries of all stages.

    The champion's lists go live, the candidate's are kept beside them as the shadow `challenger`. Where no update can start from
    the version of `train.start`, by default the champion, or the last training from scratch is older than
    `train.full_every_days`, the training is one from scratch. Raises ConfigError without tracking or times.
    """
    if config.events.timestamp_unit == "position":
        raise ConfigError(
            "update: received events.timestamp_unit 'position', expected a log with times: no event is newer than a version: "
            f"name the column of the times, or train from scratch: {config.command('run', 'publish')}"
        )
    if not config.tracking.enabled:
        raise ConfigError(
            "update: received tracking.enabled = false, expected true: an update goes on from a registered version; without a "
            f"registry train from scratch: {config.command('run', 'publish', settings=['train.start=scratch'])}"
        )
    start = config.train.start if config.train.start != SCRATCH else CHAMPION
    scratch = _with_start(config, SCRATCH)

    def run(settings: Config, *names: str) -> list[Summary]:
        return bring_up_to_date(settings, names, force=False, show_progress=show_progress, say=say)

    summaries = run(scratch, "ingest", "features", "monitor")
    has_start = start != CHAMPION or Registry.from_config(config).champion(model_name(config)) is not None
    plan = _Plan(SCRATCH, "there is no champion yet") if not has_start else _plan(_with_start(config, start))
    if plan.start == SCRATCH:
        say(f"update: trained from scratch: {plan.reason}")
    elif plan.start is None:
        say(f"update: {plan.reason}")
    if plan.start is not None:
        summaries += run(_with_start(config, plan.start), "publish")
    return summaries + run(_for_lists(scratch), "score")


def _with_start(config: Config, start: str) -> Config:
    return config.model_copy(update={"train": dataclasses.replace(config.train, start=start)})


def _for_lists(config: Config) -> Config:
    """Configuration that scores with the champion, and with the version that waits beside it."""
    shadows = list(config.score.shadows)
    candidate = Registry.from_config(config).challenger(model_name(config))
    if candidate is not None and candidate.gate == WAITING:
        shadows += [CHALLENGER] if CHALLENGER not in shadows else []
    score = config.score.model_copy(update={"model": CHAMPION, "shadows": shadows})
    return config.model_copy(update={"score": score})


class _Plan(NamedTuple):
    start: str | None
    """`train.start` of the training; None: nothing is trained"""
    reason: str


def _plan(config: Config) -> _Plan:
    """Training of this night; raises LookbackError where the version of `train.start` is none of this log."""
    from pipeline.dataset.dataset import Dataset
    from pipeline.serving import bundle_cache
    from pipeline.serving.bundle import read_description
    from pipeline.serving.bundle_baseline import baseline_of
    from pipeline.serving.start_version import StartVersion, full_training, obstacle

    source = of_start(config)
    assert source is not None, "start is a registered version"
    reason = obstacle(config, source)
    description = read_description(bundle_cache.bundle_folder(config, source), verify=False)
    nodes, days = resolve(config, ["features"]).nodes, config.train.full_every_days
    dataset = Dataset.open(nodes["features"].artifact.folder)
    last = max(
        (time for time in (full_training(description), *_full_trainings(config)) if time is not None),
        default=None,
    )
    age = 0.0 if last is None else (dataset.facts.now - last) / DAY
    if days and age >= days:
        return _Plan(SCRATCH, f"the last one is {age:.1f} days old, train.full_every_days is {days:g}")
    if (baseline := baseline_of(description)) is not None:
        return _Plan(
            None,
            f"nothing is trained: {source.uri} is the baseline {baseline}, until a training from scratch is due",
        )
    if reason is not None:
        return _Plan(SCRATCH, reason)
    start = StartVersion.open(config, source, dataset, nodes["ingest"].artifact.folder)
    return _Plan(config.train.start, "") if start.num_new else _Plan(None, start.nothing_new)


def _full_trainings(config: Config) -> Sequence[int]:
    """Newest events of the publish artifacts that were trained from scratch."""
    from pipeline.artifacts.files import read_record

    times = []
    for folder in (config.folder / "publish").glob("[0-9a-f]*/"):
        if (
            not Artifact(folder.parent, folder.name).is_complete()
            or "start" in read_manifest(folder)["inputs"]
        ):
            continue
        newest: Any = read_record(folder / "bundle" / "bundle.json").get("newest")
        times += [newest] if isinstance(newest, int) else []
    return times
