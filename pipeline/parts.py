"""Parts of the log that are kept between artifacts, one folder per source and settings; files are shared by hard links."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.errors import DamagedArtifact

PARTS = ".parts"
"""The folder beside the artifacts."""
_RECORD = "part.json"


def read(folder: Path) -> dict[str, Any] | None:
    """What `write` was given for a part; None where there is none, or where a file of it is damaged."""
    try:
        content = store.read_json(folder / _RECORD)
        whole = all(store.digest_file(folder / name) == digest for name, digest in content["files"].items())
    except (OSError, DamagedArtifact, KeyError):
        return None
    return content["said"] if whole else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else makes this part meanwhile; another configuration may want the same one."""
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """An empty folder in which to make a part."""
    place = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write(place: Path, folder: Path, said: dict[str, Any]) -> None:
    """Seal a workspace with what is to be known of the part, and rename it into place."""
    files = {path.name: store.digest_file(path) for path in store.files_below(place)}
    store.write_json(place / _RECORD, {"said": said, "files": files})
    shutil.rmtree(folder, ignore_errors=True)
    place.rename(folder)


def link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def unused(stage_folder: Path) -> list[Path]:
    """Parts that no artifact shares a file with (a record that a source has other ids is small, and stays)."""
    folders = [path for path in (stage_folder / PARTS).glob("*/") if not path.name.startswith(".")]
    return [folder for folder in folders if _links(folder) == {1}]


def _links(folder: Path) -> set[int]:
    return {path.stat().st_nlink for path in store.files_below(folder) if path.name != _RECORD}
