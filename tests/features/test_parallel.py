"""Results keep their order whatever threads do; failures come in their turn; little is ahead of the reader."""

import itertools
import time
from collections.abc import Iterator

import pytest

from features.parallel import MAX_THREADS, in_order


def test_results_come_in_the_order_of_the_pieces() -> None:
    def work(piece: int) -> int:
        time.sleep(0.01 if piece % 3 == 0 else 0)
        return piece * piece

    assert list(in_order(work, range(30))) == [piece * piece for piece in range(30)]
    assert list(in_order(work, [])) == []


def test_a_failure_comes_after_the_results_before_it() -> None:
    def work(piece: int) -> int:
        if piece == 4:
            raise ValueError("four")
        return piece

    results = in_order(work, itertools.count())
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="four"):
        next(results)


def test_no_more_pieces_are_taken_than_threads_can_work_on() -> None:
    taken = []

    def pieces() -> Iterator[int]:
        for piece in itertools.count():
            taken.append(piece)
            yield piece

    results = in_order(lambda piece: piece, pieces())
    next(results)
    assert len(taken) <= MAX_THREADS + 1
    results.close()
