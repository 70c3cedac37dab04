"""The command line's own messages."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands import download


def test_ctrl_c_names_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = 'columns = { user_id = "u", item_id = "i", timestamp = "t" }'
    Path("my shop.toml").write_text(f'name = "shop"\n[events]\npath = "log.csv"\n{columns}\n')

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download", interrupted)
    uri = "tracking.uri=http://me:planted@host"
    monkeypatch.setattr(sys, "argv", ["lookback", "data", "--config", "my shop.toml", "--set", uri])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == (
        "lookback: stopped; what is finished is kept, and the same command goes on from there: "
        "lookback data --config 'my shop.toml' --set tracking.uri=http://***@host"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["lookback", "--version"])
    main()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    os.environ.pop("GOMP_SPINCOUNT", None)  # what main sets, monkeypatch does not take back
