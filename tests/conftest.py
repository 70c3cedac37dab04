"""Fixtures and settings of all tests: one thread per process, a clean environment, public data sets."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tests run side by side, and tiny arrays gain nothing from threads
os.environ.setdefault(
    "MLFLOW_LOGGING_LEVEL", "WARNING"
)  # MLflow reads it when it is imported, whoever imports it first
hypothesis.settings.register_profile("shared-cores", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("shared-cores")
pytest_plugins = ["tests.postgresql_server", "tests.published_versions", "tests.workdir"]
ROOT = Path(__file__).resolve().parents[1]
DATA_FOLDERS = (
    ROOT / "data" / "raw",
    Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT / ".." / "shared" / "data")),
)

SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "models").rglob("*.py"))
    if "from models.shapes import" in path.read_text(encoding="utf-8")
]
assert len(SHAPED) >= 16, f"shapes are checked in {SHAPED} alone: were the modules moved?"
if (
    "LOOKBACK_UNCHECKED_SHAPES" not in os.environ
):  # a call with its shapes checked takes more than twice as long
    install_import_hook(SHAPED, "beartype.beartype")  # shapes in signatures are checked at every call


LONGEST = ("test_planted.py", "test_processors.py", "test_nightly.py", "test_erase.py", "test_parent_run.py")
"""Files whose tests take minutes; they start first, so that no worker runs them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files first, then tests that run commands."""

    def key(item: pytest.Item) -> tuple[bool, bool]:
        runs_commands = {"finished", "copied", "workdir"} & set(getattr(item, "fixturenames", ()))
        return item.path.name not in LONGEST, not runs_commands

    items.sort(key=key)


@pytest.fixture(autouse=True)
def _own_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's tracking server."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def public_data() -> Callable[[str], Path]:
    """Find the folder of a public data set (`ml-100k`), or skip the test."""

    def find(name: str) -> Path:
        for folder in DATA_FOLDERS:
            if (folder / name).is_dir():
                return folder / name
        pytest.skip(
            f"{name} is neither in data/raw nor in LOOKBACK_SHARED_DATA: "
            f"lookback data --config pipeline/configs/{name}.toml downloads it"
        )

    return find
