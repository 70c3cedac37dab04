"""The meaning of the columns of a log, by their names and values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from features.discovery import times
from features.discovery.samples import Sample
from features.discovery.times import TimeUnit
from features.settings import Column, OneColumn

NOTHING = ("NA", "N/A", r"\N", "NULL", "null", "None", "nan", "NaN", "(not set)", "(none)", "undefined")
"""Words that are written where there is no value."""
_NAMES = {
    "user": r"user|visitor|customer|cust|person|member|client|account|reviewer|uid|playlist|buyer|guest",
    "session": r"session",
    "item": r"item|product|movie|article|content|asin|sku|track|song|book|stock|isbn|news|video|listing|business|anime|game",
    "time": r"time|date|_ts$|^ts$|created|\bat$|_dt$|day",
    "order": r"^(position|order|rank|index|seq|sequence|step)$",
    "value": r"^(rating|score|stars|overall|value|play.?count|plays|count)s?$",
    "type": r"^(event|action|behaviou?r|interaction|activity)([._ ]?(type|name))?$|^type$",
    "title": r"title|name|description|headline",
    "categories": r"genre|categor|tag|class|subclass|department|topic",
}
_MAX_TYPES = 20
_MAX_MISSING = 0.01
"""Most missing values of a column that identifies something."""


@dataclass(frozen=True)
class Roles:
    """Columns of a log, under the names of its sample."""

    user: str
    item: str
    time: str | None
    """None: the order of the rows is all that is known."""
    unit: TimeUnit | None
    value: str | None = None
    event_type: str | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    """Column to the one that is read where it is empty."""
    missing: tuple[str, ...] = ()
    """Words for no value among the ids."""
    types: tuple[str, ...] = ()
    """Event types, most frequent first."""
    clicked_suffix: str = ""
    items_separator: str = ""
    notes: tuple[str, ...] = ()

    def columns(self, sample: Sample) -> dict[str, Column]:
        """Our name to the source's column, as a configuration has it."""
        theirs = sample.form.columns
        chosen = {
            "user_id": self.user,
            "item_id": self.item,
            "timestamp": self.time,
            "value": self.value,
            "event_type": self.event_type,
        }
        found: dict[str, Column] = {}
        for ours, name in chosen.items():
            if name is not None:
                found[ours] = theirs[name]
                if name in self.instead:
                    both: list[OneColumn] = [_one(theirs[name]), _one(theirs[self.instead[name]])]
                    found[ours] = {"first_of": both}
        return found


def _one(column: Column) -> OneColumn:
    assert isinstance(column, str | int)
    return column


def roles_of(sample: Sample) -> Roles | None:
    """The columns of a log; None where a user or an item is not to be found."""
    frame = sample.frame
    if sample.has_rows_of_items:
        note = "a line is taken for a user and its items in order, without times"
        return Roles("1", "2", None, None, notes=(note,))
    units = {name: times.unit_of(frame[name].head(2_000)) for name in frame.columns}
    time = _time(frame, units)
    event_type = by_name(
        frame, "type", (name for name in frame.columns if 1 < _num_values(frame, name) <= _MAX_TYPES)
    )
    value = _value(frame, {time, event_type})
    taken = {time, event_type, value}
    ids = [name for name in frame.columns if name not in taken and _may_be_id(frame[name], units[name])]
    once = [name for name in ids if "[]" not in name]  # a user takes the items of an array, and is not in it
    user = _id(frame, once, "user") or _id(frame, once, "session") or _first_id(frame, once)
    lists = _list_of_items(frame, [name for name in ids if name != user])
    item = lists[0] if lists else _item(frame, [name for name in ids if name != user])
    if user is None or item is None or user == item:
        return None
    notes = []
    instead = {}
    for key, name in (("session", user), ("item", item)):
        if _share_missing(frame[name]) > _MAX_MISSING:
            other = _id(
                frame, [each for each in ids if each not in (user, item)], key, max_missing=_MAX_MISSING
            )
            if other is not None:
                instead[name] = other
                notes.append(
                    f"{name} is empty in {_share_missing(frame[name]):.0%} of the rows: {other} is read instead"
                )
            else:
                notes.append(
                    f"{name} is empty in {_share_missing(frame[name]):.0%} of the rows, which are no events"
                )
    unit = units[time] if time is not None else None
    if time is None:
        time = by_name(frame, "order", (name for name in frame.columns if name not in (user, item)))
        notes.append(f"no column tells the time: {time or 'the order of the rows'} counts")
    elif unit is not None and not unit.is_certain:
        notes.append(f"{time}: {unit.unit!r} is one of several that fit: are days and months right?")
    missing = tuple(word for word in NOTHING if any((frame[name] == word).any() for name in (user, item)))
    types = _most_frequent(frame[event_type]) if event_type is not None else ()
    if all(name.isdigit() for name in (user, item)):
        notes.append(
            "there is no header: which column is the user and which the item is a guess by their order"
        )
    return Roles(
        user, item, time, unit, value, event_type, instead, missing, types,
        clicked_suffix=lists[2] if lists else "",
        items_separator=lists[1] if lists else "",
        notes=tuple(notes),
    )  # fmt: skip


def _words(name: str) -> str:
    """A column's own name, in small letters with blanks between its words."""
    last = re.split(r"[.\[\]]+", name.rstrip("[]"))[-1]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()


def is_named(name: str, key: str) -> bool:
    """Whether a column's own name says what it is."""
    return re.search(_NAMES[key], _words(name)) is not None


def by_name(frame: pl.DataFrame, key: str, names: Iterable[str] | None = None) -> str | None:
    """The first column with such a name, among all or `names`; None if there is none."""
    return next((name for name in (frame.columns if names is None else names) if is_named(name, key)), None)


def share(flags: pl.Series) -> float:
    """Share of true values; 0 for none at all."""
    return int(flags.sum()) / len(flags) if len(flags) else 0.0


def _time(frame: pl.DataFrame, units: Mapping[str, TimeUnit | None]) -> str | None:
    """The column of times: by name first, and the finer of two."""
    candidates = [name for name in frame.columns if units[name] is not None]
    if not candidates:
        return None
    return max(
        candidates,
        key=lambda name: (
            is_named(name, "time"),
            not is_named(name, "user") and not is_named(name, "item"),
            _num_values(frame, name) > 1,
            min(_num_values(frame, name), 1000),
            -frame.columns.index(name),
        ),
    )


def _value(frame: pl.DataFrame, taken: set[str | None]) -> str | None:
    """A column of ratings: by name, or without names few numbers between 0 and 10."""
    free = [name for name in frame.columns if name not in taken and _are_numbers(frame[name])]
    named = by_name(frame, "value", free)
    if named is not None or not all(name.isdigit() for name in frame.columns):
        return named
    for name in free:
        if 2 < _num_values(frame, name) <= 11:
            numbers = frame[name].cast(pl.Float64, strict=False)
            if (numbers.min() or 0) >= 0 and (numbers.max() or 0) <= 10:  # type: ignore[operator]
                return name
    return None


def _are_numbers(column: pl.Series) -> bool:
    text = column.drop_nulls().str.strip_chars()
    text = text.filter(text != "")
    return share(text.cast(pl.Float64, strict=False).is_not_null()) >= 0.95


def _may_be_id(column: pl.Series, unit: TimeUnit | None) -> bool:
    """Whether a column may identify something: whole numbers or text, and more than a few values."""
    text = column.drop_nulls()
    is_fraction = text.str.contains(r"^[+-]?\d*\.\d*[1-9]\d*$").any()
    is_time = unit is not None and unit.unit not in ("s", "ms", "us", "ns")
    return (is_named(column.name, "user") or not is_fraction) and not is_time and text.n_unique() > 1


def _id(frame: pl.DataFrame, names: Sequence[str], key: str, *, max_missing: float = 0.5) -> str | None:
    """The column named so whose name says most that it is an id."""
    found = [name for name in names if is_named(name, key) and _share_missing(frame[name]) <= max_missing]
    says_id = re.compile(r"id$|^id|key$|code$|no$")
    return min(found, key=lambda name: (not says_id.search(_words(name)), names.index(name)), default=None)


def _first_id(frame: pl.DataFrame, names: Sequence[str]) -> str | None:
    """Without names: the first column with values that come again and again."""
    good = [name for name in names if _num_values(frame, name) > 1 and _num_values(frame, name) < len(frame)]
    many = [name for name in good if _num_values(frame, name) > _MAX_TYPES] or good
    return next(iter(many), None)


def _item(frame: pl.DataFrame, names: Sequence[str]) -> str | None:
    named = _id(frame, names, "item")
    return named if named is not None else _first_id(frame, names)


def _list_of_items(frame: pl.DataFrame, names: Sequence[str]) -> tuple[str, str, str] | None:
    """A column of lists such as `N1-0 N2-1`: its name, the separator, and the suffix of items that were taken."""
    for name in reversed(names):
        text = frame[name].drop_nulls()
        if share(text.str.contains(r"^\S+-[01]( \S+-[01])*$")) > 0.95:
            return name, " ", "-1"
    return None


def _num_values(frame: pl.DataFrame, name: str) -> int:
    return frame[name].n_unique()


def _share_missing(column: pl.Series) -> float:
    text = column.str.strip_chars()
    return share(text.is_in(["", *NOTHING]).fill_null(value=True))


def _most_frequent(column: pl.Series) -> tuple[str, ...]:
    counts = column.drop_nulls().value_counts(sort=True)
    return tuple(counts[column.name].to_list())
