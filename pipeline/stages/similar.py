"""Stage similar: the items most similar to each item, and popular items by segment of users."""

import numpy as np

from models.baselines.co_visitation import CoVisitation
from models.recommendation.answer import Run
from models.recommendation.similar_items import similar_items
from pipeline.errors import DamagedArtifact
from pipeline.evaluation import next_items
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.modelling.second_stage import is_timed
from pipeline.orchestration.context import Context
from pipeline.serving.batch import items_gone, scoring_threads
from pipeline.serving.bundle import Bundle
from pipeline.serving.business_rules import rules_of
from pipeline.serving.current_log import with_current_log
from pipeline.serving.item_tables import popular_items, write_similar

SIMILAR, POPULAR = "similar.parquet", "popular.parquet"


def build(ctx: Context) -> None:
    """Write similar.parquet and popular.parquet, with the metrics of the lists on the test in the manifest."""
    config, ingest = ctx.config, ctx.inputs["ingest"]
    timezone = config.events.timezone
    opened = Bundle.open(ctx.bundle(), verify=False)
    bundle, log = with_current_log(
        opened, ctx.inputs["features"], ingest, config.score, timed=is_timed(config), timezone=timezone
    )
    time, num_items = log.request.time, len(bundle.items)
    rules, counts = rules_of(
        config.score,
        bundle.items,
        time,
        config.seed,
        exclude_seen=True,
        timezone=timezone,
        gone=items_gone(config.score, ingest, bundle, log),
    )
    items = np.arange(1, num_items + 1, dtype=np.int32)
    with scoring_threads() as (run, _):
        ctx.progress = "lists of similar items"
        known = log.known.without_dislikes()
        follows = CoVisitation.fit(known, num_items, max_neighbours=num_items).follows
        lists = similar_items(
            bundle.engine, follows, items, config.similar.k, time=time, allowed=rules.allowed, run=run
        )
        of_kind = write_similar(ctx.folder / SIMILAR, bundle.items, items, lists)
        popular = popular_items(bundle.popularity, bundle.items, config.similar.k, rules.allowed)
        popular.write_parquet(ctx.folder / POPULAR)
        ctx.progress = "next items of the test"
        _measure(ctx, opened, time, run)
    _report(ctx, bundle, of_kind, counts)


def _measure(ctx: Context, bundle: Bundle, request_time: int, run: Run) -> None:
    """Add the metrics of the lists by the evaluated weights to the manifest and to track; or why there are none."""
    try:
        model = EvaluatedModel.open(bundle.folder, verify=False)
    except DamagedArtifact as error:  # of a bundle of another format
        ctx.manifest["next_items"] = {"not_measured": str(error)}
        return
    measured = next_items.measure(ctx.config, ctx.dataset, model, request_time, run)
    ctx.manifest["next_items"] = measured
    for kind, metrics in measured["metrics"].items():
        for name, ends in metrics.items():
            ctx.track.metric(f"{kind}/{name}", ends["value"])
            ctx.track.metric(f"{kind}/{name}_low", ends["low"])
            ctx.track.metric(f"{kind}/{name}_high", ends["high"])


def _report(ctx: Context, bundle: Bundle, of_kind: dict[str, int], counts: dict[str, int]) -> None:
    """Counts in the manifest and to track, one line."""
    ctx.manifest.update(
        rows_in=len(bundle.items),
        rows_out=max(of_kind.values()),
        rows_left_out={"item_without_list": len(bundle.items) - max(of_kind.values())},
        items_with_list=of_kind,
        segment=bundle.segment_column,
        model=ctx.config.score.model,
        model_version=None if ctx.model is None else ctx.model.version,
        bundle_digest=bundle.digest,
        **counts,
    )
    for kind, number in of_kind.items():
        ctx.track.metric(f"{kind}/items_with_list", number)
    ctx.track.tag("lookback.bundle_digest", bundle.digest)
    lists = ", ".join(f"{number:,} by {kind}" for kind, number in of_kind.items())
    ctx.summary(f"lists of {ctx.config.similar.k} for {len(bundle.items):,} items: {lists}{_measured(ctx)}")


def _measured(ctx: Context) -> str:
    """Metrics on the next items of the test, for the summary line."""
    measured = ctx.manifest["next_items"]
    if not measured.get("pairs"):
        return f"; not measured: {measured.get('not_measured', 'no pair of known items in the test')}"
    name = f"ndcg@{ctx.config.similar.k}"
    values = ", ".join(f"{kind} {values[name]['value']:.4f}" for kind, values in measured["metrics"].items())
    return f"; {name} of the next item {values} on {measured['pairs']:,} pairs"
