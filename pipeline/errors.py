"""User errors, one message each: what, where, received, expected, next step; and failures of parts that no list needs."""

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence

from features.printable import printable
from pipeline.credentials import masked

TRACEBACK = "LOOKBACK_TRACEBACK"
"""Environment variable that shows tracebacks."""


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


def one_line(error: BaseException) -> str:
    """Kind and first line of an unforeseen error, and how to see more."""
    text = printable(masked(str(error).strip().partition("\n")[0]))
    kind = type(error).__name__
    return f"{kind}: {text} ({TRACEBACK}=1 shows where)" if text else f"{kind} ({TRACEBACK}=1 shows where)"


@contextlib.contextmanager
def optional(part: str) -> Iterator[None]:
    """Report a failure of a part that no list needs in one line on stderr, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (whatever it is, the lists are worth more)
        text = str(error) if isinstance(error, LookbackError) else one_line(error)
        print(f"{part}: left out, {text}", file=sys.stderr, flush=True)
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
