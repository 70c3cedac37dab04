"""What users were shown after the requests of a part of the split, and took or ignored."""

import numpy as np
from numpy.typing import NDArray

from features.histories.exposures import JaggedExposures
from models.histories import Int32, Int64, gathered
from models.ranking.shown_lists import ShownLists
from models.topk import event_chunks
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_lists import is_taken
from pipeline.dataset.targets import RankedTargets


def shown_after(
    dataset: Dataset, targets: RankedTargets, numbering: Int32, horizon: int
) -> ShownLists | None:
    """Items that the users of requests were shown and took or ignored; None where nothing was shown.

    At nights all exposures within `horizon` (microseconds) count, but those with a reaction after it. Without a horizon a
    request is an event: the list counts of which it is the reaction, without what else was taken of it. Items that the
    candidates' numbering lacks are left out. numbering: [num_items + 1], items of the dataset -> the candidates'.
    """
    log = dataset.exposures
    if log is None or not len(log.time):
        return None
    offsets = np.asarray(log.offsets)
    starts, ends = offsets[targets.user], offsets[targets.user + 1]
    rows, chosen = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in event_chunks(ends - starts):
        row, position = gathered(starts[part], ends[part])
        row += part.start
        if horizon:
            counts = _within(log, position, targets.moment[row], horizon)
        else:
            is_target = numbering[log.item_index[position]] == targets.item[row]
            is_target &= log.time[position] + log.reaction_delay[position] == targets.moment[row]
            counts = _of_lists(log, row, position, is_target, is_taken(log, position, dataset))
        rows.append(row[counts])
        chosen.append(position[counts])
    row, position = np.concatenate(rows), np.concatenate(chosen)
    item = numbering[log.item_index[position]]
    row, position, item = row[item > 0], position[item > 0], item[item > 0]
    if not len(row):
        return None
    return ShownLists.of(row, item, is_taken(log, position, dataset))


def _within(log: JaggedExposures, position: Int64, moment: Int64, horizon: int) -> NDArray[np.bool_]:
    """[e], whether exposures and their reactions, if any, lie within the horizon after a moment [e]."""
    time, delay = log.time[position], log.reaction_delay[position]
    reacted = time + np.maximum(delay, 0)
    return np.asarray((time >= moment) & (reacted < moment + horizon))


def _of_lists(
    log: JaggedExposures, row: Int64, position: Int64, is_target: NDArray[np.bool_], taken: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """[e], whether exposures are targets of their requests, or not taken and in the same list as one.

    row, position: [e], request and flat position of each exposure.
    """
    keys, is_answer = row * len(log.time) + log.list_start[position], is_target & taken
    return np.asarray(np.isin(keys, keys[is_answer]) & (is_answer | ~taken))
