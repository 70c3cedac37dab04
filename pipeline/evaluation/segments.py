"""Segments of the targets, as masks."""

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
"""Upper ends of time spans, in seconds (a month: 30 days)."""
MAX_CATEGORIES = 20
"""Item categories with a segment of their own: the most frequent ones among the targets."""
MAX_VALUES = 12
"""Segments of a user attribute; of text with more values, the most frequent ones and one for all others."""
OTHER = "(other)"
UNKNOWN = "(unknown)"
"""In brackets, as a category or an attribute may have the plain word as a value."""

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
    """Yield (segment, value, mask [targets]) for every value that occurs.

    `history_length`: events in the history. `item_popularity`: third of the fitted items, ordered by `fitted_counts` [model's
    num_items + 1] (events in the fitted data), with the target's item: tail, middle, head, or `UNKNOWN`. `recency`: time since
    the last event in the history (only if `timed`). `event_type`: of the target (only where the log has types).
    `item_category`: categories of the target's item, an item with several in each; the `MAX_CATEGORIES` most frequent among the
    targets, then `OTHER`. `user:<name>`: attributes of the users' table; with more than `MAX_VALUES` values, numbers by
    quartiles of the users, text by the most frequent values.

    ingest: the folder with users.parquet; None: no attributes.
    """
    histories = dataset.histories
    lengths = between(targets.histories.lengths[targets.request], HISTORY_LENGTHS, length_names())
    yield from _named("history_length", lengths)
    yield from _by_item_popularity(targets, fitted_counts)
    if timed:
        yield from _by_recency(targets)
    yield from _by_event_type(targets, histories, dataset.event_types)
    yield from _by_category(targets, histories, dataset.items)
    if ingest is not None and (ingest / "users.parquet").exists():
        yield from _by_user(targets, dataset.users, ingest / "users.parquet")


def between(
    values: NDArray[np.number], edges: Sequence[float], names: Sequence[str]
) -> Iterator[tuple[str, Mask]]:
    """Yield (name, mask) of each non-empty class of values, from its edge up to the next (the last: without end)."""
    yield from _coded(np.searchsorted(np.asarray(edges), values, side="right") - 1, names)


def recency_of(targets: RankedTargets) -> Float64:
    """[targets] seconds from the last event in the history to the request; NaN for an empty history."""
    past = targets.histories
    seconds = np.full(targets.num_requests, np.nan)
    some = past.lengths > 0
    last = past.time[past.ends[some] - 1]
    seconds[some] = (targets.moment[some] - last) / 1e6
    return seconds[targets.request]


def length_names() -> list[str]:
    """Names of the classes of `HISTORY_LENGTHS`, as `5-19`."""
    names = [
        str(first) if after == first + 1 else f"{first}-{after - 1}"
        for first, after in pairwise(HISTORY_LENGTHS)
    ]
    return [*names, f"{HISTORY_LENGTHS[-1]}+"]


def _coded(code: NDArray[np.integer], names: Sequence[str]) -> Iterator[tuple[str, Mask]]:
    """Yield (name, mask of its number) in the order of the names, where any target has it; -1 is no class."""
    for number, name in enumerate(names):
        chosen = code == number
        if chosen.any():
            yield name, chosen


def _named(segment: str, values: Iterator[tuple[str, Mask]]) -> Segments:
    yield from ((segment, value, chosen) for value, chosen in values)


def _by_item_popularity(targets: RankedTargets, fitted_counts: Int64) -> Segments:
    fitted = 1 + np.flatnonzero(fitted_counts[1:])
    third = np.full(len(fitted_counts), 3)
    order = fitted[np.argsort(fitted_counts[fitted], kind="stable")]
    third[order] = np.arange(len(fitted)) * 3 // max(len(fitted), 1)
    yield from _named("item_popularity", _coded(third[targets.item], ("tail", "middle", "head", UNKNOWN)))


def _by_recency(targets: RankedTargets) -> Segments:
    seconds = recency_of(targets)
    known = np.where(np.isnan(seconds), -1, seconds)
    yield from _named("recency", between(known, (0, *AGES.values()), (*AGES, "a month or more")))


def _by_event_type(
    targets: RankedTargets, histories: JaggedHistories, event_types: Sequence[str]
) -> Segments:
    if event_types:
        code = np.asarray(histories.event_type[targets.position])
        yield from _named("event_type", _coded(code, ("without a type", *event_types)))


def _by_category(targets: RankedTargets, histories: JaggedHistories, table: pl.DataFrame) -> Segments:
    """Targets on items of the most frequent categories, of any other, and without one."""
    if schema.CATEGORIES not in table or table[schema.CATEGORIES].null_count() == len(table):
        return
    item = np.asarray(histories.item_index[targets.position])
    num_targets = pl.Series("targets", np.bincount(item, minlength=len(table) + 1)[1:])
    distinct = pl.col(schema.CATEGORIES).list.unique()
    category = pl.when(distinct.list.len() > 0).then(distinct).alias("category")
    pairs = (
        table.select("item_index", category, num_targets).filter(pl.col("targets") > 0).explode("category")
    )
    totals = pairs.drop_nulls("category").group_by("category").agg(pl.col("targets").sum())
    names = totals.sort("targets", "category", descending=[True, False])["category"].to_list()

    def on_items(chosen: pl.Expr) -> Mask:
        is_chosen = np.zeros(len(table) + 1, bool)
        is_chosen[pairs.filter(chosen)["item_index"].to_numpy()] = True
        return is_chosen[item]

    for name in names[:MAX_CATEGORIES]:
        yield "item_category", name, on_items(pl.col("category") == name)
    if len(names) > MAX_CATEGORIES:
        yield "item_category", OTHER, on_items(pl.col("category").is_in(names[MAX_CATEGORIES:]))
    if pairs["category"].null_count():
        yield "item_category", UNKNOWN, on_items(pl.col("category").is_null())


def _by_user(targets: RankedTargets, users: pl.DataFrame, attributes: Path) -> Segments:
    """Targets by value of each user attribute."""
    order = users.select("user_index", schema.USER_ID)
    known = schema.read(attributes, schema.USERS)
    table = order.join(
        known.with_columns(pl.col(schema.USER_ID).cast(order.schema[schema.USER_ID])),
        on=schema.USER_ID,
        how="left",
        maintain_order="left",
    ).sort("user_index")
    evaluated = np.unique(targets.user)
    for name in known.columns:
        if name == schema.USER_ID:
            continue
        for value, chosen in _values_of(table[name], evaluated):
            mask = chosen[targets.user_of_target]
            if mask.any():
                yield f"user:{name}", value, mask


def _values_of(column: pl.Series, evaluated: Int64) -> Iterator[tuple[str, Mask]]:
    """(value, mask [users]) of an attribute [users], grouped by its values among the `evaluated` users.

    Text that differs between most users (a name, an address) has no groups.
    """
    if column.dtype.is_nested():
        column = _joined(column)
    elif isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    number = _numbers(column)
    num_values = column.gather(evaluated).drop_nulls().n_unique()
    if number is not None and num_values > MAX_VALUES:
        yield from _quartiles(number, evaluated)
    elif num_values > max(MAX_VALUES, len(evaluated) / 2):
        return
    else:
        yield from _groups(column, evaluated)
    missing = column.is_null().to_numpy()
    if missing.any():
        yield UNKNOWN, missing


def _joined(column: pl.Series) -> pl.Series:
    """Nested values as text: lists joined, others as printed."""
    if isinstance(column.dtype, pl.List | pl.Array):
        return column.cast(pl.List(pl.String), strict=False).list.join(", ", ignore_nulls=True)
    texts = [None if value is None else str(value) for value in column]
    return pl.Series(column.name, texts, dtype=pl.String)


def _numbers(column: pl.Series) -> Float64 | None:
    """Column as numbers, NaN for null; None where it has other values."""
    if not (column.dtype.is_numeric() or column.dtype == pl.String):
        return None
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() > column.null_count() or not numbers.drop_nulls().is_finite().all():
        return None
    return numbers.fill_null(float("nan")).to_numpy()


def _quartiles(number: Float64, evaluated: Int64) -> Iterator[tuple[str, Mask]]:
    """Quartiles of the evaluated users, named by their least and greatest value: `20 to 29`."""
    own = number[evaluated]
    edges = np.unique(np.nanquantile(own, (0.25, 0.5, 0.75), method="lower"))
    quarter = np.where(np.isnan(number), -1, np.searchsorted(edges, number, side="left"))
    for part in range(len(edges) + 1):
        inside = own[quarter[evaluated] == part]
        if len(inside):
            low, high = (f"{end:.10g}" for end in (inside.min(), inside.max()))
            yield low if low == high else f"{low} to {high}", quarter == part


def _groups(column: pl.Series, evaluated: Int64) -> Iterator[tuple[str, Mask]]:
    """Values in their order (numbers by size); with more than `MAX_VALUES`, the most frequent ones and the rest as other."""
    counts = (
        column.gather(evaluated)
        .drop_nulls()
        .value_counts()
        .sort("count", column.name, descending=[True, False])
    )
    named = counts[column.name].head(MAX_VALUES if len(counts) <= MAX_VALUES else MAX_VALUES - 1)
    if len(counts) <= MAX_VALUES:
        numbers = _numbers(named)
        named = named.sort() if numbers is None else named.gather(np.argsort(numbers, kind="stable"))
    for value in named:
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
        yield text, (column == value).fill_null(value=False).to_numpy()
    others = column.is_not_null() & ~column.is_in(named.implode()).fill_null(value=False)
    if others.any():
        yield OTHER, others.to_numpy()
