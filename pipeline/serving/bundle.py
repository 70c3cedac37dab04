"""Bundle: one self-contained folder that recommends, with evaluated and deployed weights and its own vocabulary.

bundle.json                  description, settings, time of the log's newest regular event, digest of every file
items.parquet                item_index (deployed numbering), item_id, title, num_events, evaluated_index (0: unknown)
users.parquet                user_id, segment, trained_until (last event that trained or selected the evaluated weights)
histories/                   histories of the users, in the deployed numbering
evaluated/, deployed/        model.safetensors, config.json: evaluated weights, and those that recommend; or what the published
                             baseline saves ("system" in bundle.json), fitted on the training events, and on all
index/                       FAISS over the deployed item vectors; not with a baseline
ranker/                      second stage and its calibration, where it was better; deployed/ and evaluated/ then have
                             statistics/ and ranker_items.npy, the ranker's statistics and numbers of their items, and
                             column_*.npy where it reads columns (ranker/columns.json)
content/                     content features of the deployed items, and their encoder
content_map.safetensors      map from content features to item vectors, where the model reads no content (new_item_catalogue.py)
catalogue/                   items known by their content alone, and their features
popularity.parquet           recent events by item and user segment (popularity_fallback.py)
full/                        of an update ("start" in bundle.json, start_version.py): the last training from scratch, as far as
                             the gate reads it: bundle.json, items, users, evaluated/, ranker/; evaluated/ is there alone
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.content import FOLDER, Content
from features.histories.jagged import JaggedHistories, saved_dislikes
from features.histories.vocabulary import Vocabulary
from models import checkpoint
from models.baselines.base import Baseline
from models.encoder.encoder import AttentionRecommender, with_request_time
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.calibration import Calibration
from models.ranking.ranker import SecondStage
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules, Traits
from models.retrieval.index import ItemIndex
from pipeline.artifacts.files import (
    digest_file,
    files_below,
    fingerprint,
    known_digest,
    read_json,
    write_json,
)
from pipeline.dataset.item_features import comparison_vectors
from pipeline.errors import DamagedArtifact
from pipeline.serving import bundle_baseline, bundle_ranker, event_lists, popularity_fallback
from pipeline.serving.catalogue import Added, categories_of, compared_by_content
from pipeline.serving.event_lists import EventList
from pipeline.serving.item_lists import ItemList, item_lists
from pipeline.serving.popularity_fallback import Popularity
from pipeline.serving.request import Request

FORMAT_VERSION = 4
READABLE_FORMATS, COMPARABLE_FORMATS = (1, 2, 3, 4), (2, 3, 4)
"""Format 1 lacks the evaluated weights' training data: it recommends, but cannot be compared. Format 2 has no ranker; format 3
is always of the model."""
DESCRIPTION, FULL = "bundle.json", "full"


@dataclass(frozen=True)
class Bundle:
    """Opened bundle; item indices are the deployed numbering."""

    description: dict[str, Any]
    items: Vocabulary
    num_events: Float32
    """[num_items + 1] events per item in the log of the bundle"""
    recommender: AttentionRecommender | Baseline
    """Model, or the published baseline."""
    index: ItemIndex | None
    """None for a baseline, which scores the whole catalogue."""
    folder: Path
    added: tuple[Added, ...] = ()
    """New items, numbered after the folder's own: those known by content, then those known by their events alone."""
    counted_stage: SecondStage | None = None
    """Ranker with the item statistics of another log; None: of the bundle's."""
    counted_popularity: Popularity | None = None
    """Popularity at another time; None: of the bundle's last days."""

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle's folder, with `verify` every file checked against its digest.

        Raises DamagedArtifact where a file is missing or changed, or the parts don't fit together.
        """
        description = read_description(folder, READABLE_FORMATS, verify=verify)
        table = pl.read_parquet(folder / "items.parquet")
        recommender, index = _opened_system(folder, description)
        in_index = recommender.num_items if index is None else index.num_items
        if not len(table) == recommender.num_items == in_index:
            raise DamagedArtifact(
                f"{folder}: the parts don't fit together: {len(table)} items in the vocabulary, {recommender.num_items} in the "
                f"model, {in_index} in the index; publish again with --force"
            )
        counts = np.concatenate(([0], table["num_events"].to_numpy())).astype(np.float32)
        return cls(description, Vocabulary(table["item_id"], 1), counts, recommender, index, folder)

    @property
    def digest(self) -> str:
        """Digest of the bundle's content."""
        return str(self.description["digest"])

    @property
    def num_added(self) -> int:
        """Number of new items."""
        return sum(len(added.titles) for added in self.added)

    @property
    def has_other_index(self) -> bool:
        """Whether an exact index replaces the folder's own, which could not take the new items."""
        return any(added.needs_other_index for added in self.added)

    @cached_property
    def users(self) -> Vocabulary:
        """Users of the bundle's log."""
        return Vocabulary(pl.read_parquet(self.folder / "users.parquet")["user_id"], 0)

    @cached_property
    def _saved(self) -> JaggedHistories:
        """Histories of `users`, in the deployed numbering."""
        return JaggedHistories.load(self.folder / "histories")

    @cached_property
    def newest(self) -> int:
        """Time of the newest regular event of the bundle's log (`LogFacts.now`), microseconds since the epoch.

        Older bundles: of the newest event, some of the newest event on one of their items.
        """
        newest: int | None = self.description.get("newest")
        return int(self._saved.time.max(initial=0)) if newest is None else newest

    @property
    def excludes_seen(self) -> bool:
        """Whether lists leave out items of the history where nothing else is set; older bundles: yes."""
        return bool(self.description.get("exclude_seen", True))

    @property
    def probability_of(self) -> str:
        """Event that `probability` is the probability of."""
        days = float(self.description.get("horizon_days", 0))
        if not days:
            return "the item is the next one"
        return f"the item is taken within {days:g} day{'s' * (days != 1)} of the request"

    @cached_property
    def known_histories(self) -> Histories:
        """Histories of `users`, in the deployed numbering, requested at time `newest`."""
        return self.histories_at(Request.of(None, self.newest, timed=True))

    def histories_at(self, request: Request) -> Histories:
        """Histories of `users`, in the deployed numbering, up to a request and with its time."""
        return with_request_time(request.known(self._saved), request.time)

    @cached_property
    def popularity(self) -> Popularity:
        """Popularity for users without a known interaction."""
        own = self.counted_popularity
        return Popularity.of_bundle(self.folder, self.num_events) if own is None else own

    @cached_property
    def traits(self) -> Traits:
        """Item traits for the rules: events, categories, vectors."""
        content = [Content.load(self.folder / FOLDER)] if (self.folder / FOLDER).exists() else []
        content += [added.content for added in self.added]
        if isinstance(self.recommender, AttentionRecommender):
            vectors = self.recommender.encoder.item_vectors().detach().float().numpy()
            vectors = np.pad(vectors, ((0, len(self.items) + 1 - len(vectors)), (0, 0)))
        else:
            vectors = compared_by_content(content, len(self.items))
        return Traits(self.num_events, categories_of(content), vectors)

    @cached_property
    def engine(self) -> RecommendationEngine | BaselineEngine:
        """Recommendation engine of the deployed weights, or of the baseline."""
        scores, recommender = self.popularity.scores, self.recommender
        if isinstance(recommender, Baseline):
            reads_history = bundle_baseline.reads_history(recommender)
            return BaselineEngine(recommender, scores, self.traits, reads_history)
        assert self.index is not None
        return RecommendationEngine(recommender, self.index, scores, self.traits, self.second_stage)

    @cached_property
    def second_stage(self) -> SecondStage | None:
        """Ranker of the candidates, by default with item statistics of the bundle's log; None where there is none."""
        if self.counted_stage is not None or isinstance(self.recommender, Baseline):
            return self.counted_stage
        stage = bundle_ranker.of_bundle(self.folder, "deployed")
        for added in self.added:
            if stage is not None:
                stage = stage.extended(comparison_vectors(added.content, np.arange(1, len(added.titles) + 1)))
        return stage

    @cached_property
    def probability(self) -> Calibration | None:
        """Calibration of the ranker's score to a probability; None where there is no ranker."""
        return None if self.second_stage is None else bundle_ranker.calibration_of(self.folder)

    def probability_at(self, time: int) -> Callable[[Float32], Float32] | None:
        """Probability at a ranker's score for a request at a time (microseconds since the epoch); None without a ranker."""
        stage, own = self.second_stage, self.probability
        return None if stage is None or own is None else bundle_ranker.probability_at(own, stage, time)

    def counting(self, histories: Histories) -> "Bundle":
        """The same bundle, its ranker's item statistics, or its counting baseline, from the histories of a later log."""
        if bundle_baseline.is_counted(self.description):
            baseline = bundle_baseline.counted(self.description, histories, len(self.items))
            return replace(self, recommender=baseline)
        if (stage := self.second_stage) is None:
            return self
        return replace(self, counted_stage=stage.counting(histories, bundle_ranker.HORIZON_DAYS))

    def counting_until(
        self, request: Request, histories: JaggedHistories, mapping: Int32, segment: pl.Series | None
    ) -> "Bundle":
        """The same bundle, its popularity counted from the events of a log that a request knows.

        mapping: [num_items + 1] from the log's items to the bundle's. segment: [num_users], see `segment_column`.
        """
        days = popularity_fallback.days_of(self.description.get("popularity", {}))
        num_events, popularity = popularity_fallback.counted_until(
            request, histories, mapping, len(self.items), segment, days
        )
        return replace(self, num_events=num_events, counted_popularity=popularity)

    def as_of(self, request: Request) -> "Bundle":
        """The same bundle, its popularity and item statistics counted from its own log, where `request` sets the time."""
        if not request.is_set:
            return self
        same = np.arange(len(self.items) + 1, dtype=np.int32)
        counted = self.counting_until(request, self._saved, same, self._segment_of_users)
        return counted.counting(request.known(self._saved))

    @property
    def segment_column(self) -> str | None:
        """Column of the users' table with segments; None where there are none."""
        column: str | None = self.description.get("popularity", {}).get("segment")
        return column

    @cached_property
    def _segment_of_users(self) -> pl.Series | None:
        """[users] segments, null where unknown."""
        table = pl.read_parquet(self.folder / "users.parquet")
        segment: pl.Series | None = table.get_column("segment", default=None)
        return segment

    @property
    def titles(self) -> pl.Series:
        """Titles of items 1.., null where there is none."""
        own = pl.read_parquet(self.folder / "items.parquet", columns=["title"])["title"]
        return pl.concat([own, *(added.titles for added in self.added)])

    def item_mapping(self, item_ids: pl.Series) -> tuple[Int32, int]:
        """Translation [len + 1] from another numbering (ids at 1..), 0 for unknown ids, and their number."""
        return translation(self.items, item_ids)

    def type_mapping(self, names: Sequence[str]) -> NDArray[np.int16]:
        """Translation [len + 1] from another log's event types (names at 1..), 0 for unknown ones."""
        return type_translation(self.description["event_types"], names)

    def recommend_users(
        self, user_ids: Sequence[Any], k: int, exclude_seen: bool | None = None
    ) -> list[ItemList]:
        """Recommend (item ids, scores) to each user by the bundle's histories; to unknown users by popularity.

        exclude_seen: by default `excludes_seen`.
        """
        return self.lists(*self.rows_of(user_ids), k, self.rules(exclude_seen))

    def rows_of(self, user_ids: Sequence[Any]) -> tuple[Histories, Int64]:
        """Known histories of users, empty for unknown ones, and [users] rows of `popularity`."""
        index, _ = self.users.encode_known(event_lists.ids_of(user_ids), unknown=-1)
        known = self.known_histories.select(np.maximum(index, 0)).emptied(index < 0)
        known = replace(known, user=index.astype(np.int64))
        own = self._segment_of_users
        codes = np.zeros(len(self.users), np.int64) if own is None else self.popularity.codes(own)
        return known, np.where(index >= 0, codes[np.maximum(index, 0)], 0)

    def recommend_item_lists(
        self, histories: Sequence[Sequence[Any]], k: int, exclude_seen: bool | None = None
    ) -> list[ItemList]:
        """Recommend for each history of item ids, oldest first, without unknown ones; exclude_seen: as by `rules`."""
        return self.lists(self.from_ids(histories)[0], None, k, self.rules(exclude_seen))

    def from_ids(
        self, histories: Sequence[Sequence[Any]], request_time: int | None = None
    ) -> tuple[Histories, int]:
        """`from_events` of item ids, oldest first."""
        return self.from_events([EventList(list(row)) for row in histories], request_time)

    def from_events(
        self, lists: Sequence[EventList], request_time: int | None = None
    ) -> tuple[Histories, int]:
        """`histories_of` in the deployed numbering; request_time: by default `newest`."""
        history = self.description.get("settings", {}).get("history", {})
        histories, num_unknown = event_lists.histories_of(
            lists,
            self.items,
            self.description["event_types"],
            self.newest if request_time is None else request_time,
            drop_consecutive=history.get("repeats") == "drop_consecutive",
        )
        return replace(histories, dislikes=saved_dislikes(self.folder / "histories")), num_unknown

    def rules(self, exclude_seen: bool | None = None) -> Rules:
        """Rules where nothing else is set; exclude_seen: by default `excludes_seen`."""
        return Rules(exclude_seen=self.excludes_seen if exclude_seen is None else exclude_seen)

    def lists(self, histories: Histories, segment: Int64 | None, k: int, rules: Rules) -> list[ItemList]:
        """List of each row by the engine."""
        return item_lists(self.engine, self.items, histories, segment, k, rules)


def _opened_system(
    folder: Path, description: dict[str, Any]
) -> tuple[AttentionRecommender | Baseline, ItemIndex | None]:
    """Deployed system of a bundle, and the model's index."""
    if bundle_baseline.baseline_of(description) is not None:
        return bundle_baseline.load(folder / "deployed", description), None
    recommender = AttentionRecommender(checkpoint.load_model(folder / "deployed"))
    return recommender, ItemIndex.load(folder / "index", verify=False)


def translation(items: Vocabulary, item_ids: pl.Series) -> tuple[Int32, int]:
    """Translation [len + 1] from another numbering (ids at 1..) to that of `items`, 0 for unknown ids, and their number."""
    known, num_unknown = items.encode_known(item_ids)
    return np.concatenate((np.zeros(1, np.int32), known)), num_unknown


def type_translation(own_names: Sequence[str], names: Sequence[str]) -> NDArray[np.int16]:
    """Translation [len + 1] from another log's event types (names at 1..) to `own_names`, 0 for unknown ones."""
    own = {name: code for code, name in enumerate(own_names, 1)}
    return np.array([0, *(own.get(name, 0) for name in names)], np.int16)


def read_description(
    folder: Path, formats: Sequence[int] = READABLE_FORMATS, *, verify: bool
) -> dict[str, Any]:
    """Read bundle.json of a folder, with `verify` every file checked against its digest.

    Raises DamagedArtifact for another format, or a missing or changed file.
    """
    description: dict[str, Any] = read_json(folder / DESCRIPTION)
    if description.get("format_version") not in formats:
        raise DamagedArtifact(
            f"{folder}: received bundle format {description.get('format_version')}, "
            f"expected {' or '.join(map(str, formats))}; publish again"
        )
    for name, digest in description["files"].items() if verify else ():
        if not (folder / name).is_file() or known_digest(folder / name) != digest:
            raise DamagedArtifact(
                f"{folder / name}: is missing or damaged (its digest is not the bundle's); publish again with --force"
            )
    return description


def seal(folder: Path, description: dict[str, Any]) -> str:
    """Write bundle.json with every file's digest; returns the digest of the whole, free of timestamps."""
    files = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in files_below(folder)
        if path != folder / DESCRIPTION
    }
    content = {"format_version": FORMAT_VERSION, **description, "files": files}
    digest = fingerprint(content)
    write_json(folder / DESCRIPTION, content | {"digest": digest})
    return digest
