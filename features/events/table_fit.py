"""How a side table fits the log: rows whose id has events, ids without a row, ids of another form."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from features.events import ids
from features.printable import LONGEST, printable


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
