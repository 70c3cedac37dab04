"""Learned effect of a feature: the mean probability of delivered items, had it had another value (Friedman 2001, 8.2)."""

from dataclasses import replace

import numpy as np

from models.evaluation.metrics import Float64
from models.histories import ItemSets, ShownItems
from models.ranking.calibration import Calibration
from models.ranking.ranker import SecondStage
from models.ranking.training import K, Retrieved

MAX_TIMES = 5
"""Maximum times shown."""
MAX_LISTS = 250
"""Lists read; means over their first `K` candidates."""
DAY = 86_400_000_000
"""Microseconds."""


def by_times_shown(stage: SecondStage, retrieved: Retrieved, calibration: Calibration) -> Float64:
    """[MAX_TIMES + 1], mean probability of the first `K` candidates, had each been shown 0, 1, 2 … times without a reaction.

    The last time is a day before the request. Of the lists `MAX_LISTS` at most are read, evenly spread.
    """
    chosen = np.unique(np.linspace(0, len(retrieved) - 1, min(MAX_LISTS, len(retrieved))).astype(np.int64))
    lists = retrieved.select(chosen)
    request = lists.histories.request_time
    assert request is not None, "requests of nights have a time"
    row, column = np.nonzero(lists.items)
    order = np.lexsort((lists.items[row, column], row))
    row, item = row[order], lists.items[row, column][order]
    sets = ItemSets.of(row, item, len(lists))
    is_first = lists.items[:, :K] > 0
    means = []
    for times in range(MAX_TIMES + 1):
        ignored, last = np.full(len(item), times, np.int32), request[row] - DAY
        shown = ShownItems(sets.item_index, sets.starts, sets.ends, ignored, last) if times else None
        scores = stage.score(replace(lists.histories, shown=shown), lists.items, lists.scores)
        means.append(calibration(scores[:, :K][is_first]).mean(dtype=np.float64))
    return np.array(means)
