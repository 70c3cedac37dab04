"""Downloaded bundles of registered models."""

import shutil
import sys
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.tracking.registry import ModelSource, Registry


def bundle_folder(config: Config, model: ModelSource) -> Path:
    """Bundle of a registered model, downloaded once to <data_dir>/<name>/.bundles/<digest>; a damaged copy again."""
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
    return registry.download_bundle(registry.resolve(model.uri), to)
