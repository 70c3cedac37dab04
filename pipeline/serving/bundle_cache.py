"""Downloaded bundles of registered models."""

import contextlib
import shutil
import sys
from pathlib import Path

from pipeline.artifacts.scratch import put_in_place, scratch
from pipeline.artifacts.store import MANIFEST, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking.registry import ModelSource, Registry, input_example
from pipeline.tracking.server import ServerAway, Version


def bundle_folder(config: Config, model: ModelSource) -> Path:
    """Bundle of a registered model, downloaded once to <data_dir>/<name>/.bundles/<digest>; a damaged copy again.

    Where the registry lost the files, they are restored from the stage that published them. Raises LookbackError where that
    artifact is gone too.
    """
    from pipeline.serving.bundle import READABLE_FORMATS, read_description

    registry = Registry.from_config(config)
    to = config.folder / ".bundles" / model.bundle_digest
    if to.exists():
        try:
            read_description(to, READABLE_FORMATS, verify=True)
        except (DamagedArtifact, OSError):
            print(f"{to}: is damaged, a copy of {model.uri}: fetched anew", file=sys.stderr, flush=True)
            shutil.rmtree(to)
        else:
            return to
    version = registry.resolve(model.uri)
    try:
        read_description(registry.download_bundle(version, to), READABLE_FORMATS, verify=True)
    except LookbackError as error:
        shutil.rmtree(to, ignore_errors=True)
        kept = _published(config, model.bundle_digest)
        if kept is None:
            raise LookbackError(
                f"{error}. No publish artifact in {config.folder} keeps bundle {model.bundle_digest}: put the files back, "
                "or publish again (lookback run publish) and make that version champion (lookback promote VERSION)"
            ) from error
        _restore(config, version, kept, to)
    return to


def _published(config: Config, digest: str) -> Path | None:
    """Bundle of the publish artifact with a digest, undamaged; None where there is none."""
    from pipeline.serving.bundle import READABLE_FORMATS, read_description

    for manifest in sorted((config.folder / "publish").glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(DamagedArtifact, OSError):
            if read_manifest(manifest.parent).get("bundle_digest") == digest:
                read_description(manifest.parent / "bundle", READABLE_FORMATS, verify=True)
                return manifest.parent / "bundle"
    return None


def _restore(config: Config, version: Version, kept: Path, to: Path) -> None:
    """Copy a published bundle to `to`, all or nothing, and log the version's files again."""
    text = f"{version.uri}: its files are missing or damaged, restored from {kept}"
    print(text, file=sys.stderr, flush=True)
    with scratch(to.parent) as temporary:
        put_in_place(shutil.copytree(kept, temporary / "bundle"), to)
    from pipeline.serving.business_rules import served_rules

    rules = served_rules(config.score, kept, config.events.timezone)
    with contextlib.suppress(ServerAway):  # a deleted run: the copy recommends all the same
        Registry.from_config(config).restore(version, kept, input_example(kept), rules)
