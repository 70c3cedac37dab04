"""Lists of what users were shown after a request, of which the ranker learns what they took and what they ignored.

Among retrieved candidates what a user was not shown looks unwanted, and what lists showed often looks wanted: selection bias.
Among what a user was shown, only the places differ.
Letters: r requests, n candidates per request, e exposures, s pairs of a request and an item.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.histories import Int32, Int64
from models.ranking.training import Retrieved

Bools = NDArray[np.bool_]
MAX_SHOWN = 100
"""Shown items of a request that the ranker reads at most."""


@dataclass(frozen=True)
class ShownLists:
    """Items that users were shown after their requests, by request and item."""

    request: Int64
    """[s], ascending"""
    item: Int32
    """[s], in the candidates' numbering"""
    is_taken: Bools
    """[s]"""

    @classmethod
    def of(cls, request: Int64, item: Int32, is_taken: Bools) -> "ShownLists":
        """Pairs of exposures [e] of items above 0; an item is taken if any of them is."""
        width = int(item.max(initial=0)) + 1
        keys, pair = np.unique(request * width + item, return_inverse=True)
        taken = np.zeros(len(keys), bool)
        taken[pair[is_taken]] = True
        return cls(keys // width, (keys % width).astype(np.int32), taken)

    def sample(self, most: int, seed: int) -> "ShownLists":
        """At most `most` items of each request: first what was taken, then random ones."""
        chance = np.random.default_rng(seed).random(len(self.request))
        order = np.lexsort((chance, ~self.is_taken, self.request))
        first = np.searchsorted(self.request, self.request)
        kept = np.sort(order[np.arange(len(order)) - first < most])
        return ShownLists(self.request[kept], self.item[kept], self.is_taken[kept])

    def candidates(self, num_requests: int) -> Int32:
        """[r, m] items shown after each request, padded with 0."""
        lengths = np.bincount(self.request, minlength=num_requests)
        items = np.zeros((num_requests, int(lengths.max(initial=0))), np.int32)
        before = np.cumsum(lengths) - lengths
        items[self.request, np.arange(len(self.request)) - before[self.request]] = self.item
        return items

    def learned_from(self, retrieved: Retrieved) -> tuple[Retrieved, int]:
        """Lists to train on, and the number of those at their end that are of what was shown.

        What was shown and taken is compared with what was shown and ignored, where a request has both. What else its user took
        is compared with all other candidates, so a request has one list or two.
        retrieved: lists [r] with the shown items among their candidates.
        """
        is_shown, is_taken = self._cells(retrieved.items)
        is_taken &= retrieved.relevant
        is_ignored = is_shown & ~retrieved.relevant
        teaches = np.asarray(is_taken.any(1) & is_ignored.any(1))
        is_taken &= teaches[:, None]
        is_other = retrieved.relevant & ~is_taken
        others, shown = np.flatnonzero(is_other.any(1) | ~teaches), np.flatnonzero(teaches)
        num_others = retrieved.num_relevant - is_taken.sum(1)
        compared = np.concatenate(
            [((retrieved.items > 0) & ~is_taken)[others], (is_taken | is_ignored)[shown]]
        )
        lists = replace(
            retrieved.select(np.concatenate([others, shown])),
            relevant=np.concatenate([is_other[others], is_taken[shown]]),
            num_relevant=np.concatenate([num_others[others], is_taken.sum(1)[shown]]),
            compared=compared,
        )
        if lists.disliked is not None:
            lists = replace(lists, disliked=np.where(compared, lists.disliked, np.float32(0)))
        return lists, len(shown)

    def _cells(self, items: Int32) -> tuple[Bools, Bools]:
        """[r, n] each: whether a candidate was shown, and whether it was taken."""
        width = max(int(self.item.max(initial=0)), int(items.max(initial=0))) + 1
        keys = self.request * width + self.item
        cells = np.arange(len(items), dtype=np.int64)[:, None] * width + items
        place = np.minimum(np.searchsorted(keys, cells), len(keys) - 1)
        is_shown = (keys[place] == cells) & (items > 0)
        return is_shown, is_shown & self.is_taken[place]
