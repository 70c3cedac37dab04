"""What is said of a whole run where experiments are reviewed: its description in Markdown, from what its stages wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from models.judgement import Judgement
from models.metrics import metrics_of_ranks
from pipeline.compare import KEY
from pipeline.config import MODEL
from pipeline.drawing import spoken
from pipeline.store import read_json, read_manifest

Row = dict[str, Any]
SAYS = {"better": "better than", "can't tell": "not told apart from", "worse": "worse than"}
MAX_EARLIER = 5
"""Earlier runs that a run is held against."""
_RESAMPLES = 1000


def of_evaluation(report: Row, metric: str) -> str:
    """The headline in a sentence, a paragraph below it the table of every system, best baseline first, from metrics.json."""
    value, ends = report["metrics"][MODEL][metric], report["intervals"][MODEL][metric]
    paired = {name: found[metric] for name, found in report["paired"].items()}
    ordered = sorted(paired, key=lambda name: -float(report["metrics"][name][metric]))
    told = (
        f"**{spoken(metric)} {value:.4f}** (95 % interval {ends[0]:.4f} to {ends[1]:.4f}) on {report['targets']:,} held-out "
        f"events of {report['users']:,} users, {report['protocol'].replace('_', '-')} split, ranked among all "
        f"{report['num_items']:,} items. {_verdicts(paired, ordered)}"
    )
    if "metrics" in report.get("ranker", {}):
        told += f" {report['ranker']['reason'].capitalize()}."
    lines = [
        told,
        "",
        f"| system | {spoken(metric)} | 95 % interval | lookback minus it | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| **lookback** | **{value:.4f}** | {_ends(ends)} | | | |",
    ]
    for name in ordered:
        own, each = report["intervals"][name][metric], paired[name]
        lines.append(
            f"| {spoken(name)} | {report['metrics'][name][metric]:.4f} | {_ends(own)} | {each['difference']:+.4f} | "
            f"{_ends((each['low'], each['high']), '+.4f')} | {each['verdict']} |"
        )
    return "\n".join(lines)


def _verdicts(paired: Mapping[str, Row], ordered: Sequence[str]) -> str:
    found = {
        words: [spoken(name) for name in ordered if paired[name]["verdict"] == verdict]
        for verdict, words in SAYS.items()
    }
    told = [f"{words} {', '.join(names)}" for words, names in found.items() if names]
    return f"By the paired test it is {'; '.join(told)}." if told else ""


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


def against_earlier(
    evaluate: Path, earlier: Mapping[str, Path], metric: str, seed: int
) -> tuple[str, str] | None:
    """A sentence and a table: how much better a run is than earlier ones on the same targets; None where none has the same.

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
        f"| run | its {spoken(metric)} | this run minus it | 95 % interval | this run is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, each in compared.items():
        ends = _ends((each["low"], each["high"]), "+.4f")
        value = judged.values(name)[metric]
        lines.append(f"| {name} | {value:.4f} | {each['difference']:+.4f} | {ends} | {each['verdict']} |")
    told = [
        f"{words} {', '.join(name for name, each in compared.items() if each['verdict'] == verdict)}"
        for verdict, words in SAYS.items()
        if any(each["verdict"] == verdict for each in compared.values())
    ]
    return f"Of the earlier runs on the same targets it is {'; '.join(told)}.", "\n".join(lines)


def _ranks(evaluate: Path) -> pl.DataFrame:
    """The model's rank of every target, in an order that two evaluations of the same targets share."""
    table = pl.scan_parquet(evaluate / "targets.parquet").filter(pl.col("system") == MODEL)
    return table.select(*KEY, "history_length", "rank").collect().sort(*KEY, "history_length")


def metric_of(report: Row, wanted: str) -> str:
    """The metric of the headline: the wanted one, or NDCG at the shortest list length where that was not measured."""
    names = report["metrics"][MODEL]
    return wanted if wanted in names else f"ndcg@{min(int(name.rpartition('@')[2]) for name in names)}"


def read_report(evaluate: Path) -> Row:
    """The content of metrics.json."""
    content: Row = read_json(evaluate / "metrics.json")
    return content
