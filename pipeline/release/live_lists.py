"""`score/live`: link to the newest lists of the champion for all users."""

import contextlib
from dataclasses import dataclass

from pipeline.artifacts.store import LIVE, Artifact, linked, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking import missing
from pipeline.tracking.decisions import REFUSED
from pipeline.tracking.registry import Registry, model_name
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
        return Liveness(
            is_live=True, sentence=f"live: {lists.stage_folder / LIVE}, by the champion, version {number}"
        )
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
    return None, champion.version


def _other(config: Config, champion: Version, scored: Version | None) -> str:
    """Message for lists of another version than the champion."""
    stands = f"version {champion.version} is the champion"
    if scored is None:
        return f"{stands}, and the scored bundle is not registered; {config.command('run', 'publish')}"
    if scored.name != champion.name:
        return f"{stands}, and {scored.uri} is of another model"
    why = f", refused: {scored.reason}" if scored.gate == REFUSED else ""
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
