"""Segments of the targets: which of them to look at on their own, one mask after the other."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.histories.jagged import JaggedHistories
from models.evaluation.metrics import Float64
from models.histories import Int64
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets

HISTORY_LENGTHS = (0, 1, 5, 20, 50, 200)
"""First length of each segment by history length."""
AGES = {"under an hour": 3_600, "under a day": 86_400, "under a week": 604_800, "under a month": 2_592_000}
"""Spans of time, in seconds, each ending where its name says (a month: 30 days)."""
MAX_CATEGORIES = 20
"""Item categories told apart: the most frequent ones among the targets."""
MAX_VALUES = 12
"""Values of a user attribute told apart; of text with more, the most frequent ones and one for all others."""
OTHER = "(other)"
UNKNOWN = "(unknown)"
"""In brackets, since a category or an attribute may have such a value of its own."""

Mask = NDArray[np.bool_]
Segments = Iterator[tuple[str, str, Mask]]


def segments_of(
    targets: RankedTargets,
    dataset: Dataset,
    fitted_counts: Int64,
    ingest: Path | None,
    *,
    timed: bool = True,
) -> Segments:
    """(segment, value, [targets] which belong to it) of every value that any target has.

    `history_length`: events that the model may look at. `item_popularity`: the third of the items that the systems were
    fitted on, ordered by `fitted_counts` [model's num_items + 1] (events of each there), that the target's item is in: tail,
    middle, head, `UNKNOWN` where it is none of them. `recency`: time since the last event in the
    history (only if `timed`). `event_type`: of the target (only where the log has types). `item_category`: of the target's
    item, one with several categories in each of them; the `MAX_CATEGORIES` most frequent among the targets, then `OTHER`.
    `user:<name>`: each attribute of the users' table, of more than `MAX_VALUES` values numbers by quartiles of the users,
    text by the most frequent values.

    `ingest`: the folder with users.parquet where there is such a table; None: no attributes.
    """
    histories = dataset.histories
    yield from _by_history_length(targets)
    yield from _by_item_popularity(targets, fitted_counts)
    if timed:
        yield from _by_recency(targets, histories)
    yield from _by_event_type(targets, histories, dataset.event_types)
    yield from _by_category(targets, histories, dataset.items)
    if ingest is not None and (ingest / "users.parquet").exists():
        yield from _by_user(targets, dataset.users, ingest / "users.parquet")


def between(
    values: NDArray[np.number], edges: Sequence[float], names: Sequence[str]
) -> Iterator[tuple[str, Mask]]:
    """Each name with where `values` are at or above its edge and below the next (the last has no end), where any are."""
    code = np.searchsorted(np.asarray(edges), values, side="right") - 1
    yield from _coded(code, names)


def recency_of(targets: RankedTargets, histories: JaggedHistories) -> Float64:
    """[targets] seconds from the last event in the history to the target; NaN where the history is empty."""
    looked_at = targets.histories
    seconds = np.full(len(targets), np.nan)
    some = looked_at.lengths > 0
    last = looked_at.time[looked_at.ends[some] - 1]
    seconds[some] = (histories.time[targets.position[some]] - last) / 1e6
    return seconds


def length_names() -> list[str]:
    """The classes of `HISTORY_LENGTHS`, as `5-19`."""
    names = [
        str(first) if after == first + 1 else f"{first}-{after - 1}"
        for first, after in pairwise(HISTORY_LENGTHS)
    ]
    return [*names, f"{HISTORY_LENGTHS[-1]}+"]


def age_names() -> list[str]:
    """The classes of `AGES`, shortest first, the last without an end."""
    return [*AGES, "a month or more"]


def _coded(code: NDArray[np.integer], names: Sequence[str]) -> Iterator[tuple[str, Mask]]:
    """Each name with the targets that have its number, in the order of the names, where any has; -1 is none."""
    for number, name in enumerate(names):
        chosen = code == number
        if chosen.any():
            yield name, chosen


def _named(segment: str, values: Iterator[tuple[str, Mask]]) -> Segments:
    yield from ((segment, value, chosen) for value, chosen in values)


def _by_history_length(targets: RankedTargets) -> Segments:
    yield from _named("history_length", between(targets.histories.lengths, HISTORY_LENGTHS, length_names()))


def _by_item_popularity(targets: RankedTargets, fitted_counts: Int64) -> Segments:
    fitted = 1 + np.flatnonzero(fitted_counts[1:])
    third = np.full(len(fitted_counts), 3)
    order = fitted[np.argsort(fitted_counts[fitted], kind="stable")]
    third[order] = np.arange(len(fitted)) * 3 // max(len(fitted), 1)
    yield from _named("item_popularity", _coded(third[targets.item], ("tail", "middle", "head", UNKNOWN)))


def _by_recency(targets: RankedTargets, histories: JaggedHistories) -> Segments:
    seconds = recency_of(targets, histories)
    known = np.where(np.isnan(seconds), -1, seconds)
    yield from _named("recency", between(known, (0, *AGES.values()), age_names()))


def _by_event_type(
    targets: RankedTargets, histories: JaggedHistories, event_types: Sequence[str]
) -> Segments:
    if not event_types:
        return
    code = np.asarray(histories.event_type[targets.position])
    yield from _named("event_type", _coded(code, ("without a type", *event_types)))


def _by_category(targets: RankedTargets, histories: JaggedHistories, table: pl.DataFrame) -> Segments:
    """Targets of items of the most frequent categories, of any other, and of items without one."""
    if schema.CATEGORIES not in table or table[schema.CATEGORIES].null_count() == len(table):
        return
    item = np.asarray(histories.item_index[targets.position])
    num_targets = np.bincount(item, minlength=len(table) + 1)[1:]
    several = pl.col(schema.CATEGORIES).list.unique()
    pairs = (
        table.select(
            "item_index",
            pl.when(several.list.len() > 0).then(several).alias(schema.CATEGORIES),
            pl.Series("targets", num_targets),
        )
        .filter(pl.col("targets") > 0)
        .explode(schema.CATEGORIES)
        .rename({schema.CATEGORIES: "category"})
    )
    totals = pairs.drop_nulls("category").group_by("category").agg(pl.col("targets").sum())
    names = totals.sort("targets", "category", descending=[True, False])["category"].to_list()

    def having(chosen: pl.Expr) -> Mask:
        held = np.zeros(len(table) + 1, bool)
        held[pairs.filter(chosen)["item_index"].to_numpy()] = True
        return held[item]

    for name in names[:MAX_CATEGORIES]:
        yield "item_category", name, having(pl.col("category") == name)
    if len(names) > MAX_CATEGORIES:
        yield "item_category", OTHER, having(pl.col("category").is_in(names[MAX_CATEGORIES:]))
    if pairs["category"].null_count():
        yield "item_category", UNKNOWN, having(pl.col("category").is_null())


def _by_user(targets: RankedTargets, users: pl.DataFrame, attributes: Path) -> Segments:
    """Targets of the users of each value of each attribute."""
    order = users.select("user_index", schema.USER_ID)
    known = schema.read(attributes, schema.USERS)
    table = order.join(
        known.with_columns(pl.col(schema.USER_ID).cast(order.schema[schema.USER_ID])),
        on=schema.USER_ID,
        how="left",
        maintain_order="left",
    ).sort("user_index")
    judged = np.unique(targets.user)
    for name in known.columns:
        if name == schema.USER_ID:
            continue
        for value, chosen in _values_of(table[name], judged):
            mask = chosen[targets.user]
            if mask.any():
                yield f"user:{name}", value, mask


def _values_of(column: pl.Series, judged: Int64) -> Iterator[tuple[str, Mask]]:
    """(value, [users] who have it) of an attribute [users]; which values there are, the `judged` users decide.

    Text that is different for most users (a name, an address) makes no groups and yields nothing.
    """
    if column.dtype.is_nested():
        column = _joined(column)
    elif isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    number = _numbers(column)
    num_values = column.gather(judged).drop_nulls().n_unique()
    if number is not None and num_values > MAX_VALUES:
        yield from _quartiles(number, judged)
    elif num_values > max(MAX_VALUES, len(judged) / 2):
        return
    else:
        yield from _groups(column, judged)
    missing = column.is_null().to_numpy()
    if missing.any():
        yield UNKNOWN, missing


def _joined(column: pl.Series) -> pl.Series:
    """Lists as one text each, other nested values as they print."""
    if isinstance(column.dtype, pl.List | pl.Array):
        return column.cast(pl.List(pl.String), strict=False).list.join(", ", ignore_nulls=True)
    texts = [None if each is None else str(each) for each in column]
    return pl.Series(column.name, texts, dtype=pl.String)


def _numbers(column: pl.Series) -> Float64 | None:
    """The column as numbers, NaN where it is null; None where it holds something else."""
    if not (column.dtype.is_numeric() or column.dtype == pl.String):
        return None
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() > column.null_count() or not numbers.drop_nulls().is_finite().all():
        return None
    return numbers.fill_null(float("nan")).to_numpy()


def _quartiles(number: Float64, judged: Int64) -> Iterator[tuple[str, Mask]]:
    """Numbers by the quartiles of the judged users, named by the least and greatest value in each: `20 to 29`."""
    own = number[judged]
    edges = np.unique(np.nanquantile(own, (0.25, 0.5, 0.75), method="lower"))
    quarter = np.where(np.isnan(number), -1, np.searchsorted(edges, number, side="left"))
    for part in range(len(edges) + 1):
        inside = own[quarter[judged] == part]
        if len(inside):
            low, high = (f"{end:.10g}" for end in (inside.min(), inside.max()))
            yield low if low == high else f"{low} to {high}", quarter == part


def _groups(column: pl.Series, judged: Int64) -> Iterator[tuple[str, Mask]]:
    """The values in their order (numbers by size); of more than `MAX_VALUES` the most frequent ones and the rest as other."""
    counts = (
        column.gather(judged).drop_nulls().value_counts().sort("count", column.name, descending=[True, False])
    )
    named = counts[column.name].head(MAX_VALUES if len(counts) <= MAX_VALUES else MAX_VALUES - 1)
    numbers = _numbers(named)
    order = np.arange(len(named)) if len(counts) > MAX_VALUES else _order(named, numbers)
    for value in named.gather(order):
        yield _text(value), (column == value).fill_null(value=False).to_numpy()
    others = column.is_not_null() & ~column.is_in(named.implode()).fill_null(value=False)
    if others.any():
        yield OTHER, others.to_numpy()


def _order(named: pl.Series, numbers: Float64 | None) -> Int64:
    """Places of the values by size where they are numbers, else in their own order."""
    found: Int64 = (
        named.arg_sort().to_numpy() if numbers is None else np.argsort(numbers, kind="stable")
    ).astype(np.int64)
    return found


def _text(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
