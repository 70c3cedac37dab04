"""Training rows of an update: new events as targets, and older histories against forgetting."""

from dataclasses import replace

import numpy as np

from models.histories import Histories, Int64

HALF_LIVES = 4
"""Half-lives of the chance to be replayed, in the time from the first event to the boundary."""


def new_targets(histories: Histories, since: int) -> Int64:
    """[rows] events after `since`, microseconds, that follow another event of their row."""
    row, position = histories.gather()
    is_new = (histories.time[position] > since) & (position > histories.starts[row])
    return np.bincount(row[is_new], minlength=len(histories))


def with_replay(histories: Histories, since: int, share: float, seed: int) -> tuple[Int64, Histories]:
    """Rows with new targets and replayed ones: their numbers [n], and the rows, copied, with weights of their events.

    Of a row with `new_targets` the events after `since` count; earlier ones have weight 0, they are history alone. `share` of
    the result, in [0, 1), are rows drawn without replacement among those with two events up to `since`, all of whose events
    count. A row is drawn in proportion to 2^(-age / h), its age the time from its last event up to `since`, h a quarter of
    the time from the first event of all.
    """
    row, position = histories.gather()
    is_new = histories.time > since
    learns = new_targets(histories, since) > 0
    older = np.bincount(row[~is_new[position]], minlength=len(histories))
    candidates = np.flatnonzero(older >= 2)
    number = min(len(candidates), round(share / (1 - share) * int(learns.sum())))
    if number:
        age = since - histories.time[histories.starts[candidates] + older[candidates] - 1]
        span = max(since - int(histories.time[histories.starts[candidates]].min()), 1)
        chance = np.exp2(-HALF_LIVES * age / span)
        random = np.random.default_rng(seed)
        candidates = random.choice(candidates, number, replace=False, p=chance / chance.sum())
    is_replayed = np.zeros(len(histories), bool)
    is_replayed[candidates[:number]] = True
    counts = is_new.copy()
    counts[position[is_replayed[row]]] = True
    base = np.ones(len(counts), np.float32) if histories.weight is None else histories.weight
    rows = np.flatnonzero(learns | is_replayed)
    chosen = replace(histories, weight=np.where(counts, base, 0).astype(np.float32))
    return rows, chosen.select(rows).compact()
