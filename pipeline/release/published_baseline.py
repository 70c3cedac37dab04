"""Baseline that is published: fitted on the evaluated model's training events, and on all."""

import shutil
from pathlib import Path

import numpy as np

from features.histories.numbering import ItemNumbering
from models.histories import Histories, Int32
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.modelling.recommenders import Settings, fixed_settings, kind_of
from pipeline.serving.request import Request


def write(
    config: Config,
    dataset: Dataset,
    training: Histories,
    evaluated: ItemNumbering,
    name: str,
    tuned: Settings,
    bundle: Path,
) -> tuple[ItemNumbering, dict[str, float | int]]:
    """Write evaluated/ and deployed/ of a bundle; returns the deployed numbering and the settings of `fit`.

    training: the evaluated model's training rows. tuned: settings that validation chose. The deployed one knows no event after
    the newest regular one; unless `train.refit` it is the evaluated one.
    """
    kind = kind_of(name)
    settings = {**tuned, **fixed_settings(config, name)}
    kind.fit(training.translate(evaluated.new), evaluated.num_items, settings).save(bundle / "evaluated")
    if not config.train.refit:
        shutil.copytree(bundle / "evaluated", bundle / "deployed", dirs_exist_ok=True)
        return evaluated, settings
    request = Request.of(None, dataset.facts.now, timed=True)
    everything = request.known(dataset.histories).translate(often_enough(config, dataset))
    numbering = ItemNumbering.of_known(dataset.occurring(everything) | evaluated.known)
    everything = everything.translate(numbering.new)
    kind.fit(everything, numbering.num_items, settings).save(bundle / "deployed")
    return numbering, settings


def often_enough(config: Config, dataset: Dataset) -> Int32:
    """[num_items + 1] each item that has `history.min_item_events` in the log, 0 for others."""
    counts = np.bincount(dataset.histories.item_index, minlength=dataset.num_items + 1)
    is_kept = counts >= config.history.min_item_events
    return np.where(is_kept, np.arange(len(counts)), 0).astype(np.int32)
