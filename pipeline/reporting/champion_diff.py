"""What the report says of the model that was live before: what was decided, and what is different since."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.evaluation.bootstrap import NO_DIFFERENCE
from pipeline.artifacts.store import Artifact
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.serving import bundle_cache
from pipeline.serving.bundle import read_description
from pipeline.tracking import registry
from pipeline.tracking.registry import ModelSource, Registry
from pipeline.tracking.server import GATE, Version

SHOWN = ("ndcg", "hit_rate", "mrr", "coverage", "novelty")
"""Metrics of which both versions' values are shown."""

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
        decision = {key.removeprefix(f"{GATE}."): value for key, value in tags.items()}
        found: Row = {
            "version": version,
            "before": before,
            "gate": tags.get(GATE, ""),
            "is_live": tags.get(GATE, registry.REFUSED) != registry.REFUSED,
            "reason": decision.get("reason", ""),
            "paired": _paired(decision),
            "best": _best_baseline(decision),
            "metrics": [],
            "settings": [],
            "facts": [],
        }
        return found | (_differences(config, publish / "bundle", before) if before is not None else {})
    return None


def _paired(decision: Mapping[str, str]) -> Row | None:
    """The difference from the champion on targets later than what either learned from, where there was such a test."""
    names = ("difference", "low", "high", "targets", "users", "margin", "challenger_value", "champion_value")
    if any(name not in decision for name in (*names, "metric")):
        return None
    found: Row = {name: float(decision[name]) for name in names}
    return found | {"metric": decision["metric"], "verdict": _verdict(found["low"], found["high"])}


def _best_baseline(decision: Mapping[str, str]) -> Row | None:
    """The difference from the best baseline of the version's own evaluation, where there was one."""
    names = ("difference", "low", "high")
    if any(f"baseline_{name}" not in decision for name in names):
        return None
    found: Row = {name: float(decision[f"baseline_{name}"]) for name in names}
    return found | {
        "name": decision["best_baseline"],
        "metric": decision["metric"],
        "verdict": _verdict(found["low"], found["high"]),
    }


def _verdict(low: float, high: float) -> str:
    """Verdict on the interval of a difference where more is better."""
    return "better" if low > 0 else "worse" if high < 0 else NO_DIFFERENCE


def _differences(config: Config, bundle: Path, before: Version) -> Row:
    """Metrics of both versions, settings that changed, and what the two bundles know."""
    try:
        folder = bundle_cache.bundle_folder(
            config, ModelSource(before.version, before.bundle_digest, before.uri)
        )
        old, new = read_description(folder, verify=False), read_description(bundle, verify=False)
    except (DamagedArtifact, OSError, LookbackError):
        return {}
    was, now = flat(old["settings"]), flat(new["settings"])
    changed = [(key, was.get(key), now.get(key)) for key in sorted(was | now) if was.get(key) != now.get(key)]
    tables = {name: f"{name}.parquet" for name in ("items", "users")}
    facts = [(name, _num_rows(folder / file), _num_rows(bundle / file)) for name, file in tables.items()]
    return {
        "metrics": _metrics(old["metrics"], new["metrics"]),
        "same_events": old.get("features", "") == new.get("features"),
        "settings": changed,
        "facts": [fact for fact in facts if fact[1] != fact[2]],
    }


def _metrics(
    old: Mapping[str, float | None], new: Mapping[str, float | None]
) -> list[tuple[str, float, float]]:
    """What both versions were evaluated to have, of the metrics shown, at the shortest list length that they share."""
    found = []
    for metric in SHOWN:
        lengths = [
            int(name.rpartition("@")[2]) for name in old.keys() & new.keys() if name.startswith(f"{metric}@")
        ]
        for name in [f"{metric}@{length}" for length in sorted(lengths)[:1]]:
            was, now = old[name], new[name]
            if was is not None and now is not None:
                found.append((name, was, now))
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as `section.key` -> value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _num_rows(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)
