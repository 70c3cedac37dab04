"""Features of what a user was shown before the request: how often without a reaction, and how long ago.

Letters: r rows (histories), n candidates per row.
"""

import numpy as np

from models.evaluation.metrics import Float64
from models.histories import Int32, Int64, ShownItems

SHOWN_DAYS = 14.0
"""Days before the request in which exposures count."""
SHOWN_FEATURES = ("times_ignored", "last_shown")
"""Features of rankers that learned from nights with exposures."""
_DAY = 86_400_000_000
"""Microseconds."""


def shown_features(shown: ShownItems | None, items: Int32, request: Int64) -> dict[str, Float64]:
    """`SHOWN_FEATURES` [r, n] of candidates [r, n]: ln(1 + times without a reaction), ln(1 + days since it was shown last).

    request: [r], microseconds since the epoch. Items that were not shown, and all where shown is None: as if shown last before
    `SHOWN_DAYS`.
    """
    times, days = np.zeros(items.shape), np.full(items.shape, SHOWN_DAYS)
    if shown is not None and len(shown.item_index):
        row, item = shown.pairs()
        width = max(int(item.max(initial=0)), int(items.max(initial=0))) + 1
        keys = row * width + item
        own = np.arange(len(items), dtype=np.int64)[:, None] * width + items
        place = np.minimum(np.searchsorted(keys, own), max(len(keys) - 1, 0))
        is_shown = (keys[place] == own) & (items > 0) if len(keys) else np.zeros(items.shape, bool)
        position = (shown.starts[row] + np.arange(len(row)) - np.searchsorted(row, row))[place[is_shown]]
        times[is_shown] = shown.ignored[position]
        moment = np.broadcast_to(request[:, None], items.shape)[is_shown]
        days[is_shown] = np.clip((moment - shown.last[position]) / _DAY, 0, SHOWN_DAYS)
    return {"times_ignored": np.log1p(times), "last_shown": np.log1p(days)}
