"""Features artifacts as arrays: histories, split, training rows, held-out events with their histories."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.content import FOLDER, Content
from features.histories import event_columns
from features.histories.exposures import JaggedExposures
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts, starts_visit
from features.histories.splits import Split, blocks
from models.histories import Float32, Histories, Int32, Int64


def rows(histories: JaggedHistories, starts: Int64, ends: Int64) -> Histories:
    """Rows `[starts[i], ends[i])` of the flat arrays, without a copy; with the context of their last events."""
    return Histories(
        histories.item_index,
        histories.time,
        histories.event_type,
        starts,
        ends,
        histories.value,
        dislikes=histories.dislikes,
        context=_context(histories, np.asarray(starts), np.asarray(ends)),
    )


def _context(histories: JaggedHistories, starts: Int64, ends: Int64) -> Int32 | None:
    """`Histories.context` of rows; None where the log has no further columns."""
    codes = histories.event_columns
    if codes is None:
        return None
    context = np.zeros((len(ends), codes.shape[1]), np.int32)
    has_events = ends > starts
    context[has_events] = codes[ends[has_events] - 1]
    return context


@dataclass(frozen=True)
class Dataset:
    """Memory-mapped features folder; tables are read on first use."""

    folder: Path
    histories: JaggedHistories
    split: Split

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open the folder of a features artifact."""
        return cls(folder, JaggedHistories.load(folder), Split.load(folder / "split"))

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.split.kept_item) - 1

    @cached_property
    def items(self) -> pl.DataFrame:
        """items.parquet: a row per item, in the order of the indices 1.."""
        return pl.read_parquet(self.folder / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """users.parquet: a row per user, in the order of the indices 0.."""
        return pl.read_parquet(self.folder / "users.parquet")

    @cached_property
    def exposures(self) -> JaggedExposures | None:
        """What users were shown, by the exposure log; None where there is none."""
        path = self.folder / "exposures"
        return JaggedExposures.load(path) if path.exists() else None

    @property
    def exposure_span(self) -> tuple[int, int] | None:
        """Times of the first and the last exposure, microseconds since the epoch; None without exposures."""
        if self.exposures is None or not len(self.exposures.time):
            return None
        return int(self.exposures.time.min()), int(self.exposures.time.max())

    @cached_property
    def event_types(self) -> list[str]:
        """Names of the event types; the name at position p has code p + 1."""
        names: list[str] = json.loads((self.folder / "event_types.json").read_text(encoding="utf-8"))
        return names

    @cached_property
    def event_values(self) -> dict[str, pl.Series]:
        """Values of the codes 1.. of each further column, in the order of `JaggedHistories.event_columns`."""
        return event_columns.load(self.folder)

    @cached_property
    def content(self) -> Content | None:
        """Item content; None where no item has any."""
        path = self.folder / FOLDER
        content = Content.load(path) if path.exists() else None
        if content is None or not (content.categories or content.text.size or content.embedding.size):
            return None
        return content

    @cached_property
    def facts(self) -> LogFacts:
        """Ties, repeats and the newest regular event of the log."""
        return LogFacts.load(self.folder)

    def all_rows(self, weight: Float32 | None = None) -> Histories:
        """Whole histories, a row per user. weight: see `Histories`."""
        offsets = np.asarray(self.histories.offsets)
        return replace(rows(self.histories, offsets[:-1], offsets[1:]), weight=weight)

    def training_rows(self, *, with_validation: bool, weight: Float32 | None = None) -> Histories:
        """Training events, with or without validation, of every user over the core filter; items under it become 0.

        weight: see `Histories`.
        """
        ends, split = self.training_ends(with_validation=with_validation), self.split
        chosen = rows(self.histories, self.histories.offsets[:-1], ends).select(split.train_user)
        chosen = replace(chosen, weight=weight)
        kept = np.where(split.kept_item, np.arange(len(split.kept_item)), 0).astype(np.int32)
        return chosen if split.kept_item[1:].all() else chosen.translate(kept)

    def training_ends(self, *, with_validation: bool) -> Int64:
        """[num_users] flat position after each user's last training event, or last validation event."""
        return np.asarray(self.split.validation_end if with_validation else self.split.train_end)

    def occurring(self, histories: Histories) -> NDArray[np.bool_]:
        """Whether an item occurs in rows of this folder: [num_items + 1]."""
        _, positions = histories.gather()
        occurs = np.zeros(self.num_items + 1, bool)
        occurs[histories.item_index[positions]] = True
        occurs[0] = False
        return occurs

    def under_core(self) -> NDArray[np.bool_]:
        """Items removed by the core filter, in a temporal split only trained ones: [num_items + 1]."""
        removed = ~self.split.kept_item
        if self.split.protocol == "leave_one_out":
            return removed
        return removed & (self.histories.item_counts(self.num_items, self.split.train_end) > 0)

    def without_held_back(self) -> "Dataset":
        """Dataset without events after the test part: the log as it was at an earlier cut, its `facts.now` included."""
        histories, ends = self.histories, np.asarray(self.split.test_end)
        if (ends == histories.offsets[1:]).all():
            return self
        kept = rows(histories, histories.offsets[:-1], ends)
        _, positions = kept.gather()
        offsets = np.concatenate(([0], np.cumsum(kept.lengths, dtype=np.int64)))
        earlier = JaggedHistories(
            offsets,
            histories.item_index[positions],
            histories.time[positions],
            histories.event_type[positions],
            histories.value[positions],
            histories.dislikes,
            None if histories.event_columns is None else histories.event_columns[positions],
        )
        cut = replace(self, histories=earlier)
        cut.__dict__["facts"] = replace(self.facts, now=min(self.facts.now, int(earlier.time.max(initial=0))))
        return cut

    def held_out(self, part: str, ties: str, session_minutes: float = 0.0) -> "HeldOut":
        """Events of the evaluated users in the `validation` or `test` part, by user and position.

        Each history holds all earlier events, with ties = `strict` those before the event's visit (see `starts_visit`).
        """
        histories, split = self.histories, self.split
        starts, ends = split.stretch(histories, part)
        lengths = np.where(split.kept_user, np.asarray(ends) - np.asarray(starts), 0)
        user = np.repeat(np.arange(histories.num_users), lengths)
        position = np.arange(len(user)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        first = histories.offsets[user]
        end = first_of_visit(histories, user, position, session_minutes) if ties == "strict" else position
        before = replace(rows(histories, first, end), request_time=histories.time[position])
        return HeldOut(user, position, histories.item_index[position], histories.time[position], before)


@dataclass(frozen=True)
class HeldOut:
    """Held-out events, each with the history before it."""

    user: Int64
    """[targets], user index"""
    position: Int64
    """[targets], flat position of the event"""
    item: Int32
    """[targets], item index of the features folder"""
    time: Int64
    """[targets], microseconds since the epoch"""
    histories: Histories
    """[targets] rows: the user's whole history before the event"""

    def __len__(self) -> int:
        return len(self.user)

    def select(self, chosen: NDArray[np.bool_]) -> "HeldOut":
        """Events of a mask."""
        return HeldOut(
            self.user[chosen],
            self.position[chosen],
            self.item[chosen],
            self.time[chosen],
            self.histories.select(chosen),
        )


def first_of_visit(histories: JaggedHistories, user: Int64, position: Int64, session_minutes: float) -> Int64:
    """[events] flat position of the first event of each event's visit; events by `user`, ascending."""
    first = np.empty_like(position)
    for block in blocks(histories):
        here = slice(*np.searchsorted(user, (block.users.start, block.users.stop)))
        begins = np.flatnonzero(starts_visit(block, histories, session_minutes)) + block.events.start
        first[here] = begins[np.searchsorted(begins, position[here], side="right") - 1]
    return first
