"""Code of a logged model: our packages under one name of their own, so that they meet no application's packages."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("features", "models", "pipeline")
LOADER = "pipeline.serving"
"""Module that MLflow calls to load a model."""
ROOT = Path(__file__).resolve().parents[2]
_OURS = re.compile(rf"^(\s*)from ({'|'.join(PACKAGES)})\b(?=[. ])", re.MULTILINE)
_WHOLE = re.compile(rf"^(\s*)import ({'|'.join(PACKAGES)})$", re.MULTILINE)


@contextmanager
def renamed() -> Iterator[tuple[Path, str]]:
    """Folder of a package `lookback_DIGEST` that holds our packages, and the name of its loader module.

    Imports of our packages are rewritten to that name, which is that of the code's content: models of one version share their
    modules in a process, those of two versions have their own.
    """
    sources = {path: path.read_text(encoding="utf-8") for name in PACKAGES for path in _files(ROOT / name)}
    digest = hashlib.sha256()
    for path, text in sources.items():
        digest.update(f"{path.relative_to(ROOT)}\0{text}\0".encode())
    name = f"lookback_{digest.hexdigest()[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / name
        package.mkdir()
        (package / "__init__.py").write_text('"""Code of a model that lookback published."""\n')
        for path, text in sources.items():
            target = package / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_rewritten(text, name), encoding="utf-8")
            shutil.copymode(path, target)
        yield package, f"{name}.{LOADER}"


def _rewritten(text: str, name: str) -> str:
    """Source with imports of our packages from the package `name`."""
    return _WHOLE.sub(rf"\1from {name} import \2", _OURS.sub(rf"\1from {name}.\2", text))


def _files(package: Path) -> list[Path]:
    """Python files of a package, sorted."""
    return sorted(path for path in package.rglob("*.py") if "__pycache__" not in path.parts)
