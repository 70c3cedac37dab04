"""Folders for what libraries unpack: beside the artifacts, locked while in use, and found again after a kill."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH = ".temporary"


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield an empty folder below `parent`, where this process's temporary files go meanwhile; removed at the end."""
    import filelock

    remove_abandoned(parent)
    place = parent / SCRATCH / secrets.token_hex(8)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_suffix(".lock")
    with filelock.FileLock(lock):
        place.mkdir(parents=True)
        try:
            with _temporary_files_in(place):
                yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
            lock.unlink(missing_ok=True)
            _remove_if_empty(place.parent)


def put_in_place(folder: Path, to: Path) -> Path:
    """Rename a folder made in `scratch` beside `to`; one that another process put there first stays. Returns `to`."""
    try:
        return folder.rename(to)
    except OSError:
        if not to.exists():
            raise
    return to


def remove_abandoned(parent: Path, *, dry_run: bool = False) -> tuple[list[Path], list[Path]]:
    """Remove the folders of killed processes; returns them (dry_run: the ones to remove), and the ones in use."""
    import filelock

    abandoned, in_use = [], []
    for place in sorted((parent / SCRATCH).glob("*/")):
        lock = place.with_suffix(".lock")
        try:
            with filelock.FileLock(lock, timeout=0):
                if not dry_run:
                    shutil.rmtree(place)
                    lock.unlink(missing_ok=True)
                abandoned.append(place)
        except filelock.Timeout:
            in_use.append(place)
    if not dry_run:
        _remove_if_empty(parent / SCRATCH)
    return abandoned, in_use


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not there, or another process's folder is in it
        folder.rmdir()


@contextlib.contextmanager
def _temporary_files_in(place: Path) -> Iterator[None]:
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(place.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR")
        if variable is not None:
            os.environ["TMPDIR"] = variable
