"""Work beside a running stage."""

import time

import pytest

from pipeline.background import every


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
