"""Stage score: recommendations for every user, written shard by shard to Parquet."""

import contextlib
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from features.printable import printable
from features.settings import iso_microseconds
from models.device import scoring_precision
from models.recommendation.engine import RecommendationEngine
from pipeline.artifacts.files import write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.budgets_section import BudgetsConfig, are_kept
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError, optional
from pipeline.evaluation import reranking_effects
from pipeline.experiment_section import ExperimentConfig
from pipeline.modelling import history_gain
from pipeline.modelling.ranker_columns import mostly_unseen
from pipeline.modelling.second_stage import is_timed
from pipeline.monitoring import earlier_lists
from pipeline.orchestration.context import Context
from pipeline.orchestration.graph import STAGES
from pipeline.serving import (
    bundle_ranker,
    drift,
    new_item_catalogue,
    night_candidates,
    night_lists,
    outcome_order,
    partly_ranked,
    previous_lists,
    proven_reasons,
    scored_lists,
    shadows,
    user_rules,
)
from pipeline.serving.arms import ARM, Arm, Arms, ArmScorer
from pipeline.serving.assignment import Assignment
from pipeline.serving.batch import Job, Scorer
from pipeline.serving.previous_lists import Reuse
from pipeline.serving.shards import Counts
from pipeline.serving.shown_items import shown_counts
from pipeline.serving.start_version import START
from pipeline.tracking.registry import CHAMPION, ModelSource

_COUNTED = (
    "users",
    "cold_users",
    "unknown_items",
    "users_with_unknown_items",
    "short_lists",
    "new_item_recommendations",
    "reused_lists",
)


def build(ctx: Context) -> None:
    """Write recommendations/part-*.parquet and _SUCCESS, resuming after the last finished shard."""
    folder = ctx.folder / "recommendations"
    folder.mkdir(exist_ok=True)
    inputs = ctx.inputs
    config, timed = ctx.config, is_timed(ctx.config)
    job = Job(
        ctx.bundle(),
        inputs["features"],
        inputs["ingest"],
        folder,
        config.score,
        config.seed,
        timed=timed,
        timezone=config.events.timezone,
        utilities=config.utility,
        not_again=earlier_lists.not_again(config, inputs["features"]),
    )
    scorer = Scorer.open(job)
    rules = user_rules.prepare(config.score, scorer.users.ids, ctx.folder / user_rules.FOLDER)
    scorer = replace(scorer, job=replace(job, user_rules=rules))
    of_users = {} if scorer.user_rules is None else scorer.user_rules.counts
    outcome_order.check_order(scorer.bundle, config.score.order, config.utility)
    proven_reasons.check(scorer.bundle, config.score)
    _say_if_nothing_was_shown(scorer)
    partly_ranked.check_share(scorer.bundle, config.score.second_stage_share)
    by_arm = _by_arm(ctx, scorer)
    started = time.monotonic()
    with _engine(config):
        if are_kept(config.score, config.budgets):
            scorer = _chosen_together(ctx, scorer)
        elif by_arm is None:
            scorer = _reusing(ctx, scorer)
        total: Counter[str] = Counter()
        with ctx.counted(len(scorer.users), "users") as advance:
            arms = None if by_arm is None else by_arm.arms
            for counts in _shards(scorer if by_arm is None else by_arm, arms, advance):
                total.update(counts)
    seconds = time.monotonic() - started
    _add_shadows(ctx, scorer)
    for own in (user_rules.FOLDER, night_candidates.FOLDER):
        shutil.rmtree(ctx.folder / own, ignore_errors=True)
    (ctx.folder / "_SUCCESS").touch()
    for other in folder.iterdir():  # records of finished shards, temporary files of a killed run
        if not (other.name.startswith("part-") and other.suffix == ".parquet"):
            other.unlink()
    if proven_reasons.are_sought(config.score):
        ctx.manifest["proven"] = proven_reasons.shares(total)
    if by_arm is not None:
        ctx.manifest["experiment"] = _experiment(ctx, total)
    ctx.manifest["user_rules"] = of_users | {
        name: total.get(name, 0) for name in user_rules.pin_counts(config.score)
    }
    _report(ctx, scorer, total, (total.get("users", 0) - total.get("users_before", 0)) / max(seconds, 1e-9))


def _engine(config: Config) -> contextlib.AbstractContextManager[object]:
    """Processes that all passes of a scoring share."""
    if config.score.engine != "ray":
        return contextlib.nullcontext()
    from pipeline.serving import ray_batch

    return ray_batch.session(config.score.workers)


def _shards(scorer: Scorer, arms: Arms | None, advance: Callable[[int], object]) -> Iterable[Counts]:
    """Score shards one after the other, here or on Ray; counts of each, or of several."""
    if scorer.job.settings.engine == "ray":
        return _by_ray(scorer, arms, advance)
    return map(partial(scorer.score, progress=advance), range(scorer.num_shards))


def _chosen_together(ctx: Context, scorer: Scorer) -> Scorer:
    """Scorer of lists that keep the budgets: candidates of all users are scored, and lists chosen; the manifest certifies them.

    Raises LookbackError for budgets that no lists could keep, before anything is scored where that shows.
    """
    plan = night_lists.prepare(ctx.config.budgets or BudgetsConfig(), scorer, ctx.folder)
    with ctx.counted(len(scorer.users), "users") as advance:
        deque(_shards(plan.scorer, None, advance), maxlen=0)
    reason = "lists are chosen together (score.budgets)"
    ctx.manifest.update(lists_key=None, reused_from=None, not_reused=reason)
    certificate = plan.allocated()
    ctx.manifest["budgets"] = asdict(certificate)
    for name in ("value", "bound", "gap", "value_lost_share"):
        ctx.track.metric(f"budgets/{name}", getattr(certificate, name))
    return night_lists.with_lists(scorer, plan)


def _say_if_nothing_was_shown(scorer: Scorer) -> None:
    """A line on stderr where `score.max_shown` is set and has nothing to read, as in a first night."""
    rule = scorer.job.not_again
    if rule is not None and not rule.lists and scorer.log.dataset.exposure_span is None:
        text = f"score.max_shown: no exposures and no earlier lists within {rule.days:g} days: nothing is left out"
        print(text, file=sys.stderr, flush=True)


def _reusing(ctx: Context, scorer: Scorer) -> Scorer:
    """The scorer with the earlier lists to copy, those of most users; the manifest says which, or why there are none."""
    settings, engine = scorer.job.settings, scorer.bundle.engine
    because = settings.because_method if settings.because else None
    ctx.manifest.update(
        lists_key=None, reused_from=None, not_reused=previous_lists.obstacle(scorer.bundle, settings)
    )
    if ctx.manifest["not_reused"] is not None:
        return scorer
    key = previous_lists.key(scorer.bundle, scorer.rules, settings, STAGES["score"].version)
    reuse = Reuse(ctx.folder / previous_lists.FOLDER)
    earlier = [] if ctx.force else scored_lists.of_bundle(ctx.config, scorer.bundle.digest)
    earlier.sort(key=lambda lists: -int(lists.manifest.get("users", 0)))  # newest first among equals
    for lists in earlier:
        if lists.manifest.get("lists_key") == key:
            job = replace(scorer.job, reuse=replace(reuse, previous=lists.folder))
            if (with_lists := replace(scorer, job=job)).previous is not None:
                ctx.manifest.update(lists_key=key, reused_from=lists.folder.name)
                return with_lists
    assert isinstance(engine, RecommendationEngine)
    if not engine.answers_alike(settings.k, because):
        ctx.manifest["not_reused"] = "this processor rounds a user's vector by its place in a block"
        return scorer
    ctx.manifest.update(lists_key=key, not_reused="--force" if ctx.force else "no earlier lists made alike")
    return replace(scorer, job=replace(scorer.job, reuse=reuse))


def _by_arm(ctx: Context, scorer: Scorer) -> ArmScorer | None:
    """Scorer by arm; None without an experiment beside the champion and, with a line on stderr, where it is not applied."""
    experiment = ctx.config.experiment
    if experiment is None or ctx.config.score.model != CHAMPION:
        return None
    obstacle = _no_arms(ctx, scorer, experiment)
    if obstacle is None:
        try:
            return ArmScorer.of(scorer, _arms(ctx, experiment))
        except LookbackError as error:
            obstacle = str(error)
    text = f"experiment {experiment.name!r}: not applied, all users get the champion's lists; {obstacle}"
    print(printable(text), file=sys.stderr, flush=True)
    return None


def _no_arms(ctx: Context, scorer: Scorer, experiment: ExperimentConfig) -> str | None:
    """Reason why lists are not made by arm; None where they can be."""
    for name, reason in ctx.arms.left_out.items():
        return f"arm {name}: {reason}"
    now = scorer.log.request.time
    if now < iso_microseconds(experiment.start, ctx.config.events.timezone):
        return f"it starts with {experiment.start}, and the log is at {np.datetime64(now, 'us')}"
    return None


def _arms(ctx: Context, experiment: ExperimentConfig) -> Arms:
    """Systems and assignment of an experiment. Raises LookbackError where a bundle cannot be fetched."""
    from pipeline.serving import bundle_cache

    sources = ctx.arms.sources
    systems = {
        name: Arm(bundle_cache.bundle_folder(ctx.config, sources[name]))
        if name in sources
        else Arm(None, shadows.counting_settings(ctx.config, name))
        for name in experiment.arms
    }
    return Arms(Assignment(experiment.salt, experiment.arms), systems)


def _experiment(ctx: Context, total: Counts) -> dict[str, object]:
    """Experiment of the lists, for the manifest and the ledger: arms with their systems and numbers of users."""
    experiment = ctx.config.experiment
    assert experiment is not None
    arms = []
    for name, share in experiment.arms.items():
        source = ctx.arms.sources.get(name)
        arms.append(
            {
                "name": name,
                "share": share,
                "users": total.get(f"{ARM} {name}", 0),
                "model_version": None if source is None else source.version,
                "bundle_digest": "" if source is None else source.bundle_digest,
            }
        )
    return {"name": experiment.name, "salt": experiment.salt, "arms": arms}


def _add_shadows(ctx: Context, scorer: Scorer) -> None:
    """Write the lists of `score.shadows`, and what they were made with to the manifest."""
    if not ctx.config.score.shadows:
        return
    for name, reason in ctx.shadows.left_out.items():
        print(f"shadow {name}: left out, {reason}", file=sys.stderr, flush=True)
    scored = shadows.score(
        ctx.config, scorer, ctx.shadows.sources, ctx.folder / shadows.FOLDER, advance=lambda _: None
    )
    ctx.manifest["shadows"] = {name: _shadow_source(ctx, source) for name, source in scored}


def _shadow_source(ctx: Context, source: ModelSource | None) -> dict[str, object]:
    """System of a shadow, for the manifest and the ledger; None: a baseline."""
    if source is None:
        return {"model_version": None, "bundle_digest": ""}
    from pipeline.serving import bundle_cache
    from pipeline.serving.bundle import read_description

    made = read_description(bundle_cache.bundle_folder(ctx.config, source), verify=False)
    own = {"model_version": source.version, "bundle_digest": source.bundle_digest}
    return own | {"start": made.get(START, ""), "model_time": made.get("newest")}


def _by_ray(scorer: Scorer, arms: Arms | None, advance: Callable[[int], object]) -> Iterator[Counts]:
    """Score all shards as Ray tasks, by arm where there are any; counts of each."""
    from pipeline.serving import ray_batch

    settings, num_shards = scorer.job.settings, scorer.num_shards
    starts = range(0, num_shards * settings.shard_users, settings.shard_users)
    users = [min(settings.shard_users, len(scorer.users) - start) for start in starts]
    for done, counts in ray_batch.score(scorer.job, num_shards, users, arms):
        advance(done)
        yield counts


def _own_version(ctx: Context) -> int | None:
    """Registered version of this configuration's own bundle, or None."""
    if not ctx.config.tracking.enabled:
        return None
    from pipeline.tracking import registry

    folder = ctx.inputs["publish"]
    return registry.version_of_bundle(ctx.config, Artifact(folder.parent, folder.name))


def _report(ctx: Context, scorer: Scorer, total: Counts, rate: float) -> None:
    """Counts in the manifest and to track, one line."""
    digest, unknown = scorer.bundle.digest, scorer.users.num_unknown
    version = ctx.model.version if ctx.model is not None else _own_version(ctx)
    counted = {name: total.get(name, 0) for name in _COUNTED} | {"new_items": scorer.bundle.num_added}
    counted["events_after_request"] = scorer.log.num_later_events
    later = scorer.users.num_later
    precision, reason = scoring_precision(ctx.config.score.precision)
    left_out = {"user_not_in_log": unknown} | ({"user_after_request": later} if later else {})
    ctx.manifest.update(
        rows_in=counted["users"] + sum(left_out.values()),
        rows_out=total.get("recommendations", 0),
        rows_left_out=left_out,
        request_time=scorer.log.request.time,
        events_before_request=len(scorer.log.histories.time) - counted["events_after_request"],
        exclude_seen=scorer.rules.exclude_seen,
        repeated_share=scorer.log.dataset.facts.repeated_share,
        precision=precision,
        precision_reason=reason,
        model=ctx.config.score.model,
        model_version=version,
        bundle_digest=digest,
        model_time=scorer.bundle.newest,
        index_built_anew=scorer.bundle.has_other_index,
        users_per_second=round(rate, 1),
        **counted,
        **scorer.rule_counts,
    )
    if (rule := scorer.job.not_again) is not None:
        shown = {name: total.get(name, 0) for name in shown_counts(np.zeros(0, np.int64))}
        ctx.manifest.update(shown, shown_lists=[own.folder.parent.name for own in rule.lists])
        for name, value in shown.items():
            ctx.track.metric(name, value)
    tracked = {name: ctx.manifest[name] for name in (*counted, *scorer.rule_counts, "users_per_second")}
    for name, value in (tracked | ctx.manifest["user_rules"]).items():
        ctx.track.metric(name, value)
    before = drift.previous_artifact(ctx.stage_folder, ctx.folder.name.removeprefix(".building-"))
    if before is not None:
        with optional("drift"):
            _compare(ctx, before, digest)
    new_items = _new_items(ctx, scorer, before)
    with optional("effects of re-ranking"):
        _show_reranking(ctx, scorer)
    ctx.track.tag("lookback.bundle_digest", digest)
    if version is not None:
        ctx.track.tag("lookback.model_version", str(version))
    missing = f", {unknown:,} requested users are not in the log" if unknown else ""
    lists = "".join(
        f", {number:,} ids of score.{name.partition('_')[0]} unknown"
        for name, number in scorer.rule_counts.items()
        if name.endswith("_unknown") and number
    )
    anew = " (the index could not take them: built anew, exact)" if scorer.bundle.has_other_index else ""
    ctx.summary(
        f"{ctx.manifest['rows_out']:,} recommendations for {counted['users']:,} users "
        f"({counted['cold_users']:,} by popularity{missing}), "
        f"{counted['unknown_items']:,} interactions with unknown items, {new_items}{anew}, "
        f"{counted['short_lists']:,} short lists{lists}{_left_out(ctx)}{_resolved(ctx, scorer)}{_drawn(ctx)}"
        f"{_reused(ctx)}{_ranked(ctx, scorer, total, rate)}{_valued(ctx, scorer)}{_unseen(ctx, scorer)}, {rate:,.0f} users/s"
    )


def _ranked(ctx: Context, scorer: Scorer, total: Counts, rate: float) -> str:
    """Users whose lists the second stage ranked, for the manifest and the summary line, where it ranks a share."""
    share, gain = ctx.config.score.second_stage_share, partly_ranked.gain_of(scorer.bundle)
    if share == 1 or gain is None:
        return ""
    number = total.get(partly_ranked.RANKED, 0)
    ctx.manifest["second_stage"] = {
        "share": share,
        partly_ranked.RANKED: number,
        history_gain.ENTRY: gain.as_rows(),
        "predicted_seconds": partly_ranked.predicted_seconds(total, rate),
    }
    ctx.track.metric(partly_ranked.RANKED, number)
    return f", {number:,} lists by the second stage"


def _valued(ctx: Context, scorer: Scorer) -> str:
    """Outcomes of expected utilities, and those without a head, for the summary line; the manifest has both."""
    if ctx.config.outcomes is None:
        return ""
    bundle = scorer.bundle
    types, order = outcome_order.types_of(bundle), outcome_order.order_of(bundle, ctx.config.score.order)
    missing = outcome_order.not_predicted(bundle, ctx.config.utility or {})
    ctx.manifest.update(outcomes=list(types), order=order, outcomes_not_predicted=missing)
    without = f" (not predicted: {', '.join(missing)})" if missing else ""
    return f", outcomes {', '.join(types) or 'none'}{without}, order by {order}"


def _unseen(ctx: Context, scorer: Scorer) -> str:
    """Columns of the ranker with mostly unseen values, for the summary line; the manifest has the number of each column."""
    requests = scorer.log.request.known(scorer.log.histories)
    counts = bundle_ranker.unseen_values(scorer.bundle.folder, scorer.bundle.second_stage, requests)
    if counts:
        ctx.manifest["ranker_columns_unseen"] = {label: unseen for label, (unseen, _) in counts.items()}
    return mostly_unseen(counts)


def _left_out(ctx: Context) -> str:
    """Budgets, items left out because they were shown too often, and rules for single users, for the summary line."""
    kept = night_lists.sentence(ctx.manifest["budgets"]) if "budgets" in ctx.manifest else ""
    rules = kept + user_rules.sentence(ctx.manifest["user_rules"])
    number = ctx.manifest.get("shown_items_left_out")
    if number is None:
        return rules
    users = ctx.manifest["users_with_shown_items"]
    return f", {number:,} items shown too often left out for {users:,} users{rules}"


def _drawn(ctx: Context) -> str:
    """Users of each arm, for the summary line."""
    arms = ctx.manifest.get("experiment", {}).get("arms", ())
    return ", arms: " + ", ".join(f"{arm['name']} {arm['users']:,}" for arm in arms) if arms else ""


def _reused(ctx: Context) -> str:
    """Lists of unchanged histories, for the summary line."""
    number = ctx.manifest["reused_lists"]
    return f", {number:,} lists kept from {ctx.manifest['reused_from']}" if number else ""


def _resolved(ctx: Context, scorer: Scorer) -> str:
    """What `score.exclude_seen` = "auto" became and why, and events after the request, for the summary line."""
    log, parts = scorer.log, ""
    if ctx.config.score.exclude_seen == "auto":
        seen = "excluded" if scorer.rules.exclude_seen else "recommended"
        parts = (
            f", seen items {seen} ({log.dataset.facts.repeated_share:.1%} of events repeat an earlier item)"
        )
    if not log.num_later_events:
        return parts
    moment = "" if not scorer.job.timed else f" at {np.datetime64(log.request.time, 'us')}"
    left_out = f" and {scorer.users.num_later:,} users" if scorer.users.num_later else ""
    return f"{parts}, {log.num_later_events:,} events{left_out} after the request{moment} left out"


def _show_reranking(ctx: Context, scorer: Scorer) -> None:
    """Write reranking.json, effects of re-ranking rules on the metrics, if the model was evaluated on this split."""
    rules = scorer.rules
    evaluated_on = scorer.bundle.description.get("features")
    if not (rules.reranks or rules.max_per_category) or evaluated_on != ctx.inputs["features"].name:
        return
    effects = reranking_effects.effects(
        ctx.config, scorer.job.bundle, ctx.inputs["features"], {"reranked": rules}
    )
    write_json(ctx.folder / "reranking.json", asdict(effects))
    ctx.track.artifact("reranking.json")
    for name, paired in effects.paired["reranked"].items():
        ctx.track.metric(f"reranking/{name}", effects.metrics["reranked"][name])
        ctx.track.metric(f"reranking_difference/{name}", paired.difference)


def _new_items(ctx: Context, scorer: Scorer, before: Path | None) -> str:
    """Number of the recommendable new items that the previous night's log and table lacked, or else of all since training."""
    bundle = scorer.bundle
    if before is not None:
        with (
            optional("new items since the last night"),
            contextlib.suppress(OSError, DamagedArtifact, KeyError),
        ):
            inputs = read_manifest(before)["inputs"]
            features, ingest = (
                ctx.inputs[stage].parent / inputs[stage] / "items.parquet" for stage in ("features", "ingest")
            )
            added = bundle.items.ids.tail(bundle.num_added)
            number = new_item_catalogue.num_new(added, features, ingest)
            ctx.manifest["new_items_since_last_night"] = number
            return f"{number:,} new items since the last night"
    return f"{bundle.num_added:,} new items since the training"


def _compare(ctx: Context, before: Path, digest: str) -> None:
    """Add the drift since the previous night's lists to the manifest and tracking."""
    change = drift.drift(before, ctx.folder, digest, ctx.manifest.get("experiment"))
    ctx.manifest["drift"] = asdict(change)
    if change.not_compared:
        print(f"drift: {change.not_compared}", file=sys.stderr, flush=True)
    for name, value in (
        ("psi", change.psi),
        ("overlap", change.overlap),
        ("users_in_both", change.users_in_both),
    ):
        if value is not None:
            ctx.track.metric(f"drift/{name}", value)
