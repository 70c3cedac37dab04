"""User errors, one message each: what, where, received, expected, next step."""

import shlex
from collections.abc import Sequence

from pipeline.credentials import masked


class LookbackError(Exception):
    """The data or the run failed; the command ends with exit code 1. Credentials in the message are masked."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class ConfigError(LookbackError):
    """The command or the configuration is wrong; the command ends with exit code 2."""

    exit_code = 2


class DamagedArtifact(LookbackError):
    """A file of an artifact is missing or differs from its manifest."""


def command_line(words: Sequence[str]) -> str:
    """Command `lookback WORDS` for a message, quoted for a shell, without credentials in addresses."""
    return masked(shlex.join(["lookback", *words]))
