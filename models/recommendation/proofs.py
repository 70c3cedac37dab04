"""Proven reasons: small sets of past events without which a recommended item is not in the list.

Letters in shapes: r rows, k places, s = MOST_EVENTS, p pairs of a row and a place, t trials.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.histories import Histories, Int32, Int64, ItemSets
from models.recommendation.answer import Answer, Because
from models.recommendation.rules import Rules
from models.topk import event_chunks

MOST_EVENTS = 3
"""Events of a proof at most."""
_SUBSETS = {2: ((1,),), 3: ((1,), (2,), (0, 2), (1, 2))}
"""Proper subsets of a set of two or three events that are tried after it, by size; those of the first events failed before it."""

Bools = NDArray[np.bool_]
AnswerOf = Callable[..., Answer]
"""(histories, segment=[rows] or None) -> answer by the same engine and rules, without reasons."""


def with_proofs(
    answer: Answer, histories: Histories, rules: Rules, segment: Int64 | None, answer_of: AnswerOf
) -> Answer:
    """The answer with proven reasons: a set of events of the row without which the item is not in the row's list.

    Events are tried in the order of their weights (`Because.events`): the first, the first two, the first three; where none of
    these sets does it, the newest event, the two and the three newest. Then the proper subsets of the set that does it are tried,
    so that no event of a proof can be spared. A trial answers the row without the events as a whole: encoding, retrieval, second
    stage and rules, popular items where no event is left. Where seen items are excluded all items of the whole history stay so,
    lest one of them takes the place. The request stays too: its time, its context, and what was shown before.

    `because` of a proven item is its whole set, an entry per event; of another item it stays. Raises ValueError where places
    are drawn (`Rules.exploration`), since then the list does not follow from the history.
    """
    if rules.exploration.share:
        raise ValueError(
            f"because: received 'proven' with places drawn at random (a share of {rules.exploration.share}), expected lists that "
            "follow from the history: another method, or a share of 0"
        )
    reasons = answer.because
    assert reasons is not None
    assert reasons.events is not None, "the events to try"
    trials = Trials(still_seen(histories) if rules.exclude_seen else histories, segment, answer_of)
    chosen = np.zeros(reasons.events.place.shape, bool)
    for part in event_chunks(histories.lengths * answer.item_index.shape[1]):
        row = np.arange(len(histories))[part]
        chosen[part] = proofs_of(trials, row, answer.item_index[part], reasons.events.place[part])
    return replace(answer, because=_with_sets(reasons, chosen, histories))


@dataclass(frozen=True)
class Trials:
    """Lists of rows without some of their events."""

    histories: Histories
    segment: Int64 | None
    answer_of: AnswerOf

    def leaves(self, row: Int64, item: Int32, place: Int32) -> Bools:
        """[t] whether an item [t] is not in its row's list without the row's events at `place` [t, s], -1: none."""
        if not len(row):
            return np.zeros(0, bool)
        # items of a row share events: each set is answered once
        sets, own = np.unique(np.column_stack([row, np.sort(place, axis=1)]), axis=0, return_inverse=True)
        rows = sets[:, 0]
        segment = None if self.segment is None else self.segment[rows]
        shorter = self.histories.select(rows).without_events(sets[:, 1:].astype(np.int32))
        lists = self.answer_of(shorter, segment=segment).item_index
        return np.asarray((lists[own.reshape(-1)] != item[:, None]).all(1))


def proofs_of(trials: Trials, rows: Int64, items: Int32, place: Int32) -> Bools:
    """Mask [r, k, 2 s] of the proof's events among those at `place` [r, k, 2 s], for items [r, k] of some rows; none: no proof.

    The first s events are tried in their order, then the other s.
    """
    row, column = np.nonzero(items > 0)
    chosen = np.zeros(place.shape, bool)
    for order in (slice(MOST_EVENTS), slice(MOST_EVENTS, None)):
        events = place[row, column, order]
        found = _proofs(trials, rows[row], items[row, column], events)
        chosen[row, column, order] = found
        is_open = ~found.any(1)
        row, column = row[is_open], column[is_open]
    return chosen


def _proofs(trials: Trials, row: Int64, item: Int32, events: Int32) -> Bools:
    """[p, s], events of the proof of an item [p] of a row [p] among its `events` [p, s], -1: none."""

    def leaves(pair: Int64, tried: Bools) -> Bools:
        return trials.leaves(row[pair], item[pair], np.where(tried, events[pair], -1))

    found, left = np.zeros(events.shape, bool), np.arange(len(row))
    for size in range(1, MOST_EVENTS + 1):
        left = left[events[left, size - 1] >= 0]
        tried = np.arange(MOST_EVENTS) < size
        is_gone = leaves(left, np.broadcast_to(tried, (len(left), MOST_EVENTS)))
        found[left[is_gone]] = tried
        left = left[~is_gone]
    pair, smaller = _subsets(found)
    is_gone = leaves(pair, smaller)
    pair, first = np.unique(pair[is_gone], return_index=True)
    found[pair] = smaller[is_gone][first]
    return found


def _subsets(found: Bools) -> tuple[Int64, Bools]:
    """Subsets to try of each set [p, s]: the set's number [t], and the events [t, s], smaller ones first."""
    size = found.sum(1)
    pairs, masks = [np.zeros(0, np.int64)], [np.zeros((0, found.shape[1]), bool)]
    for number, subsets in _SUBSETS.items():
        own = np.flatnonzero(size == number)
        for subset in subsets:
            pairs.append(own)
            masks.append(
                np.broadcast_to(np.isin(np.arange(found.shape[1]), subset), (len(own), found.shape[1]))
            )
    return np.concatenate(pairs), np.concatenate(masks)


def still_seen(histories: Histories) -> Histories:
    """The rows with the items of their histories among those that they leave out."""
    row, position = histories.gather()
    width = int(histories.item_index.max(initial=0)) + 1
    pair = np.unique(row * width + histories.item_index[position])
    seen = ItemSets.of(pair // width, pair % width, len(histories))
    return replace(histories, left_out=seen if histories.left_out is None else histories.left_out.union(seen))


def _with_sets(reasons: Because, chosen: Bools, histories: Histories) -> Because:
    """The reasons with the `chosen` [r, k, 2 s] of their events in the place of those of proven items."""
    assert reasons.events is not None
    strength = np.where(chosen, reasons.events.weight, -np.inf)
    order = np.argsort(-strength, axis=-1, kind="stable")[..., :MOST_EVENTS]
    is_event = np.take_along_axis(chosen, order, -1)
    place, weight = (np.take_along_axis(part, order, -1) for part in reasons.events)
    position = histories.starts[:, None, None] + place
    item = np.zeros(place.shape, np.int32)
    item[is_event] = histories.item_index[position[is_event]]
    is_proven: Bools = np.asarray(chosen.any(-1))
    return Because(
        _merged(is_proven, item, reasons.item_index).astype(np.int32),
        _merged(is_proven, np.where(is_event, weight, 0), reasons.weight).astype(np.float32),
        proven=is_proven,
    )


def _merged(is_first: Bools, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """[r, k, most columns of both], `first` where `is_first` [r, k], else `second`, padded with 0."""
    width = max(first.shape[-1], second.shape[-1])
    wide = (np.pad(part, [(0, 0), (0, 0), (0, width - part.shape[-1])]) for part in (first, second))
    return np.where(is_first[..., None], *wide)
