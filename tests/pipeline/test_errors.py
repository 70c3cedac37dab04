"""Failures that nobody foresaw: one line, and on with the work where no list needs the part."""

import pytest

from pipeline import __main__ as command_line
from pipeline.errors import LookbackError, one_line, optional


def fail(error: BaseException) -> None:
    raise error


def test_a_failing_part_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with optional("drift"):
        fail(KeyError("score\nmore"))
    with optional("report"):
        fail(LookbackError("page: is missing"))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "drift: left out, KeyError: 'score\\nmore' (LOOKBACK_TRACEBACK=1 shows where)",
        "report: left out, page: is missing",
    ]
    with pytest.raises(KeyboardInterrupt), optional("drift"):
        fail(KeyboardInterrupt())


def test_a_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKBACK_TRACEBACK", "1")
    with optional("drift"):
        fail(KeyError("score"))
    assert "Traceback" in capsys.readouterr().err


def test_an_error_without_text_has_its_kind() -> None:
    assert one_line(RuntimeError()) == "RuntimeError (LOOKBACK_TRACEBACK=1 shows where)"


def test_any_failure_of_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(**_: object) -> None:
        raise AttributeError("no such thing\nmore")

    monkeypatch.delenv("LOOKBACK_TRACEBACK", raising=False)
    monkeypatch.setattr(command_line, "cli", command)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["lookback: AttributeError: no such thing (LOOKBACK_TRACEBACK=1 shows where)"]
