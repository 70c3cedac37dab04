"""Messages for a registered version that is not there: which version waits, why, and the command that goes on."""

from collections.abc import Sequence

from pipeline.config import Config
from pipeline.tracking.decisions import REFUSED, WAITING
from pipeline.tracking.server import Version


def explain(
    uri: str, server: str, versions: Sequence[Version], champion: Version | None, config: Config | None
) -> str:
    """Message for a missing models:/… URI.

    versions: of the model, newest first; champion: its champion; config: configuration that publishes the model, if it does.
    """
    if not versions:
        return f"{uri}: no such model on {server}; " + (
            "expected the name of a registered model" if config is None else unpublished(config)
        )
    numbers = ", ".join(str(version.version) for version in versions)
    found = f"{uri}: no such version on {server}, which has {numbers}; "
    if champion is not None:
        return f"{found}{champion.uri} is the champion: use that"
    if config is None:
        return f"{found}none is the champion: use one of these"
    return found + waiting(config, versions)


def unpublished(config: Config) -> str:
    """Next step where no version is registered."""
    settings = () if config.tracking.enabled else ("tracking.enabled=true",)
    return f"nothing is published yet: {config.command('run', 'publish', settings=settings)}"


def waiting(config: Config, versions: Sequence[Version]) -> str:
    """Version that waits to be champion where there is none, and the command that makes it champion; versions: newest first."""
    version = next((each for each in versions if each.gate not in ("", REFUSED, WAITING)), versions[0])
    number = version.version
    if version.gate in (REFUSED, WAITING):
        state = f"version {number} waits, {version.gate}: {version.reason}"
    elif version.gate:
        state = (
            f"version {number} was champion once ({version.gate}: {version.reason}), and the alias is gone"
        )
    else:
        state = f"version {number} waits, undecided"
    return f"there is no champion: {state}; {to_promote(config, number)}"


def to_promote(config: Config, number: int) -> str:
    """Command that makes a version champion."""
    return f"to make it champion: {config.command('promote', str(number))}"
