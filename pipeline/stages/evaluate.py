"""Stage evaluate: every held-out event ranked against the whole catalogue by the model, beside the baselines.

Metrics are written with bootstrap intervals over users and paired differences between the model and each baseline.
"""

import datetime
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from features.histories.jagged import JaggedHistories
from features.histories.leaks import check_fitted, check_leaks, leaks_by_construction
from features.histories.numbering import ItemNumbering
from features.histories.splits import Split
from models.checkpoint import load_model
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender
from models.evaluation import metrics
from models.evaluation.beyond_accuracy import Catalogue
from models.evaluation.comparison import Judgement
from models.evaluation.ranks import SystemRanks, rank_targets
from models.histories import Histories, Int32
from models.ranking.two_stage import TwoStage
from pipeline.artifacts.files import read_json, write_json
from pipeline.config import MODEL
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.leak_checks import check_targets
from pipeline.dataset.targets import RankedTargets, targets_of, told
from pipeline.errors import LookbackError
from pipeline.evaluation import diagnostics, metrics_report, ranking, second_stage_gain
from pipeline.evaluation.metrics_report import Judging
from pipeline.evaluation.segments import segments_of
from pipeline.modelling import second_stage
from pipeline.orchestration.context import Context
from pipeline.reporting import charts

TABLES = ("metrics.json", "targets.parquet", "per_user.parquet", "segments.parquet", "diagnostics.json")
CUT = "evaluate cut "
"""What the evaluations of earlier cuts are called among a stage's inputs."""


@dataclass(frozen=True)
class Evaluation:
    """What the model and the baselines make of the test targets."""

    dataset: Dataset
    numbering: ItemNumbering
    """Items of the dataset -> the systems'."""
    training: Histories
    """What every system learned from, in the systems' numbering"""
    every_target: RankedTargets
    """Those that stand apart too."""
    every_rank: Mapping[str, SystemRanks]
    targets: RankedTargets
    """Those that the metrics are means over."""
    ranked: Mapping[str, SystemRanks]
    catalogue: Catalogue
    recommender: AttentionRecommender
    ranker: dict[str, Any]
    """Whether the model's ranks are those of retrieval alone or of the second stage behind it, and why."""


def build(ctx: Context) -> None:
    """Write metrics.json, targets.parquet, per_user.parquet, segments.parquet, diagnostics.json and a page of figures."""
    judged_by = Judging(tuple(ctx.config.evaluate.k), ctx.config.evaluate.resamples, ctx.config.seed)
    found = _rank(ctx)
    judged = metrics_report.judge(found.ranked, found.targets, found.catalogue, judged_by)
    report = _report(ctx, found, judged, judged_by)
    write_json(ctx.folder / "metrics.json", report)
    _write_table(ctx, "systems.json", _as_table(report))
    _write_targets(ctx, found)
    _write_users(ctx, judged)
    _write_segments(ctx, found, judged_by)
    write_json(ctx.folder / "diagnostics.json", _diagnostics(ctx, found))
    charts.draw_evaluation(ctx.folder, ctx.inputs, ctx.config.name, report)
    for name in (*TABLES, charts.PAGE):
        ctx.track.artifact(name, "evaluate")
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    _say(ctx, report)


def _rank(ctx: Context) -> Evaluation:
    """Check for leaks, find the targets, rank them by the model, and take up how the baselines ranked them."""
    config, settings = ctx.config, ctx.config.evaluate
    dataset, split = ctx.dataset, ctx.dataset.split
    numbering = ItemNumbering.load(ctx.inputs["train"] / "items.npy")
    assert np.array_equal(numbering.new, np.load(ctx.inputs["baselines"] / "items.npy"))
    _check_leaks(ctx, dataset.histories, split)
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    targets = targets_of(config, dataset, "test", numbering, trained=dataset.occurring(training))
    check_targets(targets, dataset, numbering, ties=config.split.ties)
    chosen = metrics_report.counted(targets, cold_users=settings.cold_users, cold_items=settings.cold_items)
    if not chosen.any():
        raise LookbackError(
            f"evaluate: no target is left of the test events of {split.protocol!r} (left out: {told(_left_out(ctx, targets))});"
            " expected a known item after a known history: check split.test_from, history.min_*_events and exclude_seen"
        )
    training = training.translate(numbering.new)
    recommender = AttentionRecommender(load_model(ctx.inputs["train"], pick_device()))
    part = ranking.Part(training, targets, recommender.num_items)
    stages = _stages(ctx, recommender, part, numbering)
    ranker = _ranker(
        ctx, {name: each.select(chosen) for name, each in stages.items()}, targets.select(chosen)
    )
    own = stages[second_stage.TWO_STAGE if ranker["used"] else second_stage.RETRIEVAL]
    ranked = {MODEL: own} | {
        name: ranking.load(ctx.inputs["baselines"], name)
        for name in read_json(ctx.inputs["baselines"] / "baselines.json")["systems"]
    }
    counts = np.bincount(training.item_index[training.gather()[1]], minlength=recommender.num_items + 1)
    return Evaluation(
        dataset,
        numbering,
        training,
        targets,
        ranked,
        targets.select(chosen),
        {name: each.select(chosen) for name, each in ranked.items()},
        metrics_report.catalogue_of(counts, dataset.content, numbering),
        recommender,
        ranker,
    )


def _stages(
    ctx: Context, recommender: AttentionRecommender, part: ranking.Part, numbering: ItemNumbering
) -> dict[str, SystemRanks]:
    """How retrieval ranks the targets, and how it does with the second stage behind it, where stage rank trained one."""
    config = ctx.config
    found = {second_stage.RETRIEVAL: ranking.rank_all(recommender, part, config)}
    stage = second_stage.opened(config, ctx.dataset, ctx.inputs["rank"], part.training, numbering)
    if stage is not None:
        both = TwoStage(recommender, stage, exclude_seen=config.exclude_seen)
        found[second_stage.TWO_STAGE] = ranking.rank_all(both, part, config)
    return found


def _ranker(ctx: Context, stages: Mapping[str, SystemRanks], targets: RankedTargets) -> dict[str, Any]:
    """Whether the second stage is used, with its difference from retrieval alone on the targets that count."""
    config = ctx.config
    if second_stage.TWO_STAGE not in stages:
        reason = read_json(ctx.inputs["rank"] / second_stage.DESCRIPTION)["reason"]
        return {"used": False, "setting": config.ranker.use, "reason": reason}
    judged_by = Judging(tuple(config.evaluate.k), config.evaluate.resamples, config.seed)
    metric = f"ndcg@{judged_by.list_length}"
    return second_stage_gain.compared(stages, targets, judged_by, config.ranker.use, metric)


def _check_leaks(ctx: Context, histories: JaggedHistories, split: Split) -> None:
    """Raise LeakError where a history is out of order, the parts overlap, or a system was fitted on other events."""
    check_leaks(histories, split)
    fitted = {MODEL: read_json(ctx.inputs["train"] / "training.json")["fitted_on"]} | {
        name: facts["fitted_on"]
        for name, facts in read_json(ctx.inputs["baselines"] / "baselines.json")["systems"].items()
    }
    for name, on in fitted.items():
        with_validation = ctx.config.train.refit_validation
        check_fitted(name, on["num_events"], on["latest"], histories, split, with_validation=with_validation)


def _left_out(ctx: Context, targets: RankedTargets) -> dict[str, int]:
    """Test events that the metrics do not look at, by reason."""
    settings = ctx.config.evaluate
    included = {"no_history": settings.cold_users, "unknown_item": settings.cold_items}
    return targets.left_out | {
        name: 0 if included[name] else count for name, count in targets.num_apart.items()
    }


def _report(ctx: Context, found: Evaluation, judged: Judgement, judged_by: Judging) -> dict[str, Any]:
    """What metrics.json holds: counts, then a tree of system, metric and value for each kind of number."""
    config, settings = ctx.config, ctx.config.evaluate
    num_items = found.recommender.num_items
    of_lists = metrics_report.catalogue_metrics(found.ranked, found.targets, num_items, judged_by)
    others = [name for name in judged.systems if name != MODEL]
    tuned = read_json(ctx.inputs["baselines"] / "baselines.json")
    report: dict[str, Any] = {
        "protocol": found.dataset.split.protocol,
        "test_from": _iso(found.dataset.split.test_from),
        "targets_of_a_user": settings.targets,
        "ties": config.split.ties,
        "users": judged.num_users,
        "targets": len(found.targets),
        "targets_left_out": _left_out(ctx, found.every_target),
        "num_items": num_items,
        "exclude_seen": config.exclude_seen,
        "refit_validation": config.train.refit_validation,
        "resamples": settings.resamples,
        "metrics": {name: _known(judged.values(name) | of_lists[name][0]) for name in judged.systems},
        "intervals": {name: _known(judged.intervals(name) | of_lists[name][1]) for name in judged.systems},
        "paired": {
            other: {name: row for name, row in compared.items() if not np.isnan(row["difference"])}
            for other, compared in (judged.compared(MODEL, others) if others else {}).items()
        },
        "apart": metrics_report.apart(
            found.every_rank,
            found.every_target,
            judged,
            judged_by,
            cold_users=settings.cold_users,
            cold_items=settings.cold_items,
        ),
        "leaks": {
            "checked": [
                "order of every history",
                "boundaries of the parts",
                "events that each system was fitted on",
                "history of every target",
            ],
            "by_construction": _leaks_by_construction(ctx, found),
        },
        "baselines": {
            name: {key: facts[key] for key in ("settings", "grid")}
            for name, facts in tuned["systems"].items()
        },
        "not_applicable": tuned["not_applicable"],
        "index": read_json(ctx.inputs["index"] / "recall.json"),
        "ranker": found.ranker,
    }
    if settings.training_fractions:
        report["learning_curve"] = _learning_curve(ctx, found, judged, judged_by)
    earlier = [
        read_json(folder / "metrics.json") for name, folder in ctx.inputs.items() if name.startswith(CUT)
    ]
    if earlier:
        report["rolling"] = metrics_report.rolling([*earlier, report])
    return report


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are defined for any target: JSON has no NaN."""
    return {name: value for name, value in values.items() if not np.isnan(value).any()}


def _leaks_by_construction(ctx: Context, found: Evaluation) -> dict[str, float]:
    """What leave-one-out lets every system learn from the future of its own test; nothing where there is no common time."""
    if found.dataset.split.protocol != "leave_one_out" or ctx.config.events.timestamp_unit == "position":
        return {}
    with_validation = ctx.config.train.refit_validation
    return leaks_by_construction(
        found.dataset.histories, found.dataset.split, with_validation=with_validation
    )


def _as_table(report: dict[str, Any]) -> pl.DataFrame:
    """A row per system and metric: value, interval, and how the model differs from it."""
    found = []
    for system, values in report["metrics"].items():
        for metric, value in values.items():
            low, high = report["intervals"][system].get(metric, (None, None))
            against = report["paired"].get(system, {}).get(metric, {})
            difference = {f"model_minus_it_{key}": against.get(key) for key in ("difference", "low", "high")}
            rest = {key: against.get(key) for key in ("p_bootstrap_holm", "p_holm", "verdict")}
            row = {"system": system, "metric": metric, "value": value, "low": low, "high": high}
            found.append(row | difference | rest)
    return pl.DataFrame(found, infer_schema_length=None)


def _iso(moment: int | None) -> str | None:
    return None if moment is None else datetime.datetime.fromtimestamp(moment / 1e6, datetime.UTC).isoformat()


def _learning_curve(
    ctx: Context, found: Evaluation, judged: Judgement, judged_by: Judging
) -> list[dict[str, Any]]:
    """The model trained on shares of the training users, judged on the same targets; items it never saw are misses."""
    curve: list[dict[str, Any]] = []
    order = np.random.default_rng(ctx.config.seed).permutation(np.flatnonzero(found.dataset.split.train_user))
    for fraction in sorted({each for each in ctx.config.evaluate.training_fractions if each < 1}):
        users = np.zeros(found.dataset.histories.num_users, bool)
        users[order[: max(1, round(fraction * len(order)))]] = True
        trained = ctx.trainer().fit_split(f"fraction_{fraction:g}", users)
        translation = found.numbering.inverse().compose(trained.numbering).new
        ranked = rank_targets(
            AttentionRecommender(trained.result.model),
            found.targets.histories.translate(translation),
            translation[found.targets.item],
            judged_by.list_length,
            exclude_seen=ctx.config.exclude_seen,
        )
        values = metrics.metrics_of_ranks(ranked.rank, judged_by.ks)
        own = Judgement.of([(MODEL, values)], found.targets.user, judged_by.resamples, judged_by.seed)
        curve.append(_point(fraction, int(users.sum()), own))
    return [*curve, _point(1.0, len(order), judged)]


def _point(fraction: float, num_users: int, judged: Judgement) -> dict[str, Any]:
    return {
        "fraction": fraction,
        "users": num_users,
        "metrics": _known(judged.values(MODEL)),
        "intervals": _known(judged.intervals(MODEL)),
    }


def _diagnostics(ctx: Context, found: Evaluation) -> dict[str, Any]:
    """What can be seen of how the model decides, beside how well."""
    return diagnostics.build(
        found.recommender,
        found.targets,
        found.ranked[MODEL],
        found.dataset,
        found.numbering,
        exclude_seen=ctx.config.exclude_seen,
        timed=ctx.config.events.timestamp_unit != "position",
        seed=ctx.config.seed,
    )


def _write_targets(ctx: Context, found: Evaluation) -> None:
    """targets.parquet: a row per system and target, with its rank, the worst that ties allow, and what was recommended."""
    targets, histories = found.targets, found.dataset.histories
    users, items = found.dataset.users["user_id"], found.dataset.items["item_id"]
    ours = items.gather(found.numbering.inverse().new[1:].astype(np.int64) - 1)
    about = pl.DataFrame(
        {
            "user_id": users.gather(targets.user),
            "item_id": items.gather(histories.item_index[targets.position].astype(np.int64) - 1),
            "timestamp": pl.Series(histories.time[targets.position]).cast(pl.Datetime("us", "UTC")),
        }
    )
    length = pl.Series("history_length", targets.histories.lengths)
    pl.concat(
        about.select(
            pl.lit(name).alias("system"),
            pl.all(),
            pl.Series("rank", each.rank),
            length,
            pl.Series("pessimistic_rank", each.pessimistic),
            _id_lists(each.lists, ours).alias("recommended"),
        )
        for name, each in found.ranked.items()
    ).write_parquet(ctx.folder / "targets.parquet")


def _id_lists(lists: Int32, ids: pl.Series) -> pl.Series:
    """[targets] lists of ids, as long as they are; `ids` at position p is item p + 1."""
    import pyarrow as pa

    filled = lists > 0
    offsets = np.concatenate(([0], np.cumsum(filled.sum(axis=1)))).astype(np.int32)
    values = ids.gather(lists[filled].astype(np.int64) - 1).to_arrow(compat_level=pl.CompatLevel.oldest())
    found = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values))
    assert isinstance(found, pl.Series)
    return found


def _write_users(ctx: Context, judged: Judgement) -> None:
    """per_user.parquet: a row per system and user, the mean of each metric over the user's targets."""
    users = ctx.dataset.users["user_id"].gather(judged.users)
    pl.concat(
        pl.DataFrame({"user_id": users} | judged.of_users(name)).select(
            pl.lit(name).alias("system"), pl.all()
        )
        for name in judged.systems
    ).write_parquet(ctx.folder / "per_user.parquet")


def _write_segments(ctx: Context, found: Evaluation, judged_by: Judging) -> None:
    """segments.parquet: a row per segment, value and system."""
    segments = segments_of(
        found.targets,
        found.dataset,
        found.catalogue.counts,
        ctx.inputs["ingest"],
        timed=ctx.config.events.timestamp_unit != "position",
    )
    table = pl.DataFrame(
        list(metrics_report.judge_segments(found.ranked, found.targets.user, segments, judged_by))
    )
    table.write_parquet(ctx.folder / "segments.parquet")
    _write_table(ctx, "segments.json", table)


def _write_table(ctx: Context, name: str, table: pl.DataFrame) -> None:
    """Write a table as MLflow's UI shows it, and log it there."""
    write_json(
        ctx.folder / name,
        {"columns": table.columns, "data": [list(row) for row in table.fill_nan(None).rows()]},
    )
    ctx.track.table(name, "evaluate")


def _say(ctx: Context, report: dict[str, Any]) -> None:
    """Counts in the manifest, metrics to track, one line."""
    left_out = report["targets_left_out"]
    ctx.manifest.update(rows_in=report["targets"] + sum(left_out.values()), rows_out=report["targets"])
    ctx.manifest["rows_left_out"] = left_out
    for system, values in report["metrics"].items():
        for name, value in values.items():
            if system == MODEL:
                ctx.track.parent_metric(f"test/{name}", value)
            elif not name.startswith(("pessimistic_", "user_pessimistic_")):
                ctx.track.metric(f"{system}/{name}", value)
    for stage, values in report["ranker"].get("metrics", {}).items():
        for name, value in values.items():
            ctx.track.metric(f"{stage}/{name}", value)
    for kind in ("mean", "spread"):
        for name, value in report.get("rolling", {}).get(kind, {}).get(MODEL, {}).items():
            ctx.track.metric(f"rolling_{kind}/{name}", value)
    for name in ("targets", "users"):
        ctx.track.metric(f"test/{name}", report[name])
    features = ctx.inputs["features"]
    ctx.track.dataset(ctx.config.name, features.name, "test", str(features), report["targets"])
    shown = f"ndcg@{ctx.config.evaluate.k[0]}"
    values = ", ".join(f"{system} {report['metrics'][system][shown]:.4f}" for system in report["metrics"])
    counts = (
        f"{report['targets']:,} targets of {report['users']:,} users ({sum(left_out.values()):,} left out)"
    )
    ctx.track.tag("lookback.ranker", report["ranker"]["reason"])
    ctx.summary(f"{shown} {values} on {counts}; {report['ranker']['reason']}")
