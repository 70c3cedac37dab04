"""Work beside a running stage, and work divided among threads."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from pipeline.background import divided, every


def test_calls_end_with_the_context() -> None:
    called: list[int] = []
    deadline = time.monotonic() + 60
    with every(0.001, "work", lambda: called.append(1)):
        while len(called) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    number = len(called)
    assert number >= 3
    time.sleep(0.02)
    assert len(called) == number


def test_a_last_call_at_the_end_of_the_context_failed_or_not() -> None:
    called: list[int] = []
    with every(60, "work", lambda: called.append(1), at_end=True):
        assert called == []
    assert called == [1]
    with pytest.raises(KeyError), every(60, "work", lambda: called.append(2), at_end=True):
        raise KeyError
    assert called == [1, 2]


def test_a_failure_costs_one_line_and_ends_the_calls(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        raise ValueError("no sensor")

    with every(0.0, "metrics", fail, at_end=True):
        time.sleep(0.05)
    assert called == [1]
    assert capsys.readouterr().err.startswith("metrics: left out, ValueError: no sensor")


@pytest.fixture(params=[1, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch with one thread, and with three."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_piece_once_its_own_first_and_kernels_of_one_thread(num_threads: int) -> None:
    done: list[tuple[str, bool, int]] = []
    others_wait = threading.Event()

    def work(piece: str) -> None:
        if piece == "mine":
            others_wait.set()
        else:
            assert others_wait.wait(60)
        is_here = threading.current_thread() is threading.main_thread()
        done.append((piece, is_here, torch.get_num_threads()))

    divided(work, ["a", "b", "c", "d"], ["mine"], [])
    assert sorted(piece for piece, _, _ in done) == ["a", "b", "c", "d", "mine"]
    assert {threads for _, _, threads in done} == {1}
    assert [is_here for piece, is_here, _ in done if piece == "mine"] == [True]
    assert torch.get_num_threads() == num_threads


def test_a_failure_beside_is_raised_here_and_nothing_new_begins() -> None:
    failures: list[BaseException] = []
    begun: list[str] = []
    before = torch.get_num_threads()

    def work(piece: str) -> None:
        begun.append(piece)
        if piece == "mine":
            deadline = time.monotonic() + 60
            while not failures and time.monotonic() < deadline:
                time.sleep(0.001)
        else:
            raise ValueError(f"{piece}: no events")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="first: no events"):
            divided(work, ["first", "second", "third"], ["mine"], failures)
    finally:
        torch.set_num_threads(before)
    assert sorted(begun) == ["first", "mine"]
    assert len(failures) == 1
