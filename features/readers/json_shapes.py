"""JSON lines at speed: a line of the same shape as one seen before is one match of a regular expression, and exact.

A shape is what a line is but for its values: its keys in their order, and the kind of each value that is wanted. A line
that matches is valid JSON by construction; every other one is left to the parser.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.tables import Rows

MAX_SHAPES = 16
MIN_ROWS = 100
"""Fewer rows are not worth another shape."""
_TRIES = 4
_LONGEST_PATTERN = 5000
"""Characters; matching a longer one is slower than parsing."""

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
)  # one way only to match each text: such expressions are fast

_Members = tuple[tuple[str, Any], ...]
"""A JSON object as parsed here: its keys and values in their order."""


class _Unsuitable(Exception):
    """A line whose shape is not worth an expression, or whose wanted values are no scalars."""


@dataclass(frozen=True)
class Shape:
    """One shape of line."""

    pattern: str
    groups: Mapping[str, int | None]
    """Our name for a wanted value to its group from 1; None where such a line has none."""
    keys: frozenset[str]
    """On the first level."""

    @classmethod
    def of(cls, line: str, paths: Mapping[str, str]) -> "Shape | None":
        """The shape of a line; None where it is no JSON object, or an odd one.

        paths: our names to dotted paths.
        """
        try:
            tree = json.loads(line, object_pairs_hook=tuple, parse_int=float)
        except (ValueError, RecursionError):
            return None
        if not isinstance(tree, tuple):
            return None
        try:
            return cls._of_members(tree, paths)
        except _Unsuitable:
            return None

    @classmethod
    def _of_members(cls, tree: _Members, paths: Mapping[str, str]) -> "Shape":
        keys = frozenset(key for key, _ in tree)
        places = {ours: (path,) if path in keys else tuple(path.split(".")) for ours, path in paths.items()}
        found: list[tuple[str, ...]] = []
        pattern = _members(tree, (), set(places.values()), found)
        if not found or len(pattern) > _LONGEST_PATTERN:
            raise _Unsuitable
        groups = {ours: found.index(place) + 1 if place in found else None for ours, place in places.items()}
        return cls(f"^{_BLANK}{pattern}{_BLANK}$", groups, keys)

    def match(self, texts: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """The wanted values of lines as text, and which of the lines have this shape."""
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
    members: _Members, above: tuple[str, ...], places: set[tuple[str, ...]], found: list[tuple[str, ...]]
) -> str:
    """An expression for an object; `found` gains the place of each group."""
    keys = [key for key, _ in members]
    is_plain = all(key.isprintable() and not set(key) & {'"', "\\"} for key in keys)
    if len(set(keys)) < len(keys) or not is_plain:
        raise _Unsuitable
    parts = [
        f'"{pl.escape_regex(key)}"{_COLON}{_value(value, (*above, key), places, found)}'
        for key, value in members
    ]
    return rf"\{{{_BLANK}{f'{_BLANK},{_BLANK}'.join(parts)}{_BLANK}\}}"


def _value(
    value: Any, place: tuple[str, ...], places: set[tuple[str, ...]], found: list[tuple[str, ...]]
) -> str:
    """An expression for what stands at a place."""
    if place in places:
        if isinstance(value, list | tuple):
            raise _Unsuitable
        if value is None:
            return "null"
        found.append(place)
        return f'"({_PLAIN})"' if isinstance(value, str) else f"({_NUMBER}|true|false)"
    if isinstance(value, list):
        return _LIST
    if not isinstance(value, tuple):
        return _SCALAR if value is None else f"(?:{_STRING if isinstance(value, str) else _NUMBER}|{_WORD})"
    is_above = any(each[: len(place)] == place for each in places)
    return _members(value, place, places, found) if is_above else _OBJECT


class Shapes:
    """The shapes that were seen, learned on the way."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._known: list[Shape] = []

    def keys(self) -> set[str]:
        """Keys on the first level of any."""
        return {key for shape in self._known for key in shape.keys}

    def match(self, texts: pl.Series, rows: Rows) -> tuple[list[tuple[Rows, pl.DataFrame]], Rows]:
        """The wanted values of the lines `texts[rows]` shape by shape, and the rows whose shape is none of those."""
        found = []
        for shape in self._known:
            matched, frame, rows = _divide(shape, texts, rows)
            found.append((matched, frame))
        fruitless = 0
        while fruitless < _TRIES and len(rows) >= MIN_ROWS and len(self._known) < MAX_SHAPES:
            sample = texts[int(rows[len(rows) * fruitless // _TRIES])]
            new = Shape.of(sample, self._paths)
            if new is None:
                fruitless += 1
                continue
            matched, frame, rows = _divide(new, texts, rows)
            found.append((matched, frame))
            if len(matched) < MIN_ROWS:
                fruitless += 1
            else:
                self._known.append(new)
        return found, rows


def _divide(shape: Shape, texts: pl.Series, rows: Rows) -> tuple[Rows, pl.DataFrame, Rows]:
    """The rows with a shape, their values, and the other rows."""
    frame, is_match = shape.match(texts if len(rows) == len(texts) else texts[rows])
    if is_match.all():
        return rows, frame, rows[:0]
    matched = is_match.to_numpy()
    return rows[matched], frame.filter(is_match), rows[~matched]
