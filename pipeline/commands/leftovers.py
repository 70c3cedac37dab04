"""Files and folders that killed commands left behind and no later command uses."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import deliveries, event_parts
from pipeline.artifacts.files import is_abandoned
from pipeline.artifacts.scratch import SCRATCH, remove_abandoned
from pipeline.artifacts.store import MANIFEST, Artifact, being_made
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.orchestration.graph import STAGES, Pipeline, resolve

_FOLDER = re.compile(r"(\.old-|\.building-|)([0-9a-f]{16})")


def leftovers(config: Config) -> list[Path]:
    """Artifacts without a manifest or replaced, workspaces that no run resumes, half downloads, temporary files.

    Also files of databases' rows that count no more, since everything was read anew.
    """
    stages = [path for stage in STAGES for path in _of_stage(config, stage)]
    return [*stages, *_downloads(config), *_temporary_files(config.folder), *deliveries.unused(config)]


def _of_stage(config: Config, stage: str) -> Iterator[Path]:
    stage_folder = config.folder / stage
    building, resumed = being_made(stage_folder), None
    for folder in sorted(stage_folder.glob("*/")):
        name = _FOLDER.fullmatch(folder.name)
        if name is None or folder.is_symlink() or name[2] in building:
            continue
        artifact = Artifact(stage_folder, name[2])
        if name[1] == ".building-" and STAGES[stage].resumable:
            resumed = _workspaces(config) if resumed is None else resumed
            if folder not in resumed:
                yield folder
        elif name[1] == ".old-":
            if artifact.folder.exists() or not (folder / MANIFEST).exists():  # else it comes back
                yield folder
        elif name[1] == ".building-" or not (folder / MANIFEST).exists():
            yield folder
    if stage == "ingest" and not building:
        yield from sorted((stage_folder / event_parts.PARTS).glob(".building-*"))


def _workspaces(config: Config) -> set[Path]:
    """Workspaces that a run of this configuration resumes; all of them where it cannot be resolved now."""
    try:
        pipelines: list[Pipeline] = [resolve(config, STAGES)]
    except LookbackError:
        return set(config.folder.glob("*/.building-*"))
    pipelines += pipelines[0].earlier_cuts.values()
    return {node.artifact.workspace for pipeline in pipelines for node in pipeline.nodes.values()}


def _downloads(config: Config) -> Iterator[Path]:
    """Copies of bundles that killed processes unpacked or fetched, and half downloads of remote files."""
    for pattern in (SCRATCH, f".bundles/{SCRATCH}", f"publish/*/{SCRATCH}"):
        for place in sorted(config.folder.glob(pattern)):
            yield from remove_abandoned(place.parent, dry_run=True)[0]
    for pattern in (".downloading-*", ".bundles/.downloading-*"):  # of 0.6
        yield from sorted(config.folder.glob(pattern))
    fetching = config.folder / ".remote" / "fetching"
    if fetching.exists() and not event_parts.is_locked(fetching):
        yield fetching


def _temporary_files(folder: Path) -> Iterator[Path]:
    """Temporary files of processes that are gone."""
    for pattern in (".*", "*/.*", "*/*/.*"):
        for path in sorted(folder.glob(pattern)):
            if is_abandoned(path):
                yield path


def remove(path: Path) -> None:
    """Remove a file, link or folder; one that is gone already is no error."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    if path.parent.name == SCRATCH:
        remove_abandoned(path.parent.parent)
        return
    name = _FOLDER.fullmatch(path.name) if path.parent.name in STAGES else None
    lock = Artifact(path.parent, name[2]).lock() if name is not None else contextlib.nullcontext()
    with lock, contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
