"""The bundle: one self-contained folder that recommends, with evaluated and deployed weights and its own vocabulary.

bundle.json                  what it is, its settings, the time of its log's newest event, the digest of every file
items.parquet                item_index (the deployed numbering), item_id, title, num_events, evaluated_index (0: unknown then)
users.parquet                user_id, segment, trained_until (the user's last event that trained or chose the evaluated weights)
histories/                   the users' histories, in the deployed numbering
evaluated/, deployed/        model.safetensors, config.json: the weights that were judged, and those that recommend
index/                       FAISS over the deployed item vectors
ranker/                      the second stage and its calibration, where it was better; deployed/ and evaluated/ then have
                             statistics/ and ranker_items.npy, what it knows of their items
content/                     what is said about the deployed items, and what turns others into the same features
content_map.safetensors      from those features to item vectors, where the model itself reads none (new_items.py)
catalogue/                   the items that the model does not know but by what is said about them, and their features
popularity.parquet           events of the last days by item and segment of users (popular.py)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.content import FOLDER, Content
from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary
from models import checkpoint
from models.encoder.encoder import AttentionRecommender, as_asked
from models.explanation import contributions
from models.histories import Float32, Histories, Int32, Int64, histories_from_lists
from models.ranking.calibration import Calibration
from models.ranking.ranker import SecondStage
from models.recommendation.engine import AS_SCORED, Answer, RecommendationEngine
from models.recommendation.rules import Rules, Traits, UInt64
from models.retrieval.index import ItemIndex
from pipeline.artifacts.files import digest_file, files_below, fingerprint, read_json, write_json
from pipeline.dataset.dataset import rows
from pipeline.dataset.item_features import comparison_vectors
from pipeline.errors import DamagedArtifact
from pipeline.serving import bundle_ranker, popularity_fallback
from pipeline.serving.catalogue import Added, categories_of

FORMAT_VERSION = 3
READABLE_FORMATS, COMPARABLE_FORMATS = (1, 2, 3), (2, 3)
"""Format 1 does not say what the evaluated weights learned from: it recommends, but cannot be compared. 2 has no ranker."""
DESCRIPTION = "bundle.json"
SECOND = 1_000_000
"""Microseconds."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; item indices are the deployed numbering."""

    description: dict[str, Any]
    items: Vocabulary
    num_events: Float32
    """[num_items + 1], events per item in the data it was made with"""
    recommender: AttentionRecommender
    index: ItemIndex
    folder: Path
    added: Added | None = None
    """Of the items that are not the folder's own."""

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle's folder, every file checked against its digest.

        Raises DamagedArtifact where a file is missing or another than it was, or the parts don't fit together.
        """
        description = read_description(folder, READABLE_FORMATS, verify=verify)
        table = pl.read_parquet(folder / "items.parquet")
        recommender = AttentionRecommender(checkpoint.load_model(folder / "deployed"))
        index = ItemIndex.load(folder / "index", verify=False)
        if not len(table) == recommender.num_items == index.num_items:
            raise DamagedArtifact(
                f"{folder}: the parts don't fit together: {len(table)} items in the vocabulary, {recommender.num_items} in the "
                f"model, {index.num_items} in the index; publish again with --force"
            )
        counts = np.concatenate(([0], table["num_events"].to_numpy())).astype(np.float32)
        return cls(description, Vocabulary(table["item_id"], 1), counts, recommender, index, folder)

    @property
    def digest(self) -> str:
        """What the bundle's content is called by."""
        return str(self.description["digest"])

    @property
    def num_added(self) -> int:
        """Items behind the folder's own."""
        return 0 if self.added is None else len(self.added.titles)

    @property
    def has_other_index(self) -> bool:
        """Whether the index was built anew, exact, because the folder's own could not take the items behind its own."""
        return self.added is not None and self.added.needs_other_index

    @cached_property
    def users(self) -> Vocabulary:
        """The users it was made with."""
        return Vocabulary(pl.read_parquet(self.folder / "users.parquet")["user_id"], 0)

    @cached_property
    def _saved(self) -> JaggedHistories:
        """Their histories, in the deployed numbering."""
        return JaggedHistories.load(self.folder / "histories")

    @cached_property
    def newest(self) -> int:
        """Time of the newest event of the log it was made with, microseconds since the epoch: when it is asked.

        Bundles that do not say it know the newest one on an item of theirs.
        """
        said: int | None = self.description.get("newest")
        return int(self._saved.time.max(initial=0)) if said is None else said

    @cached_property
    def known_histories(self) -> Histories:
        """Their histories, in the deployed numbering, asked for at the time of the newest event of the log."""
        saved = self._saved
        return as_asked(rows(saved, saved.offsets[:-1], saved.offsets[1:]), self.newest)

    @cached_property
    def segments(self) -> list[str]:
        """Values of the column of users that popularity is known by; row 1 of `popularity` is the first."""
        return popularity_fallback.segments(self.folder)

    @cached_property
    def traits(self) -> Traits:
        """What rules look at in items."""
        content = [Content.load(self.folder / FOLDER)] if (self.folder / FOLDER).exists() else []
        if self.added is not None:
            content.append(self.added.content)
        vectors = self.recommender.encoder.item_vectors().detach().float().numpy()
        return Traits(self.num_events, categories_of(content), vectors)

    @cached_property
    def answering(self) -> RecommendationEngine:
        """What makes lists of histories."""
        scores = popularity_fallback.scores(self.folder, self.num_events)
        return RecommendationEngine(self.recommender, self.index, scores, self.traits, self.second_stage)

    @cached_property
    def second_stage(self) -> SecondStage | None:
        """What puts the candidates in order, with what was known of the items when the bundle was made; None: nothing does."""
        found = bundle_ranker.of_bundle(self.folder, "deployed")
        if found is None or self.added is None:
            return found
        return found.extended(comparison_vectors(self.added.content, np.arange(1, self.num_added + 1)))

    @cached_property
    def probability(self) -> Calibration | None:
        """From the ranker's score to the probability that an item comes next; None where there is no ranker."""
        return None if self.second_stage is None else bundle_ranker.calibration_of(self.folder)

    def counting(self, histories: Histories) -> "Bundle":
        """The same bundle, whose second stage knows when and how often items were met in other histories, of a later log."""
        stage = self.second_stage
        if stage is None:
            return self
        known = stage.statistics.recounted(histories, bundle_ranker.HORIZON_DAYS)
        later = replace(self)
        later.__dict__["second_stage"] = SecondStage(stage.ranker, known, stage.own)
        return later

    @cached_property
    def _segment_of_users(self) -> Int64:
        """[users] the row of popularity of each."""
        table = pl.read_parquet(self.folder / "users.parquet")
        return (
            popularity_fallback.codes(self.segments, table["segment"])
            if "segment" in table
            else np.zeros(len(table), np.int64)
        )

    @property
    def titles(self) -> pl.Series:
        """Of items 1.., null where there is none."""
        own = pl.read_parquet(self.folder / "items.parquet", columns=["title"])["title"]
        return own if self.added is None else pl.concat([own, self.added.titles])

    def recommend(
        self,
        histories: Histories,
        k: int,
        rules: Rules = AS_SCORED,
        *,
        keys: UInt64 | None = None,
        segment: Int64 | None = None,
        because: contributions.Method | None = None,
        because_items: int = 3,
    ) -> Answer:
        """The k best items of each row (deployed numbering) that `rules` let through; see `RecommendationEngine.answer`."""
        return self.answering.answer(
            histories,
            k,
            rules,
            keys=keys,
            segment=segment,
            because=because,
            because_items=because_items,
        )

    def item_mapping(self, item_ids: pl.Series) -> tuple[Int32, int]:
        """[len + 1] from another numbering (ids at 1..) to this one's, 0 for strangers; and how many strangers there are."""
        return translation(self.items, item_ids)

    def type_mapping(self, names: Sequence[str]) -> NDArray[np.int16]:
        """[len + 1] from another log's event types (names at 1..) to this one's, 0 for those it does not know."""
        return type_translation(self.description["event_types"], names)

    def recommend_users(
        self, user_ids: Sequence[Any], k: int, exclude_seen: bool = True
    ) -> list[tuple[list[Any], list[float]]]:
        """(item ids, scores) for each user by the histories in the bundle; strangers get what is popular."""
        index, _ = self.users.encode_known(pl.Series(values=list(user_ids), strict=False), unknown=-1)
        known = self.known_histories.select(np.maximum(index, 0))
        ends = np.where(index >= 0, known.ends, known.starts)
        segment = np.where(index >= 0, self._segment_of_users[np.maximum(index, 0)], 0)
        return self._lists(replace(known, ends=ends), k, exclude_seen, segment)

    def recommend_item_lists(
        self, histories: Sequence[Sequence[Any]], k: int, exclude_seen: bool = True
    ) -> list[tuple[list[Any], list[float]]]:
        """(item ids, scores) for each history of item ids, oldest first; unknown items are passed over."""
        return self._lists(self.from_ids(histories)[0], k, exclude_seen)

    def from_ids(self, histories: Sequence[Sequence[Any]]) -> tuple[Histories, int]:
        """Histories of item ids, oldest first, in the deployed numbering; unknown ids are left out and counted.

        They have no times: each is taken as interactions a second apart, the last of them at the time of the newest event of
        the log that the bundle was made with, and asked for then.
        """
        lengths = [len(row) for row in histories]
        flat = pl.Series("item_id", [item for row in histories for item in row], strict=False)
        index, unknown = self.items.encode_known(flat) if len(flat) else (np.zeros(0, np.int32), 0)
        known = (
            [part[part > 0].tolist() for part in np.split(index, np.cumsum(lengths)[:-1])] if lengths else []
        )
        times = [[self.newest - SECOND * back for back in reversed(range(len(row)))] for row in known]
        return as_asked(histories_from_lists(known, times), self.newest), unknown

    def _lists(
        self, histories: Histories, k: int, exclude_seen: bool, segment: Int64 | None = None
    ) -> list[tuple[list[Any], list[float]]]:
        answer = self.recommend(histories, k, Rules(exclude_seen=exclude_seen), segment=segment)
        ids = self.items.decode(answer.item_index.ravel()).to_list()
        lists = []
        for row in range(len(histories)):
            length = int((answer.item_index[row] > 0).sum())
            lists.append((ids[row * k : row * k + length], answer.score[row, :length].tolist()))
        return lists


def translation(items: Vocabulary, item_ids: pl.Series) -> tuple[Int32, int]:
    """[len + 1] from another numbering (ids at 1..) to that of `items`, 0 for strangers; and how many strangers there are."""
    known, strangers = items.encode_known(item_ids)
    return np.concatenate((np.zeros(1, np.int32), known)), strangers


def type_translation(own_names: Sequence[str], names: Sequence[str]) -> NDArray[np.int16]:
    """[len + 1] from another log's event types (names at 1..) to one's own, 0 for those that are not among them."""
    own = {name: code for code, name in enumerate(own_names, 1)}
    return np.array([0, *(own.get(name, 0) for name in names)], np.int16)


def read_description(
    folder: Path, formats: Sequence[int] = READABLE_FORMATS, *, verify: bool
) -> dict[str, Any]:
    """bundle.json of a folder, with `verify` every file checked against its digest.

    Raises DamagedArtifact where the format is another one, or a file is missing or not what it was.
    """
    description: dict[str, Any] = read_json(folder / DESCRIPTION)
    if description.get("format_version") not in formats:
        raise DamagedArtifact(
            f"{folder}: received bundle format {description.get('format_version')}, "
            f"expected {' or '.join(map(str, formats))}; publish again"
        )
    for name, digest in description["files"].items() if verify else ():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            raise DamagedArtifact(
                f"{folder / name}: is missing or damaged (its digest is not the bundle's); publish again with --force"
            )
    return description


def seal(folder: Path, description: dict[str, Any]) -> str:
    """Write bundle.json with every file's digest; returns the digest of the whole, which no clock enters."""
    files = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in files_below(folder)
        if path.name != DESCRIPTION
    }
    content = {"format_version": FORMAT_VERSION, **description, "files": files}
    digest = fingerprint(content)
    write_json(folder / DESCRIPTION, content | {"digest": digest})
    return digest
