"""Item and user tables in any format, with ids typed like the events'."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from features import schema, tables
from features.events import ids
from features.readers import json_lines, json_values, sources
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID, USER_ID, IdType
from features.settings import TableFormat

MAX_ODD_WIDTHS = 0.05
"""Maximum share of embeddings whose width is not the usual one; a table with more is refused."""
MAX_OBJECT_BYTES = 256 << 20
"""Maximum size of a JSON object from item to attributes, which is parsed as a whole."""

_CONTENT = tuple(schema.ITEM_CONTENT)
_LIST = (pl.List, pl.Array)


@dataclass(frozen=True)
class ItemFormat:
    """Format of the items table: the keys of a configuration's `[items]`."""

    table: TableFormat
    """Maps item_id and any of title, categories, text, embedding; without a mapping, the source's columns of these names
    (in a JSON object from item to a list, the list is the categories)."""
    category_separator: str = "|"
    """Separator of categories within one text; lists need none."""


@dataclass(frozen=True)
class Table:
    """Table with one row per id."""

    frame: pl.DataFrame
    rows_in: int
    left_out: dict[str, int]
    """Reason (unparseable, missing_item, bad_item, duplicate) to number of rows left out; an item's first row stays."""
    notes: dict[str, int]
    """bad_embedding: rows kept without their embedding."""


def read_items(paths: Sequence[Path], form: ItemFormat, id_type: IdType) -> Table:
    """The items of one or more files: item_id and the mapped columns of title, categories, text, embedding.

    The first row of an item counts, files in the order given. Blank fields are null, and so is an embedding of another width
    than the others or with a value that is not a finite number.

    Raises ValueError for a file of another format, a mapped column that is missing or of an unusable type, a table without a
    usable row, and embeddings of several widths.
    """
    loaded = [_load(path, form.table, ITEM_ID, form.category_separator) for path in paths]
    frames = [
        frame.select(
            ITEM_ID,
            *(_content(frame[name], form, path) for name in _CONTENT if name in frame),
        )
        for (frame, _), path in zip(loaded, paths, strict=True)
    ]
    rows_in = sum(rows for _, rows in loaded)
    table = _unique(pl.concat(frames, how="diagonal"), ITEM_ID, paths, form.table, id_type, rows_in)
    if EMBEDDING not in table.frame:
        return table
    vectors, num_bad = _checked_vectors(table.frame, form.table.section)
    notes = {"bad_embedding": num_bad} if num_bad else {}
    return replace(table, frame=table.frame.with_columns(vectors), notes=notes)


def read_users(paths: Sequence[Path], form: TableFormat, id_type: IdType) -> Table:
    """The users of one or more files: user_id and every mapped attribute in the source's type (JSON: text or lists of text).

    Raises ValueError for a file of another format, a missing mapped column, a table without a usable row, and files whose
    types do not fit together.
    """
    loaded = [_load(path, form, USER_ID, None) for path in paths]
    rows_in = sum(rows for _, rows in loaded)
    try:
        frame = pl.concat([frame for frame, _ in loaded], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        kinds = "; ".join(
            f"{path}: {dict(frame.schema)}" for (frame, _), path in zip(loaded, paths, strict=True)
        )
        raise ValueError(
            f"{form.section}.path: columns of several files do not fit together: {str(error).splitlines()[0]} ({kinds})"
        ) from None
    return _unique(frame, USER_ID, paths, form, id_type, rows_in)


def _unique(
    frame: pl.DataFrame, name: str, paths: Sequence[Path], form: TableFormat, id_type: IdType, rows_in: int
) -> Table:
    """The first row of each valid id, ids in their final type. Raises ValueError where nothing is left."""
    kind = name.removesuffix("_id")
    text = frame[name]
    missing = ids.is_missing(text)
    typed = ids.typed(text, id_type)
    bad = (typed.is_null() | ids.is_too_long(text)) & ~missing
    kept = frame.with_columns(typed).filter(~missing & ~bad)
    table = kept.unique(name, keep="first", maintain_order=True)
    counts = {
        "unparseable": rows_in - len(frame),
        f"missing_{kind}": int(missing.sum()),
        f"bad_{kind}": int(bad.sum()),
        "duplicate": len(kept) - len(table),
    }
    left_out = {reason: number for reason, number in counts.items() if number}
    if not len(table):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "no row"
        raise ValueError(
            f"{form.section}.path: {', '.join(map(str, paths))}: none of {rows_in:,} rows can be used ({reasons}), expected ids "
            f"of type {id_type} like the events'. Settings in force: {form.describe()}"
        )
    return Table(table, rows_in, left_out, {})


# --- reading ---


def _load(path: Path, form: TableFormat, id_name: str, separator: str | None) -> tuple[pl.DataFrame, int]:
    """The valid rows of a file (ids as text, columns in the source's types), and the number of all rows."""
    kind = sources.format_of(path, form)
    if kind == "json":
        return _from_objects(_json_object(path, form, id_name), form, id_name, separator, path)
    if kind == "jsonl":
        return _from_objects(_json_lines(path, form), form, id_name, separator, path)
    chunks = list(_chunks(path, form, id_name))
    if not chunks:
        return pl.DataFrame(schema=dict.fromkeys(form.columns or (id_name,), pl.String())), 0
    frame = pl.concat([chunk.frame.filter(~chunk.broken) for chunk in chunks], how="vertical_relaxed")
    try:
        plain = ids.plain(frame[id_name]).cast(pl.String)
    except ValueError as error:
        raise ValueError(f"{form.section}.columns.{id_name}: {path}: {error}") from None
    return frame.with_columns(plain.alias(id_name)), sum(len(chunk.frame) for chunk in chunks)


def _chunks(path: Path, form: TableFormat, id_name: str) -> Iterator[tables.Chunk]:
    if not form.columns:
        present = sources.column_names(path, form)
        form = replace(
            form, columns={name: name for name in (id_name, *_CONTENT) if name in (id_name, *present)}
        )
    yield from sources.read(path, form)


def _json_object(path: Path, form: TableFormat, id_name: str) -> Iterator[dict[str, Any] | None]:
    """Entries of one JSON object, {id: {…}} or {id: [category, …]}, as objects with the id under the source's name."""
    with sources.open_text(path, form) as stream:
        text = stream.read(MAX_OBJECT_BYTES + 1)
    if len(text) > MAX_OBJECT_BYTES:
        raise ValueError(
            f"{form.section}.path: {path}: one JSON object of more than {MAX_OBJECT_BYTES >> 20} MiB, expected at most that, as "
            "it is held in memory whole; write an object per line (.jsonl)"
        )
    first_wins = _FirstWins()
    try:
        content = json.loads(
            text.decode(),
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            object_pairs_hook=first_wins,
        )
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{form.section}.path: {path}: is not one JSON object from {id_name} to its attributes; "
            f'for an object per line set {form.section}.format = "jsonl"'
        )
    for key, value in itertools.chain(content.items(), first_wins.repeats):
        if isinstance(value, dict):
            yield {**value, str(form.columns.get(id_name, id_name)): key}
        elif id_name == ITEM_ID:
            yield {
                str(form.columns.get(CATEGORIES, CATEGORIES)): value,
                str(form.columns.get(id_name, id_name)): key,
            }
        else:
            yield None


class _FirstWins:
    """Builds dictionaries in which the first of equal keys wins; `repeats` holds those of the last, outermost one."""

    repeats: list[tuple[str, Any]]

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        self.repeats = []
        for key, value in pairs:
            if key in made:
                self.repeats.append((key, value))
            else:
                made[key] = value
        return made


def _json_lines(path: Path, form: TableFormat) -> Iterator[dict[str, Any] | None]:
    with sources.open_text(path, form) as stream:
        for lines in json_lines.json_lines(stream, str(path)):
            yield from (json_values.parse_object(line) for line in lines)


def _from_objects(
    objects: Iterable[dict[str, Any] | None],
    form: TableFormat,
    id_name: str,
    separator: str | None,
    path: Path,
) -> tuple[pl.DataFrame, int]:
    """JSON objects as a table of the mapped columns (default: an items table's), and the number of all objects."""
    columns = form.columns or {name: name for name in (id_name, *_CONTENT)}
    values: dict[str, list[Any]] = {name: [] for name in columns}
    keys: dict[str, None] = {}
    rows_in = 0
    for tree in objects:
        rows_in += 1
        if tree is None:
            continue
        keys |= dict.fromkeys(tree)
        for ours, theirs in columns.items():
            values[ours].append(json_values.at_path(tree, str(theirs)))
    absent = [name for name, column in values.items() if all(value is None for value in column)]
    if keys and absent and (form.columns or id_name in absent):
        raise ValueError(
            f"{form.section}.columns.{absent[0]}: {path}: nothing at {columns[absent[0]]!r} in any object; "
            f"found {', '.join(sorted(keys)[:50])}"
        )
    present = [name for name in columns if form.columns or name == id_name or name not in absent]
    frame = pl.DataFrame(
        [_json_column(name, values[name], separator, is_id=name == id_name) for name in present]
    )
    return frame, rows_in


def _json_column(name: str, values: Sequence[Any], separator: str | None, *, is_id: bool) -> pl.Series:
    """Values at one path as text, or as lists of text where any is a list (plain text is then split at the separator)."""
    if is_id or not any(isinstance(value, list) for value in values):
        return pl.Series(name, [_as_text(value) for value in values], dtype=pl.String)
    lists = [
        None if value is None else [_as_text(part) for part in _parts(value, separator)] for value in values
    ]
    return pl.Series(name, lists, dtype=pl.List(pl.String))


def _parts(value: Any, separator: str | None) -> Iterator[Any]:
    """Elements of a list, nested lists flattened, or the parts of a text."""
    if isinstance(value, str) and separator is not None:
        yield from value.split(separator)
        return
    waiting = [value]
    while waiting:
        element = waiting.pop()
        if isinstance(element, list):
            waiting += reversed(element)
        else:
            yield element


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # nested too deep
        return None
    return text.encode("utf-8", errors="replace").decode()


# --- content ---


def _content(column: pl.Series, form: ItemFormat, path: Path) -> pl.Series:
    """A content column in its type of `schema.ITEM_CONTENT`; blanks are null."""
    received = column.dtype
    while isinstance(column.dtype, _LIST) and isinstance(column.dtype.inner, _LIST):
        column = column.cast(pl.List(column.dtype.inner)).list.eval(pl.element().explode())
    element = column.dtype.inner if isinstance(column.dtype, _LIST) else column.dtype
    if isinstance(element, pl.Struct | pl.Binary | pl.Object):
        (expected,) = schema.ITEM_CONTENT[column.name]
        raise ValueError(
            f"{form.table.section}.columns.{column.name}: {path}: received {received}, expected {expected} or what can be "
            "written as that"
        )
    if column.name == CATEGORIES:
        return _category_lists(column, form.category_separator)
    return _vectors(column) if column.name == EMBEDDING else _plain_text(column)


def _plain_text(column: pl.Series) -> pl.Series:
    """A column as text, the elements of a list joined by blanks."""
    if isinstance(column.dtype, _LIST):
        column = column.cast(pl.List(pl.String), strict=False).list.join(" ", ignore_nulls=True)
    text = column.cast(pl.String, strict=False).str.strip_chars()
    return text.set(text == "", None)


def _category_lists(column: pl.Series, separator: str) -> pl.Series:
    lists = (
        column.cast(pl.List(pl.String), strict=False)
        if isinstance(column.dtype, _LIST)
        else column.cast(pl.String, strict=False).str.split(separator)
    )
    cleaned = lists.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    return cleaned.set(cleaned.list.len() == 0, None)


def _vectors(column: pl.Series) -> pl.Series:
    """Lists of numbers, also from text such as "[0.5, 1]" or "0.5 1"; null for an element that is not a number."""
    parts = (
        column
        if isinstance(column.dtype, _LIST)
        else column.cast(pl.String, strict=False).str.extract_all(r"[^\[\],;|\s]+")
    )
    vectors = parts.cast(pl.List(pl.Float32), strict=False)
    return vectors.set(vectors.list.len() == 0, None)


def _checked_vectors(table: pl.DataFrame, section: str) -> tuple[pl.Series, int]:
    """Embeddings of the usual width with finite values, null for all others, and the number of those.

    Raises ValueError where more than `MAX_ODD_WIDTHS` have another width, or most hold something other than numbers.
    """
    vectors = table[EMBEDDING]
    widths = vectors.list.len()
    counts = Counter(widths.drop_nulls().to_list())
    if not counts:
        return vectors, 0
    width = counts.most_common(1)[0][0]
    odd = widths.is_not_null() & (widths != width).fill_null(value=False)
    if odd.sum() > MAX_ODD_WIDTHS * counts.total():
        row = odd.arg_true()[0]
        raise ValueError(
            f"{section}.columns.embedding: item {table[ITEM_ID][row]!r} has {widths[row]} numbers, expected one width, and most "
            f"have {width} (widths and how many items have each: {dict(counts.most_common(5))})"
        )
    finite = vectors.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    unreadable = (vectors.is_not_null() & ~odd & ~finite).fill_null(value=False)
    if 2 * unreadable.sum() > counts.total():
        raise ValueError(
            f"{section}.columns.embedding: item {table[ITEM_ID][unreadable.arg_true()[0]]!r} and {unreadable.sum() - 1} more of "
            f"{counts.total()} hold values that are not finite numbers, expected a list of numbers, or text such as '0.1 0.2'"
        )
    good = (~odd & finite).fill_null(value=False)
    return vectors.set(~good, None), int((vectors.is_not_null() & ~good).sum())
