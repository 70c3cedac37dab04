"""Columns of the users' and items' tables and of the log that the ranker reads: their codes, fitted on the training period."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from features import schema
from features.attribute_settings import IDS, attribute_columns
from features.attributes import RARE, Attribute, Unusable
from features.histories.numbering import ItemNumbering
from models.histories import Histories, Int32, Int64
from models.ranking.columns import ColumnEmbeddings, ColumnPlaces, ColumnTables
from models.ranking.event_columns import EventTables
from pipeline.artifacts.files import read_json, write_json
from pipeline.dataset.dataset import Dataset
from pipeline.errors import LookbackError
from pipeline.modelling import context_counts

if TYPE_CHECKING:
    from pipeline.config import Config

FILE = "columns.json"
EVENTS = "events"
"""Table of the log's further columns, whose values of the last event before it belong to a request."""


@dataclass(frozen=True)
class ColumnFigures:
    """What the ranker reads, and why: `columns` in ranker.json. NDCG@10 is that of the lists that choose the epoch."""

    setting: str | list[str]
    """`ranker.columns`"""
    left_out: dict[str, str]
    """Unusable columns, each with its reason."""
    taken: list[str]
    ndcg: float
    """NDCG@10 of the ranker."""
    importance: dict[str, float]
    """NDCG@10 that shuffling a column costs the ranker that reads all of them."""
    gain: dict[str, Any] | None
    """Paired difference of the taken columns, or else of all, from none, with `low` and `high`; None: no comparison."""

    @classmethod
    def of_file(cls, ranker: Path) -> "ColumnFigures | None":
        """Figures in ranker.json; None where no columns were asked for."""
        facts = read_json(ranker).get("columns")
        return None if facts is None else cls(**facts)

    @property
    def sentence(self) -> str:
        """Choice in words."""
        said = f"columns: {', '.join(self.taken) or 'none'}"
        if self.gain is not None:
            low, high = self.gain["low"], self.gain["high"]
            said += f", NDCG@10 {self.gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}] over none"
            said += "" if self.taken else f" by {', '.join(self.importance)}"
        unused = [f"{label} ({reason})" for label, reason in self.left_out.items()]
        return said + (f", left out {', '.join(unused)}" if unused else "")


@dataclass(frozen=True)
class RankerColumns:
    """Fitted columns. Values of a table are numbered from 1 through all its columns, each with its own rare one; those of events
    after those of users.
    """

    attributes: tuple[Attribute, ...]

    @classmethod
    def fit(cls, config: "Config", dataset: Dataset, ingest: Path) -> tuple["RankerColumns", dict[str, str]]:
        """Fit the columns of `ranker.columns` on users, items and events of the training part; returns why unusable ones are left
        out.
        """
        training = dataset.training_rows(with_validation=False)
        split, histories = dataset.split, dataset.histories
        trained = {
            "users": np.asarray(split.train_user & (np.asarray(split.train_end) > histories.offsets[:-1])),
            "items": dataset.occurring(training)[1:],
        }
        ids = {"users": dataset.users[schema.USER_ID], "items": dataset.items[schema.ITEM_ID]}
        attributes, left_out = [], {}
        ends = context_counts.training_ends(dataset, with_validation=False)
        for table, name in attribute_columns(
            config.users, config.items, config.events, config.ranker.columns
        ):
            try:
                if table == EVENTS:
                    attributes.append(context_counts.fitted(dataset, name, ends))
                else:
                    column = _aligned(ingest, table, ids[table], [name])[name]
                    attributes.append(Attribute.fit(table, column, trained[table]))
            except Unusable as error:
                left_out[f"{table}.{name}"] = str(error)
        return cls(tuple(attributes)), left_out

    @property
    def labels(self) -> tuple[str, ...]:
        """`table.name` of each column."""
        return tuple(attribute.label for attribute in self.attributes)

    def select(self, labels: Collection[str]) -> "RankerColumns":
        """Keep some columns."""
        return RankerColumns(tuple(each for each in self.attributes if each.label in labels))

    def save(self, folder: Path) -> None:
        """Write columns.json into an existing folder."""
        write_json(folder / FILE, [asdict(attribute) for attribute in self.attributes])

    @classmethod
    def load(cls, folder: Path) -> "RankerColumns":
        """Load saved columns."""
        return cls(tuple(map(Attribute.of_dict, read_json(folder / FILE))))

    def tables(self, ingest: Path, users: pl.Series, items: pl.Series) -> ColumnTables:
        """Tables of values from an ingest artifact, of users at 0.. and items at 1.., without those of events; columns that it
        lacks are missing.

        Raises LookbackError for a column whose type cannot be read.
        """
        padding = np.zeros((1, self._table("items", ingest, items.head(0)).shape[1]), np.int32)
        rows = np.concatenate([padding, self._table("items", ingest, items)])
        return ColumnTables(self._table("users", ingest, users), rows)

    def event_tables(self, dataset: Dataset, numbering: ItemNumbering, ends: Int64) -> EventTables | None:
        """Tables of the log's columns as by `context_counts.counted`; None where the ranker reads none."""
        own = [*self._of(EVENTS)]
        if not own:
            return None
        return context_counts.counted(own, len(self._unseen("users", EVENTS)), dataset, numbering, ends)

    def of_log(self, counted: EventTables | None, dataset: Dataset) -> EventTables | None:
        """Tables with the codes of another log's columns."""
        if counted is None:
            return None
        return counted.reading(*context_counts.values_of([*self._of(EVENTS)], dataset.event_values))

    def embeddings(self, num_features: int) -> ColumnEmbeddings:
        """New embeddings of all values, for a ranker of so many features."""
        users, items = (torch.from_numpy(self._unseen(*own)) for own in (("users", EVENTS), ("items",)))
        return ColumnEmbeddings(users, items, num_features, len([*self._of(EVENTS)]))

    def _unseen(self, *tables: str) -> Int32:
        """Rare value of the column of each value of the tables; 0 for value 0."""
        columns = [own for table in tables for own in self._of(table)]
        parts = [np.full(each.num_codes - 1, start + RARE) for each, start in columns]
        return np.concatenate([np.zeros(1), *parts]).astype(np.int32)

    @property
    def places(self) -> tuple[ColumnPlaces, ...]:
        """Place of each column in its table."""
        ends = dict.fromkeys((*IDS, EVENTS), 0)
        places = []
        for each in self.attributes:
            start = ends[each.table]
            ends[each.table] += each.width
            places.append(ColumnPlaces(each.label, each.table, slice(start, ends[each.table])))
        return tuple(places)

    def unseen(self, tables: ColumnTables, requests: Histories) -> dict[str, tuple[int, int]]:
        """Number of rare or unseen values of each column in its table or the requests, and of all its values there."""
        rows = {"users": tables.users[:-1], "items": tables.items[1:-1]}
        if tables.events is not None:
            rows[EVENTS] = tables.events.values(requests)
        rare = {each.label: start + RARE for table in (*IDS, EVENTS) for each, start in self._of(table)}
        return {
            each.label: (int((values == rare[each.label]).sum()), int((values > 0).sum()))
            for each in self.places
            for values in (rows[each.table][:, each.places],)
        }

    def _of(self, table: str) -> Iterator[tuple[Attribute, int]]:
        """Columns of a table, each with the values before its own."""
        of_users = [each.num_codes - 1 for each in self.attributes if each.table == "users"]
        start = sum(of_users) if table == EVENTS else 0
        for attribute in self.attributes:
            if attribute.table == table:
                yield attribute, start
                start += attribute.num_codes - 1

    def _table(self, table: str, ingest: Path, ids: pl.Series) -> Int32:
        """[len + 1, s] values of each id, and in the last row of an unknown one."""
        frame = _aligned(ingest, table, ids, [each.name for each, _ in self._of(table)])
        parts = [np.zeros((len(ids) + 1, 0), np.int32)]
        for attribute, start in self._of(table):
            try:
                codes = attribute.codes(frame[attribute.name].extend_constant(None, 1))
            except Unusable as error:
                raise LookbackError(
                    f"ranker.columns: {attribute.label}: {error}, which the ranker cannot read; expected values like those "
                    "that it was trained on"
                ) from None
            parts.append(np.where(codes > 0, codes + start, 0).astype(np.int32))
        return np.concatenate(parts, 1)


def tables_of(
    rank: Path, ingest: Path, dataset: Dataset, numbering: ItemNumbering, ends: Int64
) -> ColumnTables | None:
    """`tables` of the columns that the ranker of stage rank reads; None where it reads none."""
    if not (rank / FILE).exists():
        return None
    return tables(RankerColumns.load(rank), ingest, dataset, numbering, ends)


def tables(
    columns: RankerColumns, ingest: Path, dataset: Dataset, numbering: ItemNumbering, ends: Int64
) -> ColumnTables:
    """Tables of a dataset's users and columns of events, and of its items by `numbering`.

    ends: [num_users] flat positions up to which events count by the values of their columns.
    """
    own = numbering.inverse().new[1:].astype(np.int64) - 1
    users, items = dataset.users[schema.USER_ID], dataset.items[schema.ITEM_ID].gather(own)
    events = columns.event_tables(dataset, numbering, ends)
    return replace(columns.tables(ingest, users, items), events=events)


def mostly_unseen(counts: Mapping[str, tuple[int, int]]) -> str:
    """Columns over half of whose values are rare or unseen, each after a comma; counts: as of `RankerColumns.unseen`."""
    return "".join(
        f", {unseen:,} of {number:,} values of {label} rare or unseen in training"
        for label, (unseen, number) in counts.items()
        if 2 * unseen > number
    )


def _aligned(ingest: Path, table: str, ids: pl.Series, names: list[str]) -> pl.DataFrame:
    """[len] columns of a table for each id, null for ids without a row and for columns that it lacks."""
    path, key = ingest / f"{table}.parquet", IDS[table]
    own = ids.rename(key).cast(pl.String).to_frame()
    present = [name for name in names if path.exists() and name in pl.read_parquet_schema(path)]
    if present:
        known = schema.scan(path, {key: tuple(schema.ID_TYPES.values())})
        rows = known.select(pl.col(key).cast(pl.String), *present)
        own = own.lazy().join(rows, on=key, how="left", maintain_order="left").collect()
    return own.with_columns(
        pl.lit(None, dtype=pl.String).alias(name) for name in names if name not in present
    )
