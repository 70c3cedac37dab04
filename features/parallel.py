"""Parallel map over a stream, in order and in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 8
"""Maximum number of threads; one more piece than this is in memory."""
_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def in_order(
    work: Callable[[_Piece], _Result], pieces: Iterable[_Piece], max_threads: int = MAX_THREADS
) -> Generator[_Result, None, None]:
    """Yield `work(piece)` in the order of the pieces, computed by one thread per core (at most `max_threads`).

    An exception of `work` is raised in its turn, one of the iterator `pieces` at once. Closing the generator drops the rest.
    """
    num_threads = min(os.cpu_count() or 1, max_threads)
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
