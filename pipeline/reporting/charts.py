"""Charts of an evaluation and of a whole run, from the folders of the stages."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.profiling.profile import PROFILE, Profile
from models.recommendation.rules import Rules
from pipeline.artifacts.files import read_json, write_json
from pipeline.evaluation.report import EvaluationReport
from pipeline.modelling import second_stage
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.reporting import figures, night_figures, shown_figure, stale_figure, templates
from pipeline.reporting.style import Chart
from pipeline.serving import bundle_ranker
from pipeline.serving.bundle import Bundle

CHARTS, PAGE = "charts.json", "figures.html"
"""Files of an evaluation: charts, and a page of them."""
DIAGNOSTICS = "diagnostics.json"
"""Diagnostics of an evaluation, in its folder."""
MAX_SEGMENTS = 12
"""Kinds of segments drawn."""
SHOWN_HISTORY = 25
"""Events of the example user's history, the most recent ones."""
SHOWN_ITEMS = 10

Row = dict[str, Any]
Folders = Mapping[str, Path]
"""Stage -> folder of its artifact."""


def draw_evaluation(folder: Path, inputs: Folders, name: str, report: EvaluationReport) -> None:
    """Write the charts of an evaluation, and the page of them, into its folder."""
    drawn = [chart.as_json() for chart in of_evaluation(folder, inputs, report)]
    write_json(folder / CHARTS, drawn)
    (folder / PAGE).write_text(page(name, drawn), encoding="utf-8")


def page(name: str, charts: Sequence[Row]) -> str:
    """Self-contained HTML of all charts."""
    return templates.template("figures").render(name=name, charts=charts)


def of_run(inputs: Folders, *, exclude_seen: bool) -> list[Row]:
    """Charts of a whole run: those of its evaluation and of the nights before, popularity, and one user's reasons."""
    bundle = inputs["publish"] / "bundle"
    added = (*_popularity(inputs), *_times_shown(bundle), *_reasons(bundle, exclude_seen=exclude_seen))
    evaluated: list[Row] = read_json(inputs["evaluate"] / CHARTS)
    return [*evaluated, *night_figures.drawn(inputs["monitor"]), *(chart.as_json() for chart in added)]


def of_evaluation(folder: Path, inputs: Folders, report: EvaluationReport) -> Iterator[Chart]:
    """Charts of an evaluation in a folder, of its training and index, and of the log."""
    k, names = report.list_lengths[0], figures.model_first(report.metrics)
    shown = [name for name in (f"ndcg@{k}", f"hit_rate@{k}", f"mrr@{k}") if name in report.metric_names]
    yield figures.systems({name: report.metrics[name] for name in names}, report.intervals, shown)
    if (path := folder / "targets.parquet").exists():
        of_request = [] if report.nights is None else ["night", "user_id"]
        yield figures.recall_at_k(pl.read_parquet(path, columns=["system", "rank", *of_request]))
    segments = pl.read_parquet(folder / "segments.parquet")
    kinds = segments["segment"].unique(maintain_order=True).to_list() if len(segments) else []
    for kind in kinds[:MAX_SEGMENTS]:
        yield figures.segment(segments, kind, f"ndcg@{k}")
    if report.stale is not None:
        yield stale_figure.stale(report.stale)
    if report.rolling is not None:
        yield figures.rolling_cuts(report.rolling.cuts, names, f"ndcg@{k}")
    history = pl.read_parquet(inputs["train"] / "history.parquet")
    yield figures.training(history, TrainingFacts.load(inputs["train"]).best_epoch)
    if report.learning_curve:
        yield figures.learning_curve(report.learning_curve, (f"ndcg@{k}", f"hit_rate@{k}"))
    yield from _of_diagnostics(folder / DIAGNOSTICS)
    if trade := figures.index_trade(report.index, read_json(inputs["index"] / "speed.json")):
        yield trade
    split = read_json(inputs["features"] / "split" / "split.json")
    begins = {part: split[f"{part}_from"] for part in ("validation", "test")}
    yield from figures.log(Profile.load(inputs["features"] / PROFILE), begins)


def _of_diagnostics(path: Path) -> Iterator[Chart]:
    measured = read_json(path) if path.exists() else {}
    if rows := measured.get("attention", {}).get("rows"):
        yield figures.attention(rows)
    if "calibration" in measured:
        yield figures.calibration(measured["calibration"], measured["k"])
    if measured.get("because", {}).get("rows"):
        yield figures.because(measured["because"]["methods"])


def _popularity(inputs: Folders) -> Iterator[Chart]:
    """Events of every item of the log against the lists with it."""
    shards = sorted((inputs["score"] / "recommendations").glob("*.parquet"))
    if not shards:
        return
    counts = pl.scan_parquet(shards).group_by("item_id").agg(pl.len().alias("lists")).collect()
    items = pl.read_parquet(inputs["features"] / "items.parquet", columns=["item_id", "title", "num_events"])
    table = items.join(counts, on="item_id", how="left", maintain_order="left")
    events, lists = (table[name].fill_null(0).to_numpy().astype(np.int64) for name in ("num_events", "lists"))
    yield figures.popularity(events, lists, _titles(table))


def _times_shown(bundle: Path) -> Iterator[Chart]:
    """Effect of the times that an item was shown, where the published ranker reads them."""
    path = bundle / bundle_ranker.FOLDER / second_stage.DESCRIPTION
    effect = read_json(path).get(second_stage.BY_TIMES_SHOWN) if path.exists() else None
    if effect is not None:
        yield shown_figure.by_times_shown(effect)


def _titles(items: pl.DataFrame) -> list[str]:
    """Title of each item, its id where there is none."""
    return items.select(pl.coalesce("title", pl.format("item {}", "item_id"))).to_series().to_list()


def _reasons(folder: Path, *, exclude_seen: bool) -> Iterator[Chart]:
    """Contributions of past interactions to the recommendations for a user with a history of median length."""
    if not folder.exists():
        return
    bundle = Bundle.open(folder, verify=False)
    known = bundle.known_histories
    long = np.flatnonzero(known.lengths >= min(8, int(known.lengths.max(initial=0))))
    if not len(long) or not known.lengths.max():
        return
    user = int(long[np.argsort(known.lengths[long], kind="stable")[len(long) // 2]])
    history = known.select(np.array([user])).last(SHOWN_HISTORY)
    rules = Rules(exclude_seen=exclude_seen)
    items, weights = bundle.engine.contributions(history, SHOWN_ITEMS, rules, "exact")
    items, weights = items[:, items[0] > 0], weights[0, items[0] > 0]
    if not items.size or not weights.any():
        return
    titles = ["", *_titles(pl.read_parquet(folder / "items.parquet", columns=["item_id", "title"]))]
    past = history.item_index[history.gather()[1]]
    yield figures.reasons(
        weights[:, : len(past)],
        [titles[item] for item in past],
        [titles[item] for item in items[0]],
        str(bundle.users.ids[user]),
    )
