"""Budgets of list places: the file of `score.budgets`, its checks, and its rows as groups of items.

Columns: `field` (`item_id`, `category`, a column of the items table, `age_days`, or `*` for all items), `value`, `min_places`,
`max_places`, and if wanted `unit` (`places`, or `share` of all places of the night).
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models.allocation.night import NO_CAP, UNIT, Budgets
from models.histories import Int64
from pipeline.errors import LookbackError

KEY = "score.budgets"
FIELD, VALUE, LEAST, MOST, MEASURE = "field", "value", "min_places", "max_places", "unit"
ALL, ITEM, CATEGORY, AGE = "*", "item_id", "category", "age_days"
_CATEGORIES = "categories"
"""Column of the items table with an item's categories."""


class Budget(NamedTuple):
    """One row."""

    field: str
    value: str
    low: float
    high: float
    """Infinite without a cap"""
    is_share: bool

    @property
    def name(self) -> str:
        """The group, for messages."""
        return "all places" if self.field == ALL else f"{self.field} {self.value!r}"


@dataclass(frozen=True)
class Catalogue:
    """Items of a scoring, as budgets see them."""

    items: Vocabulary
    table: Path
    """Items table; it may be absent"""
    allowed: NDArray[np.bool_] | None
    """[n + 1], None: all"""
    age_days: Callable[[], NDArray[np.float64]]
    """[n + 1] days since each item's first event, 0 without one"""

    @property
    def columns(self) -> list[str]:
        """Fields that budgets may name."""
        names = list(pl.read_parquet_schema(self.table)) if self.table.exists() else []
        own = [name for name in names if name not in (ITEM, _CATEGORIES)]
        return [ITEM, *([CATEGORY] if _CATEGORIES in names else []), *own, AGE, ALL]

    def values(self, field: str) -> pl.DataFrame:
        """(value, item) of every item, as text, with several rows where an item has several values."""
        if field == ITEM:
            return pl.DataFrame(
                {VALUE: self.items.ids.cast(pl.String), "item": np.arange(1, len(self.items) + 1)}
            )
        column = _CATEGORIES if field == CATEGORY else field
        table = pl.read_parquet(self.table, columns=[ITEM, column])
        item, _ = self.items.encode_known(table[ITEM])
        own = pl.DataFrame({VALUE: table[column], "item": item.astype(np.int64)}).filter(pl.col("item") > 0)
        if isinstance(own.schema[VALUE], pl.List):
            own = own.explode(VALUE, empty_as_null=True)
        return own.drop_nulls().with_columns(pl.col(VALUE).cast(pl.String)).unique(maintain_order=True)


def read(path: Path) -> list[Budget]:
    """Rows of a file. Raises LookbackError for a file that is none, and for rows that no lists could keep."""
    budgets = [_budget(path, number, row) for number, row in enumerate(_rows(path), 1)]
    seen: dict[tuple[str, str], int] = {}
    for number, budget in enumerate(budgets, 1):
        if (first := seen.setdefault((budget.field, budget.value), number)) != number:
            raise LookbackError(
                f"{KEY}: {path}: rows {first} and {number} are both of {budget.name}; expected one row with min_places and "
                "max_places"
            )
    return budgets


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    """Rows as dictionaries, with the columns checked."""
    try:
        if path.suffix == ".toml":
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
            rows = tree.get("budgets")
            if (
                list(tree) != ["budgets"]
                or not isinstance(rows, list)
                or not all(isinstance(row, dict) for row in rows)
            ):
                raise LookbackError(
                    f"{KEY}: {path}: received the keys {', '.join(tree)}; expected tables [[budgets]] with {FIELD}, {VALUE}, "
                    f"{LEAST}, {MOST}"
                )
            columns = {name for row in rows for name in row}
        else:
            table = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
            rows, columns = table.to_dicts(), set(table.columns)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise LookbackError(f"{KEY}: {path}: cannot be read as {path.suffix[1:]}: {error}") from None
    known = {FIELD, VALUE, LEAST, MOST, MEASURE}
    if unknown := sorted(columns - known):
        raise LookbackError(f"{KEY}: {path}: unknown column {unknown[0]!r}; {_near(unknown[0], known)}")
    if FIELD not in columns or not columns & {LEAST, MOST}:
        raise LookbackError(
            f"{KEY}: {path} has the columns {', '.join(sorted(columns)) or 'none'}; expected {FIELD}, {VALUE}, {LEAST}, {MOST}"
        )
    return rows


def _budget(path: Path, number: int, row: Mapping[str, Any]) -> Budget:
    """A row, checked by itself."""
    where = f"{KEY}: {path}: row {number}"
    field, value = row.get(FIELD), row.get(VALUE)
    if field is None or (value is None and field != ALL):
        raise LookbackError(
            f"{where}: received {FIELD} {field!r}, {VALUE} {value!r}; expected both, or the field '*'"
        )
    measure = row.get(MEASURE) or "places"
    if measure not in ("places", "share"):
        raise LookbackError(f"{where}: received {MEASURE} {measure!r}, expected 'places' or 'share'")
    is_share = measure == "share"
    low, high = (_number(where, name, row.get(name), is_share=is_share) for name in (LEAST, MOST))
    if low is None and high is None:
        raise LookbackError(f"{where}: received neither {LEAST} nor {MOST}, expected one of them at least")
    if low is not None and high is not None and low > high:
        raise LookbackError(
            f"{where}: received {LEAST} {low:g} above {MOST} {high:g}, expected at most {high:g}, or a greater {MOST}"
        )
    return Budget(
        str(field),
        ALL if field == ALL else str(value),
        low or 0.0,
        np.inf if high is None else high,
        is_share,
    )


def _number(where: str, name: str, value: Any, *, is_share: bool) -> float | None:
    """A limit; None where it is missing."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    expected = "a share from 0 to 1" if is_share else "a whole number of places from 0"
    if not number >= 0 or (is_share and number > 1) or (not is_share and number != np.floor(number)):
        raise LookbackError(f"{where}: received {name} {value!r}, expected {expected}")
    return number


def _near(name: str, known: Iterable[str]) -> str:
    """Question after the nearest known name, or some names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, names[:8]))}"


def groups(path: Path, rows: list[Budget], catalogue: Catalogue) -> list[Int64]:
    """Items of each row's group. Raises LookbackError for unknown fields and values, naming the nearest and their number."""
    known = catalogue.columns
    for number, row in enumerate(rows, 1):
        if row.field not in known:
            raise LookbackError(
                f"{KEY}: {path}: row {number}: unknown field {row.field!r}; {_near(row.field, known)}"
            )
    every = np.arange(1, len(catalogue.items) + 1)
    found: dict[tuple[str, str], Int64] = {}
    for field in dict.fromkeys(row.field for row in rows):
        named = [row.value for row in rows if row.field == field]
        if field == ALL:
            found[field, ALL] = every
            continue
        if field == AGE:
            found |= _by_age(path, named, catalogue)
            continue
        values = catalogue.values(field)
        own = values.filter(pl.col(VALUE).is_in(named)).group_by(VALUE).agg("item")
        found |= {(field, value): np.sort(np.array(items)) for value, items in own.iter_rows()}
        if unknown := [value for value in named if (field, value) not in found]:
            near = _near(unknown[0], values[VALUE].unique().to_list())
            raise LookbackError(
                f"{KEY}: {path}: {len(unknown):,} of {len(named):,} values of {field} are unknown, the first {unknown[0]!r}; "
                + near
            )
    return [found[row.field, row.value] for row in rows]


def _by_age(path: Path, named: list[str], catalogue: Catalogue) -> dict[tuple[str, str], Int64]:
    """Items of at most each age."""
    age = catalogue.age_days()[1:]
    own = {}
    for value in named:
        try:
            days = float(value)
        except ValueError:
            days = np.nan
        if not days >= 0:
            raise LookbackError(
                f"{KEY}: {path}: received {AGE} {value!r}, expected the greatest age of the group in days, such as 7"
            )
        own[AGE, value] = np.flatnonzero(age <= days) + 1
    return own


def groups_of(field: str, catalogue: Catalogue) -> Int64:
    """[n + 1] number of each item's value of a column, from 1; 0 without one.

    Raises LookbackError for an unknown field, and for one of which items have several values.
    """
    key, known = "budgets.fairness", [name for name in catalogue.columns if name not in (AGE, ALL)]
    if field not in known:
        raise LookbackError(f"{key}: unknown field {field!r}; {_near(field, known)}")
    values = catalogue.values(field)
    if several := len(values) - values["item"].n_unique():
        raise LookbackError(
            f"{key}: {several:,} items have several values of {field!r}; expected a column of the items table with one per item"
        )
    group = np.zeros(len(catalogue.items) + 1, np.int64)
    if len(values):
        group[values["item"].to_numpy()] = values[VALUE].rank("dense").to_numpy()
    return group


def limits(rows: list[Budget], num_units: int) -> tuple[Int64, Int64]:
    """Least and greatest units of each row, two [b]; num_units: of all places of the night."""
    low = [np.ceil(row.low * (num_units if row.is_share else UNIT)) for row in rows]
    high = [
        NO_CAP if np.isinf(row.high) else np.floor(row.high * (num_units if row.is_share else UNIT))
        for row in rows
    ]
    return np.array(low, np.int64), np.array(high, np.int64)


def budgets_of(
    path: Path, catalogue: Catalogue, num_users: int, weight: Int64
) -> tuple[list[Budget], Budgets]:
    """Rows of a file, and their budgets over the items of a catalogue.

    weight: [k] units of each rank. Raises LookbackError for a bad file, floors that filters forbid or that there are too few
    lists for, and budgets that contradict each other.
    """
    rows = read(path)
    of_rows = groups(path, rows, catalogue)
    total = num_users * int(weight.sum())
    low, high = limits(rows, total)
    allowed = np.ones(len(catalogue.items) + 1, bool) if catalogue.allowed is None else catalogue.allowed
    kept = [items[allowed[items]] for items in of_rows]
    for row, items, least in zip(rows, kept, low.tolist(), strict=True):
        _check_room(path, row, len(items), least, num_users, weight)
    sizes = [len(items) for items in kept]
    budgets = Budgets(
        np.concatenate([np.zeros(0, np.int64), *kept]).astype(np.int64),
        np.repeat(np.arange(len(rows)), sizes),
        low,
        high,
        len(catalogue.items),
    )
    _check_contradictions(path, rows, budgets, total)
    return rows, budgets


def _check_room(path: Path, row: Budget, num_items: int, low: int, num_users: int, weight: Int64) -> None:
    """Raise LookbackError where no lists could meet a floor by itself."""
    room = num_users * int(weight[:num_items].sum())
    if low <= room:
        return
    if not num_items:
        raise LookbackError(
            f"{KEY}: {path}: {row.name} has {LEAST} {row.low:g}, but the filters of [score] leave no item of it; expected 0, or "
            "filters that allow one (score.allow, score.deny, score.availability, score.max_item_age_days)"
        )
    most = room / UNIT
    raise LookbackError(
        f"{KEY}: {path}: {row.name} has {LEAST} {row.low:g}, but its {num_items:,} items have at most {most:,.0f} places in the "
        f"lists of {num_users:,} users; expected at most that"
    )


def _check_contradictions(path: Path, rows: list[Budget], budgets: Budgets, total: int) -> None:
    """Raise LookbackError for a floor above a cap of a group that contains it, and for floors that together are above one.

    Names the two, or the floors' field, and the least change that makes them possible.
    """
    from scipy.sparse import csr_array

    shape = len(rows), budgets.num_items + 1
    member = csr_array((np.ones(len(budgets.item), np.int32), (budgets.budget, budgets.item)), shape)
    size = np.bincount(budgets.budget, minlength=len(rows))
    floors = np.flatnonzero(budgets.low > 0)
    caps = np.flatnonzero(budgets.high < NO_CAP)
    overlap = (member[floors] @ member[caps].T).toarray()
    is_within = overlap == size[floors][:, None]
    for floor, cap in np.argwhere(is_within & (budgets.low[floors][:, None] > budgets.high[caps])):
        first, second = rows[floors[floor]], rows[caps[cap]]
        least, most = int(budgets.low[floors[floor]]) / UNIT, int(budgets.high[caps[cap]]) / UNIT
        raise LookbackError(
            f"{KEY}: {path}: {first.name} has at least {least:,.10g} places and {second.name}, which contains it, at most "
            f"{most:,.10g}; expected {LEAST} of at most {most:,.10g} for the first, or {MOST} of at least {least:,.10g} for the "
            "second"
        )
    names = [*(rows[cap].name for cap in caps), "the night"]
    most_units = [*budgets.high[caps].tolist(), total]
    within = np.concatenate([is_within, np.ones((len(floors), 1), bool)], 1)
    for field in dict.fromkeys(rows[floor].field for floor in floors):
        own = np.array([rows[floor].field == field for floor in floors])
        for cap, (name, most) in enumerate(zip(names, most_units, strict=True)):
            chosen = floors[own & within[:, cap]]
            needed = int(budgets.low[chosen].sum())
            is_disjoint = member[chosen].sum(axis=0).max(initial=0) <= 1
            if len(chosen) > 1 and needed > most and is_disjoint:
                raise LookbackError(
                    f"{KEY}: {path}: the {len(chosen):,} rows of {field} with {LEAST} within {name} need {needed / UNIT:,.10g} "
                    f"places together, but there are at most {most / UNIT:,.10g}; expected {LEAST} that are lower by "
                    f"{(needed - most) / UNIT:,.10g} in sum"
                )
