"""Code in a fresh interpreter."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def python(code: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run code in a folder with these variables alone."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
