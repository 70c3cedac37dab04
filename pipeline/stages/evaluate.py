"""Stage evaluate: held-out events ranked against the whole catalogue by the model and the baselines.

Metrics come with bootstrap intervals over users and paired differences between the model and each baseline.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from features.histories.numbering import ItemNumbering
from models.checkpoint import load_model
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import SystemRanks
from models.ranking.two_stage import TwoStage
from models.topk import contains
from pipeline.artifacts.files import read_json, write_json
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.leak_checks import check_targets, shares_by_construction
from pipeline.dataset.protocol import Kind
from pipeline.dataset.targets import RankedTargets, counted
from pipeline.errors import LookbackError
from pipeline.evaluation import (
    among_candidates,
    delivered_probability,
    diagnostics,
    dislike_rates,
    metrics_report,
    off_policy,
    outcome_metrics,
    ranking,
    result_tables,
    second_stage_gain,
    staleness,
    target_words,
    tracked_metrics,
)
from pipeline.evaluation.cautions import facts_of, of_evaluation
from pipeline.evaluation.evaluated_targets import CHECKED, Evaluation, check_fitted_systems, left_out_of
from pipeline.evaluation.held_out_candidates import HeldOutCandidates
from pipeline.evaluation.learning_curve import learning_curve
from pipeline.evaluation.metrics_report import MetricSettings, defined
from pipeline.evaluation.new_items import with_described_items, with_unlearned_items
from pipeline.evaluation.new_users import NewUsers
from pipeline.evaluation.report import (
    AmongCandidates,
    EvaluationReport,
    Leaks,
    NightsTested,
    SecondStageGain,
    Staleness,
    Tuning,
    Values,
    iso_time,
)
from pipeline.evaluation.segments import segments_of
from pipeline.modelling import second_stage
from pipeline.orchestration.context import Context
from pipeline.reporting import charts
from pipeline.sections import MODEL
from pipeline.serving import popularity_fallback

TABLES = ("metrics.json", "targets.parquet", "per_user.parquet", "segments.parquet", "diagnostics.json")
CUT = "evaluate cut "
"""Prefix of earlier cuts' evaluations among a stage's inputs."""


@dataclass(frozen=True)
class _Model:
    """The evaluated encoder, as trained."""

    recommender: AttentionRecommender
    numbering: ItemNumbering
    """Items of the dataset -> the encoder's."""


def build(ctx: Context) -> None:
    """Write metrics.json, targets.parquet, per_user.parquet, segments.parquet, diagnostics.json and a page of figures."""
    settings = MetricSettings(tuple(ctx.config.evaluate.k), ctx.config.evaluate.resamples, ctx.config.seed)
    model = _Model(
        AttentionRecommender(load_model(ctx.inputs["train"], pick_device())),
        ItemNumbering.load(ctx.inputs["train"] / "items.npy"),
    )
    evaluation = _rank(ctx, model, ctx.protocol.headline)
    ranked, targets = evaluation.ranked, evaluation.targets
    systems = metrics_report.compute_metrics(ranked, targets, evaluation.catalogue, settings)
    report = _report(ctx, evaluation, systems, settings)
    report = _with_parts(ctx, report, model, evaluation, settings)
    report = _with_dislikes(ctx, report, model, evaluation.ranker, settings)
    report = _with_off_policy(ctx, report, model, evaluation.ranker)
    report.save(ctx.folder)
    _write_table(ctx, "systems.json", result_tables.systems_table(report))
    result_tables.write_targets(
        ctx.folder,
        evaluation.dataset,
        evaluation.common,
        targets,
        ranked,
        nightly=ctx.protocol.headline == "nightly",
    )
    result_tables.write_users(ctx.folder, ctx.dataset.users["user_id"], systems)
    _write_segments(ctx, evaluation, settings)
    _write_diagnostics(ctx, model, evaluation)
    charts.draw_evaluation(ctx.folder, ctx.inputs, ctx.config.name, report)
    for name in (*TABLES, charts.PAGE):
        ctx.track.artifact(name, "evaluate")
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    _log(ctx, report)


def _rank(ctx: Context, model: _Model, kind: Kind, decided: SecondStageGain | None = None) -> Evaluation:
    """Check for leaks, rank the targets of a kind by the model, and load the baselines' ranks.

    `decided`: decision on the second stage; None: by these targets.
    """
    check_fitted_systems(ctx.config, ctx.dataset, ctx.inputs["train"], ctx.inputs["baselines"])
    evaluation = _ranked(ctx, model, kind, ctx.inputs["baselines"] / kind, decided)
    if isinstance(evaluation, Evaluation):
        return evaluation
    left_out = target_words.left_out(kind, left_out_of(ctx.config, evaluation, kind)) or "nothing"
    raise LookbackError(
        f"evaluate: no target is left among the test events of {ctx.dataset.split.protocol!r}, {kind} (left out: {left_out});"
        " expected a known item after a known history: check split.test_from, history.min_*_events and exclude_seen"
    )


def _ranked(
    ctx: Context,
    model: _Model,
    kind: Kind,
    folder: Path,
    decided: SecondStageGain | None,
    *,
    dislikes: bool = False,
) -> Evaluation | RankedTargets:
    """Ranks of the targets of a kind, or of its dislikes; all targets where none is left to average over.

    folder: the baselines' ranks of the same targets.
    """
    config, settings, dataset = ctx.config, ctx.config.evaluate, ctx.dataset
    common = ItemNumbering.load(folder / "items.npy")
    training = dataset.training_rows(with_validation=config.train.refit_validation)
    trained = dataset.occurring(training)
    targets = targets_of(config, dataset, "test", common, trained=trained, kind=kind, dislikes=dislikes)
    is_nightly = kind == "nightly"
    check_targets(
        targets,
        dataset,
        common,
        ties="strict" if is_nightly else ctx.protocol.ties,
        session_minutes=0.0 if is_nightly else config.history.session_minutes,
    )
    included = counted(targets, cold_users=settings.cold_users, cold_items=settings.cold_items or is_nightly)
    if not included.any():
        return targets
    part = ranking.Part(training.translate(model.numbering.new), model.numbering, targets, common)
    stages = _stages(ctx, model, part, nightly=is_nightly)
    chosen = targets.select(included)
    requests = np.bincount(targets.request[included], minlength=targets.num_requests) > 0
    kept = {name: ranks.select(included, requests) for name, ranks in stages.items()}
    ranker = decided or second_stage_gain.decide(config, ctx.inputs["rank"], kept, chosen)
    own = stages[_stage_of(ranker)]
    ranked = {MODEL: own} | {
        name: ranking.load(folder, name)
        for name in read_json(ctx.inputs["baselines"] / "baselines.json")["systems"]
    }
    of_items = training.without_dislikes().translate(common.new)
    counts = np.bincount(of_items.item_index[of_items.gather()[1]], minlength=common.num_items + 1)
    return Evaluation(
        dataset,
        common,
        targets,
        ranked,
        chosen,
        {name: ranks.select(included, requests) for name, ranks in ranked.items()},
        metrics_report.catalogue_of(counts, dataset.content, common),
        ranker,
    )


def _stages(
    ctx: Context, model: _Model, part: ranking.Part, *, nightly: bool, only: str | None = None
) -> dict[str, SystemRanks]:
    """Ranks of the targets by retrieval and, where stage rank trained a ranker, by both stages; or by the one named alone.

    At nights users without a history get the popular items that scoring recommends to them.
    """
    config, exclude_seen = ctx.config, ctx.protocol.exclude_seen
    systems = _systems(ctx, model, part, nightly=nightly)
    ranked = {
        name: ranking.rank_all(system, part, config, exclude_seen=exclude_seen, own=numbering)
        for name, (system, numbering) in systems.items()
        if only in (None, name)
    }
    if not nightly:
        return ranked
    tuned = read_json(ctx.inputs["baselines"] / "baselines.json")["systems"].get("recent_popularity")
    days = popularity_fallback.days_of({} if tuned is None else tuned["settings"])
    fallback = NewUsers.of(config, ctx.dataset, ctx.inputs["ingest"], days)
    return {
        name: fallback.ranked(ranks, part.targets, part.common, systems[name][1])
        for name, ranks in ranked.items()
    }


def _systems(
    ctx: Context, model: _Model, part: ranking.Part, *, nightly: bool
) -> dict[str, tuple[AttentionRecommender | TwoStage, ItemNumbering]]:
    """The encoder, and both stages where stage rank trained a ranker, each with items of the dataset -> its own.

    At nights the encoder recommends new items by their content, the ranker all others by its item statistics as of the night.
    """
    config, dataset = ctx.config, ctx.dataset
    recommender, numbering = model.recommender, model.numbering
    if nightly and config.score.new_items:
        recommender, numbering = with_described_items(recommender, dataset, numbering)
    systems: dict[str, tuple[AttentionRecommender | TwoStage, ItemNumbering]] = {
        second_stage.RETRIEVAL: (recommender, numbering)
    }
    if nightly and config.score.new_items:
        numbering = with_unlearned_items(numbering, dataset)
    training = part.training.translate(part.learned.inverse().compose(numbering).new)
    stage = second_stage.opened(config, dataset, ctx.inputs, training, numbering)
    if stage is None:
        return systems
    if nightly:
        stage = stage.counting(dataset.without_held_back().all_rows().translate(numbering.new))
    both = TwoStage(recommender, stage, exclude_seen=ctx.protocol.exclude_seen)
    return systems | {second_stage.TWO_STAGE: (both, numbering)}


def _candidates(ctx: Context, model: _Model, evaluation: Evaluation) -> HeldOutCandidates | None:
    """Candidates of the test's requests; None without a ranker in use whose probabilities are measured."""
    nightly = ctx.protocol.headline == "nightly"
    if not evaluation.ranker.used or not (nightly or ctx.config.outcomes):
        return None
    systems = _systems(ctx, model, _part(ctx, model, evaluation.targets, evaluation.common), nightly=nightly)
    both, numbering = systems[second_stage.TWO_STAGE]
    assert isinstance(both, TwoStage)
    return HeldOutCandidates.of(ctx.config, ctx.dataset, both, numbering)


def _stale(ctx: Context, model: _Model, evaluation: Evaluation, settings: MetricSettings) -> Staleness | None:
    """Metric by age of model and lists; None without `evaluate.stale_days`."""
    if not ctx.config.evaluate.stale_days:
        return None
    part = _part(ctx, model, evaluation.targets, evaluation.common)
    return staleness.measure(ctx.config, ctx.dataset, part, _own_ranks(ctx, model, evaluation), settings)


def _among_candidates(ctx: Context, model: _Model, evaluation: Evaluation) -> AmongCandidates | None:
    """Metrics among users' candidates; None without `score.candidates`."""
    if ctx.candidates is None:
        return None
    rank, folder = _own_ranks(ctx, model, evaluation), ctx.inputs["baselines"]
    return among_candidates.measure(ctx.config, ctx.candidates, evaluation, folder, rank, ctx.protocol)


def _own_ranks(ctx: Context, model: _Model, evaluation: Evaluation) -> Callable[[RankedTargets], SystemRanks]:
    """Ranks of further targets of the headline's kind by the model, in its stages that are in use."""
    stage, nightly = _stage_of(evaluation.ranker), ctx.protocol.headline == "nightly"

    def rank(targets: RankedTargets) -> SystemRanks:
        part = _part(ctx, model, targets, evaluation.common)
        return _stages(ctx, model, part, nightly=nightly, only=stage)[stage]

    return rank


def _part(ctx: Context, model: _Model, targets: RankedTargets, common: ItemNumbering) -> ranking.Part:
    training = ctx.dataset.training_rows(with_validation=ctx.config.train.refit_validation)
    own = training.translate(model.numbering.new)
    return ranking.Part(own, model.numbering, targets, common)


def _stage_of(ranker: SecondStageGain) -> str:
    return second_stage.TWO_STAGE if ranker.used else second_stage.RETRIEVAL


def _report(
    ctx: Context, evaluation: Evaluation, systems: SystemComparison, settings: MetricSettings
) -> EvaluationReport:
    """Report of the evaluation, with a learning curve and earlier cuts where configured."""
    config, protocol = ctx.config, ctx.protocol
    num_items = evaluation.common.num_items
    of_lists = metrics_report.catalogue_metrics(evaluation.ranked, evaluation.targets, num_items, settings)
    others = [name for name in systems.systems if name != MODEL]
    differences = systems.compared(MODEL, others) if others else {}
    tuned = read_json(ctx.inputs["baselines"] / "baselines.json")
    curve = (
        learning_curve(
            ctx.trainer(),
            evaluation.targets,
            evaluation.common,
            systems,
            settings,
            config.evaluate.training_fractions,
            exclude_seen=protocol.exclude_seen,
        )
        if config.evaluate.training_fractions
        else None
    )
    report = EvaluationReport(
        protocol=evaluation.dataset.split.protocol,
        test_from=None if (start := evaluation.dataset.split.test_from) is None else iso_time(start),
        targets_of_a_user=protocol.headline,
        ties=protocol.ties,
        users=systems.num_users,
        targets=evaluation.targets.num_requests,
        targets_left_out=left_out_of(ctx.config, evaluation.every_target, protocol.headline),
        num_items=num_items,
        exclude_seen=protocol.exclude_seen,
        refit_validation=config.train.refit_validation,
        resamples=config.evaluate.resamples,
        metrics={name: defined(systems.values(name) | of_lists[name][0]) for name in systems.systems},
        intervals={name: defined(systems.intervals(name) | of_lists[name][1]) for name in systems.systems},
        differences={
            other: {name: paired for name, paired in by_metric.items() if not np.isnan(paired.difference)}
            for other, by_metric in differences.items()
        },
        cold_targets=metrics_report.cold_targets(
            evaluation.every_rank,
            evaluation.every_target,
            systems,
            settings,
            cold_users=config.evaluate.cold_users,
            cold_items=config.evaluate.cold_items or protocol.counts_new_items,
        ),
        leaks=Leaks(CHECKED, shares_by_construction(config, evaluation.dataset)),
        tuning={name: Tuning(facts["settings"], facts["grid"]) for name, facts in tuned["systems"].items()},
        not_applicable=tuned["not_applicable"],
        index=read_json(ctx.inputs["index"] / "recall.json"),
        ranker=evaluation.ranker,
        learning_curve=curve,
        nights=NightsTested.of(protocol, ctx.dataset),
    )
    earlier = [EvaluationReport.load(folder) for name, folder in ctx.inputs.items() if name.startswith(CUT)]
    return replace(report, rolling=metrics_report.rolling([*earlier, report])) if earlier else report


def _with_parts(
    ctx: Context,
    report: EvaluationReport,
    model: _Model,
    evaluation: Evaluation,
    settings: MetricSettings,
) -> EvaluationReport:
    """The report with cautions, repeats and new items apart, and other kinds of targets."""
    targets, ranked = evaluation.targets, evaluation.ranked
    is_repeat = contains(targets.histories.select(targets.request), targets.item)
    candidates = _candidates(ctx, model, evaluation)
    return replace(
        outcome_metrics.with_outcomes(report, ctx.config, evaluation, candidates, settings),
        cautions=of_evaluation(ctx.config, evaluation, ctx.inputs, ctx.protocol),
        repeats=metrics_report.of_targets(ranked, targets, is_repeat, settings),
        new=metrics_report.of_targets(ranked, targets, ~is_repeat, settings),
        by_targets=_by_targets(ctx, report, model, evaluation, settings),
        probability=delivered_probability.measure(ctx.config, candidates, ctx.inputs["rank"]),
        stale=_stale(ctx, model, evaluation, settings),
        among_candidates=_among_candidates(ctx, model, evaluation),
    )


def _by_targets(
    ctx: Context,
    report: EvaluationReport,
    model: _Model,
    evaluation: Evaluation,
    settings: MetricSettings,
) -> Mapping[str, Mapping[str, Values]] | None:
    """Kind of targets -> system -> metrics, where several kinds are configured."""
    headline, *others = ctx.protocol.kinds
    if not others:
        return None
    values: dict[str, Mapping[str, Values]] = {headline: report.metrics}
    for kind in others:
        beside = _rank(ctx, model, kind, evaluation.ranker)
        compared = metrics_report.compute_metrics(beside.ranked, beside.targets, beside.catalogue, settings)
        values[kind] = {name: defined(compared.values(name)) for name in compared.systems}
        if (disliked := _dislikes(ctx, model, kind, evaluation.ranker)) is not None:
            rates = dislike_rates.compute(disliked.ranked, disliked.targets, settings)
            values[kind] = {name: {**own, **rates.values(name)} for name, own in values[kind].items()}
    return values


def _with_dislikes(
    ctx: Context,
    report: EvaluationReport,
    model: _Model,
    ranker: SecondStageGain,
    settings: MetricSettings,
) -> EvaluationReport:
    """The report with `dislike_rate@k` of every system; writes dislikes.parquet, in the form of targets.parquet."""
    kind = ctx.protocol.headline
    disliked = _dislikes(ctx, model, kind, ranker)
    if disliked is None:
        return report
    result_tables.write_targets(
        ctx.folder,
        disliked.dataset,
        disliked.common,
        disliked.targets,
        disliked.ranked,
        nightly=kind == "nightly",
        name=dislike_rates.FILE,
    )
    ctx.track.artifact(dislike_rates.FILE, "evaluate")
    ctx.track.tag(dislike_rates.TAG, str(len(disliked.targets)))
    systems = dislike_rates.compute(disliked.ranked, disliked.targets, settings)
    return dislike_rates.with_rates(report, systems, left_out_of(ctx.config, disliked.every_target, kind))


def _dislikes(ctx: Context, model: _Model, kind: Kind, ranker: SecondStageGain) -> Evaluation | None:
    """Ranks of the held-out dislikes of a kind of targets; None without any."""
    folder = ctx.inputs["baselines"] / f"{kind}{dislike_rates.SUFFIX}"
    evaluation = _ranked(ctx, model, kind, folder, ranker, dislikes=True) if folder.exists() else None
    return evaluation if isinstance(evaluation, Evaluation) else None


def _with_off_policy(
    ctx: Context, report: EvaluationReport, model: _Model, ranker: SecondStageGain
) -> EvaluationReport:
    """The report with off-policy estimates of every system, where exposures of the test period have propensities."""

    def rank(requests: RankedTargets, common: ItemNumbering) -> dict[str, SystemRanks]:
        stages = _stages(ctx, model, _part(ctx, model, requests, common), nightly=False)
        return {MODEL: stages.pop(_stage_of(ranker))} | stages

    return off_policy.with_estimates(report, ctx.config, ctx.dataset, ctx.inputs["baselines"], rank)


def _write_diagnostics(ctx: Context, model: _Model, evaluation: Evaluation) -> None:
    """Write diagnostics.json."""
    own = evaluation.common.inverse().compose(model.numbering).new
    ranked = evaluation.ranked[MODEL]
    content = diagnostics.build(
        model.recommender,
        evaluation.targets.translate(own),
        replace(ranked, lists=own[ranked.lists]),
        evaluation.dataset,
        model.numbering,
        exclude_seen=ctx.protocol.exclude_seen,
        timed=ctx.config.events.timestamp_unit != "position",
        seed=ctx.config.seed,
    )
    write_json(ctx.folder / "diagnostics.json", content)


def _write_segments(ctx: Context, evaluation: Evaluation, settings: MetricSettings) -> None:
    """Write segments.parquet and segments.json: a row per segment, value and system."""
    segments = segments_of(
        evaluation.targets,
        evaluation.dataset,
        evaluation.catalogue.counts,
        ctx.inputs["ingest"],
        timed=ctx.config.events.timestamp_unit != "position",
    )
    table = pl.DataFrame(
        list(metrics_report.segment_metrics(evaluation.ranked, evaluation.targets, segments, settings))
    )
    table.write_parquet(ctx.folder / "segments.parquet")
    _write_table(ctx, "segments.json", table)


def _write_table(ctx: Context, name: str, table: pl.DataFrame) -> None:
    """Write a table in the JSON form of MLflow's UI, and log it."""
    rows = [list(row) for row in table.fill_nan(None).rows()]
    write_json(ctx.folder / name, {"columns": table.columns, "data": rows})
    ctx.track.table(name, "evaluate")


def _log(ctx: Context, report: EvaluationReport) -> None:
    """Counts in the manifest, metrics and tags to track, one line."""
    kind, left_out = report.targets_of_a_user, report.targets_left_out
    of_unit = target_words.of_user_nights(kind, left_out)
    ctx.manifest.update(rows_in=report.targets + sum(of_unit.values()), rows_out=report.targets)
    ctx.manifest["rows_left_out"] = of_unit
    for name, value in tracked_metrics.of_model(report).items():
        ctx.track.parent_metric(name, value)
    for name, value in tracked_metrics.beside_the_model(report).items():
        ctx.track.metric(name, value)
    features = ctx.inputs["features"]
    ctx.track.dataset(ctx.config.name, features.name, "test", str(features), report.targets)
    ctx.track.tag("lookback.ranker", report.ranker.reason)
    ctx.track.tag("lookback.targets", kind)
    ctx.track.tag("lookback.cautions", "; ".join(report.cautions) or "none")
    shown, reasons = f"ndcg@{ctx.config.evaluate.k[0]}", target_words.left_out(kind, left_out)
    values_shown = ", ".join(f"{system} {values[shown]:.4f}" for system, values in report.metrics.items())
    counts = f"{target_words.tested(report)}{f' (left out: {reasons})' if reasons else ''}"
    caution = f"; caution: {facts_of(report.cautions)}" if report.cautions else ""
    ctx.summary(f"{shown} {values_shown} on {counts}; {report.ranker.reason}{caution}")
