"""What the pages of figures show of an evaluation and of a whole run, gathered from the folders of the stages."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from features.profiling.profile import PROFILE, Profile
from models.recommendation.rules import Rules
from pipeline.artifacts.store import read_json, write_json
from pipeline.evaluation.report import EvaluationReport
from pipeline.orchestration.context import Context
from pipeline.reporting import figures, interactive
from pipeline.reporting.interactive import Chart, Drawn
from pipeline.serving.bundle import Bundle

CHARTS, PAGE = "charts.json", "figures.html"
"""Files of an evaluation: its figures as plotly.js takes them, and the page of them."""

SHOWN_HISTORY = 25
"""Events of the user whose reasons are shown: the most recent ones."""
SHOWN_ITEMS = 10


def charts(ctx: Context) -> Iterator[Chart | Drawn]:
    """Every figure of a whole run there is something to draw of; those of its evaluation as evaluate drew them."""
    yield from (Drawn(*each) for each in read_json(ctx.inputs["evaluate"] / CHARTS))
    yield from _popularity(ctx)
    yield from _reasons(ctx)


def draw_evaluation(ctx: Context, report: EvaluationReport) -> None:
    """Write the page of an evaluation's figures, and the figures for the page of the whole run, into the stage's folder."""
    found = _of_evaluation(ctx, report, Profile.load(ctx.inputs["features"] / PROFILE))
    drawn = [each.drawn() for each in found]
    write_json(ctx.folder / CHARTS, drawn)
    (ctx.folder / PAGE).write_text(interactive.page(ctx.config.name, drawn), encoding="utf-8")


def _of_evaluation(ctx: Context, report: EvaluationReport, profile: Profile) -> Iterator[Chart]:
    """The figures of an evaluation, of the training and the index that it is of, and of the log."""
    evaluate, train = ctx.folder, ctx.inputs["train"]
    k = report.list_lengths[0]
    names = [f"{name}@{k}" for name in ("ndcg", "hit_rate", "mrr")]
    yield interactive.systems(report, [name for name in names if name in report.metric_names])
    if (path := evaluate / "targets.parquet").exists():
        yield interactive.recall_at_k(pl.read_parquet(path, columns=["system", "rank"]))
    yield from _segments(evaluate / "segments.parquet", f"ndcg@{k}")
    yield interactive.training(
        pl.read_parquet(train / "history.parquet"), read_json(train / "training.json")["best_epoch"]
    )
    path = evaluate / figures.DIAGNOSTICS
    diagnosed = read_json(path) if path.exists() else {}
    yield from interactive.attention(diagnosed.get("attention", {}).get("rows", []))
    if "calibration" in diagnosed:
        yield interactive.calibration(diagnosed["calibration"], diagnosed["k"])
    speed = read_json(ctx.inputs["index"] / "speed.json")
    if points := interactive.index_points(report.index, speed):
        yield interactive.index_trade(points)
    yield from interactive.log(profile)


def _segments(path: Path, metric: str) -> Iterator[Chart]:
    table = pl.read_parquet(path)
    kinds = table["segment"].unique(maintain_order=True).to_list() if len(table) else []
    for kind in kinds[: figures.MAX_SEGMENTS]:
        yield interactive.segment(table, kind, metric)


def _popularity(ctx: Context) -> Iterator[Chart]:
    """Events of every item of the log against the lists it is in."""
    shards = sorted((ctx.inputs["score"] / "recommendations").glob("*.parquet"))
    if not shards:
        return
    counts = pl.scan_parquet(shards).group_by("item_id").agg(pl.len().alias("lists")).collect()
    items = pl.read_parquet(
        ctx.inputs["features"] / "items.parquet", columns=["item_id", "title", "num_events"]
    )
    table = items.join(counts, on="item_id", how="left", maintain_order="left")
    titles = table.select(pl.coalesce("title", pl.format("item {}", "item_id")))
    yield interactive.popularity(
        table["num_events"].to_numpy().astype(np.int64),
        table["lists"].fill_null(0).to_numpy().astype(np.int64),
        titles.to_series().to_list(),
    )


def _reasons(ctx: Context) -> Iterator[Chart]:
    """A user with a history of middling length: what carries each recommendation of the published model."""
    if not (ctx.inputs["publish"] / "bundle").exists():
        return
    bundle = Bundle.open(ctx.inputs["publish"] / "bundle", verify=False)
    known = bundle.known_histories
    long = np.flatnonzero(known.lengths >= min(8, int(known.lengths.max(initial=0))))
    if not len(long) or not known.lengths.max():
        return
    user = int(long[np.argsort(known.lengths[long], kind="stable")[len(long) // 2]])
    history = known.select(np.array([user])).last(SHOWN_HISTORY)
    rules = Rules(exclude_seen=ctx.config.score.exclude_seen)
    listed, weights = bundle.answering.contributions(history, SHOWN_ITEMS, rules, "exact")
    listed, weights = listed[:, listed[0] > 0], weights[0, listed[0] > 0]
    if not listed.size:
        return
    names = pl.read_parquet(bundle.folder / "items.parquet", columns=["item_id", "title"])
    titles = ["", *names.select(pl.coalesce("title", pl.format("item {}", "item_id"))).to_series()]
    past = history.item_index[history.gather()[1]]
    yield interactive.reasons(
        weights[:, : len(past)],
        [titles[item] for item in past],
        [titles[item] for item in listed[0]],
        str(bundle.users.ids[user]),
    )
