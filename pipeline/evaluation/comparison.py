"""Paired comparison of evaluated runs on the same targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from models.evaluation.bootstrap import over_seeds
from models.evaluation.comparison import Judgement
from models.evaluation.metrics import metrics_of_ranks
from pipeline.artifacts.store import read_manifest
from pipeline.config import MODEL
from pipeline.errors import LookbackError
from pipeline.evaluation.metric_names import display_name

KEY = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True)
class SeedGroup:
    """Runs with the same settings that differ in their seed alone."""

    labels: tuple[str, ...]
    seeds: tuple[str, ...]


def judge(targets: dict[str, pl.DataFrame], ks: tuple[int, ...], resamples: int, seed: int) -> Judgement:
    """The models of all runs on their common targets; LookbackError where two runs do not have the same ones."""
    ranked = {
        label: table.filter(pl.col("system") == MODEL).sort(*KEY, "history_length")
        for label, table in targets.items()
    }
    first, one = next(iter(ranked.items()))
    for label, other in ranked.items():
        if not one.select(KEY).equals(other.select(KEY)):
            raise LookbackError(_difference_of(first, one, label, other))
    values = ((label, metrics_of_ranks(table["rank"].to_numpy(), ks)) for label, table in ranked.items())
    return Judgement.of(values, one["user_id"].to_numpy(), resamples, seed)


def _difference_of(first: str, one: pl.DataFrame, label: str, other: pl.DataFrame) -> str:
    same_types = one.select(KEY).schema == other.select(KEY).schema
    shared = (
        f"{len(one.join(other, on=KEY, how='semi')):,} of {first!r} also in {label!r}"
        if same_types
        else "ids of other types"
    )
    return (
        f"compare: different test targets: {len(one):,} in {first!r}, {len(other):,} in {label!r}, {shared};"
        " expected runs with the same log, split, core filter and exclude_seen"
    )


@dataclass(frozen=True)
class Comparison:
    """All that is told of the runs."""

    judged: Judgement
    differences: dict[str, dict[str, dict[str, Any]]]
    """Each run but the first -> metric -> how much better it is than the first: see `Judgement.compared`."""
    over_seeds: list[tuple[SeedGroup, dict[str, tuple[float, float]]]]
    """Of each group, metric -> (mean, sample standard deviation) over its runs."""

    @classmethod
    def of(cls, judged: Judgement, groups: Sequence[SeedGroup] = ()) -> "Comparison":
        """Compare all systems with the first."""
        differences = {
            label: {name: _turned(each) for name, each in found.items()}
            for label, found in judged.compared(judged.systems[0]).items()
        }
        return cls(
            judged,
            differences,
            [(group, over_seeds(judged.values(label) for label in group.labels)) for group in groups],
        )


def _turned(found: dict[str, Any]) -> dict[str, Any]:
    """How much better the second is, from how much better the first is."""
    opposite = {"better": "worse", "worse": "better"}
    return found | {
        "difference": -found["difference"],
        "low": -found["high"],
        "high": -found["low"],
        "share": 1 - found["share"],
        "verdict": opposite.get(found["verdict"], found["verdict"]),
    }


def as_tree(comparison: Comparison) -> dict[str, Any]:
    """What --json prints: users, targets, then metrics, intervals and differences from the first run, by run."""
    judged = comparison.judged
    first = judged.systems[0]
    return {
        "users": judged.num_users,
        "targets": judged.num_targets,
        "metrics": {label: judged.values(label) for label in judged.systems},
        "intervals": {label: judged.intervals(label) for label in judged.systems},
        "differences": {label: {"from": first, **found} for label, found in comparison.differences.items()},
        "seeds": [
            {
                "runs": list(group.labels),
                "seeds": list(group.seeds),
                "metrics": {name: {"mean": mean, "sd": spread} for name, (mean, spread) in found.items()},
            }
            for group, found in comparison.over_seeds
        ],
    }


SAYS = {"better": "better than", "can't tell": "not told apart from", "worse": "worse than"}


_RESAMPLES = 1000


def _groups(verdicts: Mapping[str, str]) -> str:
    """`better than A, B; worse than C`, from name to verdict."""
    found = {
        words: [name for name, given in verdicts.items() if given == verdict]
        for verdict, words in SAYS.items()
    }
    return "; ".join(f"{words} {', '.join(names)}" for words, names in found.items() if names)


def _ends(ends: Sequence[float], form: str = ".4f") -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def same_targets(evaluate: Path, other: Path) -> bool:
    """Whether two evaluations may have the same test targets, as far as their manifests tell."""
    one, two = read_manifest(evaluate), read_manifest(other)
    asked = [key for key in one["settings"] if key == "exclude_seen" or key.startswith("evaluate.")]
    asked = [key for key in asked if not key.endswith((".k", ".resamples", ".training_fractions"))]
    return bool(
        one["inputs"]["features"] == two["inputs"]["features"]
        and all(one["settings"].get(key) == two["settings"].get(key) for key in asked)
    )


class AgainstEarlier(NamedTuple):
    """How a run stands to earlier ones on the same targets."""

    sentence: str
    table: str
    of_best: str
    """In a few words, how it stands to the best of them."""


def against_earlier(
    evaluate: Path, earlier: Mapping[str, Path], metric: str, seed: int
) -> AgainstEarlier | None:
    """How much better a run is than earlier ones on the same targets; None where none has the same.

    earlier: what each is called in Markdown -> the folder of its evaluation.
    """
    own = _ranks(evaluate)
    ranked = {name: _ranks(folder) for name, folder in earlier.items()}
    ranked = {name: table for name, table in ranked.items() if table.select(KEY).equals(own.select(KEY))}
    if not ranked:
        return None
    k = int(metric.rpartition("@")[2])
    systems = {"this run": own} | ranked
    judged = Judgement.of(
        (
            (name, {metric: metrics_of_ranks(each["rank"].to_numpy(), (k,))[metric]})
            for name, each in systems.items()
        ),
        own["user_id"].to_numpy(),
        _RESAMPLES,
        seed,
    )
    compared = {name: found[metric] for name, found in judged.compared("this run").items()}
    lines = [
        "### Against earlier runs on the same targets",
        "",
        f"| run | its {display_name(metric)} | this run minus it | 95 % interval | this run is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, each in compared.items():
        ends = _ends((each["low"], each["high"]), "+.4f")
        value = judged.values(name)[metric]
        lines.append(f"| {name} | {value:.4f} | {each['difference']:+.4f} | {ends} | {each['verdict']} |")
    told = _groups({name: each["verdict"] for name, each in compared.items()})
    best = max(compared, key=lambda name: judged.values(name)[metric])
    found, called = compared[best], best.lstrip("[").partition("]")[0]
    verdict, _, joined = SAYS[found["verdict"]].rpartition(" ")
    return AgainstEarlier(
        f"Of the earlier runs on the same targets it is {told}.",
        "\n".join(lines),
        f"{verdict}, {found['difference']:+.4f} ({_ends((found['low'], found['high']), '+.4f')}"
        f"{by_chance(found, len(compared))}), {joined} {called}",
    )


def _ranks(evaluate: Path) -> pl.DataFrame:
    """The model's rank of every target, in an order that two evaluations of the same targets share."""
    table = pl.scan_parquet(evaluate / "targets.parquet").filter(pl.col("system") == MODEL)
    return table.select(*KEY, "history_length", "rank").collect().sort(*KEY, "history_length")


def by_chance(found: Mapping[str, Any], comparisons: int) -> str:
    """Why a difference is not told though its own interval leaves 0 out: one of several may do so by chance."""
    if found["verdict"] != "can't tell" or found["low"] <= 0 <= found["high"]:
        return ""
    return f", but p {found['p_bootstrap_holm']:.2g} when corrected for {comparisons} comparisons"
