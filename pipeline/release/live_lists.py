"""`score/live`: link to the newest lists for all users by the champion, or by the arms of an experiment."""

import contextlib
from dataclasses import dataclass

from features.settings import iso_microseconds
from pipeline.artifacts.store import LIVE, Artifact, linked, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking import missing
from pipeline.tracking.decisions import REFUSED, WAITING
from pipeline.tracking.registry import CHAMPION, Registry, model_name
from pipeline.tracking.server import Version


@dataclass(frozen=True)
class Liveness:
    """Whether lists are live, in one line with the reason."""

    is_live: bool
    sentence: str


def point(config: Config, lists: Artifact, scored: Version | None) -> Liveness:
    """Point `score/live` to lists of all users by the champion, and say so; else leave the link and say why.

    lists: the score artifact; scored: registered version it was made with, None without one.
    """
    try:
        obstacle, number = _obstacle(config, lists, scored)
    except LookbackError as error:  # an unreachable server
        obstacle, number = (
            f"the champion is unknown ({error}); run again: {config.command('run', 'score')}",
            None,
        )
    if obstacle is None:
        lists.point_live()
        made_by = _arms(lists) or f"by the champion, version {number}"
        return Liveness(is_live=True, sentence=f"live: {lists.stage_folder / LIVE}, {made_by}")
    return Liveness(is_live=False, sentence=f"not live: {obstacle}; {_stays(lists)}")


def _obstacle(config: Config, lists: Artifact, scored: Version | None) -> tuple[str | None, int | None]:
    """Reason why lists are not live, or None and the champion's version."""
    if not config.tracking.enabled:
        return "tracking.enabled is false, so there is no champion", None
    if config.score.users != "all":
        return f"score.users is {config.score.users!r}, not all", None
    registry, name = Registry.from_config(config), model_name(config)
    champion, digest = registry.champion(name), read_manifest(lists.folder)["bundle_digest"]
    if champion is None:
        versions = [version for version in registry.versions(name) if version.bundle_digest]
        if not versions:
            return missing.unpublished(config), None
        return f"{missing.waiting(config, versions)}, then {config.command('run', 'score')}", None
    if champion.bundle_digest != digest:
        return _other(config, champion, scored), None
    return _unassigned(config, lists), champion.version


def _unassigned(config: Config, lists: Artifact) -> str | None:
    """Reason why lists of an experiment's time that were made without looking at its arms are not live; None for others."""
    experiment = config.experiment
    if experiment is None or config.score.model == CHAMPION:
        return None
    if read_manifest(lists.folder)["request_time"] < iso_microseconds(
        experiment.start, config.events.timezone
    ):
        return None
    score = config.command("run", "score", settings=[f"score.model={CHAMPION}"])
    return (
        f"experiment {experiment.name!r} runs, and these lists are not by its arms; make those with {score}"
    )


def _arms(lists: Artifact) -> str:
    """Experiment whose arms made the lists, with their versions; empty without one."""
    experiment = read_manifest(lists.folder).get("experiment")
    if experiment is None:
        return ""
    arms = (
        arm["name"] + ("" if arm["model_version"] is None else f" (version {arm['model_version']})")
        for arm in experiment["arms"]
    )
    return f"by the arms of experiment {experiment['name']!r}: {', '.join(arms)}"


def _other(config: Config, champion: Version, scored: Version | None) -> str:
    """Message for lists of another version than the champion."""
    stands = f"version {champion.version} is the champion"
    if scored is None:
        return f"{stands}, and the scored bundle is not registered; {config.command('run', 'publish')}"
    if scored.name != champion.name:
        return f"{stands}, and {scored.uri} is of another model"
    why = f", {scored.gate}: {scored.reason}" if scored.gate in (REFUSED, WAITING) else ""
    score = config.command("run", "score")
    return f"{stands}, not version {scored.version}{why}; {missing.to_promote(config, scored.version)}, then {score}"


def _stays(lists: Artifact) -> str:
    """Present target of the link."""
    folder = linked(lists.stage_folder).get(LIVE)
    if folder is None:
        return f"there is no {lists.stage_folder / LIVE} yet"
    with contextlib.suppress(OSError, DamagedArtifact, KeyError):
        manifest = read_manifest(folder)
        return f"{lists.stage_folder / LIVE} stays: version {manifest['model_version']}, {manifest['created_utc'][:16]}Z"
    return f"{lists.stage_folder / LIVE} stays"
