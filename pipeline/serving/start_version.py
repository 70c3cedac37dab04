"""Registered version that an update starts from (`train.start`): its weights by the log's ids, and what an update keeps of it.

An update is a version whose deployed weights went on from those of another. It keeps the other's second stage, and in full/ of
its bundle what the gate compares: the evaluated weights, and the training data's end, of the last training from scratch.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import content, schema
from features.events.ids import plain
from features.events.row_filters import Excluded
from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.encoder.embeddings import ItemContent
from models.encoder.encoder import AttentionRecommender, Encoder
from models.histories import Histories, Int32
from models.settings.encoder import EncoderSettings
from models.training.replay import new_targets
from models.training.result import Initial
from pipeline.artifacts import source_files
from pipeline.artifacts.files import read_json, write_json
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.errors import LookbackError
from pipeline.serving import bundle_cache, bundle_ranker, new_item_catalogue
from pipeline.serving.bundle import DESCRIPTION, FORMAT_VERSION, FULL, Bundle, read_description
from pipeline.serving.bundle_baseline import baseline_of
from pipeline.serving.request import Request
from pipeline.tracking.registry import ModelSource

START, FULL_TRAINING = "start", "full_training"
"""Entries of an update's bundle.json: digest of the version it started from; newest event of the last training from scratch,
microseconds since the epoch."""
_FREE = ("attention", "dropout")
"""Settings of the model that its weights do not depend on."""


def full_training(description: dict[str, Any]) -> int | None:
    """Newest event of a bundle's last training from scratch, microseconds since the epoch; None in old bundles."""
    newest: int | None = description.get(FULL_TRAINING, description.get("newest"))
    return newest


def obstacle(config: Config, model: ModelSource) -> str | None:
    """Reason why no update can start from a version but a training from scratch is needed; None where one can.

    Raises LookbackError, with the next step, for a version of another log.
    """
    folder = bundle_cache.bundle_folder(config, model)
    description = read_description(folder, verify=False)
    if (name := description["name"]) != config.name:
        raise LookbackError(
            f"train.start: {model.uri} was trained on the log {name!r}, expected a version of {config.name!r}; name one, or "
            f"train from scratch: {_from_scratch(config)}"
        )
    number = description.get("format_version")
    if number != FORMAT_VERSION:
        return f"{model.uri} has bundle format {number}, expected {FORMAT_VERSION}"
    if (baseline := baseline_of(description)) is not None:
        return f"{model.uri} is the baseline {baseline}, expected a model"
    if changed := _changed_settings(config, folder):
        return f"{model.uri} was trained with other settings: {'; '.join(changed)}"
    excluded = source_files.excluded_users(config)
    if excluded is not None and lists_any(folder, excluded):
        return f"{model.uri} has learned from users of events.exclude_users"
    return None


def lists_any(bundle: Path, excluded: pl.Series) -> bool:
    """Whether a bundle lists an excluded user; True where its users cannot be read."""
    tables = [bundle / "users.parquet"]
    tables += [bundle / FULL / "users.parquet"] if (bundle / FULL).exists() else []
    for table in tables:
        try:
            users = plain(schema.read(table, schema.USERS)[schema.USER_ID])
        except (OSError, ValueError):
            return True
        kind: schema.IdType = "string" if users.dtype == pl.String else "int64"
        if Excluded(excluded, kind).holds(users, users).any():
            return True
    return False


def _changed_settings(config: Config, folder: Path) -> list[str]:
    """Settings that a bundle's weights depend on and that differ, each with both values."""
    saved = read_json(folder / "deployed" / checkpoint.CONFIG)
    before = {
        f"model.{name}": value for name, value in (asdict(EncoderSettings()) | saved["encoder"]).items()
    }
    own = {
        f"model.{name}": value for name, value in asdict(config.model.resolved).items() if name not in _FREE
    }
    before["history.max_length"], own["history.max_length"] = saved["max_length"], config.history.max_length
    return [
        f"{key} = {before[key]!r} there, {value!r} here" for key, value in own.items() if before[key] != value
    ]


@dataclass(frozen=True)
class StartVersion:
    """Version that an update of a log starts from."""

    model: ModelSource
    bundle: Bundle
    """The version with the log's new items, as far as it has vectors for them by their content."""
    dataset: Dataset

    @classmethod
    def open(cls, config: Config, model: ModelSource, dataset: Dataset, ingest: Path) -> "StartVersion":
        """Open a version; ingest: artifact with the items' table.

        Raises LookbackError, with the next step, where an update of the log can't start from it.
        """
        scratch = _from_scratch(config)
        if (reason := obstacle(config, model)) is not None:
            raise LookbackError(f"train.start: {reason}; train from scratch: {scratch}")
        bundle = Bundle.open(bundle_cache.bundle_folder(config, model), verify=False)
        ids = dataset.items[schema.ITEM_ID]
        for own, other in ((bundle.items.ids, ids), (bundle.users.ids, dataset.users[schema.USER_ID])):
            if own.dtype != other.dtype:
                raise LookbackError(
                    f"train.start: {model.uri} has {other.name} of type {own.dtype}, and the log {other.dtype}, expected the "
                    f"same type; set events.id_types as before, or train from scratch: {scratch}"
                )
        if bundle.newest > dataset.facts.now:
            before, newest = (np.datetime64(time, "us") for time in (bundle.newest, dataset.facts.now))
            raise LookbackError(
                f"train.start: {model.uri} was trained up to {before}, and the log ends at {newest}, expected newer events; "
                "check events.path, or name an earlier version"
            )
        is_new = bundle.items.encode_known(ids)[0] == 0
        table = content.aligned(ids.filter(pl.Series(is_new)), ingest / "items.parquet")
        return cls(model, new_item_catalogue.extended(bundle, table), dataset)

    @property
    def encoder(self) -> Encoder:
        """Deployed encoder, grown by the new items with content."""
        assert isinstance(self.bundle.recommender, AttentionRecommender), "baselines are an obstacle"
        return self.bundle.recommender.encoder

    @property
    def boundary(self) -> np.datetime64:
        """Time of the newest event that the version has learned from."""
        return np.datetime64(self.bundle.newest, "us")

    @cached_property
    def num_new(self) -> int:
        """Events of the log after the boundary that an update can learn: all but those that begin a history."""
        return int(new_targets(self.known, self.bundle.newest).sum())

    @property
    def nothing_new(self) -> str:
        """Message where there is nothing to learn."""
        return f"nothing is trained: no history goes on after {self.boundary}, up to which {self.model.uri} knows the log"

    @property
    def num_own(self) -> int:
        """Items of the version itself."""
        return len(self.bundle.items) - self.bundle.num_added

    @cached_property
    def _item(self) -> Int32:
        """[num_items + 1] the encoder's number of each item of the log; 0: unknown."""
        return self.bundle.item_mapping(self.dataset.items[schema.ITEM_ID])[0]

    @cached_property
    def known(self) -> Histories:
        """Rows of all users, numbered from 0, up to the newest regular event: later ones are judged, not learned."""
        return Request.of(None, self.dataset.facts.now, timed=True).known(self.dataset.histories)

    def numbering(self, often_enough: Int32) -> ItemNumbering:
        """Numbering of the update's items: the version's that are in the log, and those that occur `often_enough` by now.

        often_enough: [num_items + 1], 0 for items with too few events.
        """
        is_there = self.dataset.occurring(self.known) & (often_enough > 0)
        return ItemNumbering.of_known(is_there | ((self._item > 0) & (self._item <= self.num_own)))

    def initial(self, numbering: ItemNumbering) -> Initial:
        """Weights to start from, by ids: vectors of new items from their content, or else fresh ones."""
        types = self.bundle.type_mapping(self.dataset.event_types)
        return Initial(self.encoder, self._item[numbering.inverse().new], types)

    def content(self, numbering: ItemNumbering) -> ItemContent | None:
        """Content of the update's items in the features that the weights know; None for a model that reads none."""
        items = self.encoder.items
        if items.trained is None:
            return None
        old = numbering.inverse().new
        number = self._item[old]
        was_trained = np.zeros(len(self.bundle.items) + 1, bool)
        was_trained[items.trained.numpy()] = True
        num_categories = 0 if items.categories is None else items.categories.num_embeddings - 1
        occurs: NDArray[np.bool_] = self.dataset.occurring(self.known)[old]
        return ItemContent(
            items.dense.numpy()[number],
            items.category_index.numpy()[number],
            num_categories,
            was_trained[number] | occurs,
        )

    def ranker_items(self, numbering: ItemNumbering) -> Int32:
        """[num_items + 1] the second stage's number of each of the update's items; 0: unknown to it."""
        own: Int32 = np.load(self.bundle.folder / "deployed" / bundle_ranker.OWN)
        number = self._item[numbering.inverse().new]
        return np.where(number <= self.num_own, own[np.minimum(number, self.num_own)], 0).astype(np.int32)

    def write_full(self, bundle: Path) -> None:
        """Write full/ of an update's bundle: the last training from scratch, as far as the gate reads it."""
        source, to = self.bundle.folder, bundle / FULL
        if (source / FULL).exists():
            shutil.copytree(source / FULL, to)
            return
        description = read_description(source, verify=False)
        kept = {name: digest for name, digest in description["files"].items() if _is_of_evaluation(name)}
        for name in kept:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, to / name)
        write_json(to / DESCRIPTION, description | {"files": kept})


def _from_scratch(config: Config) -> str:
    """Command of a training from scratch."""
    return config.command("run", "publish", settings=["train.start=scratch"])


def _is_of_evaluation(name: str) -> bool:
    """Whether the gate reads a file of a bundle."""
    tables: Sequence[str] = ("items.parquet", "users.parquet")
    return name in tables or name.startswith(("evaluated/", f"{bundle_ranker.FOLDER}/"))
