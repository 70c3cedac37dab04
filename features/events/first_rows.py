"""The first row of each id of a side table, collected from blocks of rows in bounded memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from features import memory, schema
from features.events import fields, ids
from features.printable import LONGEST, printable
from features.schema import IdType
from features.settings import TableFormat
from features.tables import Chunk

MAX_SHARE = 0.25
"""Maximum size of a table in memory, as a share of the memory that this process may use."""
_MERGED_BYTES = 64 << 20
"""Minimum size of the rows that wait to be merged."""
_LONGEST_TITLE = 1000
"""Bytes of titles that are counted; an item with longer ones keeps its first."""
_REFUSED = {
    name: schema.QUARANTINE[name][0]
    for name in (schema.SOURCE_PATH, schema.SOURCE_ROW, schema.RAW, schema.REASON)
}
_TITLES: dict[str, pl.DataType] = {schema.TITLE: pl.String(), "rows": pl.UInt32()}


@dataclass(frozen=True)
class Table:
    """Table with one row per id."""

    frame: pl.DataFrame
    rows_in: int
    left_out: dict[str, int]
    """Reason (unparseable, missing_item, bad_item, duplicate) to number of rows left out; an id's first row stays."""
    form: TableFormat
    refused: pl.DataFrame
    """The rows left out, but for duplicates: source_path, source_row, raw, reason"""
    titles: pl.DataFrame
    """Id, title and `rows` with both, of all rows; empty without a column for titles"""
    notes: dict[str, int] = field(default_factory=dict)
    """bad_embedding: rows kept without their embedding; several_titles: items with more than one, of which the most frequent
    stays."""
    absent_columns: dict[str, dict[str, str]] = field(default_factory=dict)
    """Mapped columns that some files lack, to those files and the message about each."""

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


class FirstRows:
    """First row of each valid id; of the other rows only their number per reason stays in memory."""

    def __init__(self, form: TableFormat, id_name: str, id_type: IdType, path: Path, held_bytes: int) -> None:
        """held_bytes: size of the rows of other files."""
        self._form, self._id_name, self._id_type, self._path = form, id_name, id_type, path
        self._held_bytes = held_bytes
        kind = id_name.removesuffix("_id")
        self._left_out = dict.fromkeys(("unparseable", f"missing_{kind}", f"bad_{kind}", "duplicate"), 0)
        self._rows_in = 0
        self._blocks: list[pl.DataFrame] = []
        """All rows merged so far, and the blocks since."""
        self._merged_bytes = self._waiting_bytes = 0
        self._refused = [pl.DataFrame(schema=_REFUSED)]
        self._titles = [pl.DataFrame(schema={id_name: schema.ID_TYPES[id_type], **_TITLES})]

    def add(self, chunk: Chunk, prepared: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Add the rows of a chunk, ids of `ids.plain`, those that can be parsed `prepared`.

        Raises ValueError where the table becomes larger than memory permits.
        """
        block = fields.without_words(chunk.frame, self._form.missing)
        kind = self._id_name.removesuffix("_id")
        text = block[self._id_name]
        missing = ids.is_missing(text)
        typed = ids.typed(text, self._id_type)
        bad = (typed.is_null() | ids.is_too_long(text)) & ~missing
        reasons = {"unparseable": pl.Series(chunk.broken), f"missing_{kind}": missing, f"bad_{kind}": bad}
        self._refuse(chunk, reasons)
        is_kept = ~(pl.Series(chunk.broken) | missing | bad)
        kept = prepared(block.with_columns(typed).filter(is_kept))
        if schema.TITLE in kept:
            counted = kept.select(self._id_name, schema.TITLE, rows=pl.lit(1, pl.UInt32)).drop_nulls()
            counted = counted.filter(pl.col(schema.TITLE).cast(pl.String).str.len_bytes() <= _LONGEST_TITLE)
            self._titles.append(counted.with_columns(pl.col(schema.TITLE).cast(pl.String)))
        self._blocks.append(kept)
        self._waiting_bytes += int(kept.estimated_size())
        if self._waiting_bytes > max(_MERGED_BYTES, self._merged_bytes // 4):
            self._merge()

    def _refuse(self, chunk: Chunk, reasons: Mapping[str, pl.Series]) -> None:
        """Keep the rows that one of the reasons applies to, the first of them."""
        named = pl.select(
            pl.coalesce(pl.when(flags).then(pl.lit(name)) for name, flags in reasons.items())
        ).to_series()
        rows = named.is_not_null().arg_true().to_numpy().astype(np.int64)
        names = named.gather(rows)
        content = {
            schema.SOURCE_PATH: [str(self._path)] * len(rows),
            schema.SOURCE_ROW: self._rows_in + rows + 1,
            schema.RAW: chunk.raw(rows),
            schema.REASON: names,
        }
        self._refused.append(pl.DataFrame(content, schema=_REFUSED))
        self._waiting_bytes += int(self._refused[-1].estimated_size())
        self._rows_in += len(chunk.frame)
        for reason, number in names.value_counts().rows():
            self._left_out[reason] += number

    def table(self) -> Table:
        """All rows so far; at least one block was added."""
        frame = self._merge()
        left_out = {reason: number for reason, number in self._left_out.items() if number}
        return Table(
            frame, self._rows_in, left_out, self._form, pl.concat(self._refused), pl.concat(self._titles)
        )

    def _merge(self) -> pl.DataFrame:
        titles = pl.concat(self._titles).group_by(self._id_name, schema.TITLE, maintain_order=True)
        self._titles = [titles.agg(pl.col("rows").sum())]
        rows = pl.concat(self._blocks, how="vertical_relaxed")
        merged = rows.unique(self._id_name, keep="first", maintain_order=True)
        self._left_out["duplicate"] += len(rows) - len(merged)
        self._blocks = [merged]
        self._merged_bytes, self._waiting_bytes = int(merged.estimated_size()), 0
        others = (*self._refused, *self._titles)
        num_bytes = self._held_bytes + self._merged_bytes + sum(int(each.estimated_size()) for each in others)
        usable = memory.usable_bytes()
        if num_bytes > MAX_SHARE * usable:
            raise ValueError(
                f"{self._form.section}.path: {self._path}: the first {self._rows_in:,} rows take {num_bytes >> 20:,} MiB "
                "in memory, expected at "
                f"most {int(MAX_SHARE * usable) >> 20:,} MiB for the table, {MAX_SHARE:.0%} of the memory that this process may "
                "use; map fewer columns, shorten their texts, or use a machine with more memory"
            )
        return merged
