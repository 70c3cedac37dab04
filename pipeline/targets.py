"""The targets a model is judged on: the held-out events that it can rank, and why the others cannot be."""

from dataclasses import dataclass

import numpy as np

from features.histories import JaggedHistories
from features.splits import Split
from models.recommender import Histories, Int32, Int64
from models.topk import contains
from pipeline import histories as rows


@dataclass(frozen=True)
class RankedTargets:
    """Held-out targets in a model's own items, a row each, by user and position."""

    histories: Histories
    """What the model may look at; no row is empty."""
    item: Int32
    """[targets], 1..num_items of the model"""
    user: Int64
    """[targets], user index"""
    position: Int64
    """[targets], flat position of the event in the features folder"""
    left_out: dict[str, int]
    """Held-out events that are no targets, by reason."""

    def __len__(self) -> int:
        return len(self.item)


def ranked_targets(
    histories: JaggedHistories, split: Split, part: str, mapping: Int32, *, ties: str, exclude_seen: bool
) -> RankedTargets:
    """The events of the `validation` or `test` part that can be ranked.

    Every other one is counted under the first reason that applies.

    `mapping` [num_items + 1]: item of the features folder -> the model's, 0 where it knows none. Reasons: `under_core`
    (the user, or an item that was there to train on, is under the core filter), `unknown_item` (the model knows no such
    item), `no_history` (nothing that the model knows comes before), `already_seen` (in it, with `exclude_seen`).
    """
    candidates = rows.held_out(histories, split, part, ties)
    item, looked_at = mapping[candidates.item], candidates.histories.translate(mapping)
    below = ~split.kept_item & _trained(histories, split)
    reasons = {
        "under_core": below[candidates.item],
        "unknown_item": item == 0,
        "no_history": looked_at.lengths == 0,
        "already_seen": contains(looked_at, item) & exclude_seen,
    }
    left_out = {"under_core": split.num_events(histories)[part] - len(candidates)}
    kept = np.ones(len(candidates), bool)
    for reason, applies in reasons.items():
        left_out[reason] = left_out.get(reason, 0) + int((kept & applies).sum())
        kept &= ~applies
    chosen = candidates.select(kept)
    return RankedTargets(looked_at.select(kept), item[kept], chosen.user, chosen.position, left_out)


def _trained(histories: JaggedHistories, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[num_items + 1]: whether any user has a training event on the item."""
    _, positions = rows.rows(histories, histories.offsets[:-1], split.train_end).gather()
    trained = np.zeros(len(split.kept_item), bool)
    trained[histories.item_index[positions]] = True
    return trained
