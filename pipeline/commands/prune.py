"""`lookback prune`: remove old artifacts and leftovers; what versions in use, the newest and running stages need stays."""

import contextlib
from pathlib import Path

from pipeline.artifacts import event_parts
from pipeline.artifacts.files import files_below, fingerprint
from pipeline.artifacts.store import MANIFEST, Artifact, being_made, linked, read_manifest, uses
from pipeline.commands.leftovers import leftovers, remove
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.monitoring import ledger
from pipeline.orchestration import parent_run
from pipeline.orchestration.graph import STAGES
from pipeline.tracking import registry

_DIGEST_LENGTH = 16


def prune(config: Config, *, keep: int, dry_run: bool) -> list[Path]:
    """Remove all but the `keep` artifacts of every stage used last; returns the removed folders (dry_run: folders to remove).

    Kept too: the lineages of every stage's newest artifact, of what `latest` and `live` point to, of pinned versions' lists
    (`_pinned`) and of the bundles in use, running stages with their inputs, workspaces that a run resumes; lists, without
    their lineage, in whose windows (`monitor.days`) events may still come, or that `score.max_shown` counts as shown.
    """
    by_stage = {stage: _artifacts(config.folder / stage) for stage in STAGES}
    lists = {*linked(config.folder / "score").values(), *_pinned(config)}
    digests = registry.digests_in_use(config) | {_digest(folder) for folder in lists} - {""}
    kept = _in_use(config, by_stage, keep, digests)
    score = config.folder / "score"
    days = max(*config.monitor.days, config.score.shown_days if config.score.max_shown else 0)
    kept |= {score / name for name in ledger.open_lists(score, days)}
    for folder in lists:
        kept |= _lineage(config, folder) if folder.parent == config.folder / "score" else set()
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
            artifact.remove()
    bundles = [folder for folder in (config.folder / ".bundles").glob("[!.]*") if folder.name not in digests]
    ingest = config.folder / "ingest"
    for folder in [
        *bundles,
        *parent_run.without_artifacts(config),
        *([] if being_made(ingest) else event_parts.unused(ingest)),
        *leftovers(config),
    ]:
        removed.append(folder)
        print(f"{verb} {folder} ({megabytes(folder):,.1f} MB), which nothing uses any more")
        if not dry_run:
            remove(folder)
    for version in registry.prune_versions(config, digests, keep=keep, dry_run=dry_run):
        print(f"{verb} {version.uri} (bundle {version.bundle_digest})")
    if not being_made(config.folder / "publish"):
        for model_id in registry.prune_logged_models(config, dry_run=dry_run):
            print(f"{verb} models:/{model_id}, a logged model without a version")
    print(f"{len(removed)} folders {'would go' if dry_run else 'gone'}, {len(kept)} artifacts kept")
    return removed


def _in_use(config: Config, by_stage: dict[str, list[Artifact]], keep: int, digests: set[str]) -> set[Path]:
    """Folders of the artifacts to keep."""
    kept = {artifact.folder for artifacts in by_stage.values() for artifact in artifacts[:keep]}
    for artifacts in by_stage.values():
        for artifact in artifacts[:1]:
            kept |= _lineage(config, artifact.folder)
    for stage in STAGES:
        for folder in linked(config.folder / stage).values():
            kept |= _lineage(config, folder)
    for artifact in by_stage["publish"]:
        if _digest(artifact.folder) in digests:
            kept |= _lineage(config, artifact.folder)
    for stage in STAGES:
        for inputs in being_made(config.folder / stage).values():
            kept |= all_lineages(config, inputs)
    return kept


def _pinned(config: Config) -> set[Path]:
    """Newest scoring of each configuration, if it is by a pinned version.

    A configuration is known by the settings of its stage; those of other names may score with a version of this one.
    """
    newest: dict[str, Path] = {}
    for stage_folder in config.folder.parent.glob("*/score"):
        for artifact in reversed(_artifacts(stage_folder)):
            with contextlib.suppress(OSError, DamagedArtifact, KeyError, TypeError):
                settings = read_manifest(artifact.folder)["settings"]
                newest[fingerprint([str(stage_folder), settings])] = artifact.folder
    return {folder for folder in newest.values() if str(_of_manifest(folder, "model")).startswith("models:/")}


def _of_manifest(folder: Path, key: str) -> object:
    """Entry of an artifact's manifest; empty where it is missing or damaged."""
    with contextlib.suppress(OSError, DamagedArtifact, AttributeError):
        return read_manifest(folder).get(key) or ""
    return ""


def _digest(folder: Path) -> str:
    """Digest of the bundle that an artifact holds or was scored with; empty where it is not recorded."""
    return str(_of_manifest(folder, "bundle_digest"))


def megabytes(folder: Path) -> float:
    """Size of a folder's files, in MB."""
    return sum(path.stat().st_size for path in ([folder] if folder.is_file() else files_below(folder))) / 1e6


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
