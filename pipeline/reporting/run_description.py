"""What is said of a whole run where experiments are reviewed: its description in Markdown, and its row in the list of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import metrics_of_ranks
from pipeline.artifacts.store import read_json, read_manifest
from pipeline.commands.compare import KEY
from pipeline.config import MODEL
from pipeline.reporting.comparison_page import by_chance
from pipeline.reporting.style import spoken
from pipeline.tracking.record import allowed
from pipeline.tracking.ui import View

Row = dict[str, Any]
SAYS = {"better": "better than", "can't tell": "not told apart from", "worse": "worse than"}
AGAINST_EARLIER, AGAINST_BASELINES = "lookback.against_earlier_runs", "lookback.against_baselines"
"""Tags of a whole run, shown in the list of runs: the verdicts of the paired tests."""
MAX_EARLIER = 5
"""Earlier runs that a run is held against."""
_RESAMPLES = 1000


def of_evaluation(report: Row, metric: str) -> str:
    """The headline in a paragraph, below it what it was measured on and the table of every system, best baseline first."""
    value, ends = report["metrics"][MODEL][metric], report["intervals"][MODEL][metric]
    paired = {name: found[metric] for name, found in report["paired"].items()}
    ordered = sorted(paired, key=lambda name: -float(report["metrics"][name][metric]))
    told = f"**{spoken(metric)} {value:.4f}** (95 % interval {_ends(ends)}). {_verdicts(paired, ordered)}"
    about = (
        f"On {report['targets']:,} held-out events of {report['users']:,} users, {report['protocol'].replace('_', '-')} split, "
        f"ranked among all {report['num_items']:,} items."
    )
    if "metrics" in report.get("ranker", {}):
        about += f" {spoken(report['ranker']['reason'].capitalize())}."
    lines = [
        told.strip(),
        "",
        about,
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
    told = _groups({spoken(name): paired[name]["verdict"] for name in ordered})
    return f"By the paired test it is {told}." if told else ""


def _groups(verdicts: Mapping[str, str]) -> str:
    """`better than A, B; worse than C`, from name to verdict."""
    found = {
        words: [name for name, given in verdicts.items() if given == verdict]
        for verdict, words in SAYS.items()
    }
    return "; ".join(f"{words} {', '.join(names)}" for words, names in found.items() if names)


def row_of(report: Row, metric: str) -> tuple[dict[str, float], str]:
    """What the list of runs shows of metrics.json: metrics by name, and the verdict against the baselines."""
    low, high = report["intervals"][MODEL][metric]
    paired = {name: found[metric] for name, found in report["paired"].items()}
    ordered = sorted(paired, key=lambda name: -float(report["metrics"][name][metric]))
    numbers = {f"test/{metric}_low": low, f"test/{metric}_high": high}
    if not ordered:
        return numbers, "no baseline was evaluated"
    numbers[f"best_baseline/{metric}"] = float(report["metrics"][ordered[0]][metric])
    told = _groups({spoken(name): paired[name]["verdict"] for name in ordered})
    is_best = all(each["verdict"] == "better" for each in paired.values())
    return (
        numbers,
        f"better than all {len(ordered)}: {told.removeprefix('better than ')}" if is_best else told,
    )


def view_of(metric: str) -> View:
    """The list of runs by which of them is best: the columns of row_of, the best run first."""
    length = metric.rpartition("@")[2]
    metrics = [f"test/{metric}", f"test/{metric}_low", f"test/{metric}_high", f"best_baseline/{metric}"]
    shown = dict.fromkeys([*metrics, f"test/hit_rate@{length}"])
    return View(
        key=f"best-by-{allowed(metric)}",
        name=f"Best by {spoken(metric)}",
        run_filter="tags.`lookback.stage` = 'run'",
        metrics=[allowed(name) for name in shown],
        tags=[AGAINST_EARLIER, AGAINST_BASELINES],
    )


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
    judged = SystemComparison.of(
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


def metric_of(report: Row, wanted: str) -> str:
    """The metric of the headline: the wanted one, or NDCG at the shortest list length where that was not measured."""
    names = report["metrics"][MODEL]
    return wanted if wanted in names else f"ndcg@{min(int(name.rpartition('@')[2]) for name in names)}"


def read_report(evaluate: Path) -> Row:
    """The content of metrics.json."""
    content: Row = read_json(evaluate / "metrics.json")
    return content
