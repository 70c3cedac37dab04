"""Ranker files of a bundle."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features import schema
from models import checkpoint
from models.histories import Float32, Histories, Int32
from models.ranking.calibration import Calibration
from models.ranking.columns import ColumnTables
from models.ranking.features import ItemStatistics
from models.ranking.ranker import SecondStage
from models.ranking.shown import SHOWN_FEATURES
from pipeline.artifacts.files import read_json
from pipeline.dataset.dataset import Dataset
from pipeline.modelling import ranker_columns
from pipeline.modelling.second_stage import DESCRIPTION

FOLDER, STATISTICS, OWN = "ranker", "statistics", "ranker_items.npy"
"""Folder of the ranker in a bundle; item statistics, and the ranker's item numbers, in the folders of the encoders."""
HORIZON_DAYS = 90.0
"""Days before the last event whose event times the item statistics keep; earlier events are only counted."""


def write(folder: Path, rank: Path) -> None:
    """Copy the ranker and its calibration from an artifact of stage rank into a folder of a bundle."""
    folder.mkdir()
    for name in (checkpoint.RANKER_WEIGHTS, checkpoint.RANKER_CONFIG, DESCRIPTION, ranker_columns.FILE):
        if (rank / name).exists() or name != ranker_columns.FILE:
            shutil.copyfile(rank / name, folder / name)


def write_statistics(
    folder: Path, statistics: ItemStatistics, own: Int32, columns: ColumnTables | None = None
) -> None:
    """Write the ranker's statistics, columns and numbers of an encoder's items into the encoder's folder."""
    (folder / STATISTICS).mkdir()
    statistics.save(folder / STATISTICS)
    np.save(folder / OWN, own, allow_pickle=False)
    if columns is not None:
        columns.save(folder)


def of_bundle(bundle: Path, which: str, device: str | torch.device = "cpu") -> SecondStage | None:
    """Open the second stage of the `deployed` or `evaluated` encoder of a bundle; None where there is none."""
    if not (bundle / FOLDER).exists():
        return None
    ranker = checkpoint.load_ranker(bundle / FOLDER, device)
    encoder = bundle / which
    columns = None if ranker.columns is None else ColumnTables.load(encoder)
    return SecondStage(ranker, ItemStatistics.load(encoder / STATISTICS), np.load(encoder / OWN), columns)


def reading_log(
    stage: SecondStage | None, bundle: Path, ingest: Path, dataset: Dataset, items: pl.Series
) -> SecondStage | None:
    """The second stage with columns of a later log's tables and events, of its users and of items at 1..."""
    if stage is None or stage.columns is None:
        return stage
    columns = ranker_columns.RankerColumns.load(bundle / FOLDER)
    tables = columns.tables(ingest, dataset.users[schema.USER_ID], items)
    return stage.reading(replace(tables, events=columns.of_log(stage.columns.events, dataset)))


def reading_events(stage: SecondStage | None, bundle: Path, dataset: Dataset) -> SecondStage | None:
    """The second stage with the columns of another log's events, and its own tables of users and items."""
    if stage is None or stage.columns is None:
        return stage
    columns = ranker_columns.RankerColumns.load(bundle / FOLDER)
    return stage.reading(replace(stage.columns, events=columns.of_log(stage.columns.events, dataset)))


def unseen_values(bundle: Path, stage: SecondStage | None, requests: Histories) -> dict[str, tuple[int, int]]:
    """Rare or unseen values and all values of each column that a bundle's ranker reads, in tonight's tables and requests."""
    if stage is None or stage.columns is None:
        return {}
    return ranker_columns.RankerColumns.load(bundle / FOLDER).unseen(stage.columns, requests)


def ranks_unlearned(bundle: Path, description: Mapping[str, Any]) -> bool:
    """Whether a bundle's second stage orders items unknown to the encoder, which it learns from lists of nights."""
    return (bundle / FOLDER).exists() and bool(description.get("horizon_days"))


def reads_exposures(stage: SecondStage | None) -> bool:
    """Whether a ranker reads what users were shown."""
    return stage is not None and not set(SHOWN_FEATURES).isdisjoint(stage.ranker.features)


def calibration_of(bundle: Path) -> Calibration:
    """Calibration of the ranker's scores to probabilities."""
    return Calibration.of_dict(read_json(bundle / FOLDER / DESCRIPTION)["calibration"])


def probability_at(calibration: Calibration, stage: SecondStage, time: int) -> Callable[[Float32], Float32]:
    """Function from score to probability, at the activity before a time (microseconds since the epoch)."""
    (activity,) = stage.statistics.activity(np.array([time]), calibration.days)
    return partial(calibration, activity=float(activity))
