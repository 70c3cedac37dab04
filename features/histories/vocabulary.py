"""Frozen id <-> index: ids outside, dense numbers inside; item 0 is reserved for padding."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.events.ids import plain, typed
from features.schema import IdType


@dataclass(frozen=True)
class Vocabulary:
    """Distinct ids; the id at position p has index `first + p`."""

    ids: pl.Series
    """Distinct, String or Int64; sorted, except for ids added later at the end."""
    first: int
    """Index of the first id: 1 for items (0 is padding), 0 for users."""

    @classmethod
    def of(cls, ids: pl.Series, first: int) -> "Vocabulary":
        """The vocabulary of all distinct ids in a series, nulls left out."""
        return cls(ids.drop_nulls().unique().sort(), first)

    @classmethod
    def counted(cls, table: pl.LazyFrame, name: str, first: int) -> tuple["Vocabulary", NDArray[np.int64]]:
        """The vocabulary of a column without nulls, and [ids] the rows of each id; the table is streamed."""
        counts = table.group_by(name).len().sort(name).collect(engine="streaming")
        return cls(counts[name], first), counts["len"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, ids: pl.Series) -> NDArray[np.int32]:
        """[n] indices of ids.

        Raises ValueError naming the first id that is not in the vocabulary; `encode_known` leaves those out.
        """
        index = self._lookup(ids)
        if index.null_count():
            unknown = ids.filter(index.is_null())[0]
            raise ValueError(
                f"{ids.name or 'id'}: received {unknown!r}, which is not among the {len(self)} known ids"
            )
        return index.to_numpy().astype(np.int32)

    def encode_known(self, ids: pl.Series, unknown: int = 0) -> tuple[NDArray[np.int32], int]:
        """[n] indices of ids, with `unknown` for ids outside the vocabulary, and the number of those."""
        index = self._lookup(ids)
        return index.fill_null(unknown).to_numpy().astype(np.int32), index.null_count()

    def decode(self, index: NDArray[np.integer]) -> pl.Series:
        """[n] ids of indices; indices outside the vocabulary (padding) become null."""
        position = pl.Series(index.astype(np.int64) - self.first)
        known = position.is_between(0, len(self) - 1)
        return self.ids.gather(position.clip(0, max(len(self) - 1, 0))).zip_with(
            known, pl.Series([None], dtype=self.ids.dtype).new_from_index(0, len(position))
        )

    def added(self, ids: pl.Series) -> "Vocabulary":
        """The vocabulary with further ids at the end; existing indices stay."""
        return Vocabulary(pl.concat([self.ids, ids.cast(self.ids.dtype).rename(self.ids.name)]), self.first)

    def frame(self, index_name: str, id_name: str) -> pl.DataFrame:
        """(index Int32, id) of every id, in order."""
        index = pl.Series(index_name, np.arange(self.first, self.first + len(self), dtype=np.int32))
        return pl.DataFrame([index, self.ids.alias(id_name)])

    def _lookup(self, ids: pl.Series) -> pl.Series:
        own = self.frame("index", "id").lazy()
        kind: IdType = "int64" if self.ids.dtype == pl.Int64 else "string"
        queried = pl.LazyFrame({"id": typed(plain(ids), kind)})
        return (
            queried.join(own, on="id", how="left", maintain_order="left").select("index").collect()["index"]
        )
