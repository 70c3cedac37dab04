"""A history without some of its items, or with others, and the difference of its lists: `lookback recommend --without --with`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from features.printable import printable
from models.histories import Histories, Int32
from pipeline.errors import LookbackError

NAME_LENGTH = 40
"""Characters of an item in a column."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Change of a history."""

    without: Sequence[str]
    """Items whose events are taken out"""
    added: Sequence[str]
    """Items of further events, the newest last"""

    def __bool__(self) -> bool:
        return bool(self.without or self.added)

    def applied(self, known: Histories, items: Vocabulary, time: int) -> Histories:
        """The changed history [1]: all events of an item in `without` are gone, added ones are at the time of the request.

        An added event has the type that most of the history's have, dislikes apart, and no value. What lists exclude otherwise,
        and the request, stay. Raises LookbackError for items that are not in the history, or that the model does not know.
        """
        gone, added = self._gone(known, items), self._added(items)
        left = known.only(~np.isin(known.item_index[known.gather()[1]], gone))
        types = (
            left.event_type if left.dislikes is None else left.event_type[left.dislikes[left.event_type] == 0]
        )
        kind = np.bincount(types).argmax() if len(types) else 0
        moment = max(time, int(left.time.max(initial=time)))
        number = len(added)
        return replace(
            left,
            item_index=np.concatenate([left.item_index, added]),
            time=np.concatenate([left.time, np.full(number, moment)]),
            event_type=np.concatenate([left.event_type, np.full(number, kind, np.int16)]),
            value=None if left.value is None else np.pad(left.value, (0, number), constant_values=np.nan),
            ends=left.ends + number,
        )

    def _gone(self, known: Histories, items: Vocabulary) -> Int32:
        index = _encoded(self.without, items)
        history = known.item_index[known.gather()[1]]
        missing = [
            item for item, is_in in zip(self.without, np.isin(index, history), strict=True) if not is_in
        ]
        if missing:
            near = ", ".join(map(str, items.decode(np.unique(history)[:3])))
            such = (
                f"items of the history, such as {near}"
                if near
                else "items of a history, and this one is empty"
            )
            raise LookbackError(
                f"--without: received {_quoted(missing)}, not among the {len(history)} interactions that the model knows of this "
                f"history; expected {such}"
            )
        return index

    def _added(self, items: Vocabulary) -> Int32:
        index = _encoded(self.added, items)
        unknown = [item for item, number in zip(self.added, index, strict=True) if number <= 0]
        if unknown:
            near = ", ".join(map(str, items.ids.head(3)))
            raise LookbackError(
                f"--with: received {_quoted(unknown)}, not known to the model; expected item ids such as {near}"
            )
        return index


@dataclass(frozen=True)
class Difference:
    """Lists before and after a change, rows as in `Recommendations`."""

    change: Change
    before: list[Row]
    after: list[Row]

    def as_json(self) -> dict[str, object]:
        """The change, the list after it, and the ids of items that enter, leave and move."""
        return {
            "without": list(self.change.without),
            "with": list(self.change.added),
            "recommendations": [
                {name: value for name, value in row.items() if name != "because"} for row in self.after
            ],
            "entered": [item for item in self._new if item not in self._old],
            "left": [item for item in self._old if item not in self._new],
            "moved": [
                {"item_id": item, "from": self._old[item], "to": rank} for item, rank in self._moved.items()
            ],
        }

    def as_text(self) -> str:
        """Both lists side by side."""
        words = [f"without {_shown(item)}" for item in self.change.without]
        words += [f"with {_shown(item)}" for item in self.change.added]
        entered, left = (
            sum(item not in other for item in own)
            for own, other in ((self._new, self._old), (self._old, self._new))
        )
        counts = f"{entered} enter the list, {left} leave it, {len(self._moved)} move"
        former = [(_name(row), "" if row["item_id"] in self._new else "leaves") for row in self.before]
        later = [(_name(row), self._way(row["item_id"])) for row in self.after]
        size = max(len(former), len(later))
        columns = (
            [("as it is", ""), *former, *[("", "")] * (size - len(former))],
            [(", ".join(words), ""), *later, *[("", "")] * (size - len(later))],
        )
        width = max(len(name) for name, _ in columns[0])
        lines = [
            f"{rank or '':>3}  {name:<{width}}  {mark:<6}  {other}" + (f"  {way}" if way else "")
            for rank, ((name, mark), (other, way)) in enumerate(zip(*columns, strict=True))
        ]
        return "\n".join([counts, *map(str.rstrip, lines)])

    @property
    def _old(self) -> dict[Any, int]:
        """Rank of each item before."""
        return {row["item_id"]: row["rank"] for row in self.before}

    @property
    def _new(self) -> dict[Any, int]:
        """Rank of each item after."""
        return {row["item_id"]: row["rank"] for row in self.after}

    @property
    def _moved(self) -> dict[Any, int]:
        """Rank after, of each item in both lists at another rank."""
        old = self._old
        return {item: rank for item, rank in self._new.items() if old.get(item, rank) != rank}

    def _way(self, item: Any) -> str:
        old, new = self._old.get(item), self._new[item]
        if old is None:
            return "enters"
        return "" if old == new else f"{'up' if new < old else 'down'} from {old}"


def _encoded(ids: Sequence[str], items: Vocabulary) -> Int32:
    """[n] indices of item ids, 0: unknown."""
    return items.encode_known(pl.Series(ids, dtype=pl.String))[0] if ids else np.zeros(0, np.int32)


def _name(row: Row) -> str:
    """Id and title in a column."""
    title = f"  {row['title']}" if row["title"] else ""
    return printable(f"{row['item_id']}{title}", NAME_LENGTH)


def _shown(item: Any) -> str:
    return printable(str(item), NAME_LENGTH)


def _quoted(items: Sequence[str]) -> str:
    return ", ".join(map(repr, items))
