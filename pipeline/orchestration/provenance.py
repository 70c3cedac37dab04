"""Host and code version of a run, as tags."""

import functools
import os
import shutil
import socket
import subprocess
from pathlib import Path


@functools.cache
def tags() -> dict[str, str]:
    """Host and cores; in a git checkout also the commit, and whether files differ from it."""
    values = {"lookback.host": socket.gethostname(), "lookback.cores": str(os.cpu_count())}
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        values |= {
            "mlflow.source.git.commit": commit,
            "lookback.git": commit[:12],
            "lookback.git_dirty": str(bool(changed)).lower(),
        }
    return values


def _git(*words: str) -> str | None:
    """Output of a git command in the folder of this code; None without git or a checkout."""
    if shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return result.stdout.strip() if result.returncode == 0 else None
