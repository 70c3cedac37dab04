"""`lookback prune`: remove old artifacts; inputs of the champion, the newest run and running stages stay."""

import shutil
from pathlib import Path

from pipeline.artifacts import event_parts
from pipeline.artifacts.files import files_below
from pipeline.artifacts.store import MANIFEST, Artifact, being_made, linked, read_manifest, uses
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.orchestration import parent_run
from pipeline.orchestration.graph import STAGES
from pipeline.tracking import registry

_DIGEST_LENGTH = 16


def prune(config: Config, *, keep: int, dry_run: bool) -> list[Path]:
    """Remove all but the `keep` artifacts of every stage used last; returns the removed folders (dry_run: folders to remove).

    Kept too: the lineage of every stage's newest artifact, of what `latest` and `live` point to, and of the champion's bundle,
    running stages with their inputs, interrupted workspaces.
    """
    by_stage = {stage: _artifacts(config.folder / stage) for stage in STAGES}
    digest = registry.champion_digest(config)
    kept = _in_use(config, by_stage, keep, digest)
    old = [
        artifact for artifacts in by_stage.values() for artifact in artifacts if artifact.folder not in kept
    ]
    verb = "would remove" if dry_run else "removed"
    removed = []
    for artifact in old:
        if artifact.is_locked():
            continue
        removed.append(artifact.folder)
        print(f"{verb} {artifact.folder} ({megabytes(artifact.folder):,.1f} MB)")
        if not dry_run:
            _remove(artifact)
    bundles = [folder for folder in (config.folder / ".bundles").glob("*") if folder.name != digest]
    ingest = config.folder / "ingest"
    for folder in [
        *bundles,
        *parent_run.without_artifacts(config),
        *([] if being_made(ingest) else event_parts.unused(ingest)),
    ]:
        removed.append(folder)
        print(f"{verb} {folder} ({megabytes(folder):,.1f} MB), which nothing uses any more")
        if not dry_run:
            shutil.rmtree(folder)
    for version in registry.prune_versions(config, keep=keep, dry_run=dry_run):
        print(f"{verb} {version.uri} (bundle {version.bundle_digest})")
    print(f"{len(removed)} folders {'would go' if dry_run else 'gone'}, {len(kept)} artifacts kept")
    return removed


def _in_use(
    config: Config, by_stage: dict[str, list[Artifact]], keep: int, champion: str | None
) -> set[Path]:
    """Folders of the artifacts to keep."""
    kept = {artifact.folder for artifacts in by_stage.values() for artifact in artifacts[:keep]}
    for artifacts in by_stage.values():
        for artifact in artifacts[:1]:
            kept |= _lineage(config, artifact.folder)
    for stage in STAGES:
        for folder in linked(config.folder / stage).values():
            kept |= _lineage(config, folder)
    for artifact in by_stage["publish"]:
        if champion is not None and read_manifest(artifact.folder).get("bundle_digest") == champion:
            kept |= _lineage(config, artifact.folder)
    for stage in STAGES:
        for inputs in being_made(config.folder / stage).values():
            kept |= all_lineages(config, inputs)
    return kept


def megabytes(folder: Path) -> float:
    """Size of a folder's files, in MB."""
    return sum(path.stat().st_size for path in files_below(folder)) / 1e6


def _artifacts(folder: Path) -> list[Artifact]:
    """A stage's finished artifacts, the one used last first; those without a number (of 0.6) last, by their time."""
    numbers = uses(folder)
    names = [
        path.parent.name
        for path in folder.glob(f"*/{MANIFEST}")
        if len(path.parent.name) == _DIGEST_LENGTH and not path.parent.is_symlink()
    ]
    return [
        Artifact(folder, name)
        for name in sorted(
            names, key=lambda name: (numbers.get(name, 0), _created(folder / name)), reverse=True
        )
    ]


def _created(folder: Path) -> str:
    try:
        return str(read_manifest(folder)["created_utc"])
    except (DamagedArtifact, KeyError):
        return ""


def _lineage(config: Config, folder: Path) -> set[Path]:
    """Folders of an artifact and of all its direct and indirect inputs."""
    kept = {folder}
    try:
        inputs = read_manifest(folder)["inputs"]
    except (OSError, DamagedArtifact, KeyError):
        return kept
    return kept | all_lineages(config, inputs)


def all_lineages(config: Config, inputs: dict[str, str]) -> set[Path]:
    """Lineage of a stage's inputs (stage to fingerprint); `evaluate cut 1` is an artifact of the stage evaluate."""
    lineages = (
        _lineage(config, config.folder / stage / name)
        for input_name, name in inputs.items()
        if (stage := input_name.partition(" ")[0]) in STAGES
    )
    return set[Path]().union(*lineages)


def _remove(artifact: Artifact) -> None:
    """Rename the folder first, so that a partly deleted artifact is never complete."""
    with artifact.lock():
        renamed = artifact.stage_folder / f".old-{artifact.name}"
        (artifact.folder / MANIFEST).unlink()
        artifact.folder.rename(renamed)
        shutil.rmtree(renamed)
        for link in (artifact.run_link, artifact.run_link.with_suffix(".version.json")):
            link.unlink(missing_ok=True)
