"""Changes of the recommendations from one model to another: users, items, categories and segments, and the metric there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.evaluation.bootstrap import Difference
from models.evaluation.comparison import SystemComparison
from models.evaluation.metrics import Float64, metrics_of_ranks
from models.evaluation.rank_overlap import rank_biased_overlap
from models.histories import Int32
from pipeline.errors import LookbackError
from pipeline.evaluation.comparison import KEY
from pipeline.evaluation.segments import UNKNOWN

SHOWN = 10
"""Values that gain most, and that lose most, of each kind; users side by side."""
QUANTILES = (0.1, 0.5, 0.9)
THIRDS = ("tail", "middle", "head")
"""Thirds of the items with events, the least popular first."""
_REQUEST = ("night", "user_id")


@dataclass(frozen=True)
class PlaceChange:
    """Places in the lists of all users in both, before and after."""

    value: str
    before: int
    after: int


@dataclass(frozen=True)
class PlaceChanges:
    """Values of one kind that gain and lose most places, at most `SHOWN` each."""

    gained: Sequence[PlaceChange]
    lost: Sequence[PlaceChange]


@dataclass(frozen=True)
class SegmentChange:
    """Lists of the users of a segment."""

    value: str
    users: int
    changed: int
    overlap: float
    """Mean rank-biased overlap."""


@dataclass(frozen=True)
class Recommended:
    """A recommendation and its reasons, as titles."""

    title: str
    because: Sequence[str]


@dataclass(frozen=True)
class UserLists:
    """Lists of one user side by side."""

    user_id: Any
    overlap: float
    before: Sequence[Recommended]
    after: Sequence[Recommended]


@dataclass(frozen=True)
class WhereListsDiffer:
    """Metric of both models at the test requests whose evaluated lists differ."""

    metric: str
    requests: int
    """Test requests (user-nights or held-out events) that both evaluated."""
    differing: int
    users: int
    """Users of the differing ones."""
    before: float
    after: float
    difference: Difference
    """After minus before, paired."""


@dataclass(frozen=True)
class ListChanges:
    """Changes of the lists of users who have one in both."""

    users: int
    only_before: int
    only_after: int
    """Users with a list in one alone."""
    changed: int
    """Users with other items or another order."""
    other_items: int
    """Users with other items."""
    overlap: float
    """Mean rank-biased overlap of all users in both."""
    overlap_quantiles: Mapping[str, float]
    """`p10`, `p50`, `p90` over these users."""
    places: Mapping[str, PlaceChanges]
    """`item`, `category`, `provider` (where known) and `popularity` (third of the items by events)."""
    segments: Sequence[SegmentChange]
    """By segment of the users, most changed first; empty where users have none."""
    side_by_side: Sequence[UserLists]
    """Users with changed lists, evenly spread from the least to the greatest overlap."""


def compare_lists(
    before: pl.LazyFrame, after: pl.LazyFrame, items: pl.DataFrame, segment: pl.DataFrame | None = None
) -> ListChanges:
    """Compare recommendations (`user_id, item_id, rank, because`) of two scorings.

    items: `item_id, title, categories, num_events`, optionally `provider`; segment: `user_id, segment` of users.
    Raises LookbackError where ids changed their type, or no user has a list in both.
    """
    tables = [table.select("user_id", "item_id", "rank").collect() for table in (before, after)]
    if tables[0].schema != tables[1].schema:
        raise LookbackError("compare: the lists have ids of different types; expected lists of the same log")
    owners = [table.select("user_id").unique() for table in tables]
    users = owners[0].join(owners[1], on="user_id", how="semi").sort("user_id").with_row_index("row")
    if not len(users):
        raise LookbackError("compare: no user has a list in both; expected lists of the same users")
    ids = pl.concat(table.select("item_id").unique() for table in tables).unique().sort("item_id")
    codes = ids.with_row_index("code", offset=1)
    first, second = (_as_array(table, users, codes, _longest(tables)) for table in tables)
    overlap = rank_biased_overlap(first, second)
    changed = (first != second).any(axis=1)
    other_items = (np.sort(first, axis=1) != np.sort(second, axis=1)).any(axis=1)
    shown = _spread(np.flatnonzero(changed), overlap)
    return ListChanges(
        users=len(users),
        only_before=len(owners[0]) - len(users),
        only_after=len(owners[1]) - len(users),
        changed=int(changed.sum()),
        other_items=int(other_items.sum()),
        overlap=float(overlap.mean()),
        overlap_quantiles={f"p{round(100 * q)}": float(np.quantile(overlap, q)) for q in QUANTILES},
        places=_places(codes, first, second, items),
        segments=[] if segment is None else _segments(users, segment, changed, overlap),
        side_by_side=_side_by_side(
            (before, after), users.select(pl.all().gather(shown)), overlap[shown], items
        ),
    )


def _longest(tables: Sequence[pl.DataFrame]) -> int:
    """Most recommendations of one user."""
    return max(int(table.group_by("user_id").len()["len"].to_numpy().max(initial=0)) for table in tables)


def _as_array(table: pl.DataFrame, users: pl.DataFrame, codes: pl.DataFrame, width: int) -> Int32:
    """[users, width] item codes by rank, padded with 0; gaps in the ranks are closed."""
    rows = table.join(users, on="user_id").join(codes, on="item_id").sort("row", "rank")
    row = rows["row"].to_numpy().astype(np.int64)
    counts = np.bincount(row, minlength=len(users))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    lists = np.zeros((len(users), width), np.int32)
    lists[row, place] = rows["code"].to_numpy()
    return lists


def _titles(items: pl.DataFrame) -> list[str]:
    return items.select(pl.coalesce("title", pl.format("item {}", "item_id"))).to_series().to_list()


def _places(codes: pl.DataFrame, first: Int32, second: Int32, items: pl.DataFrame) -> dict[str, PlaceChanges]:
    """Changes by item, category, provider and popularity; codes: `item_id` of each code in the lists."""
    before, after = (np.bincount(lists.ravel(), minlength=len(codes) + 1)[1:] for lists in (first, second))
    known = codes.join(items, on="item_id", how="left", maintain_order="left")
    counted = known.with_columns(
        pl.Series("before", before),
        pl.Series("after", after),
        pl.Series("title", _titles(known)),
        third=_third(known["num_events"], items["num_events"]),
    )
    changes = {"item": _most(counted.select("title", "before", "after"))}
    if "categories" in counted.columns and counted["categories"].drop_nulls().list.len().sum():
        distinct = pl.col("categories").list.unique()
        some = pl.when(distinct.list.len() > 0).then(distinct)
        exploded = counted.with_columns(some.alias("category")).explode("category")
        changes["category"] = _most(_summed(exploded, "category"))
    if "provider" in counted.columns and counted["provider"].null_count() < len(counted):
        changes["provider"] = _most(_summed(counted, "provider"))
    return changes | {"popularity": _most(_summed(counted, "third"))}


def _third(num_events: pl.Series, of_all: pl.Series) -> pl.Series:
    """Third of the items with events, ordered by their number, in which an item with so many is; null without events."""
    ordered = np.sort(of_all.drop_nulls().to_numpy())
    ordered = ordered[ordered > 0]
    own = num_events.fill_null(0).to_numpy()
    number = np.searchsorted(ordered, own) * len(THIRDS) // max(len(ordered), 1)
    names = np.array([*THIRDS, THIRDS[-1]])[number]
    return pl.Series(
        [name if events > 0 else None for name, events in zip(names, own, strict=True)], dtype=pl.String
    )


def _summed(table: pl.DataFrame, column: str) -> pl.DataFrame:
    return table.group_by(pl.col(column).fill_null(UNKNOWN)).agg(
        pl.col("before").sum(), pl.col("after").sum()
    )


def _most(table: pl.DataFrame) -> PlaceChanges:
    """Most gained and most lost; table: value, `before`, `after`."""
    value = table.columns[0]
    gain = (pl.col("after") - pl.col("before")).alias("gain")
    ordered = table.with_columns(gain).sort(
        pl.col("gain").abs(), value, descending=[True, False], maintain_order=True
    )

    def top(chosen: pl.Expr) -> list[PlaceChange]:
        rows = ordered.filter(chosen).head(SHOWN).select(value, "before", "after").iter_rows()
        return [PlaceChange(*row) for row in rows]

    return PlaceChanges(top(pl.col("gain") > 0), top(pl.col("gain") < 0))


def _segments(
    users: pl.DataFrame, segment: pl.DataFrame, changed: NDArray[np.bool_], overlap: Float64
) -> list[SegmentChange]:
    table = users.with_columns(pl.Series("changed", changed), pl.Series("overlap", overlap)).join(
        segment, on="user_id", how="left"
    )
    groups = table.group_by(pl.col("segment").fill_null(UNKNOWN)).agg(
        pl.len(), pl.col("changed").sum(), pl.col("overlap").mean()
    )
    return [SegmentChange(*row) for row in groups.sort("overlap", "segment").iter_rows()]


def _spread(changed: NDArray[np.int64], overlap: Float64) -> NDArray[np.int64]:
    """At most `SHOWN` of the changed rows, evenly spread by overlap, least first."""
    ordered = changed[np.argsort(overlap[changed], kind="stable")]
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered))).astype(np.int64))
    return ordered[places]


def _side_by_side(
    tables: tuple[pl.LazyFrame, pl.LazyFrame], users: pl.DataFrame, overlap: Float64, items: pl.DataFrame
) -> list[UserLists]:
    chosen = users.lazy().select("user_id")
    titles = dict(zip(items["item_id"], _titles(items), strict=True))
    before, after = (
        table.join(chosen, on="user_id", how="semi").collect().sort("user_id", "rank") for table in tables
    )
    return [
        UserLists(user, float(value), _recommended(before, user, titles), _recommended(after, user, titles))
        for user, value in zip(users["user_id"], overlap, strict=True)
    ]


def _recommended(table: pl.DataFrame, user: Any, titles: Mapping[Any, str]) -> list[Recommended]:
    rows = table.filter(pl.col("user_id") == user)
    reasons = rows["because"].to_list() if "because" in rows.columns else [None] * len(rows)
    return [
        Recommended(
            titles.get(item, f"item {item}"),
            [titles.get(past["item_id"], f"item {past['item_id']}") for past in because or []],
        )
        for item, because in zip(rows["item_id"].to_list(), reasons, strict=True)
    ]


def where_lists_differ(
    before: tuple[Path, str], after: tuple[Path, str], metric: str, resamples: int, seed: int
) -> WhereListsDiffer | None:
    """Compare two evaluations (folder and system each) at the requests that both have and whose evaluated lists differ.

    Both systems rank the targets that both evaluated. None where no request is common, or no list differs.
    """
    tables = [_targets(folder, system) for folder, system in (before, after)]
    keys = [name for name in (*KEY, "night") if name in tables[0].columns]
    if any(
        name not in tables[1].columns or tables[0].schema[name] != tables[1].schema[name] for name in keys
    ):
        return None
    common = tables[0].join(tables[1], on=keys, suffix="_after").sort(keys[::-1])
    if "night" in keys:
        common = common.sort(*_REQUEST, "item_id").with_columns(
            _list_of("recommended"), _list_of("recommended_after")
        )
        is_first = common.select(pl.struct(_REQUEST).is_first_distinct()).to_series().to_numpy()
    else:
        is_first = np.ones(len(common), bool)
    requests = int(is_first.sum())
    differs = common.select(pl.col("recommended") != pl.col("recommended_after")).to_series().to_numpy()
    if not differs.any():
        return None
    chosen, first = common.filter(differs), is_first[differs]
    request, users = np.cumsum(first) - 1, chosen.filter(first)["user_id"]
    k = int(metric.rpartition("@")[2])
    values = (
        (name, {metric: metrics_of_ranks(chosen[column].to_numpy(), (k,), request, len(users))[metric]})
        for name, column in (("before", "rank"), ("after", "rank_after"))
    )
    systems = SystemComparison.of(values, users.to_numpy(), resamples, seed)
    return WhereListsDiffer(
        metric,
        requests,
        len(users),
        systems.num_users,
        before=systems.values("before")[metric],
        after=systems.values("after")[metric],
        difference=systems.paired("after", "before")[metric],
    )


def _list_of(column: str) -> pl.Expr:
    """List of a target's request, which stands beside its first target alone."""
    lists = pl.col(column)
    return lists.sort_by(lists.list.len(), descending=True).first().over(_REQUEST)


def _targets(folder: Path, system: str) -> pl.DataFrame:
    table = pl.scan_parquet(folder / "targets.parquet").filter(pl.col("system") == system)
    present = table.collect_schema().names()
    return table.select(
        *(name for name in (*KEY, "night") if name in present), "rank", "recommended"
    ).collect()
