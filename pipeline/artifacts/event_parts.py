"""Parts of the log kept between artifacts: a folder per source and settings, shared by hard links."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import digest_file, files_below, fsync, read_json, write_json
from pipeline.errors import DamagedArtifact

PARTS = ".parts"
"""The folder beside the artifacts."""
_RECORD = "part.json"


@dataclass(frozen=True)
class Record:
    """Record of a part, read without opening its files."""

    facts: dict[str, Any]
    """The facts given to `write`."""
    digests: dict[str, str]
    """File name to sha256."""


def read(folder: Path) -> Record | None:
    """The record of a part; None if it is missing or a file of the part is damaged.

    A file of the recorded size and time is taken as whole.
    """
    try:
        content = read_json(folder / _RECORD)
        facts, files = content["said"], content["files"]
        whole = all(_is_whole(folder / name, *known) for name, known in files.items())
    except (OSError, DamagedArtifact, KeyError, TypeError, ValueError):
        return None
    return Record(facts, {name: digest for name, (_, _, digest) in files.items()}) if whole else None


def _is_whole(path: Path, size: int, modified_ns: int, digest: str) -> bool:
    status = path.stat()
    if status.st_size != size:
        return False
    if status.st_mtime_ns == modified_ns:
        return True
    if digest_file(path) != digest:
        return False
    with contextlib.suppress(OSError):  # after a copy of the folder, say: not read every night
        os.utime(path, ns=(status.st_atime_ns, modified_ns))
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a part against other processes; another configuration may build the same one."""
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(_lock_file(folder)):
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a part."""
    import filelock

    with contextlib.suppress(filelock.Timeout), filelock.FileLock(_lock_file(folder), timeout=0):
        return False
    return True


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to build a part in."""
    place = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write(place: Path, folder: Path, facts: dict[str, Any]) -> Record:
    """Seal a workspace with its record and rename it into place, everything on disk first."""
    files = {}
    for path in files_below(place):
        fsync(path)
        status = path.stat()
        files[path.name] = (status.st_size, status.st_mtime_ns, digest_file(path))
    write_json(place / _RECORD, {"said": facts, "files": files})
    fsync(place)
    shutil.rmtree(folder, ignore_errors=True)
    place.rename(folder)
    fsync(folder.parent)
    return Record(facts, {name: digest for name, (_, _, digest) in files.items()})


def link(source: Path, target: Path) -> bool:
    """Hard-link a file; return False, after a copy, on a file system without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        return False
    return True


def kept(stage_folder: Path) -> list[Path]:
    """The folders of all parts."""
    return sorted(path for path in (stage_folder / PARTS).glob("*/") if not path.name.startswith("."))


def unused(stage_folder: Path) -> list[Path]:
    """Parts that share no file with an artifact (a part without files, which records text ids, stays)."""
    return [folder for folder in kept(stage_folder) if _links(folder) == {1}]


def _links(folder: Path) -> set[int]:
    return {path.stat().st_nlink for path in files_below(folder) if path.name != _RECORD}
