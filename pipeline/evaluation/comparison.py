"""Paired comparison of evaluated runs on the same targets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from models.evaluation.bootstrap import NO_DIFFERENCE, PairedDifference, Verdict, over_seeds
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import hit_rate, metrics_of_ranks
from models.histories import Int64
from pipeline.artifacts.files import fingerprint
from pipeline.artifacts.store import read_manifest
from pipeline.errors import LookbackError
from pipeline.evaluation import target_words
from pipeline.evaluation.metric_names import display_name
from pipeline.sections import MODEL

KEY = ("user_id", "item_id", "timestamp")
"""Columns that identify a target; of nights also `night`."""
PHRASES: dict[Verdict, str] = {
    "better": "better than",
    NO_DIFFERENCE: f"{NO_DIFFERENCE} from",
    "worse": "worse than",
}
"""Verdict -> words before the other system's name."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed alone."""

    labels: tuple[str, ...]
    seeds: tuple[str, ...]


def metrics_of_runs(
    targets: Mapping[str, pl.DataFrame],
    ks: tuple[int, ...],
    resamples: int,
    seed: int,
    dislikes: Mapping[str, pl.DataFrame] | None = None,
) -> SystemComparison:
    """Metrics of each run's model, by label; raises LookbackError where two runs have different targets.

    dislikes: dislikes.parquet of each run, whose rows bear `dislike_rate@k` alone, after the targets.
    """
    ranked = _on_the_same(targets)
    request, users = _requests(next(iter(ranked.values())))
    values = {
        label: metrics_of_ranks(table["rank"].to_numpy(), ks, request, len(users))
        for label, table in ranked.items()
    }
    if dislikes:
        disliked, number = _on_the_same(dislikes), len(users)
        users = pl.concat([users, next(iter(disliked.values()))["user_id"]])
        for label, table in disliked.items():
            rank = np.concatenate([np.full(number, np.nan), table["rank"].to_numpy()])
            missing = np.full(len(table), np.nan)
            values[label] = {
                **{name: np.concatenate([own, missing]) for name, own in values[label].items()},
                **{f"dislike_rate@{k}": np.where(np.isnan(rank), np.nan, hit_rate(rank, k)) for k in ks},
            }
    return SystemComparison.of(values.items(), users.to_numpy(), resamples, seed)


def _on_the_same(tables: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Targets of each run's model, in a common order; raises LookbackError where two runs have different ones."""
    ranked = {label: _of_model(table) for label, table in tables.items()}
    first, one = next(iter(ranked.items()))
    for label, other in ranked.items():
        if not _key(one).equals(_key(other)):
            raise LookbackError(_difference_of(first, one, label, other))
    return ranked


def _of_model(table: pl.DataFrame) -> pl.DataFrame:
    """Targets of the model, in an order common to evaluations of the same targets."""
    own = table.filter(pl.col("system") == MODEL)
    return own.sort(*(["night"] if "night" in own.columns else []), *KEY, "history_length")


def _key(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(*KEY, *(["night"] if "night" in table.columns else []))


def _requests(table: pl.DataFrame) -> tuple[Int64, pl.Series]:
    """Number of each target's request, and the user of each request: a user-night or, without nights, the target itself."""
    if "night" not in table.columns:
        return np.arange(len(table)), table["user_id"]
    is_first = pl.struct("night", "user_id").is_first_distinct()
    first = table.select(is_first).to_series().to_numpy()
    return np.cumsum(first) - 1, table.filter(first)["user_id"]


def _difference_of(first: str, one: pl.DataFrame, label: str, other: pl.DataFrame) -> str:
    if ("night" in one.columns) != ("night" in other.columns):
        nightly, by_events = (first, label) if "night" in one.columns else (label, first)
        return (
            f"compare: different kinds of test targets: user-nights in {nightly!r}, held-out events in {by_events!r};"
            " expected runs with the same evaluate.targets"
        )
    shared = "ids of other types"
    if _key(one).schema == _key(other).schema:
        shared = f"{len(one.join(other, on=_key(one).columns, how='semi')):,} of {first!r} also in {label!r}"
    return (
        f"compare: different test targets: {len(one):,} in {first!r}, {len(other):,} in {label!r}, {shared};"
        " expected runs with the same log, split, core filter, exclude_seen and evaluate.targets (of nights also horizon_days and"
        " every_days)"
    )


def _about(targets: pl.DataFrame, number: int, users: int) -> str:
    """`6 user-nights of 4 users, 2 nights from 2020-01-01 to 2020-01-08`, or `6 held-out events of 4 users`."""
    if "night" not in targets.columns:
        return target_words.counted("successive", number, users)
    nights = targets["night"].unique().sort().dt.strftime("%Y-%m-%d")
    text = target_words.counted("nightly", number, users)
    return f"{text}, {target_words.number_of_nights(len(nights), nights[0], nights[-1])}"


@dataclass(frozen=True)
class Comparison:
    """Metrics of several runs, their differences from the first, and means over seeds."""

    about: str
    """Number of the targets, their users and nights, in words."""
    targets: int
    """User-nights, or held-out events; without dislikes"""
    users: int
    """Users with a target"""
    is_nightly: bool
    systems: SystemComparison
    differences: Mapping[str, Mapping[str, PairedDifference]]
    """Each run but the first -> metric -> run minus first: see `SystemComparison.compared`."""
    over_seeds: Sequence[tuple[SeedGroup, Mapping[str, tuple[float, float]]]]
    """Group and metric -> (mean, sample standard deviation) over its runs."""

    @classmethod
    def of(
        cls, targets: pl.DataFrame, systems: SystemComparison, groups: Sequence[SeedGroup] = ()
    ) -> "Comparison":
        """Compare all systems with the first; `targets`: targets.parquet of any of the runs."""
        differences = {
            label: {name: difference.reversed() for name, difference in by_metric.items()}
            for label, by_metric in systems.compared(systems.systems[0]).items()
        }
        _, users = _requests(_of_model(targets))
        counts = len(users), users.n_unique()
        return cls(
            _about(targets, *counts),
            *counts,
            "night" in targets.columns,
            systems,
            differences,
            [(group, over_seeds(systems.values(label) for label in group.labels)) for group in groups],
        )


def as_tree(comparison: Comparison) -> dict[str, Any]:
    """JSON tree of --json: users, targets, then metrics, intervals and differences from the first run, by run."""
    systems = comparison.systems
    first = systems.systems[0]
    return {
        "users": comparison.users,
        "targets": comparison.targets,
        "metrics": {label: systems.values(label) for label in systems.systems},
        "intervals": {label: systems.intervals(label) for label in systems.systems},
        "differences": {
            label: {"from": first} | {name: asdict(difference) for name, difference in by_metric.items()}
            for label, by_metric in comparison.differences.items()
        },
        "seeds": [
            {
                "runs": list(group.labels),
                "seeds": list(group.seeds),
                "metrics": {name: {"mean": mean, "sd": sd} for name, (mean, sd) in by_metric.items()},
            }
            for group, by_metric in comparison.over_seeds
        ],
    }


def group_by_verdict(verdicts: Mapping[str, Verdict]) -> str:
    """`better than A, B; no significant difference from C`, from system -> verdict."""
    groups = {
        phrase: [name for name, own in verdicts.items() if own == verdict]
        for verdict, phrase in PHRASES.items()
    }
    return "; ".join(f"{phrase} {', '.join(names)}" for phrase, names in groups.items() if names)


def interval_text(low: float, high: float, form: str = ".4f") -> str:
    """`0.2000 to 0.2200`."""
    return f"{low:{form}} to {high:{form}}"


def target_set(evaluate: Path) -> str:
    """Fingerprint of what an evaluation's manifest says of its test targets: the features, and the settings that choose them."""
    manifest = read_manifest(evaluate)
    chosen = {
        key: value
        for key, value in manifest["settings"].items()
        if (key == "exclude_seen" or key.startswith("evaluate."))
        and not key.endswith((".k", ".resamples", ".training_fractions", ".stale_days"))
    }
    return fingerprint([manifest["inputs"]["features"], chosen])


class AgainstEarlier(NamedTuple):
    """Comparison of a run with earlier ones on the same targets."""

    sentence: str
    table: str
    against_best: str
    """Verdict against the best earlier run, for the list of runs."""


def against_earlier(
    evaluate: Path, earlier: Mapping[str, Path], metric: str, seed: int
) -> AgainstEarlier | None:
    """Compare a run with earlier ones on the same targets; None without such a run.

    earlier: Markdown name of a run -> folder of its evaluation.
    """
    own = _ranks(evaluate)
    ranked = {name: _ranks(folder) for name, folder in earlier.items()}
    ranked = {name: table for name, table in ranked.items() if _key(table).equals(_key(own))}
    if not ranked:
        return None
    k = int(metric.rpartition("@")[2])
    request, users = _requests(own)
    systems = SystemComparison.of(
        (
            (name, {metric: metrics_of_ranks(table["rank"].to_numpy(), (k,), request, len(users))[metric]})
            for name, table in ({"this run": own} | ranked).items()
        ),
        users.to_numpy(),
        _RESAMPLES,
        seed,
    )
    differences = {name: by_metric[metric] for name, by_metric in systems.compared("this run").items()}
    lines = [
        "### Against earlier runs on the same targets",
        "",
        f"| run | its {display_name(metric)} | this run minus it | 95 % interval | this run is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, difference in differences.items():
        cells = [f"{systems.values(name)[metric]:.4f}", f"{difference.difference:+.4f}"]
        interval = interval_text(difference.low, difference.high, "+.4f")
        lines.append(f"| {name} | {' | '.join(cells)} | {interval} | {difference.verdict} |")
    groups = group_by_verdict({name: difference.verdict for name, difference in differences.items()})
    best = max(differences, key=lambda name: systems.values(name)[metric])
    difference = differences[best]
    verdict, _, preposition = PHRASES[difference.verdict].rpartition(" ")
    return AgainstEarlier(
        f"Earlier runs on the same targets: {groups}.",
        "\n".join(lines),
        f"{verdict}, {difference.difference:+.4f} ({interval_text(difference.low, difference.high, '+.4f')}"
        f"{by_chance(difference, len(differences))}), {preposition} {best.lstrip('[').partition(']')[0]}",
    )


def _ranks(evaluate: Path) -> pl.DataFrame:
    """Ranks of the targets by the model, in an order common to evaluations of the same targets."""
    table = pl.scan_parquet(evaluate / "targets.parquet").filter(pl.col("system") == MODEL)
    return _of_model(table.drop("recommended", "pessimistic_rank", strict=False).collect())


def by_chance(difference: PairedDifference, comparisons: int) -> str:
    """Corrected p of a difference whose interval excludes 0, but which is not significant among several."""
    if difference.verdict != NO_DIFFERENCE or difference.low <= 0 <= difference.high:
        return ""
    return f", but p {difference.p_bootstrap_holm:.2g} when corrected for {comparisons} comparisons"
