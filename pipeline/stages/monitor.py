"""Stage monitor: what users did with the lists delivered before, and alerts where that is not as usual or promised."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.events.row_filters import Excluded
from models.settings.outcomes import Utilities
from pipeline.artifacts import source_files
from pipeline.artifacts.files import now, read_record, write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import target_types
from pipeline.errors import DamagedArtifact
from pipeline.modelling.second_stage import is_timed
from pipeline.monitoring import (
    alerts,
    ledger,
    night_run,
    outcomes,
    population,
    promise,
    realised,
    series,
    shadow_differences,
)
from pipeline.monitoring.alerts import Alert
from pipeline.monitoring.experiment import Readout, of_experiment, read_out
from pipeline.monitoring.ledger import DAY, Delivery
from pipeline.monitoring.outcome_files import Key, OutcomeFiles
from pipeline.monitoring.outcomes import Taken
from pipeline.monitoring.series import Bootstrap
from pipeline.monitoring.shadow_differences import PairedSums
from pipeline.orchestration.context import Context
from pipeline.sections import DELIVERED
from pipeline.serving import popularity_fallback

Judged = tuple[str, float]
"""Score artifact, and window in days."""


@dataclass
class _Series:
    """Outcomes and figures of the nights judged so far."""

    files: OutcomeFiles
    nights: pl.DataFrame
    judged: set[Judged] = field(default_factory=set)
    lost: set[Judged] = field(default_factory=set)
    """Windows whose lists were pruned before they could be judged, or are of another log."""
    changed: set[Key] = field(default_factory=set)
    """Nights and windows whose figures are to be computed again"""
    paired: list[PairedSums] = field(default_factory=list)
    """The predecessor's sums, in which these nights are not counted"""
    forgotten: int = 0
    """Outcomes of excluded users that the predecessor had."""


def build(ctx: Context) -> None:
    """Write outcomes.parquet, nights.parquet and monitor.json: the predecessor's, and what the new events add."""
    dataset, score = ctx.dataset, ctx.stage_folder.parent / "score"
    ledger.repair_table(score)
    features = ctx.inputs["features"].name
    entered = [delivery for delivery in ledger.preceding(score, features, say=True) if delivery.timed]
    exclusion = read_manifest(ctx.inputs["ingest"])["inputs"].get("exclude_users")
    kept = _predecessor(ctx, dataset, entered, exclusion)
    num_before = kept.files.num_rows()
    bootstrap = Bootstrap(ctx.config.evaluate.resamples, ctx.config.seed)
    if is_timed(ctx.config):
        _add(ctx, kept, score, entered, bootstrap)
    kept.files.write_none(outcomes.columns(dataset.users["user_id"].dtype))
    kept.nights.write_parquet(ctx.folder / series.FILE)
    paired = PairedSums.of_files(kept.files, kept.changed, kept.paired)
    PairedSums.save(ctx.folder, paired)
    readout = _read_out(ctx, kept.files, entered, bootstrap)
    present = _alerts(ctx, kept.nights, entered, readout) if ctx.config.monitor.alerts else []
    record = {
        "alerts": alerts.as_json(present),
        "differences": [asdict(each) for own in paired for each in own.differences(bootstrap)],
        "promised": _promised(ctx, entered),
        "models": _models(entered),
        "judged": sorted(kept.judged),
        "lost": sorted(kept.lost),
        "experiment": None if readout is None else readout.as_json(),
    }
    write_json(ctx.folder / alerts.FILE, record)
    if len(kept.nights):
        _draw(ctx, kept.nights, record)
    ctx.manifest["exclude_users"] = exclusion
    ctx.digests |= kept.files.linked
    _report(ctx, kept, kept.files.num_rows() - num_before, present, readout)


# --- predecessor ---


def _predecessor(
    ctx: Context, dataset: Dataset, entered: Sequence[Delivery], exclusion: str | None
) -> _Series:
    """Series of the monitor before this one, without excluded users; empty without a readable one.

    exclusion: digest of the excluded users.
    """
    empty = _Series(OutcomeFiles(ctx.folder), pl.DataFrame(schema=series.COLUMNS))
    if ctx.previous is None:
        return empty
    try:
        continued = [series.FILE, alerts.FILE, shadow_differences.RECORD]
        continued += [f"{shadow_differences.FOLDER}/{days:g}d.parquet" for days in ctx.config.monitor.days]
        Artifact(ctx.previous.parent, ctx.previous.name).verify(continued)
        nights = pl.read_parquet(ctx.previous / series.FILE, schema=series.COLUMNS)
        paired = PairedSums.load(ctx.previous)
    except (OSError, DamagedArtifact, pl.exceptions.PolarsError) as error:
        text = f"monitor: {ctx.previous} is damaged ({type(error).__name__}): the series begins anew with the lists still there"
        print(text, file=sys.stderr, flush=True)
        return empty
    record = read_record(ctx.previous / alerts.FILE)
    kept = _Series(OutcomeFiles(ctx.folder), nights, _pairs(record.get("judged")), _pairs(record.get("lost")))
    damaged = kept.files.link_from(OutcomeFiles(ctx.previous))
    for delivery in entered:
        for days in ctx.config.monitor.days:
            if (delivery.log_time, days) in damaged:
                _say(
                    delivery,
                    f"outcomes within {days:g} days are damaged, and judged again if the lists are there",
                )
                kept.judged.discard((delivery.folder, days))
    if ctx.force:
        kept.changed.update(kept.files.all_keys())
    _convert(kept, dataset.users["user_id"].dtype)
    if read_manifest(ctx.previous).get("exclude_users") == exclusion:
        kept.paired += paired
    else:
        _forget(ctx, kept)
    return kept


def _pairs(entries: object) -> set[Judged]:
    return {(str(folder), float(days)) for folder, days in entries} if isinstance(entries, list) else set()


def _convert(kept: _Series, kind: pl.DataType) -> None:
    """User ids in the log's present type; outcomes of no user of that type go, and are said."""
    left_out = 0
    for key in kept.files.all_keys():
        rows = kept.files.read(key)
        if rows["user_id"].dtype == kind:
            return
        cast = rows.with_columns(pl.col("user_id").cast(kind, strict=False)).drop_nulls("user_id")
        left_out += len(rows) - len(cast)
        kept.files.write(key, cast)
        kept.changed.add(key)
    if left_out:
        text = f"monitor: user ids are {kind} now, and of another type before: {left_out:,} outcomes left out"
        print(text, file=sys.stderr, flush=True)


def _forget(ctx: Context, kept: _Series) -> None:
    """Remove the outcomes of users in `events.exclude_users`."""
    excluded = source_files.excluded_users(ctx.config)
    if excluded is None:
        return
    for key in kept.files.all_keys():
        rows = kept.files.read(key)
        users = rows["user_id"]
        is_text = users.dtype == pl.String
        own = rows.filter(~Excluded(excluded, "string" if is_text else "int64").holds(users, users))
        if len(own) < len(rows):
            kept.files.write(key, own)
            kept.changed.add(key)
            kept.forgotten += len(rows) - len(own)


# --- new outcomes ---


def _add(ctx: Context, kept: _Series, score: Path, entered: Sequence[Delivery], bootstrap: Bootstrap) -> None:
    """Add outcomes and figures of the windows that lie within the log now; compute those that lost users again."""
    dataset = ctx.dataset
    end = dataset.facts.now + dataset.facts.resolution
    due = [
        (delivery, days)
        for delivery in entered
        for days in ctx.config.monitor.days
        if delivery.end(days) <= end and (delivery.folder, days) not in kept.judged | kept.lost
    ]
    segment, types = _segment(ctx, dataset), target_types(ctx.config, dataset)
    of_lists = []
    for delivery, days in due:
        if not (score / delivery.folder / "_SUCCESS").exists():
            kept.lost.add((delivery.folder, days))
            _say(delivery, f"were pruned before their {days:g} days were over")
            continue
        taken = Taken.after(dataset, delivery, days, types)
        if days == min(ctx.config.monitor.days) and (late := _num_late(dataset, delivery)) > 0:
            _say(delivery, f"{late:,} events of before came after them: these are history, no outcomes")
        if not len(taken.user):
            _say(delivery, f"nobody took anything in the {days:g} days after")
        rows = list(_judged(dataset, score / delivery.folder, delivery, days, taken, segment))
        (kept.judged if rows else kept.lost).add((delivery.folder, days))
        if rows:
            key = (delivery.log_time, float(days))
            kept.files.write(key, outcomes.last_of_each_night([*kept.files.read_if_any(key), *rows]))
            kept.changed.add(key)
            of_lists += list(
                _of_lists(dataset, score / delivery.folder, delivery, days, bootstrap, ctx.config.utility)
            )
    _compute(kept, of_lists, bootstrap)


def _compute(kept: _Series, of_lists: Sequence[pl.DataFrame], bootstrap: Bootstrap) -> None:
    """Figures of the changed nights and windows, and those of new lists (`series.OF_LISTS`)."""
    night = ["log_time", "window_days"]
    stale = pl.DataFrame(
        sorted(kept.changed), schema={name: series.COLUMNS[name] for name in night}, orient="row"
    )
    carried = kept.nights.filter(~series.OF_LISTS).join(stale, on=night, how="anti")
    figures = [
        series.figures(rows, bootstrap)
        for key in sorted(kept.changed)
        for rows in kept.files.read_if_any(key)
    ]
    whole = pl.concat([kept.nights.filter(series.OF_LISTS), *of_lists])
    whole = whole.unique(subset=[*night, "system", "metric"], keep="last")
    kept.nights = pl.concat([carried, *figures, whole]).sort(
        *night, "system", "arm", "segment", "metric", nulls_last=False
    )


def _segment(ctx: Context, dataset: Dataset) -> pl.Series | None:
    """[num_users] segments by `score.segment`; None without."""
    table = ctx.inputs["ingest"] / "users.parquet"
    column = popularity_fallback.segment_column(ctx.config, table)
    return None if column is None else popularity_fallback.segment_of(table, column, dataset.users["user_id"])


def _num_late(dataset: Dataset, delivery: Delivery) -> int:
    """Number of events from before the lists that came after them, at least."""
    if delivery.events is None:
        return 0
    offsets = np.asarray(dataset.histories.offsets)
    return int((dataset.histories.first_at(delivery.before) - offsets[:-1]).sum()) - delivery.events


def _say(delivery: Delivery, text: str) -> None:
    """A line on stderr about lists."""
    print(f"monitor: the lists of {delivery.night} ({delivery.folder}): {text}", file=sys.stderr, flush=True)


def _judged(
    dataset: Dataset, folder: Path, delivery: Delivery, days: float, taken: Taken, segment: pl.Series | None
) -> Iterator[pl.DataFrame]:
    """Outcomes of the delivered lists and of the shadows; nothing for lists of another log."""
    for system, lists in outcomes.lists_of(folder, delivery):
        if outcomes.are_of_log(dataset, lists):
            yield outcomes.labelled(outcomes.judge(dataset, lists, taken, segment), delivery, days, system)
        elif system == DELIVERED:
            _say(delivery, "have ids of another type than the log, or none of its users or items: left out")
            return


def _of_lists(
    dataset: Dataset,
    folder: Path,
    delivery: Delivery,
    days: float,
    bootstrap: Bootstrap,
    utilities: Utilities | None,
) -> Iterator[pl.DataFrame]:
    """Share of the log's items that are in any list of a system; the rate of dislikes where the log has any, and with
    `utilities` what the lists brought.
    """
    has_dislikes = dataset.histories.dislikes is not None
    disliked = Taken.disliked_after(dataset, delivery, days) if has_dislikes else None
    for system, lists in outcomes.lists_of(folder, delivery):
        counts = lists.select(pl.col("item_id").n_unique(), users=pl.col("user_id").n_unique())
        items, users = counts.collect(engine="streaming").row(0)
        facts = {"log_time": delivery.log_time, "window_days": float(days), "system": system}
        value = items / max(dataset.num_items, 1)
        yield series.frame(facts, [{"metric": f"coverage@{delivery.k}", "value": value, "users": users}])
        if disliked is not None:
            shares = outcomes.disliked_shares(dataset, lists, disliked)
            yield series.of_lists(facts, f"dislike_rate@{delivery.k}", shares, bootstrap)
        if utilities is not None:
            worth = realised.of_lists(dataset, lists, delivery, days, utilities)
            yield series.of_lists(facts, f"utility@{delivery.k}", worth, bootstrap)


# --- alerts and records ---


def _read_out(
    ctx: Context, files: OutcomeFiles, entered: Sequence[Delivery], bootstrap: Bootstrap
) -> Readout | None:
    """Read-out of the experiment, from its nights and those before it; None without one."""
    settings = ctx.config.experiment
    if settings is None:
        return None
    first = min((delivery.log_time for delivery in of_experiment(entered, settings)), default=None)
    if first is None:
        return None
    keys = [*files.recent(before=first), *(key for key in files.all_keys() if key[0] >= first)]
    return read_out(files.rows_of(DELIVERED, keys), entered, settings, bootstrap) if keys else None


def _alerts(
    ctx: Context, nights: pl.DataFrame, entered: Sequence[Delivery], readout: Readout | None
) -> list[Alert]:
    """Alerts of the present night."""
    dataset, settings = ctx.dataset, ctx.config.monitor
    present = [*alerts.of_lists(entered, settings), *alerts.of_reality(nights, entered, settings)]
    present += readout.alerts(entered[-1].night) if readout is not None else []
    if is_timed(ctx.config):
        time, kind = _last_events(dataset)
        present += alerts.of_types(dataset.event_types, time, kind, dataset.facts.now, settings)
        num_events = np.concatenate(([0], dataset.items["num_events"].to_numpy()))
        shifts = population.of_days(dataset.histories, num_events, dataset.facts.now)
        present += alerts.of_population(shifts, dataset.facts.now, settings)
        for name, value in asdict(shifts[0]).items() if shifts[0] is not None else ():
            ctx.track.metric(f"population/{name}", value, step=dataset.facts.now // DAY)
        present += alerts.of_growth(entered, dataset.facts.now, now(), settings)
    return present


def _last_events(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Times and types of the events of the days that `of_types` compares."""
    time = np.asarray(dataset.histories.time)
    last = np.flatnonzero(time > dataset.facts.now - (alerts.PRESENT_DAYS + 1) * DAY)
    return time[last], np.asarray(dataset.histories.event_type)[last].astype(np.int64)


def _promised(ctx: Context, entered: Sequence[Delivery]) -> list[dict[str, object]]:
    """Promised band of every night and window that has one."""
    rows = []
    for delivery in entered:
        for days, own in delivery.promise.items():
            limits = promise.band(own, ctx.config.monitor.promise_level)
            if limits is not None:
                facts = {"night": delivery.night, "window_days": float(days), "metric": own.metric}
                rows.append(facts | {"low": limits[0], "high": limits[1]})
    return rows


def _draw(ctx: Context, nights: pl.DataFrame, record: dict[str, object]) -> None:
    """Figures of the nights, also to track."""
    from pipeline.reporting import night_figures  # plotly, which a first night does without

    night_figures.draw(ctx.folder, ctx.config.name, nights, record)
    ctx.track.artifact(night_figures.PAGE)


def _models(entered: Sequence[Delivery]) -> list[dict[str, object]]:
    """Version and age of the model of each night's last lists."""
    last = {delivery.night: delivery for delivery in entered if delivery.model_age_days is not None}
    return [
        {"night": night, "model_version": own.model_version, "age_days": own.model_age_days}
        for night, own in last.items()
    ]


def _report(
    ctx: Context, kept: _Series, num_new: int, present: Sequence[Alert], readout: Readout | None
) -> None:
    """Manifest, metrics by day of the log, tags and the summary line."""
    ctx.manifest.update(
        rows_in=kept.files.num_rows(),
        rows_out=len(kept.nights),
        rows_left_out={"excluded_users": kept.forgotten} if kept.forgotten else {},
        new_outcomes=num_new,
        alerts=[alert.rule for alert in present],
    )
    every = kept.nights.filter(pl.col("segment").is_null() & ~pl.col("metric").str.starts_with("place@"))
    age = pl.col("log_time").rank("dense", descending=True)
    arm = "arm/" + pl.col("arm").str.strip_prefix("models:/")
    shown = every.filter(age <= night_run.LOGGED_NIGHTS).drop_nulls("value")
    shown = shown.with_columns(system=arm.fill_null(pl.col("system")))
    for moment, days, system, metric, value in shown.select(
        pl.col("log_time").dt.timestamp("us"), "window_days", "system", "metric", "value"
    ).iter_rows():
        is_headline = metric.partition("@")[0] in night_run.HEADLINE
        log = ctx.track.parent_metric if is_headline else ctx.track.metric
        log(f"realised/{system}/{metric}/{days:g}d", value, step=moment // DAY)
    ctx.track.metric("alerts", len(present))
    ctx.track.tag(night_run.ALERTS, "; ".join(alert.message for alert in present) or "none")
    for name in (series.FILE, alerts.FILE):  # no rows of users
        ctx.track.artifact(name)
    nights = kept.nights["log_time"].n_unique()
    alerted = f"; {len(present)} alerts: {', '.join(alert.rule for alert in present)}" if present else ""
    tested = "" if readout is None else f"; experiment {readout.name!r}: {readout.sentence}"
    headline = _headline(every.filter(pl.col("arm").is_null()))
    ctx.summary(f"{nights:,} nights judged{headline}, {num_new:,} outcomes are new{tested}{alerted}")


def _headline(nights: pl.DataFrame) -> str:
    """Realised hit rate of the newest night, in the shortest window."""
    own = nights.filter((pl.col("system") == DELIVERED) & pl.col("metric").str.starts_with("hit_rate@"))
    own = (
        own.drop_nulls("value")
        .sort("window_days")
        .filter(pl.col("window_days") == pl.col("window_days").min())
    )
    if own.is_empty():
        return ""
    last = own.sort("log_time").row(-1, named=True)
    return (
        f", the newest of {last['log_time']:%Y-%m-%d}: {last['metric']} within {last['window_days']:g} days "
        f"{last['value']:.4f} [{last['low']:.4f}, {last['high']:.4f}] of {last['users']:,} users"
    )
