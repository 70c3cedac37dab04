"""Heavy libraries that each command loads, seen in the real command: what it does not need costs it no time."""

import re
import subprocess

import pytest

from tests.workdir import Workdir

HEAVY = {
    *("torch", "mlflow", "polars", "numpy", "pyarrow", "pandas", "faiss", "sklearn", "scipy", "matplotlib"),
    *("plotly", "jinja2", "optuna", "pooch", "requests", "implicit", "ray", "sqlalchemy", "tqdm", "http"),
}
"""Libraries that take more than 30 ms to load; http with them, which brings ssl and email."""


def heavy(workdir: Workdir, *arguments: str) -> set[str]:
    """The heavy libraries that a command loads until it ends, by Python's own account of its imports."""
    command = workdir.command(*arguments)
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]],
        cwd=workdir.folder,
        env=workdir.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", done.stderr, re.MULTILINE))
    assert "pipeline" in loaded
    return loaded & HEAVY


def test_help_loads_nothing_heavy(finished: Workdir) -> None:
    assert not heavy(finished, "--help")
    assert not heavy(finished, "run", "--help")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(("run", "all"), {"numpy"}), (("run", "train", "--json"), set[str]()), (("path", "report"), set[str]())],
    ids=["run all", "run train", "path"],
)
def test_what_is_up_to_date_loads_nothing_heavy(
    finished: Workdir, arguments: tuple[str, ...], allowed: set[str]
) -> None:
    """`run all` prints the evaluation's table, whose report has numpy with it: a tenth of a second."""
    assert heavy(finished, *arguments, "--config", finished.config) <= allowed


@pytest.mark.slow
def test_a_night_loads_what_scoring_and_logging_need(copied: Workdir) -> None:
    night = (
        "run",
        "ingest",
        "features",
        "monitor",
        "score",
        "--set",
        "score.model=champion",
        "--set",
        "score.k=7",
    )
    loaded = heavy(copied, *night, "--config", copied.config)
    assert {"torch", "mlflow", "polars", "faiss"} <= loaded
    assert not loaded & {"sklearn", "matplotlib", "plotly", "jinja2", "optuna", "pooch", "implicit", "ray"}
    assert not heavy(copied, *night, "--config", copied.config), "the second time, all is up to date"


@pytest.mark.slow
def test_one_recommendation_loads_no_tracking(finished: Workdir) -> None:
    loaded = heavy(finished, "recommend", "--history", "1001,1002", "--config", finished.config)
    assert {"torch", "polars", "faiss"} <= loaded
    assert not loaded & {"mlflow", "sqlalchemy", "sklearn", "matplotlib", "plotly", "optuna", "implicit"}
