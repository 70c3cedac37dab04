"""Histories typed in or requested: items, or events with times and types, as arrays in a vocabulary's numbering."""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from features.settings import iso_microseconds
from models.histories import Histories

SECOND = 1_000_000
"""Microseconds."""
_FORMS = "a list of item ids, oldest first, or of events {item_id, timestamp, event_type}"
_LATEST = 2**62


class Event(NamedTuple):
    """Event as it is received."""

    item_id: Any
    timestamp: Any = None
    event_type: Any = None
    value: Any = None


@dataclass(frozen=True)
class EventList:
    """One history, oldest first; every list has an entry per event."""

    items: list[Any]
    times: list[int] | None = None
    """Microseconds since the epoch, or positions in a log without times; None: unknown."""
    types: list[str | None] | None = None
    values: list[float] | None = None
    """NaN where missing."""

    @classmethod
    def of(cls, history: Any) -> "EventList":
        """Read a cell: item ids or events, in a list, tuple, array or JSON text; a missing cell, and missing items, are nothing.

        Raises ValueError for anything else, and where only some events have a time.
        """
        if is_missing(history):
            return cls([])
        listed = _from_json(history) if isinstance(history, str) else history
        if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
            raise ValueError(f"history: received {_short(history)}, expected {_FORMS}")
        events = [event for event in map(_event, listed) if not is_missing(event.item_id)]
        given = [event.timestamp for event in events if not is_missing(event.timestamp)]
        if given and len(given) < len(events):
            raise ValueError(
                f"history: received {len(given)} timestamps for {len(events)} events, expected one for each, or none"
            )
        times = [_microseconds(time) for time in given]
        order = np.argsort(times, kind="stable").tolist() if times else range(len(events))
        types = [None if is_missing(event.event_type) else str(event.event_type) for event in events]
        values = [_number(event.value) for event in events]
        return cls(
            [events[place].item_id for place in order],
            [times[place] for place in order] if times else None,
            [types[place] for place in order],
            [values[place] for place in order] if not np.isnan(values).all() else None,
        )


def is_missing(value: Any) -> bool:
    """Whether a single value is missing: None, NaN, NaT, pandas.NA."""
    if value is None or hasattr(value, "__len__"):
        return value is None
    try:
        return bool(value != value)  # noqa: PLR0124  (NaN and NaT differ from themselves)
    except TypeError:  # pandas.NA has no truth
        return True


def id_of(value: Any) -> Any:
    """A single id, whole floats as integers; None where it is missing."""
    if is_missing(value):
        return None
    return int(value) if isinstance(value, (float, np.floating)) and value.is_integer() else value


def ids_of(values: Iterable[Any]) -> pl.Series:
    """[n] ids of mixed types as text, see `id_of`; missing ones are null."""
    ids = map(id_of, values)
    return pl.Series([None if each is None else str(each) for each in ids], dtype=pl.String)


def histories_of(
    lists: Sequence[EventList],
    items: Vocabulary,
    event_types: Sequence[str],
    request_time: int,
    *,
    drop_consecutive: bool = False,
) -> tuple[Histories, int]:
    """Histories in the numbering of `items` and `event_types` (from 1), without unknown items; returns the number of those too.

    Without times, events count as a second apart, the last at the time of the request: `request_time`, or the row's last event
    where that is later. drop_consecutive: leave out events on the same item as the one before.
    """
    lengths = np.array([len(each.items) for each in lists], np.int64)
    ids = ids_of(item for each in lists for item in each.items)
    index, num_unknown = items.encode_known(ids) if len(ids) else (np.zeros(0, np.int32), 0)
    row = np.repeat(np.arange(len(lists)), lengths)
    kept = index > 0
    if drop_consecutive:
        kept[1:] &= ~((ids == ids.shift(1)).fill_null(value=False).to_numpy()[1:] & (row[1:] == row[:-1]))
    code = {name: number for number, name in enumerate(event_types, 1)}
    types = [code.get(name or "", 0) for each in lists for name in each.types or [None] * len(each.items)]
    values = [value for each in lists for value in each.values or [np.nan] * len(each.items)]
    given = [time for each in lists for time in each.times or [0] * len(each.items)]
    has_times, row = np.array([each.times is not None for each in lists], bool), row[kept]
    ends = np.searchsorted(row, np.arange(len(lists)), side="right").astype(np.int64)
    supposed = request_time - SECOND * (ends[row] - 1 - np.arange(len(row)))
    histories = Histories(
        index[kept],
        np.where(has_times[row], np.array(given, np.int64)[kept], supposed),
        np.array(types, np.int16)[kept],
        np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[:-1])),
        ends,
        np.array(values, np.float32)[kept] if any(each.values for each in lists) else None,
        np.array([max([request_time, *(each.times or [])]) for each in lists], np.int64),
    )
    return histories, num_unknown


def _event(each: Any) -> Event:
    """An element of a history as an event."""
    if not isinstance(each, Mapping):
        if hasattr(each, "__len__") and not isinstance(each, str):
            raise ValueError(f"history: received {_short(each)} in a list, expected {_FORMS}")
        return Event(each)
    if "item_id" not in each or set(each) - set(Event._fields):
        raise ValueError(
            f"history: received an event of {', '.join(map(str, each))}; expected {', '.join(Event._fields)}"
        )
    return Event(**each)


def _number(value: Any) -> float:
    """A value of an event, NaN where it is missing."""
    try:
        return np.nan if is_missing(value) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"history: received the value {_short(value)}, expected a number") from None


def _microseconds(time: Any) -> int:
    """Microseconds since the epoch of an ISO text, a date or time, or a number of them."""
    try:
        if isinstance(time, str):
            return iso_microseconds(time)
        if isinstance(time, datetime.date):  # and datetime, pandas.Timestamp
            return iso_microseconds(time.isoformat())
        if isinstance(time, np.datetime64):
            return int(time.astype("datetime64[us]").astype(np.int64))
        if not isinstance(time, bool) and int(time) == time and abs(time) < _LATEST:
            return int(time)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(
        f"history: received the timestamp {_short(time)}, expected an ISO time, or microseconds since the epoch"
    )


def _from_json(text: str) -> Any:
    """A JSON list, or the text itself."""
    try:
        listed = json.loads(text)
    except ValueError:
        return text
    return listed if isinstance(listed, list) else text


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."
