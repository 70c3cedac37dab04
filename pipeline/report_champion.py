"""What the report says of the model that was live before: what was decided, and what is different since."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.bundle import read_description
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.registry import Registry
from pipeline.stages import ModelSource
from pipeline.store import Artifact
from pipeline.tracking_server import GATE, Version

Row = dict[str, Any]


def since_champion(config: Config, publish: Path) -> Row | None:
    """The registry's decision on a published bundle, and how it differs from the champion that it met.

    It is as the registry stands when the report is made; None where it is away, off, or does not know the bundle.
    """
    if not config.tracking.enabled:
        return None
    with contextlib.suppress(LookbackError, OSError):
        number = registry.version_of_bundle(config, Artifact(publish.parent, publish.name))
        models, name = Registry.from_config(config), registry.model_name(config)
        version = models.version(name, number) if number is not None else None
        if version is None:
            return None
        tags = models.tags(version)
        before = models.version(name, int(tags.get(f"{GATE}.champion_before", 0)))
        found: Row = {
            "version": version,
            "gate": tags.get(GATE, ""),
            "reason": tags.get(f"{GATE}.reason", ""),
        }
        found |= {"figures": _figures(tags), "before": before, "settings": [], "facts": []}
        return found | (_differences(config, publish / "bundle", before) if before is not None else {})
    return None


def _figures(tags: Mapping[str, str]) -> Row | None:
    """The paired difference from the champion on targets later than what either learned from, where there was such a test."""
    names = ("metric", "difference", "low", "high", "targets", "users")
    if any(f"{GATE}.{name}" not in tags for name in names):
        return None
    found: Row = {name: tags[f"{GATE}.{name}"] for name in names}
    return found | {name: float(found[name]) for name in names[1:]}


def _differences(config: Config, bundle: Path, before: Version) -> Row:
    """Settings that changed, and what the two bundles say of themselves."""
    try:
        folder = registry.bundle_folder(config, ModelSource(before.version, before.bundle_digest, before.uri))
        old, new = read_description(folder, verify=False), read_description(bundle, verify=False)
    except (DamagedArtifact, OSError, LookbackError):
        return {}
    was, now = flat(old["settings"]), flat(new["settings"])
    changed = [(key, was.get(key), now.get(key)) for key in sorted(was | now) if was.get(key) != now.get(key)]
    tables = {name: f"{name}.parquet" for name in ("items", "users")}
    facts = [(name, _num_rows(folder / file), _num_rows(bundle / file)) for name, file in tables.items()]
    return {"settings": changed, "facts": [fact for fact in facts if fact[1] != fact[2]]}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as `section.key` -> value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _num_rows(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)
