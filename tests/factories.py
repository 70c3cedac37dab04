"""Objects that tests of several packages need."""

from collections.abc import Sequence

import numpy as np

from features.histories.jagged import JaggedHistories

Rows = Sequence[Sequence[tuple[int, int]]]
"""(time, item) of each user's events."""


def jagged(rows: Rows) -> JaggedHistories:
    """Histories of one event type without values."""
    flat = [event for row in rows for event in row]
    time, item = np.array(flat, np.int64).reshape(-1, 2).T.copy()
    return JaggedHistories(
        np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        item.astype(np.int32),
        time,
        np.zeros(len(item), np.int16),
        np.full(len(item), np.nan, np.float32),
    )
