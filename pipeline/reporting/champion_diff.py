"""Decision of the gate on a version, and its differences from the previous champion, for the report."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.evaluation.bootstrap import NO_DIFFERENCE
from pipeline.artifacts.store import Artifact
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.reporting.list_changes_text import ListComparison
from pipeline.sections import MODEL
from pipeline.serving import bundle_cache, scored_lists
from pipeline.serving.bundle import read_description
from pipeline.serving.bundle_baseline import baseline_of
from pipeline.serving.scored_lists import ScoredLists
from pipeline.tracking import registry
from pipeline.tracking.decisions import REFUSED, WAITING
from pipeline.tracking.registry import ModelSource, Registry
from pipeline.tracking.server import GATE, Version

SHOWN = ("ndcg", "hit_rate", "mrr", "coverage", "novelty")
"""Metrics shown for both versions."""


class AgainstChampion(NamedTuple):
    """Difference from the champion on targets later than the training of both."""

    difference: float
    low: float
    high: float
    targets: float
    users: float
    margin: float
    challenger_value: float
    champion_value: float
    metric: str
    verdict: str


class AgainstBaseline(NamedTuple):
    """Difference from the best baseline of the version's own evaluation."""

    difference: float
    low: float
    high: float
    name: str
    metric: str
    verdict: str


class Differences(NamedTuple):
    """Differences of two bundles as (name, earlier value, later value)."""

    metrics: Sequence[tuple[str, float, float]] = ()
    settings: Sequence[tuple[str, Any, Any]] = ()
    facts: Sequence[tuple[str, int, int]] = ()
    same_events: bool = False


class SinceChampion(NamedTuple):
    """Decision on a published version, and its differences from the champion at that time."""

    version: Version
    before: Version | None
    """The champion at that time."""
    gate: str
    is_live: bool
    reason: str
    paired: AgainstChampion | None
    best: AgainstBaseline | None
    differences: Differences


def since_champion(config: Config, publish: Path) -> SinceChampion | None:
    """Read the registry's decision on a published bundle; None where it is off, unreachable, or lacks the bundle."""
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
        return SinceChampion(
            version,
            before,
            tags.get(GATE, ""),
            tags.get(GATE, REFUSED) not in (REFUSED, WAITING),
            decision.get("reason", ""),
            _paired(decision),
            _best_baseline(decision),
            _differences(config, publish / "bundle", before) if before is not None else Differences(),
        )
    return None


def lists_since(config: Config, champion: SinceChampion | None, score: Path) -> ListComparison | None:
    """Compare this run's lists with the newest ones of the previous champion; None where either has none.

    score: folder of this run's lists, of the published version unless `score.model` names another.
    """
    if champion is None or champion.before is None:
        return None
    own = ScoredLists.of(score, f"version {champion.version.version}")
    before, label = champion.before.bundle_digest, f"version {champion.before.version}"
    earlier = scored_lists.of_bundle(config, before, label)
    is_own = own.manifest.get("bundle_digest") == champion.version.bundle_digest != before
    if not earlier or not is_own:
        return None
    with contextlib.suppress(LookbackError):  # other ids or users since
        return ListComparison.of(config, *scored_lists.newest_pair(earlier, [own]))
    return None


def _paired(decision: Mapping[str, str]) -> AgainstChampion | None:
    """Test against the champion, where there was one."""
    *names, _, _ = AgainstChampion._fields
    if any(name not in decision for name in (*names, "metric")):
        return None
    numbers = {name: float(decision[name]) for name in names}
    verdict = _verdict(numbers["low"], numbers["high"])
    return AgainstChampion(**numbers, metric=decision["metric"], verdict=verdict)


def _best_baseline(decision: Mapping[str, str]) -> AgainstBaseline | None:
    """Test against the best baseline, where there was one."""
    names = ("difference", "low", "high")
    if any(f"baseline_{name}" not in decision for name in names):
        return None
    difference, low, high = (float(decision[f"baseline_{name}"]) for name in names)
    baseline, metric = decision["best_baseline"], decision["metric"]
    return AgainstBaseline(difference, low, high, baseline, metric, _verdict(low, high))


def _verdict(low: float, high: float) -> str:
    """Verdict on the interval of a difference, more being better."""
    return "better" if low > 0 else "worse" if high < 0 else NO_DIFFERENCE


def _differences(config: Config, bundle: Path, before: Version) -> Differences:
    """Metrics of both versions, settings that changed, and sizes of the vocabularies."""
    try:
        folder = bundle_cache.bundle_folder(
            config, ModelSource(before.version, before.bundle_digest, before.uri)
        )
        old, new = read_description(folder, verify=False), read_description(bundle, verify=False)
    except (DamagedArtifact, OSError, LookbackError):
        return Differences()
    was, now = (flat(of["settings"]) | {"publish.system": baseline_of(of) or MODEL} for of in (old, new))
    changed = [(key, was.get(key), now.get(key)) for key in sorted(was | now) if was.get(key) != now.get(key)]
    tables = {name: f"{name}.parquet" for name in ("items", "users")}
    facts = [(name, _num_rows(folder / file), _num_rows(bundle / file)) for name, file in tables.items()]
    return Differences(
        _metrics(old["metrics"], new["metrics"]),
        changed,
        [fact for fact in facts if fact[1] != fact[2]],
        old.get("features", "") == new.get("features"),
    )


def _metrics(
    old: Mapping[str, float | None], new: Mapping[str, float | None]
) -> list[tuple[str, float, float]]:
    """Shown metrics of both versions, at the shortest list length that they share."""
    rows = []
    for metric in SHOWN:
        shared = [name for name in old.keys() & new.keys() if name.startswith(f"{metric}@")]
        for name in sorted(shared, key=lambda name: int(name.rpartition("@")[2]))[:1]:
            was, now = old[name], new[name]
            if was is not None and now is not None:
                rows.append((name, was, now))
    return rows


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of settings to `section.key` -> value."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _num_rows(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)
