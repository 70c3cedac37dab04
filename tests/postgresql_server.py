"""PostgreSQL server of the tests' own, where Debian's package is installed."""

import os
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SECRET = "h7Wq/zPl@nted"
"""Password of the server's user."""


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a server without its password SECRET."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_user: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL}
    if os.geteuid() == 0:  # which the server refuses
        as_user |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text(SECRET)
    (folder / "password").chmod(0o644)
    control = [str(programs[-1] / "pg_ctl"), "-D", "data", "-w", "-l", "log"]
    made = ["-D", "data", "-U", "shop", "-A", "scram-sha-256", "--pwfile=password", "--no-sync", "-E", "UTF8"]
    subprocess.run([programs[-1] / "initdb", *made], check=True, **as_user)
    options = f"-F -c listen_addresses='' -k {folder} -c timezone=Europe/Berlin"
    subprocess.run([*control, "-o", options, "start"], check=True, **as_user)
    yield f"postgresql://shop@/postgres?host={urllib.parse.quote(str(folder), safe='')}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, **as_user)
    shutil.rmtree(folder)
