"""Code of a logged model under a name of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking import model_code


def test_no_import_of_our_packages_is_left(tmp_path: Path) -> None:
    with model_code.renamed() as (package, loader):
        assert loader == f"{package.name}.pipeline.serving"
        code = f"""
import importlib, pathlib, sys
sys.path.insert(0, {str(package.parent)!r})
importlib.import_module({loader!r})._load_pyfunc
print([name for name in sys.modules if name.partition(".")[0] in ("features", "models", "pipeline")])
print({loader!r} in sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True"]


def test_the_name_is_that_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in model_code.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("from models.b import c\nimport pipeline\n")
    monkeypatch.setattr(model_code, "ROOT", tmp_path)
    with model_code.renamed() as (first, _):
        text = (first / "features" / "a.py").read_text()
        assert text == f"from {first.name}.models.b import c\nfrom {first.name} import pipeline\n"
    with model_code.renamed() as (again, _):
        assert again.name == first.name
    (tmp_path / "models" / "a.py").write_text("")
    with model_code.renamed() as (other, _):
        assert other.name != first.name
