"""The first row of each id of a side table, collected from blocks of rows in bounded memory."""

from dataclasses import dataclass

import polars as pl

from features import memory
from features.events import ids
from features.schema import IdType

MAX_SHARE = 0.25
"""Maximum size of a table in memory, as a share of the memory that this process may use."""
_MERGED_BYTES = 64 << 20
"""Minimum size of the rows that wait to be merged."""


@dataclass(frozen=True)
class Table:
    """Table with one row per id."""

    frame: pl.DataFrame
    rows_in: int
    left_out: dict[str, int]
    """Reason (unparseable, missing_item, bad_item, duplicate) to number of rows left out; an id's first row stays."""
    notes: dict[str, int]
    """bad_embedding: rows kept without their embedding."""


class FirstRows:
    """First row of each valid id; of the other rows only their number per reason stays in memory."""

    def __init__(self, id_name: str, id_type: IdType, where: str, held_bytes: int) -> None:
        """where: the setting and the file, for messages; held_bytes: size of the rows of other files."""
        self._id_name, self._id_type, self._where, self._held_bytes = id_name, id_type, where, held_bytes
        kind = id_name.removesuffix("_id")
        self._left_out = dict.fromkeys(("unparseable", f"missing_{kind}", f"bad_{kind}", "duplicate"), 0)
        self._rows_in = 0
        self._blocks: list[pl.DataFrame] = []
        """All rows merged so far, and the blocks since."""
        self._merged_bytes = self._waiting_bytes = 0

    def add(self, block: pl.DataFrame, rows_in: int) -> None:
        """Add the rows of a block that could be parsed, ids of `ids.plain`; rows_in: number of all rows.

        Raises ValueError where the table becomes larger than memory permits.
        """
        kind = self._id_name.removesuffix("_id")
        text = block[self._id_name]
        missing = ids.is_missing(text)
        typed = ids.typed(text, self._id_type)
        bad = (typed.is_null() | ids.is_too_long(text)) & ~missing
        self._rows_in += rows_in
        self._left_out["unparseable"] += rows_in - len(block)
        self._left_out[f"missing_{kind}"] += int(missing.sum())
        self._left_out[f"bad_{kind}"] += int(bad.sum())
        kept = block.with_columns(typed).filter(~missing & ~bad)
        self._blocks.append(kept)
        self._waiting_bytes += int(kept.estimated_size())
        if self._waiting_bytes > max(_MERGED_BYTES, self._merged_bytes // 4):
            self._merge()

    def table(self) -> Table:
        """All rows so far; at least one block was added."""
        frame = self._merge()
        return Table(
            frame, self._rows_in, {reason: number for reason, number in self._left_out.items() if number}, {}
        )

    def _merge(self) -> pl.DataFrame:
        rows = pl.concat(self._blocks, how="vertical_relaxed")
        merged = rows.unique(self._id_name, keep="first", maintain_order=True)
        self._left_out["duplicate"] += len(rows) - len(merged)
        self._blocks = [merged]
        self._merged_bytes, self._waiting_bytes = int(merged.estimated_size()), 0
        num_bytes, usable = self._held_bytes + self._merged_bytes, memory.usable_bytes()
        if num_bytes > MAX_SHARE * usable:
            raise ValueError(
                f"{self._where}: the first {self._rows_in:,} rows take {num_bytes >> 20:,} MiB in memory, expected at "
                f"most {int(MAX_SHARE * usable) >> 20:,} MiB for the table, {MAX_SHARE:.0%} of the memory that this process may "
                "use; map fewer columns, shorten their texts, or use a machine with more memory"
            )
        return merged
