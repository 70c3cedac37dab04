"""Item and user tables in any format, with ids typed like the events', and how they fit the log."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from features import schema
from features.events import ids, item_content, table_rows
from features.events.table_rows import TableRows
from features.printable import LONGEST, printable
from features.schema import EMBEDDING, ITEM_ID, TITLE, USER_ID, IdType
from features.settings import TableFormat

_CONTENT = tuple(schema.ITEM_CONTENT)


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
    refused: pl.DataFrame
    """The rows left out, but for duplicates: source_path, source_row, raw, reason"""
    form: TableFormat
    notes: dict[str, int] = field(default_factory=dict)
    """bad_embedding: rows kept without their embedding; several_titles: items with more than one, of which the most frequent
    stays."""
    absent_columns: dict[str, list[str]] = field(default_factory=dict)
    """Mapped columns that some files lack, and those files."""

    def check_refused(self, max_refused_fraction: float) -> None:
        """Raise ValueError, with counts, examples and settings, for too many rows that cannot be parsed or have no id."""
        refused = self.refused.filter(~pl.col(schema.REASON).str.starts_with("bad_"))
        if len(refused) <= max_refused_fraction * self.rows_in:
            return
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.left_out.items())
        rows = "".join(
            f"\n  {printable(path)} row {row} ({reason}): {printable(raw, LONGEST)}"
            for path, row, raw, reason in refused.head(3).rows()
        )
        raise ValueError(
            f"{self.form.section}: {len(refused):,} of {self.rows_in:,} rows were refused, expected at most "
            f"{max_refused_fraction:.1%} (events.max_refused_fraction): {reasons}.{rows}\nSettings in force: "
            f"{self.form.describe()}. Correct the settings that these rows do not fit, or raise events.max_refused_fraction"
        )


@dataclass(frozen=True)
class Fit:
    """How a table fits the log."""

    name: str
    """items or users"""
    rows: int
    rows_in_log: int
    """Rows whose id has events."""
    num_ids: int
    """Different ids of the log."""
    other_form: int = 0
    """Rows that are not in the log and whose ids look unlike those of the log."""
    example: str = ""
    """The first of these ids."""

    @classmethod
    def of(cls, table: pl.DataFrame, id_name: str, log: pl.LazyFrame) -> "Fit":
        """Fit of a table to the events of a log."""
        known = log.select(id_name).unique().collect(engine="streaming")[id_name]
        in_log = table[id_name].is_in(known.implode())
        rest = table[id_name].filter(~in_log)
        odd = rest.filter(~ids.have_form_of(rest, known))
        name = f"{id_name.removesuffix('_id')}s"
        return cls(name, len(table), int(in_log.sum()), len(known), len(odd), *map(str, odd.head(1)))

    @property
    def ids_without_row(self) -> int:
        """Different ids of the log that the table lacks."""
        return self.num_ids - self.rows_in_log

    def describe(self) -> str:
        """In words."""
        return (
            f"{self.name}: {self.rows_in_log:,} of {self.rows:,} rows are in the log, {self.ids_without_row:,} of its "
            f"{self.num_ids:,} {self.name} have no row"
        )

    def warnings(self) -> Iterator[str]:
        """A sentence where under half of the rows or of the ids fit."""
        if 2 * min(self.rows_in_log / self.rows, self.rows_in_log / max(self.num_ids, 1)) < 1:
            yield f"{self.describe()}: check {self.name}.path, and {self.name}.columns.{self.name[:-1]}_id"
        if self.other_form:
            yield (
                f"{self.name}: {self.other_form:,} rows that are not in the log have ids of another form than its own, such as "
                f"{printable(self.example, LONGEST)!r}"
                + (", and are not recommended" if self.name == "items" else "")
            )


def read_items(paths: Sequence[Path], form: ItemFormat, id_type: IdType) -> Table:
    """The items of one or more files: item_id and the mapped columns of title, categories, text, embedding.

    The first row of an item counts, files in the order given; of several titles the most frequent. Blank fields are null, and so
    is an embedding of another width than the others or with a value that is not a finite number.

    Raises ValueError for a file of another format, a mapped column that all files lack or of an unusable type, a table without
    a usable row, and embeddings of several widths.
    """
    loaded = table_rows.load(paths, form.table, ITEM_ID, id_type, form.category_separator)
    frames = [
        rows.frame.select(
            ITEM_ID,
            *(
                item_content.typed(rows.frame[name], form.table, form.category_separator, path)
                for name in _CONTENT
                if name in rows.frame
            ),
        )
        for rows, path in zip(loaded, paths, strict=True)
    ]
    rows = pl.concat(frames, how="diagonal")
    table = _unique(rows, ITEM_ID, paths, form.table, id_type, loaded)
    if TITLE in rows and "duplicate" in table.left_out:
        table = _with_usual_titles(table, rows)
    if EMBEDDING not in table.frame:
        return table
    vectors, num_bad = item_content.checked_vectors(table.frame, form.table.section)
    notes = table.notes | ({"bad_embedding": num_bad} if num_bad else {})
    return replace(table, frame=table.frame.with_columns(vectors), notes=notes)


def _with_usual_titles(table: Table, rows: pl.DataFrame) -> Table:
    """The table with the most frequent title of each item, of equally frequent ones the first."""
    titles = rows.select(ITEM_ID, TITLE).drop_nulls().group_by(ITEM_ID, TITLE, maintain_order=True).len()
    usual = (
        titles.sort("len", descending=True, maintain_order=True)
        .group_by(ITEM_ID, maintain_order=True)
        .agg(pl.col(TITLE).first(), several=pl.len() > 1)
    )
    frame = table.frame.drop(TITLE).join(usual.drop("several"), on=ITEM_ID, how="left", maintain_order="left")
    several = int(usual["several"].sum())
    notes = table.notes | ({"several_titles": several} if several else {})
    return replace(table, frame=frame.select(table.frame.columns), notes=notes)


def read_users(paths: Sequence[Path], form: TableFormat, id_type: IdType) -> Table:
    """The users of one or more files: user_id and every mapped attribute in the source's type (JSON: text or lists of text).

    Raises ValueError for a file of another format, a mapped column that all files lack, a table without a usable row, and files
    whose types do not fit together.
    """
    loaded = table_rows.load(paths, form, USER_ID, id_type, None)
    try:
        frame = pl.concat([rows.frame for rows in loaded], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        kinds = "; ".join(
            f"{path}: {dict(rows.frame.schema)}" for rows, path in zip(loaded, paths, strict=True)
        )
        raise ValueError(
            f"{form.section}.path: columns of several files do not fit together: {str(error).splitlines()[0]} ({kinds})"
        ) from None
    return _unique(frame, USER_ID, paths, form, id_type, loaded)


def _unique(
    frame: pl.DataFrame,
    name: str,
    paths: Sequence[Path],
    form: TableFormat,
    id_type: IdType,
    loaded: Sequence[TableRows],
) -> Table:
    """The first row of each id. Raises ValueError where there is none."""
    table = frame.unique(name, keep="first", maintain_order=True)
    refused = pl.concat([rows.refused for rows in loaded])
    rows_in = sum(rows.rows_in for rows in loaded)
    counts = Counter(refused[schema.REASON].to_list())
    kind = name.removesuffix("_id")
    counts["duplicate"] = len(frame) - len(table)
    order = ("unparseable", f"missing_{kind}", f"bad_{kind}", "duplicate")
    left_out = {reason: counts[reason] for reason in order if counts[reason]}
    if not len(table):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "no row"
        raise ValueError(
            f"{form.section}.path: {', '.join(map(str, paths))}: none of {rows_in:,} rows can be used ({reasons}), expected ids "
            f"of type {id_type} like the events'. Settings in force: {form.describe()}"
        )
    absent: dict[str, list[str]] = {}
    for rows in loaded:
        for column, files in rows.absent_columns.items():
            absent.setdefault(column, []).extend(files)
    return Table(table, rows_in, left_out, refused, form, absent_columns=absent)
