"""Baseline of a bundle: its files, its settings, and its counts taken anew from a log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import content
from features.histories.vocabulary import Vocabulary
from models.baselines.base import Baseline
from models.baselines.popularity import Popularity
from models.histories import Histories, Int64
from pipeline.dataset.dataset import Dataset
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.modelling.recommenders import kind_of

SYSTEM, SETTINGS = "system", "system_settings"
"""Keys of bundle.json: name of the published system, and with a baseline the settings that it is fitted with."""


def baseline_of(description: Mapping[str, Any]) -> str | None:
    """Published baseline of a bundle; None: the model is published."""
    return description[SYSTEM] if SETTINGS in description else None


def is_counted(description: Mapping[str, Any]) -> bool:
    """Whether the published system is a baseline that counts events, anew at every scoring."""
    name = baseline_of(description)
    return name is not None and kind_of(name).moves


def load(folder: Path, description: Mapping[str, Any]) -> Baseline:
    """Open the baseline in a folder of a bundle. Raises DamagedArtifact for files of another."""
    try:
        return kind_of(description[SYSTEM]).load(folder)
    except ValueError as error:
        raise DamagedArtifact(f"{error}; publish again with --force") from None


def counted(description: Mapping[str, Any], histories: Histories, num_items: int) -> Baseline:
    """Counting baseline of a bundle on the events of a log, in items 1..num_items, with the published settings."""
    return kind_of(description[SYSTEM]).fit(histories, num_items, description[SETTINGS])


def reads_history(system: Baseline) -> bool:
    """Whether the scores depend on the history."""
    return not isinstance(system, Popularity)


def check_ids(description: Mapping[str, Any], known: pl.Series, dataset: Dataset) -> None:
    """Check that a log still has item ids of the bundle's baseline (`known`), of whichever type.

    Raises LookbackError where no id is known.
    """
    if baseline_of(description) is None:
        return
    ids = dataset.items["item_id"]
    if len(ids) and not ids.cast(pl.String).is_in(known.cast(pl.String).implode()).any():
        raise LookbackError(
            f"{description[SYSTEM]}, the published baseline, has {known.dtype} item ids such as {_examples(known)}, but the "
            f"log now has {ids.dtype} ids such as {_examples(ids)}: its ids have changed; publish again with "
            "`lookback run publish --config …`, or give the log its former ids"
        )


def _examples(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.head(3)))


def new_items(
    description: Mapping[str, Any], known: pl.Series, dataset: Dataset, ends: Int64, items: Path
) -> tuple[pl.DataFrame, Int64]:
    """(item_id and content, events) of items that a log counts and a bundle doesn't know, by id.

    They have as many events before `ends` [num_users] as `history.min_item_events` of the bundle asks for, at least one.
    """
    counts = dataset.histories.item_counts(dataset.num_items, ends)[1:]
    fewest = max(1, int(description["settings"]["history"]["min_item_events"]))
    ids = dataset.items["item_id"]
    is_new = (counts >= fewest) & (Vocabulary(known, 1).encode_known(ids)[0] == 0)
    chosen = np.flatnonzero(is_new)
    return content.aligned(ids.gather(chosen), items), counts[chosen]
