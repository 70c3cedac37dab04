"""Training rows of an update: new events as targets, and older histories against forgetting."""

from dataclasses import replace

import numpy as np

from models.histories import Histories, Int64

HALF_LIVES = 4
"""Half-lives of the chance to be replayed, in the time from the first replayable event to the boundary."""


def new_targets(histories: Histories, since: int) -> Int64:
    """[rows] events after `since`, microseconds, that follow another event of their row."""
    row, position = histories.gather()
    is_new = (histories.time[position] > since) & (position > histories.starts[row])
    return np.bincount(row[is_new], minlength=len(histories))


def with_replay(histories: Histories, since: int, share: float, seed: int) -> tuple[Int64, Histories]:
    """Rows with new targets and replayed ones: their numbers [n], and the rows, copied, with weights of their events.

    Of a row with `new_targets` the events after `since` count; earlier ones have weight 0, they are history alone. For each
    learning row there are share / (1 - share) replays, so that replayed targets are about `share`, in [0, 1), of all: an
    event up to `since` that follows another one is drawn, and counts with those before it, as many as the learning rows have
    new targets on average; a row that learns nothing new ends with it. Events are drawn without replacement in proportion to
    2^(-age / h), their age the time before `since`, h a quarter of the age of the oldest.
    """
    row, position = histories.gather()
    is_new = histories.time[position] > since
    targets = new_targets(histories, since)
    learns, counts, ends = targets > 0, np.zeros(len(histories.time), bool), histories.ends.copy()
    counts[position[is_new]] = True
    older = np.flatnonzero(~is_new & (position > histories.starts[row]))
    number = min(len(older), round(share / (1 - share) * int(learns.sum())))
    if number:
        drawn = older[_by_recency(since - histories.time[position[older]], number, seed)]
        last, of_row = position[drawn], row[drawn]
        for back in range(round(int(targets.sum()) / int(learns.sum()))):
            counts[np.maximum(last - back, histories.starts[of_row] + 1)] = True
        replayed, of_replayed = np.unique(of_row, return_inverse=True)
        cut = np.zeros(len(replayed), np.int64)
        np.maximum.at(cut, of_replayed, last + 1)
        ends[replayed] = np.where(learns[replayed], ends[replayed], cut)
        learns[replayed] = True
    base = np.ones(len(counts), np.float32) if histories.weight is None else histories.weight
    rows = np.flatnonzero(learns)
    weighted = replace(histories, ends=ends, weight=np.where(counts, base, 0).astype(np.float32))
    return rows, weighted.select(rows).compact()


def _by_recency(age: Int64, number: int, seed: int) -> Int64:
    """Numbers [number] of events drawn by their age [events]."""
    chance = np.exp2(-HALF_LIVES * age / max(int(age.max()), 1))
    return np.random.default_rng(seed).choice(len(age), number, replace=False, p=chance / chance.sum())
