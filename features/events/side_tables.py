"""Item and user tables in any format, with ids typed like the events'."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from features import schema
from features.events import ids, item_content
from features.events.first_rows import FirstRows, Table
from features.events.item_content import ItemFormat
from features.events.object_columns import ObjectColumns
from features.readers import sources
from features.schema import EMBEDDING, ITEM_ID, TITLE, USER_ID, IdType
from features.settings import TableFormat
from features.tables import Chunk, MissingColumn

_COLUMNS = tuple(schema.ITEM_COLUMNS)


def read_items(paths: Sequence[Path], form: ItemFormat, id_type: IdType) -> Table:
    """The items of one or more files: item_id and the mapped columns of title, categories, text, embedding, provider.

    The first row of an item counts, files in the order given; of several titles the most frequent. Blank fields are null, and
    so is an embedding of another width than the others or with a value that is not a finite number.

    Raises ValueError for a file of another format, a mapped column that all files lack or of an unusable type, a table without a
    usable row, and embeddings of several widths.
    """
    files: list[Table] = []
    for path in paths:
        content = functools.partial(item_content.with_content, form=form, path=path)
        files.append(_read(path, form.table, ITEM_ID, id_type, files, content, form.category_separator))
    table = _joined(files, "diagonal", ITEM_ID, paths, form.table, id_type)
    if len(table.titles) and "duplicate" in table.left_out:
        table = _with_usual_titles(table)
    if EMBEDDING not in table.frame:
        return table
    vectors, num_bad = item_content.checked_vectors(table.frame, form.table.section)
    notes = table.notes | ({"bad_embedding": num_bad} if num_bad else {})
    return replace(table, frame=table.frame.with_columns(vectors), notes=notes)


def _with_usual_titles(table: Table) -> Table:
    """The table with the most frequent title of each item, of equally frequent ones the first."""
    titles = table.titles.group_by(ITEM_ID, TITLE, maintain_order=True).agg(pl.col("rows").sum())
    usual = (
        titles.sort("rows", descending=True, maintain_order=True)
        .group_by(ITEM_ID, maintain_order=True)
        .agg(pl.col(TITLE).first(), several=pl.len() > 1)
    )
    joined = table.frame.join(
        usual.drop("several"), on=ITEM_ID, how="left", maintain_order="left", suffix=" usual"
    )
    frame = joined.with_columns(pl.coalesce(f"{TITLE} usual", TITLE).alias(TITLE))
    several = int(usual["several"].sum())
    notes = table.notes | ({"several_titles": several} if several else {})
    return replace(table, frame=frame.select(table.frame.columns), notes=notes)


def read_users(paths: Sequence[Path], form: TableFormat, id_type: IdType) -> Table:
    """The users of one or more files: user_id and every mapped attribute in the source's type (JSON: text or lists of text).

    Raises ValueError for a file of another format, a mapped column that all files lack, a table without a usable row, and files
    whose types do not fit together.
    """
    files: list[Table] = []
    for path in paths:
        files.append(_read(path, form, USER_ID, id_type, files))
    try:
        return _joined(files, "diagonal_relaxed", USER_ID, paths, form, id_type)
    except pl.exceptions.PolarsError as error:
        kinds = "; ".join(
            f"{path}: {dict(file.frame.schema)}" for file, path in zip(files, paths, strict=True)
        )
        raise ValueError(
            f"{form.section}.path: columns of several files do not fit together: {str(error).splitlines()[0]} ({kinds})"
        ) from None


def _joined(
    files: Sequence[Table],
    how: Literal["diagonal", "diagonal_relaxed"],
    id_name: str,
    paths: Sequence[Path],
    form: TableFormat,
    id_type: IdType,
) -> Table:
    """First row of each id of several files. Raises ValueError where nothing is left."""
    rows = pl.concat([file.frame for file in files], how=how)
    frame = rows if len(files) == 1 else rows.unique(id_name, keep="first", maintain_order=True)
    left_out = sum((Counter(file.left_out) for file in files), Counter({"duplicate": len(rows) - len(frame)}))
    rows_in = sum(file.rows_in for file in files)
    if not len(frame):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "no row"
        raise ValueError(
            f"{form.section}.path: {', '.join(map(str, paths))}: none of {rows_in:,} rows can be used ({reasons}), expected ids "
            f"of type {id_type} like the events'. Settings in force: {form.describe()}"
        )
    absent: dict[str, dict[str, str]] = {}
    for file in files:
        for column, messages in file.absent_columns.items():
            absent[column] = absent.get(column, {}) | messages
    for messages in absent.values():
        if len(messages) == len(files):
            raise ValueError(next(iter(messages.values())))
    refused, titles = (pl.concat([getattr(file, name) for file in files]) for name in ("refused", "titles"))
    return Table(frame, rows_in, dict(left_out), form, refused, titles, absent_columns=absent)


# --- reading ---


def _read(
    path: Path,
    form: TableFormat,
    id_name: str,
    id_type: IdType,
    earlier: Sequence[Table],
    prepared: Callable[[pl.DataFrame], pl.DataFrame] = lambda block: block,
    separator: str | None = None,
) -> Table:
    """First row of each id of a file, blocks of rows `prepared` one by one; a mapped column that it lacks is none."""
    absent: dict[str, dict[str, str]] = {}
    while True:
        try:
            table = _read_present(path, form, id_name, id_type, earlier, prepared, separator)
        except MissingColumn as error:
            if error.column == id_name:
                raise
            absent[error.column] = {str(path): str(error)}
            columns = {ours: theirs for ours, theirs in form.columns.items() if ours != error.column}
            form = replace(form, columns=columns)
        else:
            return replace(table, absent_columns=absent)


def _read_present(
    path: Path,
    form: TableFormat,
    id_name: str,
    id_type: IdType,
    earlier: Sequence[Table],
    prepared: Callable[[pl.DataFrame], pl.DataFrame],
    separator: str | None,
) -> Table:
    """`_read` of a file that has all mapped columns. Raises MissingColumn for another."""
    held_bytes = sum(int(table.frame.estimated_size()) for table in earlier)
    rows = FirstRows(form, id_name, id_type, path, held_bytes)
    kind = sources.format_of(path, form)
    if kind not in ("json", "jsonl"):
        for chunk in _blocks(path, form, id_name):
            rows.add(chunk, prepared)
        return rows.table()
    columns = ObjectColumns(form, id_name, separator, str(path))
    for chunk in columns.blocks(path, whole=kind == "json"):
        rows.add(chunk, prepared)
    table = rows.table()
    return replace(table, frame=columns.finished(table.frame))


def _blocks(path: Path, form: TableFormat, id_name: str) -> Iterator[Chunk]:
    """Chunks with ids as text, and columns in the source's types; at least one, possibly an empty one."""
    is_empty = True
    for chunk in _chunks(path, form, id_name):
        is_empty = False
        try:
            plain = ids.plain(chunk.frame[id_name]).cast(pl.String)
        except ValueError as error:
            raise ValueError(f"{form.section}.columns.{id_name}: {path}: {error}") from None
        yield replace(chunk, frame=chunk.frame.with_columns(plain.alias(id_name)))
    if is_empty:
        nothing = pl.DataFrame(schema=dict.fromkeys(form.columns or (id_name,), pl.String()))
        yield Chunk(nothing, np.zeros(0, dtype=bool), lambda _: [])


def _chunks(path: Path, form: TableFormat, id_name: str) -> Iterator[Chunk]:
    if not form.columns:
        present = sources.column_names(path, form)
        form = replace(
            form, columns={name: name for name in (id_name, *_COLUMNS) if name in (id_name, *present)}
        )
    yield from sources.read(path, form)
