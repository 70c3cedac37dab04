"""Stage report: self-contained HTML page of the data, the training, the metrics and example recommendations."""

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.histories.jagged import JaggedHistories
from features.printable import printable
from features.profiling.drift import Drift
from features.profiling.profile import DRIFT, PROFILE, Profile
from pipeline.artifacts.store import read_manifest
from pipeline.dataset.protocol import excludes_seen
from pipeline.evaluation.report import EvaluationReport
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.monitoring.night_table import NightTable
from pipeline.orchestration.context import Context
from pipeline.reporting import champion_diff, charts, evaluation_tables, templates
from pipeline.serving.output_table import PROVEN
from pipeline.serving.proven_reasons import named

SHOWN_EVENTS = 15
"""Most recent events of an example user."""
SHOWN_CATEGORIES = 3
"""Categories shown per item."""
SHOWN_REFUSED = 5
"""Refused rows shown with their raw text."""
SHOWN_SOURCES = 20
"""Source files shown."""
MAX_TEXT = 160
"""Characters of a title or a raw row."""

Row = dict[str, Any]


def build(ctx: Context) -> None:
    """Write report.html and figures.html from the folders of its inputs."""
    manifests = {stage: read_manifest(folder) for stage, folder in ctx.inputs.items()}
    evaluation = EvaluationReport.load(ctx.inputs["evaluate"])
    profile = Profile.load(ctx.inputs["features"] / PROFILE)
    drawn = charts.of_run(ctx.inputs, exclude_seen=excludes_seen(ctx.config.score.exclude_seen, ctx.dataset))
    published = manifests["publish"]
    users = _example_users(ctx, timed=profile.times is not None)
    champion = champion_diff.since_champion(ctx.config, ctx.inputs["publish"])
    filled = templates.template(
        "report", short=_short, spaced=_spaced, percent=_percent, number=_number, signed=_signed
    )
    page = filled.render(
        name=ctx.config.name,
        made=datetime.datetime.now(datetime.UTC),
        stages=manifests,
        profile=profile,
        headlines=_headlines(profile),
        drift=_drift(ctx.inputs["features"]),
        sources=_worst_sources(manifests["ingest"]),
        refused=_refused_rows(ctx.inputs["ingest"]),
        training=_training(ctx.inputs["train"]),
        **evaluation_tables.of_evaluation(evaluation, ctx.inputs["evaluate"]),
        published=published["system_reason"],
        gate=evaluation_tables.of_gate(ctx.config.evaluate, evaluation, published["system"]),
        charts={chart["name"]: chart for chart in drawn},
        champion=champion,
        champion_lists=champion_diff.lists_since(ctx.config, champion, ctx.inputs["score"]),
        realised=NightTable.load(ctx.inputs["monitor"]),
        users=users,
    )
    (ctx.folder / "report.html").write_text(page, encoding="utf-8")
    (ctx.folder / charts.PAGE).write_text(charts.page(ctx.config.name, drawn), encoding="utf-8")
    for file in ("report.html", charts.PAGE):
        ctx.track.artifact(file)
    ctx.manifest.update(rows_in=manifests["score"]["rows_out"], rows_out=len(users))
    ctx.summary(f"{len(page.encode()) / 1e6:.1f} MB, {len(users)} example users: report.html")


def _short(text: str) -> str:
    """Beginning of a long text, printable."""
    return printable(text, MAX_TEXT + 1)


def _spaced(name: str) -> str:
    """A name with spaces for underscores."""
    return name.replace("_", " ")


def _number(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def _signed(difference: float) -> str:
    """A difference with its sign, a real minus."""
    return f"{difference:+.4f}".replace("-", "−")


def _headlines(profile: Profile) -> dict[str, str]:
    """Statistics of the log: name -> text."""
    popularity = profile.popularity
    top = (f"{name.split('_')[1]} % have {_percent(share)}" for name, share in popularity.top_shares.items())
    rows = {
        "density": f"{_percent(profile.density)} of all pairs of user and item have an event",
        "events per user": _spread_of(profile.history_length.quantiles, "{:,.0f}".format),
        "events per item": _spread_of(popularity.num_events.quantiles, "{:,.0f}".format),
        "the most popular items": f"{', '.join(top)} of the events; Gini {popularity.gini:.2f}",
        "80 % of the events": f"are on {popularity.num_items_for_80_percent:,} items",
        "repeats": f"{_percent(profile.repeat_share)} of events are on an item that the user had before, "
        f"{_percent(profile.immediate_repeat_share)} on the one just before",
    }
    if (times := profile.times) is not None:
        rows["at the same time"] = f"{_percent(times.tied_share)} of pairs of adjacent events of a user"
        if times.gap_seconds is not None:
            rows["time between them"] = _spread_of(times.gap_seconds.quantiles, _span)
        rows["sessions"] = (
            f"{times.num_sessions:,}, each ended by a pause of 30 minutes: {times.events_per_session:.1f} events "
            f"in each, {times.sessions_per_user:.1f} per user"
        )
    return rows


def _spread_of(quantiles: dict[str, float], say: Callable[[float], str]) -> str:
    low, middle, high, most = (say(quantiles[name]) for name in ("p25", "p50", "p75", "p100"))
    return f"median {middle}, half of them {low} to {high}, at most {most}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-5 else "under 0.001 %"


def _span(seconds: float) -> str:
    """Time span to two digits, in the largest unit of which it has at least two."""
    units = {"years": 365 * 86_400, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
    name = next((name for name, unit in units.items() if seconds >= 2 * unit), "seconds")
    number = seconds / units[name]
    return f"{number:.2g} {name}" if number < 10 else f"{number:.0f} {name}"


def _drift(features: Path) -> Drift | None:
    """Drift since the previous log; None without one."""
    path = features / DRIFT
    return Drift.load(path) if path.exists() else None


def _worst_sources(ingest: Row) -> list[Row]:
    """Source files with the most rows left out."""
    return sorted(ingest["sources"], key=lambda source: source["rows_out"] - source["rows_in"])[
        :SHOWN_SOURCES
    ]


class _RefusedRow(NamedTuple):
    """A refused row of the log and its source."""

    source_path: str
    source_row: int
    raw: str | None
    reason: str


def _refused_rows(ingest: Path) -> list[_RefusedRow]:
    """First refused row of each reason."""
    files = sorted((ingest / "quarantine").glob("*.parquet"))
    if not files:
        return []
    rows = pl.scan_parquet(files).select(_RefusedRow._fields)
    first = rows.sort("source_path", "source_row").group_by("reason", maintain_order=True).head(1)
    shown = first.head(SHOWN_REFUSED).select(_RefusedRow._fields).collect()
    return [_RefusedRow(*row) for row in shown.iter_rows()]


class _Training(NamedTuple):
    """Facts of the training and its speed."""

    facts: TrainingFacts
    seconds_per_epoch: float
    targets_per_second: float


def _training(train: Path) -> _Training:
    history = pl.read_parquet(train / "history.parquet")
    seconds, speed = history.select(pl.col("seconds").mean(), pl.col("targets_per_second").median()).row(0)
    return _Training(TrainingFacts.load(train), seconds, speed)


class _Item(NamedTuple):
    """Title and categories of an item."""

    title: str
    categories: str
    """the first few, with commas between"""


class _Event(NamedTuple):
    """A past event of an example user."""

    item: _Item
    when: str | None
    type: str


class _Reason(NamedTuple):
    """A past item and its weight in a recommendation."""

    title: str
    weight: float


class _Recommendation(NamedTuple):
    """A recommendation to an example user."""

    item: _Item
    because: list[_Reason]
    without: str | None
    """Past events of a proven reason, by name; None: not proven"""
    is_tried: bool
    """Whether a proof was sought"""


class _ExampleUser(NamedTuple):
    """A user with recent events and recommendations."""

    user_id: Any
    num_events: int
    history: list[_Event]
    recommendations: list[_Recommendation]


def _example_users(ctx: Context, *, timed: bool) -> list[_ExampleUser]:
    """Example users from short to long histories, with recent events, recommendations and reasons."""
    histories, users = ctx.dataset.histories, ctx.dataset.users
    shards = sorted((ctx.inputs["score"] / "recommendations").glob("*.parquet"))
    if not shards:
        return []
    recommended = pl.scan_parquet(shards)
    served = recommended.filter(pl.col("rank") == 1).select("user_id").collect()
    chosen = _spread(users.join(served, on="user_id", how="semi"), histories, ctx.config.report.num_users)
    lists = (
        recommended.filter(pl.col("user_id").is_in(chosen["user_id"].implode()))
        .collect()
        .sort("user_id", "rank")
    )
    items = _items(ctx.dataset.items)
    by_index = [_Item("", ""), *items.values()]
    types = ["", *ctx.dataset.event_types]
    return [
        _ExampleUser(
            user_id,
            int(histories.offsets[user + 1] - histories.offsets[user]),
            _recent_events(histories, user, by_index, types, timed=timed),
            [
                _recommendation(row, items)
                for row in lists.filter(pl.col("user_id") == user_id).iter_rows(named=True)
            ],
        )
        for user, user_id in chosen.select("user_index", "user_id").iter_rows()
    ]


def _items(table: pl.DataFrame) -> dict[Any, _Item]:
    """Item id to title and categories, in the order of the indices."""
    if "categories" not in table.columns:
        table = table.with_columns(pl.lit(None, pl.List(pl.String)).alias("categories"))
    rows = table.select("item_id", "title", "categories").iter_rows()
    return {
        item_id: _Item(title or f"item {item_id}", ", ".join((categories or [])[:SHOWN_CATEGORIES]))
        for item_id, title, categories in rows
    }


def _recent_events(
    histories: JaggedHistories, user: int, items: list[_Item], types: list[str], *, timed: bool
) -> list[_Event]:
    """Most recent events of a user, newest first."""
    start, end = histories.offsets[user : user + 2].tolist()
    return [
        _Event(
            items[histories.item_index[at]],
            str(np.datetime64(int(histories.time[at]), "us"))[:16].replace("T", " ") if timed else None,
            types[histories.event_type[at]],
        )
        for at in reversed(range(max(start, end - SHOWN_EVENTS), end))
    ]


def _recommendation(row: Row, items: dict[Any, _Item]) -> _Recommendation:
    """Recommendation with titles in place of item ids (ids without a title)."""

    def shown(item_id: Any) -> _Item:
        return items.get(item_id, _Item(f"item {item_id}", ""))

    reasons = [_Reason(shown(past["item_id"]).title, past["weight"]) for past in row["because"] or []]
    without = named([_short(reason.title) for reason in reasons]) if row.get(PROVEN) else None
    return _Recommendation(shown(row["item_id"]), reasons, without, PROVEN in row)


def _spread(users: pl.DataFrame, histories: JaggedHistories, num_users: int) -> pl.DataFrame:
    """`num_users` users with at least 5 events (or of all), evenly spread over the number of events."""
    lengths = np.diff(histories.offsets)[users["user_index"].to_numpy()]
    ordered = users.with_columns(pl.Series("num_events", lengths)).sort("num_events", "user_index")
    long = ordered.filter(pl.col("num_events") >= 5)
    pool = long if len(long) >= num_users else ordered
    rows = np.unique(np.linspace(0, len(pool) - 1, min(num_users, len(pool))).astype(np.int64))
    return pool.select(pl.all().gather(rows))
