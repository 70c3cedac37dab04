"""Work beside a running stage, in a thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pipeline.errors import optional


@contextlib.contextmanager
def every(seconds: float, part: str, work: Callable[[], object], *, at_end: bool = False) -> Iterator[None]:
    """Call `work` every `seconds` inside the context, and with `at_end` once more at its end.

    An exception of `work` ends the calls with one line (`optional(part)`), not the context.
    """
    ended = threading.Event()

    def repeat() -> None:
        with optional(part):
            while not ended.wait(seconds):
                work()
            if at_end:
                work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
