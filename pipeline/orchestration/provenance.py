"""Where and with which code something was made, as tags of a run."""

import functools
import os
import shutil
import socket
import subprocess
from pathlib import Path


@functools.cache
def tags() -> dict[str, str]:
    """Host and cores; in a git checkout also the commit, and whether files were changed since."""
    found = {"lookback.host": socket.gethostname(), "lookback.cores": str(os.cpu_count())}
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found |= {
            "mlflow.source.git.commit": commit,
            "lookback.git": commit[:12],
            "lookback.git_dirty": str(bool(changed)).lower(),
        }
    return found


def _git(*words: str) -> str | None:
    """What git answers in the folder of this code; None where there is no git or no checkout."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return answer.stdout.strip() if answer.returncode == 0 else None
