"""The run book's script, cron line and systemd units: what they do with each exit code, and that they are well formed."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.__main__ import cli

PAGE = Path(__file__).resolve().parents[1] / "pipeline" / "README.md"
PLACE = "/srv/lookback"
SCRIPT, CRON, SERVICE, TIMER = re.findall(
    r"^```(?:sh|ini|crontab)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("codes", "ended", "mailed"),
    [
        ("0", 0, []),
        ("1 1 0", 0, []),
        ("1 3", 3, ["-s lookback: exit code 3 ops@example.com", "night 2 with code 3"]),
        ("2", 2, ["-s lookback: exit code 2 ops@example.com", "night 1 with code 2"]),
        ("1 137 1", 1, ["-s lookback: exit code 1 ops@example.com", "night 3 with code 1"]),
    ],
)
def test_a_night_is_tried_again_and_mailed_where_it_matters(
    tmp_path: Path, codes: str, ended: int, mailed: list[str]
) -> None:
    night = f'#!/bin/sh\necho "$@" >> calls\nn=$(wc -l < calls)\ncode=$(echo {codes} | cut -d" " -f$n)\n'
    executable(
        tmp_path / ".venv/bin/lookback", f'{night}echo "night $((n)) with code $code" >&2\nexit $code\n'
    )
    executable(tmp_path / "bin/mail", f'#!/bin/sh\n{{ echo "$@"; cat; }} > {tmp_path}/mailed\n')
    executable(tmp_path / "bin/sleep", f'#!/bin/sh\necho "$@" >> {tmp_path}/slept\n')
    executable(tmp_path / "night.sh", SCRIPT.replace(PLACE, str(tmp_path)))
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", tmp_path / "night.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (ended, "", "")
    number = len(codes.split())
    assert len((tmp_path / "calls").read_text().splitlines()) == number
    slept = (tmp_path / "slept").read_text().split() if (tmp_path / "slept").exists() else []
    assert slept == ["600"] * (number - 1)
    assert (tmp_path / "mailed").exists() == bool(mailed)
    if mailed:
        assert (tmp_path / "mailed").read_text().splitlines() == mailed


def test_the_script_s_command_is_one_that_the_command_line_takes() -> None:
    (command,) = re.findall(r"\.venv/bin/lookback (.*?) >", SCRIPT.replace("\\\n", ""), re.DOTALL)
    name, *words = shlex.split(command.replace("shop.toml", "demo"))
    given = cli.commands[name].make_context(name, words).params
    assert given["stages"] == ("ingest", "features", "monitor", "score")
    assert given["fail_on_alert"]
    assert given["config"].score.model == "champion"


def test_cron_and_systemd_start_the_script() -> None:
    assert re.fullmatch(rf"(\d+|\*)( (\d+|\*)){{4}}  {PLACE}/night\.sh\n", CRON)
    units: dict[str, dict[str, str]] = {}
    for text in (SERVICE, TIMER):
        parser = configparser.ConfigParser()
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(text)
        units |= {section: dict(parser[section]) for section in parser.sections()}
    assert units["Service"]["ExecStart"] == f"{PLACE}/night.sh"
    assert units["Service"]["SuccessExitStatus"] == "3", "alerts are mailed by the script"
    assert units["Timer"]["OnCalendar"] == "*-*-* 02:30:00"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    executable(tmp_path / "night.sh", SCRIPT)
    for name, text in (("lookback.service", SERVICE), ("lookback.timer", TIMER)):
        (tmp_path / name).write_text(text.replace(PLACE, str(tmp_path)))
    command: list[str | Path] = [
        "systemd-analyze",
        "verify",
        "--man=no",
        tmp_path / "lookback.service",
        tmp_path / "lookback.timer",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    own = [line for line in done.stderr.splitlines() if "lookback" in line]
    assert (done.returncode, own) == (0, [])
