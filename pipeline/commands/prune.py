"""`lookback prune`: remove old artifacts; never what the champion, the newest run or a running stage uses."""

import shutil
from pathlib import Path

from pipeline.artifacts import event_parts
from pipeline.artifacts.files import files_below
from pipeline.artifacts.store import MANIFEST, Artifact, being_made, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.orchestration import parent_run
from pipeline.orchestration.graph import STAGES
from pipeline.tracking import registry

_DIGEST_LENGTH = 16


def prune(config: Config, *, keep: int, dry_run: bool) -> list[Path]:
    """Remove all but the `keep` newest artifacts of every stage, except what must stay; returns what went (or would go).

    What stays: whatever the newest artifact of any stage was made from, what the champion's bundle was made from, what is
    being made now and what that reads; interrupted workspaces stay with their stage's kept artifacts.
    """
    found = {stage: _artifacts(config.folder / stage) for stage in STAGES}
    digest = registry.champion_digest(config)
    kept = _in_use(config, found, keep, digest)
    old = [each for artifacts in found.values() for each in artifacts if each.folder not in kept]
    said = "would remove" if dry_run else "removed"
    removed = []
    for artifact in old:
        if artifact.is_locked():
            continue
        removed.append(artifact.folder)
        print(f"{said} {artifact.folder} ({megabytes(artifact.folder):,.1f} MB)")
        if not dry_run:
            _remove(artifact)
    bundles = [each for each in (config.folder / ".bundles").glob("*") if each.name != digest]
    ingest = config.folder / "ingest"
    for folder in [
        *bundles,
        *parent_run.without_artifacts(config),
        *([] if being_made(ingest) else event_parts.unused(ingest)),
    ]:
        removed.append(folder)
        print(f"{said} {folder} ({megabytes(folder):,.1f} MB), which nothing uses any more")
        if not dry_run:
            shutil.rmtree(folder)
    for version in registry.prune_versions(config, keep=keep, dry_run=dry_run):
        print(f"{said} {version.uri} (bundle {version.bundle_digest})")
    print(f"{len(removed)} folders {'would go' if dry_run else 'gone'}, {len(kept)} artifacts kept")
    return removed


def _in_use(config: Config, found: dict[str, list[Artifact]], keep: int, champion: str | None) -> set[Path]:
    """Artifacts that must stay."""
    kept = {artifact.folder for artifacts in found.values() for artifact in artifacts[:keep]}
    for artifacts in found.values():
        for artifact in artifacts[:1]:
            kept |= _lineage(config, artifact.folder)
    for artifact in found["publish"]:
        if champion is not None and read_manifest(artifact.folder).get("bundle_digest") == champion:
            kept |= _lineage(config, artifact.folder)
    for stage in STAGES:
        for inputs in being_made(config.folder / stage).values():
            kept |= all_lineages(config, inputs)
    return kept


def megabytes(folder: Path) -> float:
    """Size of all its files."""
    return sum(path.stat().st_size for path in files_below(folder)) / 1e6


def _artifacts(folder: Path) -> list[Artifact]:
    """A stage's finished artifacts, newest first."""
    names = [
        path.parent.name
        for path in folder.glob(f"*/{MANIFEST}")
        if len(path.parent.name) == _DIGEST_LENGTH and not path.parent.is_symlink()
    ]
    return sorted(
        (Artifact(folder, name) for name in names), key=lambda each: _created(each.folder), reverse=True
    )


def _created(folder: Path) -> str:
    try:
        return str(read_manifest(folder)["created_utc"])
    except (DamagedArtifact, KeyError):
        return ""


def _lineage(config: Config, folder: Path) -> set[Path]:
    """An artifact and all it was made from."""
    kept = {folder}
    try:
        inputs = read_manifest(folder)["inputs"]
    except (OSError, DamagedArtifact, KeyError):
        return kept
    return kept | all_lineages(config, inputs)


def all_lineages(config: Config, inputs: dict[str, str]) -> set[Path]:
    """The artifacts among a stage's inputs (stage -> fingerprint), and all they were made from.

    `evaluate cut 1` is an artifact of the stage evaluate too.
    """
    found = (
        _lineage(config, config.folder / stage / name)
        for called, name in inputs.items()
        if (stage := called.partition(" ")[0]) in STAGES
    )
    return {folder for lineage in found for folder in lineage}


def _remove(artifact: Artifact) -> None:
    """Take the folder out of sight at once, then delete it."""
    with artifact.lock():
        aside = artifact.stage_folder / f".old-{artifact.name}"
        (artifact.folder / MANIFEST).unlink()
        artifact.folder.rename(aside)
        shutil.rmtree(aside)
        for link in (artifact.run_link, artifact.run_link.with_suffix(".version.json")):
            link.unlink(missing_ok=True)
