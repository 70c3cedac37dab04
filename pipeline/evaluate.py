"""Stage evaluate: every held-out event ranked against the whole catalogue, by the model and by each baseline.

Metrics are written with bootstrap intervals over users and paired differences between the model and each baseline.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories import JaggedHistories
from features.splits import Split
from models import metrics
from models.baselines import CoVisitation, Popularity, RecentPopularity
from models.checkpoint import load_model
from models.encoder import AttentionRecommender
from models.judgement import Judgement
from models.metrics import Float64
from models.recommender import Histories, Recommender
from models.topk import mask_seen, row_chunks, top_k
from models.training import pick_device
from pipeline import figures
from pipeline.errors import LookbackError
from pipeline.histories import training_rows
from pipeline.stages import Context
from pipeline.store import read_json, write_json
from pipeline.targets import RankedTargets, ranked_targets

MODEL = "lookback"
BASELINES = ("popularity", "recent_popularity", "co_visitation")
HISTORY_LENGTHS = (1, 5, 20, 50, 200)
"""First length of each segment by history length."""


@dataclass(frozen=True)
class Ranked:
    """How one set of systems ranks the same targets."""

    ranks: dict[str, Float64]
    """System -> [targets], the rank of each target among all items."""
    coverage: dict[str, dict[str, float]]
    """System -> `coverage@k` -> share of the catalogue in any list of k."""
    num_items: int
    """Items that every system ranks."""


def build(ctx: Context) -> None:
    """Write metrics.json, targets.parquet, per_user.parquet, segments.parquet and figures."""
    config, settings = ctx.config, ctx.config.evaluate
    histories = JaggedHistories.load(ctx.inputs["features"])
    split = Split.load(ctx.inputs["features"] / "split")
    mapping = np.load(ctx.inputs["train"] / "items.npy")
    targets = ranked_targets(
        histories, split, "test", mapping, ties=config.split.ties, exclude_seen=config.exclude_seen
    )
    if not len(targets):
        raise LookbackError(
            f"evaluate: no target is left of the test events of {split.protocol!r} (left out: {targets.left_out});"
            " expected a known item after a known history: check split.test_from, history.min_*_events and exclude_seen"
        )
    fitted_on = training_rows(histories, split, with_validation=config.train.refit_validation).translate(
        mapping
    )
    systems, not_applicable = _systems(ctx, fitted_on, int(mapping.max()))
    ranked = rank_all(systems, targets, tuple(settings.k), exclude_seen=config.exclude_seen)
    judged = Judgement.of(ranked.ranks, targets.user, tuple(settings.k), settings.resamples, config.seed)
    report = _report(ctx, targets, ranked, judged) | {
        "protocol": split.protocol,
        "not_applicable": not_applicable,
    }
    write_json(ctx.folder / "metrics.json", report)
    _write_tables(ctx, targets, ranked, judged, histories, fitted_on)
    _say(ctx, report)


def _report(ctx: Context, targets: RankedTargets, ranked: Ranked, judged: Judgement) -> dict[str, Any]:
    """What metrics.json holds: counts, then a tree of system, metric and value for each kind of number."""
    return {
        "users": judged.num_users,
        "targets": len(targets),
        "targets_left_out": targets.left_out,
        "num_items": ranked.num_items,
        "exclude_seen": ctx.config.exclude_seen,
        "refit_validation": ctx.config.train.refit_validation,
        "metrics": {name: judged.values(name) | ranked.coverage[name] for name in judged.systems},
        "intervals": {name: judged.intervals(name) for name in judged.systems},
        "paired": {name: judged.paired(MODEL, name) for name in judged.systems if name != MODEL},
        "index": read_json(ctx.inputs["index"] / "recall.json"),
    }


def _systems(
    ctx: Context, fitted_on: Histories, num_items: int
) -> tuple[dict[str, Recommender], dict[str, str]]:
    """The model and the baselines asked for, fitted on the same events; why others are not there."""
    settings = ctx.config.evaluate
    wanted = BASELINES if settings.baselines == "all" else settings.baselines
    _, positions = fitted_on.gather()
    item, time = fitted_on.item_index[positions], fitted_on.time[positions]
    systems: dict[str, Recommender] = {
        MODEL: AttentionRecommender(load_model(ctx.inputs["train"], pick_device()))
    }
    not_applicable = {}
    if "popularity" in wanted:
        systems["popularity"] = Popularity.fit(item, num_items)
    if "recent_popularity" in wanted and ctx.config.events.timestamp_unit == "position":
        not_applicable["recent_popularity"] = "the log has no times, only each user's order"
    elif "recent_popularity" in wanted:
        systems["recent_popularity"] = RecentPopularity.fit_recent(
            item, time, num_items, settings.recent_days
        )
    if "co_visitation" in wanted:
        systems["co_visitation"] = CoVisitation.fit(fitted_on, num_items)
    return systems, not_applicable


def rank_all(
    systems: dict[str, Recommender], targets: RankedTargets, ks: tuple[int, ...], *, exclude_seen: bool
) -> Ranked:
    """Rank every target with every system over the whole catalogue, never holding targets x items."""
    ranks: dict[str, Float64] = {}
    coverage: dict[str, dict[str, float]] = {}
    for name, system in systems.items():
        ranks[name] = np.empty(len(targets))
        recommended = np.zeros((len(ks), system.num_items + 1), bool)
        for rows in row_chunks(len(targets), system.num_items):
            part = targets.histories.select(rows)
            scores = system.score_items(part)
            if exclude_seen:
                mask_seen(scores, part)
            ranks[name][rows] = metrics.ranks(scores, targets.item[rows])
            lists, _ = top_k(scores, max(ks))
            for row, k in enumerate(ks):
                recommended[row, lists[:, :k]] = True
        shares = recommended[:, 1:].mean(axis=1)
        coverage[name] = {f"coverage@{k}": float(share) for k, share in zip(ks, shares, strict=True)}
    return Ranked(ranks, coverage, system.num_items)


def _say(ctx: Context, report: dict[str, Any]) -> None:
    """Counts in the manifest, metrics to track, one line."""
    left_out = report["targets_left_out"]
    ctx.manifest.update(rows_in=report["targets"] + sum(left_out.values()), rows_out=report["targets"])
    ctx.manifest["rows_left_out"] = left_out
    for system, values in report["metrics"].items():
        for name, value in values.items():
            log = ctx.track.parent_metric if system == MODEL else ctx.track.metric
            log(f"{'test' if system == MODEL else system}/{name}", value)
    for name in ("targets", "users"):
        ctx.track.metric(f"test/{name}", report[name])
    features = ctx.inputs["features"]
    ctx.track.dataset(ctx.config.name, features.name, "test", str(features), report["targets"])
    shown = f"ndcg@{ctx.config.evaluate.k[0]}"
    values = ", ".join(f"{system} {report['metrics'][system][shown]:.4f}" for system in report["metrics"])
    counts = (
        f"{report['targets']:,} targets of {report['users']:,} users ({sum(left_out.values()):,} left out)"
    )
    ctx.summary(f"{shown} {values} on {counts}")


def _write_tables(
    ctx: Context,
    targets: RankedTargets,
    ranked: Ranked,
    judged: Judgement,
    histories: JaggedHistories,
    fitted_on: Histories,
) -> None:
    """targets.parquet, per_user.parquet, segments.parquet and the figures."""
    features = ctx.inputs["features"]
    user_id = pl.read_parquet(features / "users.parquet", columns=["user_id"])["user_id"]
    item_id = pl.read_parquet(features / "items.parquet", columns=["item_id"])["item_id"]
    about = pl.DataFrame(
        {
            "user_id": user_id.gather(targets.user),
            "item_id": item_id.gather(histories.item_index[targets.position].astype(np.int64) - 1),
            "timestamp": pl.Series(histories.time[targets.position]).cast(pl.Datetime("us", "UTC")),
        }
    )
    length = pl.Series("history_length", targets.histories.lengths)
    pl.concat(
        about.select(pl.lit(name).alias("system"), pl.all(), pl.Series("rank", rank), length)
        for name, rank in ranked.ranks.items()
    ).write_parquet(ctx.folder / "targets.parquet")
    pl.concat(
        pl.DataFrame({"user_id": user_id.gather(judged.users)} | judged.of_users(name)).select(
            pl.lit(name).alias("system"), pl.all()
        )
        for name in judged.systems
    ).write_parquet(ctx.folder / "per_user.parquet")
    segments = pl.DataFrame(_segments(ctx, targets, ranked, fitted_on))
    segments.write_parquet(ctx.folder / "segments.parquet")
    for name, figure in figures.of_evaluation(judged, segments, ctx.config.evaluate.k[0]).items():
        figures.save(figure, ctx.folder / name)
        ctx.track.artifact(name, "evaluate")
    for name in ("metrics.json", "targets.parquet", "per_user.parquet", "segments.parquet"):
        ctx.track.artifact(name, "evaluate")


def _segments(
    ctx: Context, targets: RankedTargets, ranked: Ranked, fitted_on: Histories
) -> list[dict[str, Any]]:
    """A row per segment, value and system: targets, users, each metric over targets with its interval."""
    settings, rows = ctx.config.evaluate, []
    for segment, value, chosen in segments_of(targets, fitted_on, ranked.num_items):
        if not chosen.any():
            continue
        judged = Judgement.of(
            {name: rank[chosen] for name, rank in ranked.ranks.items()},
            targets.user[chosen],
            tuple(settings.k),
            settings.resamples,
            ctx.config.seed,
        )
        for name in judged.systems:
            row = {"system": name, "segment": segment, "value": value, "targets": int(chosen.sum())}
            rows.append(
                row | {"users": judged.num_users} | _with_ends(judged.values(name), judged.intervals(name))
            )
    return rows


def _with_ends(values: dict[str, float], intervals: dict[str, list[float]]) -> dict[str, float]:
    """`ndcg@10`, `ndcg@10_low`, `ndcg@10_high` … of every metric."""
    named = [
        ((name, value), *zip((f"{name}_low", f"{name}_high"), intervals[name], strict=True))
        for name, value in values.items()
    ]
    return {key: number for each in named for key, number in each}


def segments_of(
    targets: RankedTargets, fitted_on: Histories, num_items: int
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(segment, value, [targets] which belong to it) of every value.

    `history_length`: events the model may look at. `item_popularity`: the third of the catalogue, ordered by events in
    what the systems were fitted on, that the target's item is in: tail, middle, head.
    """
    length, edges = targets.histories.lengths, (*HISTORY_LENGTHS, np.iinfo(np.int64).max)
    for first, after in pairwise(edges):
        name = f"{first}+" if after == edges[-1] else f"{first}-{after - 1}"
        yield "history_length", name, (length >= first) & (length < after)
    counts = np.bincount(fitted_on.item_index[fitted_on.gather()[1]], minlength=num_items + 1)[1:]
    place = np.empty(num_items, np.int64)
    place[np.argsort(counts, kind="stable")] = np.arange(num_items)
    third = place[targets.item - 1] * 3 // num_items
    for number, name in enumerate(("tail", "middle", "head")):
        yield "item_popularity", name, third == number
