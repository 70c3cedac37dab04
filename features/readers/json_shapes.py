"""JSON lines by shape: one regular expression extracts the mapped values of all lines of the same shape, exactly.

A shape is a line's keys in their order and the kind of each mapped value. A line that matches is valid JSON by construction;
all others go to the parser. msgspec, which can keep numbers as text, takes 2.0 to 2.5 times the CPU on regular
logs (and a quarter on irregular ones); polars and pyarrow are slower and not exact
(tests/benchmarks/results/2026-11-29-readers.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.tables import Rows

MAX_SHAPES = 16
MIN_ROWS = 100
"""Minimum number of rows for another shape."""
_TRIES = 4
_LONGEST_PATTERN = 5000
"""Maximum length in characters; matching a longer one is slower than parsing."""

_BLANK = r"[ \t\r\n]*"
_PLAIN = r'[^"\\\x00-\x1f]*'
_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_WORD = "true|false|null"
_SCALAR = f"(?:{_STRING}|{_NUMBER}|{_WORD})"
_COLON = f"{_BLANK}:{_BLANK}"
_MEMBER = f"{_STRING}{_COLON}{_SCALAR}"
_LIST, _OBJECT = (
    rf"\{opening}{_BLANK}(?:{part}{_BLANK}(?:,{_BLANK}{part}{_BLANK})*)?\{closing}"
    for opening, part, closing in (("[", _SCALAR, "]"), ("{", _MEMBER, "}"))
)  # unambiguous, so that matching is fast

_Members = tuple[tuple[str, Any], ...]
"""Keys and values of a JSON object, in order."""


class _Unsuitable(Exception):
    """A line's shape is not worth an expression, or its mapped values are not scalars."""


@dataclass(frozen=True)
class Shape:
    """Shape of a line."""

    pattern: str
    groups: Mapping[str, int | None]
    """Our name of a mapped value to its group, from 1; None if such lines lack it."""
    keys: frozenset[str]
    """Keys of the first level."""

    @classmethod
    def of(cls, line: str, paths: Mapping[str, str]) -> "Shape | None":
        """Shape of a line, or None for an unsuitable object or none at all; paths: our names to dotted paths."""
        try:
            tree = json.loads(line, object_pairs_hook=tuple, parse_int=float)
            return cls._of_members(tree, paths) if isinstance(tree, tuple) else None
        except (ValueError, RecursionError, _Unsuitable):
            return None

    @classmethod
    def _of_members(cls, tree: _Members, paths: Mapping[str, str]) -> "Shape":
        keys = frozenset(key for key, _ in tree)
        places = {ours: (path,) if path in keys else tuple(path.split(".")) for ours, path in paths.items()}
        captured: list[tuple[str, ...]] = []
        pattern = _members(tree, (), set(places.values()), captured)
        if not captured or len(pattern) > _LONGEST_PATTERN:
            raise _Unsuitable
        groups = {
            ours: captured.index(place) + 1 if place in captured else None for ours, place in places.items()
        }
        return cls(f"^{_BLANK}{pattern}{_BLANK}$", groups, keys)

    def match(self, texts: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Mapped values of lines as text, and [lines] whether a line has this shape."""
        fields = texts.str.extract_groups(self.pattern).struct.unnest()
        nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(texts))
        frame = pl.DataFrame(
            {
                ours: nothing if group is None else fields.to_series(group - 1)
                for ours, group in self.groups.items()
            }
        )
        return frame, fields.to_series(0).is_not_null()


def _members(
    members: _Members, above: tuple[str, ...], places: set[tuple[str, ...]], captured: list[tuple[str, ...]]
) -> str:
    """Expression for an object; appends the place of each group to `captured`."""
    keys = [key for key, _ in members]
    is_plain = all(key.isprintable() and not set(key) & {'"', "\\"} for key in keys)
    if len(set(keys)) < len(keys) or not is_plain:
        raise _Unsuitable
    parts = [
        f'"{pl.escape_regex(key)}"{_COLON}{_value(value, (*above, key), places, captured)}'
        for key, value in members
    ]
    return rf"\{{{_BLANK}{f'{_BLANK},{_BLANK}'.join(parts)}{_BLANK}\}}"


def _value(
    value: Any, place: tuple[str, ...], places: set[tuple[str, ...]], captured: list[tuple[str, ...]]
) -> str:
    """Expression for the value at a place."""
    if place in places:
        if isinstance(value, list | tuple):
            raise _Unsuitable
        if value is None:
            return "null"
        captured.append(place)
        return f'"({_PLAIN})"' if isinstance(value, str) else f"({_NUMBER}|true|false)"
    if isinstance(value, list):
        return _LIST
    if not isinstance(value, tuple):
        return _SCALAR if value is None else f"(?:{_STRING if isinstance(value, str) else _NUMBER}|{_WORD})"
    is_above = any(mapped[: len(place)] == place for mapped in places)
    return _members(value, place, places, captured) if is_above else _OBJECT


class Shapes:
    """Shapes of the lines so far, learned on the way."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._known: list[Shape] = []

    def keys(self) -> set[str]:
        """Keys of the first level of any shape."""
        return {key for shape in self._known for key in shape.keys}

    def match(self, texts: pl.Series, rows: Rows) -> tuple[list[tuple[Rows, pl.DataFrame]], Rows]:
        """Mapped values of the lines `texts[rows]` by shape, and the rows of no known shape."""
        values = []
        for shape in self._known:
            matched, frame, rows = _divide(shape, texts, rows)
            values.append((matched, frame))
        fruitless = 0
        while fruitless < _TRIES and len(rows) >= MIN_ROWS and len(self._known) < MAX_SHAPES:
            sample = texts[int(rows[len(rows) * fruitless // _TRIES])]
            new = Shape.of(sample, self._paths)
            if new is None:
                fruitless += 1
                continue
            matched, frame, rows = _divide(new, texts, rows)
            values.append((matched, frame))
            if len(matched) < MIN_ROWS:
                fruitless += 1
            else:
                self._known.append(new)
        return values, rows


def _divide(shape: Shape, texts: pl.Series, rows: Rows) -> tuple[Rows, pl.DataFrame, Rows]:
    """Rows of a shape, their values, and the other rows."""
    frame, is_match = shape.match(texts if len(rows) == len(texts) else texts[rows])
    if is_match.all():
        return rows, frame, rows[:0]
    matched = is_match.to_numpy()
    return rows[matched], frame.filter(is_match), rows[~matched]
