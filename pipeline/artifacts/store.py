"""Artifact store: content-addressed stage folders, manifests, commit by rename, one lock per artifact.

`<data_dir>/<name>/<stage>/<fingerprint>/` is a finished artifact; `.building-<fingerprint>` beside it is its workspace
(kept after a kill, so that a stage can resume). The links `latest` and, of scoring, `live` point to artifacts.
"""

import contextlib
import ctypes
import gc
import json
import os
import shutil
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import (
    TEMPORARY,
    digest_file,
    files_below,
    fingerprint,
    fsync,
    known_digest,
    now,
    read_json,
    read_record,
    temporary_beside,
    write_json,
)
from pipeline.errors import DamagedArtifact

MANIFEST = "manifest.json"
LATEST, LIVE = "latest", "live"
"""Links of a stage: the artifact of the last run; of scoring, the lists of the champion for all users."""
_USES = ".uses.json"
OWN_DIGEST = "manifest_digest"
"""Key of a manifest: the digest of the rest of it. Manifests of 0.6 have none."""
RECORD = "tracking.json"
"""What a stage has logged: nothing is computed from it, and damaged it is made anew from the manifest (`RunRecord.load`)."""
_GRACE_SECONDS = 5.0
"""Wait before a line about the lock's holder is printed; checks of up-to-date artifacts are shorter."""


class Artifact:
    """Paths and life cycle of one artifact, whether it exists or not."""

    def __init__(self, stage_folder: Path, name: str) -> None:
        self.stage_folder = stage_folder
        self.name = name
        self.folder = stage_folder / name
        self.workspace = stage_folder / f".building-{name}"
        self.run_link = stage_folder / ".runs" / f"{name}.json"
        self.lock_file = stage_folder / ".locks" / f"{name}.lock"
        self._old = stage_folder / f".old-{name}"

    def __str__(self) -> str:
        return f"{self.stage_folder.name}/{self.name}"

    def is_complete(self) -> bool:
        """Whether the artifact exists; checks names and sizes of its files and reads no data.

        Raises DamagedArtifact for a missing file or one of another size than in the manifest, RECORD apart.
        """
        if not self.folder.exists() and (self._old / MANIFEST).exists():
            self._old.rename(self.folder)  # killed between the two renames of a forced rebuild
        if not (self.folder / MANIFEST).exists():
            return False
        for relative, (size, _) in self._files().items():
            path = self.folder / relative
            if relative == RECORD:
                continue
            if not path.exists():
                raise DamagedArtifact(f"{path}: is missing from a finished artifact; {self._remedy()}")
            if path.stat().st_size != size:
                raise DamagedArtifact(
                    f"{path}: is damaged: {path.stat().st_size} bytes, expected {size}; {self._remedy()}"
                )
        return True

    def verify(self, names: Collection[str] | None = None) -> None:
        """Raise DamagedArtifact if a file, RECORD apart, has another digest than in the manifest; each is read once per process.

        names: relative paths of the files to check, where the artifact has them; by default all.
        """
        for relative, (_, digest) in self._files().items():
            if relative == RECORD or (names is not None and relative not in names):
                continue
            path = self.folder / relative
            if not path.exists() or known_digest(path) != digest:
                raise DamagedArtifact(
                    f"{path}: is damaged: its digest differs from the manifest's; {self._remedy()}"
                )

    def _files(self) -> dict[str, list[Any]]:
        """Relative path of every file to [size, digest]."""
        try:
            files: dict[str, list[Any]] = read_manifest(self.folder)["files"]
        except (DamagedArtifact, KeyError, TypeError):
            raise DamagedArtifact(
                f"{self.folder / MANIFEST}: is damaged, not valid JSON as it was written; {self._remedy()}"
            ) from None
        return files

    def _remedy(self) -> str:
        return _remedy(self.stage_folder.name)

    def prepare(self, resume: bool) -> None:
        """Create an empty workspace or, to resume, keep the one of an interrupted run."""
        if self.workspace.exists() and not resume:
            shutil.rmtree(self.workspace)
        self.workspace.mkdir(parents=True, exist_ok=True)
        for path in self.workspace.rglob(".*"):
            if (
                path.suffix == TEMPORARY or path.suffix[1:].isdigit()
            ):  # of a killed run; 0.6 ended them by a number
                path.unlink()

    def commit(self, manifest: dict[str, Any], known: Mapping[str, str] | None = None) -> None:
        """Seal the workspace with its manifest and rename it into place, everything on disk first.

        known: relative path to digest of files already on disk, linked from elsewhere.
        """
        known = known or {}
        files = {
            path.relative_to(self.workspace).as_posix(): path
            for path in files_below(self.workspace)
            if path.name != MANIFEST
        }
        manifest["files"] = {
            name: [path.stat().st_size, known.get(name) or digest_file(path)] for name, path in files.items()
        }
        write_json(self.workspace / MANIFEST, manifest | {OWN_DIGEST: _digest_of(manifest)})
        for name in files.keys() - known.keys():
            fsync(files[name])
        for folder in {path.parent for path in files.values()} | {self.workspace}:
            fsync(folder)
        if self.folder.exists():
            shutil.rmtree(self._old, ignore_errors=True)
            self.folder.rename(self._old)
        self.workspace.rename(self.folder)
        fsync(self.stage_folder)
        shutil.rmtree(self._old, ignore_errors=True)
        self.point_latest()

    def remove(self) -> None:
        """Remove the artifact, renamed first, so that no part of it is ever seen, and the links to its tracked run."""
        with self.lock():
            if self.folder.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                self.folder.rename(self._old)
            if self._old.exists():
                (self._old / MANIFEST).unlink(
                    missing_ok=True
                )  # without it nothing comes back (`is_complete`)
                shutil.rmtree(self._old)
            for link in (self.run_link, self.run_link.with_suffix(".version.json")):
                link.unlink(missing_ok=True)

    def point_latest(self) -> None:
        """Point `latest` to this artifact, and number it as the last one used (`uses`)."""
        with self._links_locked():
            numbers = uses(self.stage_folder)
            newest = max(numbers.values(), default=0)
            if numbers.get(self.name, -1) < newest:
                there = {
                    name: number for name, number in numbers.items() if (self.stage_folder / name).exists()
                }
                write_json(self.stage_folder / _USES, there | {self.name: newest + 1})
            self._point(LATEST)

    def point_live(self) -> None:
        """Point `live` to this artifact."""
        with self._links_locked():
            self._point(LIVE)

    @contextlib.contextmanager
    def _links_locked(self) -> Iterator[None]:
        """Lock the stage's links and numbers."""
        import filelock

        with filelock.FileLock(self.stage_folder / ".links.lock"):
            yield

    def _point(self, name: str) -> None:
        """Replace a link of the stage by one to this artifact."""
        link = self.stage_folder / name
        if link.is_symlink() and str(link.readlink()) == self.name:
            return
        temporary = temporary_beside(link)
        temporary.symlink_to(self.name)
        temporary.replace(link)
        fsync(self.stage_folder)

    @contextlib.contextmanager
    def lock(self, inputs: dict[str, str] | None = None) -> Iterator[None]:
        """Lock this artifact, waiting for another process that builds it.

        inputs: stage to fingerprint of the artifacts read meanwhile (see `being_made`).
        """
        import filelock

        self.lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.lock_file)
        holder = self.lock_file.with_suffix(".json")
        try:
            lock.acquire(timeout=_GRACE_SECONDS)
        except filelock.Timeout:
            print(
                f"{self} is being made by {_holder(holder)}; waiting for it to end",
                file=sys.stderr,
                flush=True,
            )
            lock.acquire()
        try:
            write_json(
                holder,
                {
                    "process": os.getpid(),
                    "host": socket.gethostname(),
                    "since": now().isoformat(),
                    "inputs": inputs or {},
                },
            )
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def is_locked(self) -> bool:
        """Whether a process builds this artifact now."""
        return self.name in being_made(self.stage_folder)


def uses(stage_folder: Path) -> dict[str, int]:
    """Fingerprints of a stage's artifacts to the number of their last use, a counter; empty where there is no valid record."""
    try:
        numbers = read_json(stage_folder / _USES)
    except (OSError, DamagedArtifact):
        return {}
    valid = isinstance(numbers, dict) and all(isinstance(number, int) for number in numbers.values())
    return numbers if valid else {}


def linked(stage_folder: Path) -> dict[str, Path]:
    """Names of a stage's links to the artifacts they point to, without links that lead nowhere."""
    links = {name: stage_folder / name for name in (LATEST, LIVE)}
    return {
        name: stage_folder / link.readlink()
        for name, link in links.items()
        if link.is_symlink() and link.exists()
    }


def being_made(stage_folder: Path) -> dict[str, dict[str, str]]:
    """Fingerprints of a stage's artifacts being built now, each to its inputs (stage to fingerprint)."""
    import filelock

    held = {}
    for path in (stage_folder / ".locks").glob("*.lock"):
        try:
            with filelock.FileLock(path, timeout=0):
                pass
        except filelock.Timeout:
            inputs = read_record(path.with_suffix(".json")).get("inputs")
            held[path.stem] = inputs if isinstance(inputs, dict) else {}
    return held


def _holder(path: Path) -> str:
    content = read_record(path)
    if not {"process", "host", "since"} <= content.keys():
        return "another process"
    return f"process {content['process']} on {content['host']} since {str(content['since'])[:19]}Z"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a finished artifact, without its own digest. Raises DamagedArtifact if it differs from that."""
    content: dict[str, Any] = read_json(folder / MANIFEST)
    digest = content.pop(OWN_DIGEST, None) if isinstance(content, dict) else ""
    if digest is not None and digest != _digest_of(content):
        stage = folder.parent.name
        raise DamagedArtifact(f"{folder / MANIFEST}: is damaged: its digest differs; {_remedy(stage)}")
    return content


def _digest_of(manifest: Any) -> str:
    return fingerprint(json.loads(json.dumps(manifest)))


def _remedy(stage: str) -> str:
    return f"build it again with: lookback run {stage} --force --config …"


def give_back_memory() -> None:
    """Return freed memory to the system, so that one stage's peak does not carry over to the next (glibc only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class PeakMemory:
    """Peak resident size of this process since construction (since its start where it cannot be reset)."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def bytes(self) -> int:
        """Peak resident set size so far, in bytes."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
