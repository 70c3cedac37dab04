"""Values of JSON objects at dotted paths, also through arrays; numbers stay text, so that ids are exact."""

import ast
import collections
import json
from collections.abc import Mapping
from typing import Any

LONGEST_LITERAL = 1 << 20
"""Maximum length of an object written as a Python literal, in bytes."""
_EACH = "[]"

Row = Mapping[str, object]
"""Our name of a column to the value in a record."""


class UnevenLists(ValueError):
    """Lists of one record that belong together differ in length."""


class Constant:
    """NaN or Infinity, which JSON does not have: allowed where the value is not read."""


def parse_object(line: bytes) -> dict[str, Any] | None:
    """A line as a JSON object, or as a Python literal such as `{'user': 1}`; None if it is neither."""
    try:
        value = json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=_constant)
    except (ValueError, RecursionError):
        value = _literal(line) if b"'" in line and len(line) <= LONGEST_LITERAL else None
    return value if isinstance(value, dict) else None


def _constant(_: str) -> Constant:
    return Constant()


def _literal(line: bytes) -> Any:
    try:
        return _as_json(ast.literal_eval(line.decode().strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _as_json(value: Any) -> Any:
    """A Python literal as `json.loads` with numbers as text would give it."""
    if isinstance(value, dict):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def at_path(tree: Any, path: str) -> Any:
    """Value at a dotted path of a JSON object, keys with dots in them first; None if absent."""
    if not isinstance(tree, Mapping):
        return None
    if path in tree:
        return tree[path]
    at = path.rfind(".")
    while at > 0:
        if path[:at] in tree:
            return at_path(tree[path[:at]], path[at + 1 :])
        at = path.rfind(".", 0, at)
    return None


def rows_of(tree: Any, paths: Mapping[str, str]) -> list[Row]:
    """The rows of a record: one, or as many as its lists have elements.

    paths: our names to dotted paths; `items[].id` is the id of each element of items. Values that are lists themselves count
    like arrays; an empty list is one row without the value.
    Raises UnevenLists where arrays differ in length.
    """
    here = {ours: at_path(tree, path) for ours, path in paths.items() if _EACH not in path}
    arrays: list[list[Row]] = [
        [{ours: element} for element in value] or [{ours: None}]
        for ours, value in here.items()
        if isinstance(value, list)
    ]
    single = {ours: value for ours, value in here.items() if not isinstance(value, list)}
    within: dict[str, dict[str, str]] = {}
    for ours, path in paths.items():
        if _EACH in path:
            array, _, rest = path.partition(_EACH)
            within.setdefault(array, {})[ours] = rest.removeprefix(".")
    arrays += [_rows_of_elements(at_path(tree, array), inner) for array, inner in within.items()]
    if not arrays:
        return [single]
    if len(set(map(len, arrays))) > 1:
        raise UnevenLists
    return [dict(collections.ChainMap(*map(dict, parts), single)) for parts in zip(*arrays, strict=True)]


def _rows_of_elements(elements: Any, paths: Mapping[str, str]) -> list[Row]:
    nothing = dict.fromkeys(paths)
    rows: list[Row] = []
    for element in elements if isinstance(elements, list) else [elements]:
        itself = {ours: element for ours, path in paths.items() if not path}
        others = {ours: path for ours, path in paths.items() if path}
        rows += [{**itself, **row} for row in rows_of(element, others)] if others else [itself]
    return rows or [nothing]


def as_scalar(value: Any) -> tuple[str | None, bool]:
    """A value as text and True; None and False for an object, a list, NaN or a lone surrogate."""
    if isinstance(value, bool):
        return ("true" if value else "false"), True
    if value is None or (isinstance(value, str) and _is_encodable(value)):
        return value, True
    return None, False


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why(paths: Mapping[str, str], line: str) -> str:
    """What is wrong with a line from which no row, or not all of its values, can be read."""
    tree = parse_object(line.encode(errors="surrogateescape"))
    if tree is None:
        return "not a JSON object"
    try:
        records = rows_of(tree, paths)
    except UnevenLists:
        return "lists of different lengths"
    for ours, path in paths.items():
        value = next((row[ours] for row in records if not as_scalar(row[ours])[1]), None)
        if value is not None:
            kind = {dict: "an object", list: "a list", Constant: "NaN or Infinity"}.get(
                type(value), "no text"
            )
            return f"{kind} where a value is expected ({path})"
    return "bytes that are no text"
