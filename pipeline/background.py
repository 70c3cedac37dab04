"""Work beside a running stage, in a thread; pieces of a stage's own work, divided among threads."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.errors import optional

_Piece = TypeVar("_Piece")


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


def divided(
    work: Callable[[_Piece], object],
    pieces: Iterable[_Piece],
    own: Iterable[_Piece],
    failures: list[BaseException],
) -> None:
    """Call `work` on every piece, as many at a time as torch has threads; this thread alone begins with `own`.

    Kernels have one thread each meanwhile, so that the bits of a piece do not depend on the others. The first of `failures` is
    raised. The other threads then end after their piece, unawaited, as they do where this thread is interrupted; long pieces look
    into `failures` themselves.
    """
    waiting: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
    for piece in pieces:
        waiting.put(piece)

    def take() -> None:
        with contextlib.suppress(queue.Empty):
            while not failures:
                work(waiting.get_nowait())

    def take_beside() -> None:
        try:
            _one_thread()
            take()
        except BaseException as error:  # noqa: BLE001  (raised in the thread that called)
            failures.append(error)

    with _kernels_of_one_thread() as num_threads:
        num_beside = min(num_threads - 1, waiting.qsize())
        threads = [threading.Thread(target=take_beside, daemon=True) for _ in range(num_beside)]
        for thread in threads:
            thread.start()
        try:
            for piece in own:
                work(piece)
            take()
            for thread in threads:
                thread.join()
        except BaseException as error:
            failures.append(error)
            raise
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _kernels_of_one_thread() -> Iterator[int]:
    """Give this thread's kernels one thread inside the context; yields the number of threads that torch had."""
    import scipy.linalg  # noqa: F401  (its BLAS is limited only where it is loaded)
    import torch
    from threadpoolctl import threadpool_limits

    num_threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield num_threads
        finally:
            torch.set_num_threads(num_threads)


def _one_thread() -> None:
    """Give this thread's kernels one thread; the setting belongs to a thread and is not restored."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
