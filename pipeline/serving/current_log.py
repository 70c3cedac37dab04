"""Log as a bundle is scored on it: histories up to the request in the bundle's numbering, and the bundle counted up to it."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary
from models.histories import Histories, Int32, Int64
from models.ranking.shown import SHOWN_DAYS
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.exposed_items import shown_before
from pipeline.sections import ScoreConfig
from pipeline.serving import bundle_baseline, bundle_ranker, new_item_catalogue, popularity_fallback
from pipeline.serving.bundle import Bundle
from pipeline.serving.request import Request
from pipeline.serving.shown_items import NotAgain, Shown


@dataclass(frozen=True)
class Log:
    """Histories of the log up to a request, and their translation into the bundle's numbering."""

    dataset: Dataset
    items: Int32
    """[num_items + 1] -> the bundle's item, 0: unknown"""
    types: NDArray[np.int16]
    """[num_event_types + 1] -> the bundle's event type"""
    request: Request

    @classmethod
    def of(cls, dataset: Dataset, bundle: Bundle, request: Request | None = None) -> "Log":
        """Log of a dataset, translated for a bundle; requested by default at `facts.now`."""
        items, _ = bundle.item_mapping(dataset.items["item_id"])
        if request is None:
            request = Request.of(None, dataset.facts.now, timed=True)
        return cls(dataset, items, bundle.type_mapping(dataset.event_types), request)

    @property
    def histories(self) -> JaggedHistories:
        """Histories of all users, in the dataset's numbering."""
        return self.dataset.histories

    @property
    def users(self) -> pl.Series:
        """User ids in the order of the user index."""
        return self.dataset.users["user_id"]

    def shown(self, rule: NotAgain, bundle: Bundle) -> Shown:
        """What users were shown before the request, in the bundle's numbering."""
        return Shown(rule, self.dataset, self.request, bundle.items, self.items)

    def with_exposures(self, known: Histories, index: Int64, bundle: Bundle) -> Histories:
        """Histories with what their users [rows] of the log were shown, where the bundle's ranker reads it."""
        if not bundle_ranker.reads_exposures(bundle.second_stage):
            return known
        shown = shown_before(self.dataset, index, np.full(len(index), self.request.before), SHOWN_DAYS)
        return replace(known, shown=None if shown is None else shown.translate(self.items))

    @cached_property
    def ends(self) -> Int64:
        """[num_users] flat position after each user's last event that the request knows."""
        return self.request.ends(self.histories)

    @cached_property
    def is_later(self) -> NDArray[np.bool_]:
        """[num_users] whether a user has events, all of them after the request."""
        offsets = np.asarray(self.histories.offsets)
        is_later: NDArray[np.bool_] = (self.ends == offsets[:-1]) & (offsets[1:] > offsets[:-1])
        return is_later

    @property
    def num_later_events(self) -> int:
        """Number of events after the request, part of no history."""
        return int((self.histories.offsets[1:] - self.ends).sum())

    @property
    def known(self) -> Histories:
        """Histories in the bundle's numbering, without unknown items and without events after the request."""
        return rows(self.histories, self.histories.offsets[:-1], self.ends).translate(self.items)


def with_current_log(
    bundle: Bundle,
    features: Path,
    ingest: Path,
    settings: ScoreConfig,
    *,
    timed: bool,
    timezone: str = "UTC",
) -> tuple[Bundle, Log]:
    """Extend a bundle by the log's new items, if set; count what it counts up to the request.

    A model takes the items with content; its second stage, if of nights, and a counting baseline take all that have events.
    Counted are the popularity for users without a history, the ranker's statistics and a counting baseline; the ranker reads the
    columns of the log's tables. Returns the log too. features, ingest: artifact folders. timed: whether the log has times.
    timezone: of a `score.at` that names none.

    Raises LookbackError where `score.at` precedes the log, or the log has other ids than the bundle's baseline.
    """
    dataset = Dataset.open(features)
    request = Request.of(settings.at, dataset.facts.now, timed=timed, timezone=timezone)
    if dataset.items["item_id"].dtype == pl.String:  # also where the bundle's ids are integers
        bundle = replace(bundle, items=Vocabulary(bundle.items.ids.cast(pl.String), 1))
    bundle_baseline.check_ids(bundle.description, bundle.items.ids, dataset)
    is_counted = bundle_baseline.is_counted(bundle.description)
    if settings.new_items:
        items = ingest / "items.parquet"
        if not is_counted:
            table = new_item_catalogue.unknown_to(bundle.items.ids, dataset.items["item_id"], items)
            bundle = new_item_catalogue.extended(bundle, table)
        if is_counted or bundle_ranker.ranks_unlearned(bundle.folder, bundle.description):
            ends = request.ends(dataset.histories)
            added = bundle_baseline.new_items(bundle.description, bundle.items.ids, dataset, ends, items)
            bundle = new_item_catalogue.with_counted(bundle, *added)
    log = Log.of(dataset, bundle, request)
    segment = segment_of(bundle, ingest, log.users)
    bundle = bundle.counting_until(log.request, log.histories, log.items, segment)
    has_counts = is_counted or bundle.second_stage is not None
    bundle = bundle.counting(log.known) if has_counts else bundle
    stage = bundle_ranker.reading_log(bundle.second_stage, bundle.folder, ingest, dataset, bundle.items.ids)
    return replace(bundle, counted_stage=stage), log


def segment_of(bundle: Bundle, ingest: Path, users: pl.Series) -> pl.Series | None:
    """[users] segments by the current users' table, null where unknown; None without the bundle's segment column."""
    column, table = bundle.segment_column, ingest / "users.parquet"
    if column is None or not table.exists() or column not in pl.read_parquet_schema(table):
        return None
    return popularity_fallback.segment_of(table, column, users)
