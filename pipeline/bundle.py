"""The bundle: one self-contained folder that recommends, with evaluated and deployed weights and its own vocabulary.

bundle.json                  what it is, its settings, the time of its log's newest event, the digest of every file
items.parquet                item_index (the deployed numbering), item_id, title, num_events, evaluated_index (0: unknown then)
users.parquet                user_id, trained_until (the user's last event that trained or chose the evaluated weights)
histories/                   the users' histories, in the deployed numbering
evaluated/, deployed/        model.safetensors, config.json: the weights that were judged, and those that recommend
index/                       FAISS over the deployed item vectors
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.histories import JaggedHistories
from features.vocabulary import Vocabulary
from models import checkpoint, explain
from models.baselines import Popularity
from models.encoder import AttentionRecommender, as_asked
from models.index import ItemIndex
from models.recommender import Float32, Histories, Int32, Int64, histories_from_lists
from pipeline import histories as rows
from pipeline.errors import DamagedArtifact
from pipeline.store import digest_file, files_below, fingerprint, read_json, write_json

FORMAT_VERSION = 2
READABLE_FORMATS = (1, 2)
"""Format 1 does not say what the evaluated weights learned from: it recommends, but cannot be compared."""
DESCRIPTION = "bundle.json"
SECOND = 1_000_000
"""Microseconds."""
NEVER = int(np.iinfo(np.int64).min)
"""The time of no event: before all others."""


@dataclass(frozen=True)
class Because:
    """The past interactions that carried each recommendation, strongest first."""

    item_index: Int32
    """[rows, k, because_items], 0 where there are fewer"""
    weight: Float32
    """[rows, k, because_items], what the score loses without them, or an estimate of it"""


@dataclass(frozen=True)
class Answer:
    """Recommendations for rows of histories."""

    item_index: Int32
    """[rows, k], best first, 0 where there are fewer"""
    score: Float32
    """[rows, k], -inf where there are fewer"""
    cold: NDArray[np.bool_]
    """[rows], answered by popularity, for want of a known item in the history"""
    because: Because | None


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

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle's folder, every file checked against its digest.

        Raises DamagedArtifact where a file is missing or another than it was, or the parts don't fit together.
        """
        description = read_description(folder, READABLE_FORMATS, verify=verify)
        table = pl.read_parquet(folder / "items.parquet")
        recommender = AttentionRecommender(checkpoint.load_model(folder / "deployed"))
        index = ItemIndex.load(folder / "index")
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
        return as_asked(rows.rows(saved, saved.offsets[:-1], saved.offsets[1:]), self.newest)

    def recommend(
        self,
        histories: Histories,
        k: int,
        *,
        exclude_seen: bool = True,
        because: explain.Method | None = None,
        because_items: int = 3,
    ) -> Answer:
        """The k best items of each row (deployed numbering); rows without interactions get the most popular ones.

        `because` is None or a method of `explain.contributions`. A model that looks at the time of the request takes
        `histories.request_time`, or the time of the rows' newest event. Lists are shorter than k only where the catalogue has no
        more to give.
        """
        cold = histories.lengths == 0
        histories = self._asked(histories)
        items = np.zeros((len(histories), k), np.int32)
        score = np.full((len(histories), k), -np.inf, np.float32)
        popular = Popularity(self.num_events)
        if cold.any():
            items[cold], score[cold] = popular.recommend(histories.select(cold), k, exclude_seen)
        warm = histories.select(~cold)
        if len(warm):
            items[~cold], score[~cold] = self._best(warm, k, exclude_seen=exclude_seen)
        reasons = None
        if because is not None:
            reasons = Because(
                np.zeros((*items.shape, because_items), np.int32),
                np.zeros((*items.shape, because_items), np.float32),
            )
            if len(warm):
                weights = explain.contributions(self.recommender.encoder, warm, items[~cold], because)
                found = explain.strongest(weights, warm, because_items)
                reasons.item_index[~cold], reasons.weight[~cold] = found
        return Answer(items, score, cold, reasons)

    def _asked(self, histories: Histories) -> Histories:
        """The rows with a request time, where the model looks at one and none is said: that of their newest event."""
        if not self.recommender.encoder.settings.request_time or histories.request_time is not None:
            return histories
        return as_asked(histories, int(histories.time[histories.gather()[1]].max(initial=0)))

    def _best(self, warm: Histories, k: int, *, exclude_seen: bool) -> tuple[Int32, Float32]:
        """The k best items of rows that are not empty: from the index, or scored one by one where no vector says it all."""
        if not self.recommender.encoder.scores_by_vector:
            return self.recommender.recommend(warm, k, exclude_seen)
        return self.index.search(self.recommender.encode(warm), k, warm if exclude_seen else None)

    def item_mapping(self, item_ids: pl.Series) -> tuple[Int32, int]:
        """[len + 1] from another numbering (ids at 1..) to this one's, 0 for strangers; and how many strangers there are."""
        return translation(self.items, item_ids)

    def type_mapping(self, names: Sequence[str]) -> NDArray[np.int16]:
        """[len + 1] from another log's event types (names at 1..) to this one's, 0 for those it does not know."""
        return type_translation(self.description["event_types"], names)

    def recommend_users(
        self, user_ids: Sequence[Any], k: int, exclude_seen: bool = True
    ) -> list[tuple[list[Any], list[float]]]:
        """(item ids, scores) for each user by the histories in the bundle; strangers get the most popular items."""
        index, _ = self.users.encode_known(pl.Series(values=list(user_ids), strict=False), unknown=-1)
        known = self.known_histories.select(np.maximum(index, 0))
        ends = np.where(index >= 0, known.ends, known.starts)
        return self._lists(replace(known, ends=ends), k, exclude_seen)

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

    def _lists(self, histories: Histories, k: int, exclude_seen: bool) -> list[tuple[list[Any], list[float]]]:
        answer = self.recommend(histories, k, exclude_seen=exclude_seen)
        ids = self.items.decode(answer.item_index.ravel()).to_list()
        lists = []
        for row in range(len(histories)):
            length = int((answer.item_index[row] > 0).sum())
            lists.append((ids[row * k : row * k + length], answer.score[row, :length].tolist()))
        return lists


@dataclass(frozen=True)
class Evaluated:
    """The weights of a bundle that were judged, and what they have seen; item indices are their own numbering."""

    recommender: AttentionRecommender
    items: Vocabulary
    event_types: list[str]
    features: str
    """Fingerprint of the features artifact that they were trained and judged on."""
    trained_until: int | None
    """temporal: microseconds since the epoch at which the test began; every event before it trained or chose them"""
    users: Vocabulary
    """The users of that artifact."""
    users_trained_until: Int64
    """[users], microseconds: the last event of each that trained or chose them; `NEVER` where there is none"""

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, device: str | torch.device = "cpu") -> "Evaluated":
        """Open the evaluated weights of a bundle's folder.

        Raises DamagedArtifact where files are missing or damaged, or the bundle's format does not say what it learned from.
        """
        description = read_description(folder, (FORMAT_VERSION,), verify=verify)
        known = pl.read_parquet(folder / "items.parquet", columns=["item_id", "evaluated_index"])
        known = known.filter(pl.col("evaluated_index") > 0).sort("evaluated_index")
        recommender = AttentionRecommender(checkpoint.load_model(folder / "evaluated", device))
        if known["evaluated_index"].to_list() != list(range(1, recommender.num_items + 1)):
            raise DamagedArtifact(
                f"{folder}: the parts don't fit together: {len(known)} items in the evaluated vocabulary, "
                f"{recommender.num_items} in the evaluated model; publish again with --force"
            )
        users = pl.read_parquet(folder / "users.parquet", columns=["user_id", "trained_until"])
        until = users["trained_until"].dt.timestamp("us").fill_null(NEVER)
        return cls(
            recommender,
            Vocabulary(known["item_id"], 1),
            description["event_types"],
            description["features"],
            description["trained_until"],
            Vocabulary(users["user_id"], 0),
            until.to_numpy(),
        )

    def translated(self, histories: Histories, item_ids: pl.Series, type_names: Sequence[str]) -> Histories:
        """Rows in another log's numbering (ids at 1.., type names at 1..) in this one's; what it does not know is left out."""
        items, _ = translation(self.items, item_ids)
        types = type_translation(self.event_types, type_names)
        return replace(histories, event_type=types[histories.event_type]).translate(items)

    def trained_until_of(self, user_ids: pl.Series) -> Int64:
        """[len] microseconds: the last event of each user that trained or chose the weights; `NEVER` for strangers."""
        index, _ = self.users.encode_known(user_ids, unknown=-1)
        return np.append(self.users_trained_until, NEVER)[index]


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
