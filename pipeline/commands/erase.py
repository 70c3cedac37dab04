"""`lookback prune --excluded`: remove everything that may still hold the users of `events.exclude_users`.

Kept are artifacts whose lineage leads to an ingest artifact with the present exclusion, and bundles that list no excluded
user. Source files stay; of rows read from a database theirs go.
"""

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.artifacts import deliveries, event_parts, source_files, store
from pipeline.artifacts.scratch import remove_abandoned, scratch
from pipeline.artifacts.store import Artifact, being_made
from pipeline.commands.leftovers import remove
from pipeline.commands.prune import all_lineages, megabytes
from pipeline.config import Config
from pipeline.errors import ConfigError, DamagedArtifact, LookbackError
from pipeline.monitoring.outcome_files import OutcomeFiles
from pipeline.orchestration.graph import STAGES, resolve
from pipeline.serving.start_version import lists_any
from pipeline.tracking import registry
from pipeline.tracking.client import tracking_uri
from pipeline.tracking.models import delete_run_files, runs_with_files, unowned_models
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import Version, absolute_uri


@dataclass
class _Erasure:
    """Removed folders (dry run: folders to remove), and what has to stay for now."""

    config: Config
    dry_run: bool
    removed: list[Path] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """Beginning of a line about a removal."""
        return "would remove" if self.dry_run else "removed"

    def remove(self, folder: Path, how: Callable[[Path], None] = shutil.rmtree) -> None:
        size = megabytes(folder)
        if not self.dry_run:
            how(folder)
        self.removed.append(folder)
        print(f"{self.verb} {folder} ({size:,.1f} MB), not made with the present events.exclude_users")


def prune_excluded(config: Config, *, dry_run: bool) -> list[Path]:
    """Remove artifacts, parts, bundles, versions and files of runs that may hold excluded users; returns the folders.

    Raises ConfigError where no users are excluded; LookbackError at the end where something had to stay: inputs of a
    running stage, the champion.
    """
    if config.events.exclude_users is None:
        raise ConfigError("prune --excluded: events.exclude_users is not set, expected the users to erase")
    now = resolve(config, ["publish"])
    exclusion = now.nodes["ingest"].inputs["exclude_users"]
    erasure = _Erasure(config, dry_run)
    kept = _erase_artifacts(erasure, exclusion, {node.artifact.workspace for node in now.nodes.values()})
    _erase_temporary(erasure)
    _erase_runs(erasure, kept)
    _erase_parts(erasure, exclusion)
    users = source_files.excluded_users(config)
    assert users is not None
    _erase_deliveries(erasure, users)
    _erase_bundles(erasure, users)
    _erase_models(erasure, users)
    source_files.release(config, now.sources)
    print(f"{len(erasure.removed)} folders {'would go' if dry_run else 'gone'}")
    if erasure.waiting and not dry_run:
        raise LookbackError("prune --excluded: not all is gone: " + "; ".join(erasure.waiting))
    for reason in erasure.waiting:
        print(f"would stay: {reason}")
    return erasure.removed


# --- artifacts and parts ---


def _erase_artifacts(erasure: _Erasure, exclusion: str, workspaces: set[Path]) -> set[Path]:
    """Erase artifacts and workspaces; returns the ones made with the exclusion.

    workspaces: workspaces of the present configuration, which are kept.
    """
    config = erasure.config
    used = {
        folder
        for stage in STAGES
        for inputs in being_made(config.folder / stage).values()
        for folder in all_lineages(config, inputs)
    }
    kept = {
        folder
        for stage in STAGES
        for folder in (config.folder / stage).glob("*/")
        if folder in workspaces or _is_without(config, stage, folder, exclusion)
    }
    for stage in STAGES:
        for folder in sorted((config.folder / stage).glob("*/")):
            name = re.fullmatch(r"(?:\.old-|\.building-)?([0-9a-f]{16})", folder.name)
            if name is None or folder.is_symlink() or folder in kept:
                continue
            artifact = Artifact(folder.parent, name[1])
            if stage == "monitor" and _is_only_series(folder, kept):
                erasure.waiting.append(
                    f"{folder} holds the realised outcomes of all nights: run `lookback run monitor` with this exclusion, which "
                    "keeps those of the other users, and this again"
                )
                continue
            if folder in used or artifact.is_locked():
                erasure.waiting.append(f"a running stage uses {folder}: run this again when it has ended")
                continue
            erasure.remove(folder, functools.partial(_remove, artifact))
    return kept


def _is_only_series(monitor: Path, kept: set[Path]) -> bool:
    """Whether an artifact is the latest of the monitor, has outcomes, and none made with the exclusion continues it."""
    latest = store.linked(monitor.parent).get(store.LATEST)
    if latest != monitor or any(folder.parent == monitor.parent for folder in kept):
        return False
    try:
        return OutcomeFiles(monitor).num_rows() > 0
    except (OSError, pl.exceptions.PolarsError):
        return False


def _is_without(config: Config, stage: str, folder: Path, exclusion: str) -> bool:
    """Whether the manifests prove that an artifact was made with this exclusion."""
    try:
        inputs = store.read_manifest(folder)["inputs"]
    except (OSError, DamagedArtifact, KeyError):
        return False
    if stage == "ingest":
        return bool(inputs.get("exclude_users") == exclusion)
    return all(
        _is_without(config, needed, config.folder / needed / name, exclusion)
        for needed, name in inputs.items()
        if needed in STAGES
    )


def _remove(artifact: Artifact, folder: Path) -> None:
    """Remove an artifact, what is left of an old one, or a workspace; and the links that would lead nowhere."""
    if folder == artifact.folder:
        artifact.remove()
    with artifact.lock():
        if folder != artifact.folder:
            shutil.rmtree(folder)
        for link in (artifact.stage_folder / name for name in (store.LATEST, store.LIVE)):
            if link.is_symlink() and not link.exists():
                link.unlink()


def _erase_runs(erasure: _Erasure, kept: set[Path]) -> None:
    """Delete the files of runs on the tracking server (users with their targets, the report); metrics stay."""
    config = erasure.config
    if not config.tracking.enabled:
        return
    uri = absolute_uri(tracking_uri(config))
    names = {folder.name for folder in kept}
    for run in runs_with_files(uri, config.name):
        made_from = {run.tags.get("lookback.fingerprint"), run.tags.get("lookback.input.features")}
        if made_from & names:
            continue
        if not erasure.dry_run:
            delete_run_files(uri, run.run_id)
        print(f"{erasure.verb} the files of run {run.name} ({run.run_id}) on {uri}")


def _erase_temporary(erasure: _Erasure) -> None:
    """Erase copies of killed processes: of remote sources, and of bundles unpacked or fetched."""
    config = erasure.config
    copies = [config.folder / source_files.SPOOL]
    bundles = config.folder / ".bundles"
    for parent in (config.folder, bundles):
        copies += parent.glob(".downloading-*/")  # of 0.6
        abandoned, in_use = remove_abandoned(parent, dry_run=erasure.dry_run)
        erasure.removed += abandoned
        for place in abandoned:
            print(f"{erasure.verb} {place}, left by a killed process")
        for place in in_use:
            erasure.waiting.append(f"another process uses {place}: run this again when it has ended")
    if being_made(config.folder / "ingest"):
        erasure.waiting.append(f"a running ingest may use {copies.pop(0)}: run this again when it has ended")
    for folder in copies:
        if folder.exists():
            erasure.remove(folder)


def _erase_parts(erasure: _Erasure, exclusion: str) -> None:
    stage_folder = erasure.config.folder / "ingest"
    old = [folder for folder in event_parts.kept(stage_folder) if not _has_exclusion(folder, exclusion)]
    old += (stage_folder / event_parts.PARTS).glob(".building-*")
    if old and being_made(stage_folder):
        erasure.waiting.append(
            f"a running ingest may use parts in {stage_folder / event_parts.PARTS}: run this again later"
        )
        return
    for folder in old:
        erasure.remove(folder)


def _has_exclusion(part: Path, exclusion: str) -> bool:
    record = event_parts.read(part)
    return record is not None and ",".join(record.facts["settings"]["excluded"]) == exclusion


def _erase_deliveries(erasure: _Erasure, excluded: pl.Series) -> None:
    """Rewrite rows of databases without excluded users; remove those of other queries and those that count no more."""
    config = erasure.config
    others = [*deliveries.others(config), *deliveries.unused(config)]
    held = deliveries.with_users(config, excluded)
    if (others or held) and being_made(config.folder / "ingest"):
        erasure.waiting.append(
            f"a running ingest may use files in {config.folder / deliveries.DATABASE}: run this again later"
        )
        return
    for path in others:
        if path.exists():
            erasure.remove(path, remove)
    for path, rows in held.items():
        if not erasure.dry_run:
            deliveries.erase(path, rows)
        print(f"{'would erase' if erasure.dry_run else 'erased'} {int(rows.sum()):,} rows in {path}")


# --- bundles ---


def _erase_bundles(erasure: _Erasure, excluded: pl.Series) -> None:
    """Delete downloaded bundles and registered versions that list an excluded user; the champion is only reported."""
    config = erasure.config
    for folder in sorted((config.folder / ".bundles").glob("[!.]*/")):
        if lists_any(folder, excluded):
            erasure.remove(folder)
    if not config.tracking.enabled:
        return
    models, name = Registry.from_config(config), registry.model_name(config)
    champion = models.champion(name)
    for version in models.versions(name):
        if not _version_holds(config, models, version, excluded):
            continue
        if champion is not None and version.version == champion.version:
            erasure.waiting.append(
                f"{version.uri} is the champion and holds excluded users: publish again (lookback run publish), move the "
                "alias (lookback promote VERSION), and run this again"
            )
            continue
        if not erasure.dry_run:
            models.delete_version(name, version.version)
        print(f"{erasure.verb} {version.uri} (bundle {version.bundle_digest}), which holds excluded users")


def _version_holds(config: Config, models: Registry, version: Version, excluded: pl.Series) -> bool:
    with scratch(config.folder) as folder:
        return lists_any(models.download_bundle(version, folder / "bundle"), excluded)


def _erase_models(erasure: _Erasure, excluded: pl.Series) -> None:
    """Delete logged models without a version, which an interrupted publish or prune left, and unlisted files of others."""
    config = erasure.config
    if not config.tracking.enabled:
        return
    uri = absolute_uri(tracking_uri(config))
    is_publishing = bool(being_made(config.folder / "publish"))
    for model_id in registry.prune_logged_models(config, dry_run=erasure.dry_run or is_publishing):
        if is_publishing:
            erasure.waiting.append(
                f"a running publish may register the model {model_id}: run this again later"
            )
        else:
            print(f"{erasure.verb} the logged model {model_id} on {uri}, which no version has")
    for folder in unowned_models(uri):
        if any(lists_any(bundle, excluded) for bundle in folder.glob("artifacts/data/*/")):
            erasure.remove(folder)
