"""Items that users were shown before requests, from the exposure log of a features folder."""

import numpy as np

from models.histories import Int64, ItemSets, ShownItems, gathered
from models.topk import event_chunks
from pipeline.dataset.dataset import Dataset

DAY = 86_400_000_000
"""Microseconds."""


def shown_before(dataset: Dataset, user: Int64, moment: Int64, days: float) -> ShownItems | None:
    """Items of the catalogue that each user [rows] was shown in the days before a moment [rows]; None without exposures.

    user: -1 for users that are not in the log. moment: microseconds since the epoch, itself left out. An exposure is ignored
    where the event that the features stage joined with it came at the moment or later, or is a dislike.
    """
    log = dataset.exposures
    if log is None or not len(log.time):
        return None
    offsets = np.asarray(log.offsets)
    starts = np.where(user >= 0, offsets[user], 0)
    ends = np.where(user >= 0, offsets[user + 1], 0)
    width, window = dataset.num_items + 1, round(days * DAY)
    dislikes = dataset.histories.dislikes
    pairs, ignored, last = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for part in event_chunks(ends - starts):
        row, position = gathered(starts[part], ends[part])
        row += part.start
        time, item = log.time[position], log.item_index[position]
        counts = (time >= moment[row] - window) & (time < moment[row]) & (item > 0)
        row, position, time, item = row[counts], position[counts], time[counts], item[counts]
        delay = log.reaction_delay[position]
        is_ignored = (delay < 0) | (time + delay >= moment[row])
        if dislikes is not None:
            is_ignored |= dislikes[log.reaction_type[position]] > 0
        pair, own = np.unique(row * width + item, return_inverse=True)
        newest = np.zeros(len(pair), np.int64)
        newest[own] = time  # ascending within a user
        pairs.append(pair)
        ignored.append(np.bincount(own[is_ignored], minlength=len(pair)).astype(np.int32))
        last.append(newest)
    key = np.concatenate(pairs)
    sets = ItemSets.of(key // width, key % width, len(user))
    return ShownItems(sets.item_index, sets.starts, sets.ends, np.concatenate(ignored), np.concatenate(last))
