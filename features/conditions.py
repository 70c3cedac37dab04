"""Conditions of `events.where`: their keys, and the names of the columns that only they read."""

import re
from collections.abc import Mapping, Sequence

_KEYS = frozenset(("column", "in", "not_in", "min", "max", "matches"))


def where_column(theirs: str) -> str:
    """Our name of a source's column that only `events.where` reads."""
    return f"where.{theirs}"


def check_where(conditions: Sequence[Mapping[str, object]]) -> None:
    """Raise ValueError for a condition without a column or a limit, with another key, or of other types."""
    for condition in conditions:
        has_lists = all(isinstance(condition.get(key, []), list) for key in ("in", "not_in"))
        is_known = set(condition) <= _KEYS and len(condition) > 1
        is_fit = isinstance(condition.get("column"), str) and isinstance(condition.get("matches", ""), str)
        if not (has_lists and is_known and is_fit):
            raise ValueError(
                f"events.where: received {condition!r}, expected a column by name, and in or not_in (a list), min, max (a "
                "number or text) or matches (a regular expression)"
            )
        try:
            re.compile(str(condition.get("matches", "")))
        except re.error as error:
            raise ValueError(
                f"events.where: received matches {condition['matches']!r} for {condition['column']!r}, expected a regular "
                f"expression: {error}"
            ) from None
