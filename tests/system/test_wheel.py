"""A wheel built from the tree, installed outside the checkout: the command line runs the demo from any directory."""

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "simulate.num_users": 150,
    "simulate.num_items": 100,
    "simulate.num_events": 4000,
    "model.dim": 16,
    "train.epochs": 1,
    "evaluate.resamples": 100,
    "evaluate.baselines": '["popularity"]',
}
"""The demo, smaller: what is tested is the installation."""


def run(*command: str, cwd: Path) -> str:
    """The standard output of a command that knows nothing of the checkout."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    run(*command, str(ROOT), cwd=folder)
    (built,) = folder.glob("lookback-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "features", "models", "pipeline"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert not set(tracked) - held
    assert {"pipeline/configs/demo.toml", "pipeline/reporting/templates/report.html.j2"} <= held
    assert not [name for name in held if name.startswith(("tests/", "mlruns/", "data/"))]


@pytest.mark.slow
@pytest.mark.parametrize("with_dependencies", [False, True], ids=["present dependencies", "own dependencies"])
def test_it_runs_the_demo_outside_the_checkout(
    wheel: Path, tmp_path: Path, *, with_dependencies: bool
) -> None:
    """With its own dependencies it is an empty environment, and takes gigabytes: only where it is asked for."""
    if with_dependencies and "LOOKBACK_FRESH_ENVIRONMENT" not in os.environ:
        pytest.skip("LOOKBACK_FRESH_ENVIRONMENT is not set: installs every dependency")
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", str(wheel)]
    if with_dependencies:
        run(*install, "--constraint", str(ROOT / "constraints.txt"), cwd=tmp_path)
    else:  # a path file is read, but not the path files that it leads to: the checkout stays out
        run(*install, "--no-deps", "--no-index", cwd=tmp_path)
        (own,) = (home / "lib").glob("python*/site-packages")
        (own / "present.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    where = "import features, models, pipeline; print(features.__file__, models.__file__, pipeline.__file__)"
    assert all(Path(file).is_relative_to(home) for file in run(python, "-c", where, cwd=work).split())
    lookback = str(home / "bin" / "lookback")
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    said = run(lookback, "run", "all", "--config", "demo", *settings, cwd=work)
    assert "report " in said
    for stage, file in (("score", "_SUCCESS"), ("report", "report.html")):
        folder = run(lookback, "path", stage, "--config", "demo", *settings, cwd=work).strip()
        assert (work / folder / file).is_file()
    assert sorted(path.name for path in work.iterdir()) == ["data", "mlruns"]
