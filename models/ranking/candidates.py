"""Candidates of the second stage: the retriever's best, the user's favourites, and what is popular now.

Letters: r rows (histories), n candidates per row, m added per row.
"""

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Histories, Int32, Int64, Shortlists
from models.ranking.features import HOUR, ItemStatistics
from models.ranking.takings import OwnItems
from models.settings.ranker import RankerSettings


class AddedCandidates:
    """Items that the ranker orders whether or not the retriever finds them.

    They are the row's items of most takings where seen items are allowed, and the items of most events: in turn the best since
    the last full hour at the request, and before it those of each window of recent popularity and of all time. A row's items
    depend on that row and its request alone.
    """

    def __init__(self, settings: RankerSettings, statistics: ItemStatistics) -> None:
        self._settings, self._statistics = settings, statistics
        self._of_hour: dict[int, Int64] = {}
        """Popular items of the whole catalogue in each window before an hour."""

    def of(
        self, histories: Histories, *, exclude_seen: bool, allowed: NDArray[np.bool_] | None = None
    ) -> Int32:
        """[r, m] items to add, padded with 0; some may be retrieved too.

        `exclude_seen`: no favourites, and no popular item of the row's history. Dislikes are seen, and no takings. `allowed`
        [num_items + 1]: mask of items.
        """
        popular = self._of_requests(histories, allowed)
        if not popular.shape[1] and (exclude_seen or not self._settings.favourites):
            return np.zeros((len(histories), 0), np.int32)
        read = histories if exclude_seen else histories.without_dislikes()
        own = OwnItems.of(read, timed=self._statistics.timed)
        if exclude_seen:
            return np.where(own.pairs(popular) < 0, popular, 0).astype(np.int32)
        favourites = own.favourites(self._settings.favourites)
        if allowed is not None:
            favourites = np.where(allowed[favourites], favourites, 0)
        return np.concatenate([favourites, popular], 1, dtype=np.int32)

    def _of_requests(self, histories: Histories, allowed: NDArray[np.bool_] | None) -> Int32:
        """[r, popular], popular items at each row's request."""
        if not self._settings.popular:
            return np.zeros((len(histories), 0), np.int32)
        seconds, row = np.unique(self._statistics.request_seconds(histories), return_inverse=True)
        found = np.zeros((len(seconds), self._settings.popular), np.int32)
        for place, second in enumerate(seconds.tolist()):
            found[place] = self._at(second, allowed)
        return found[row]

    def _at(self, second: int, allowed: NDArray[np.bool_] | None) -> Int32:
        """[popular], items of best place in any window before a second since the epoch, padded with 0."""
        number, hour = self._settings.popular, second // HOUR
        newest = self._statistics.items_between(hour * HOUR, second)
        if allowed is not None:
            windows, newest = self._windows(hour, allowed), newest[allowed[newest]]
        else:
            if hour not in self._of_hour:
                self._of_hour[hour] = self._windows(hour, None)
            windows = self._of_hour[hour]
        places = np.arange(windows.size) // windows.shape[1]
        if len(newest):
            found, counts = np.unique(newest, return_counts=True)
            found = found[np.argsort(-counts, kind="stable")][:number]
            windows = np.concatenate([found, windows.ravel()])
            places = np.concatenate([np.arange(len(found)), places])
            windows = windows[np.argsort(places, kind="stable")]
        turns = windows.ravel()
        items, turn = np.unique(turns[turns > 0], return_index=True)
        popular = items[np.argsort(turn)][:number]
        return np.pad(popular, (0, number - len(popular))).astype(np.int32)

    def _windows(self, hour: int, allowed: NDArray[np.bool_] | None) -> Int64:
        """[popular, windows + 1], items of most events in each window before an hour since the epoch, padded with 0."""
        counts = self._statistics.counts_before(hour)
        if allowed is not None:
            counts = np.where(allowed, counts, 0)
        return np.stack([_most(window, counts[-1], self._settings.popular) for window in counts], 1)


def _most(counts: Int64, total: Int64, number: int) -> Int64:
    """[number], items of most events, padded with 0: among equals those of more events in all, then the lower item."""
    key = counts * (total.max(initial=0) + 1) + total
    key[counts == 0] = 0
    columns = min(number, len(key))
    least = np.partition(key, len(key) - columns)[len(key) - columns]
    items = np.flatnonzero((key >= least) & (key > 0))
    items = items[np.argsort(-key[items], kind="stable")][:number]
    return np.pad(items, (0, number - len(items)))


def joined(
    items: Int32, scores: Float32, added: Int32, added_scores: Float32, num_learned: int
) -> tuple[Int32, Float32]:
    """Retrieved [r, n] and added candidates [r, m] with their scores, two [r, n + m], best first, padded with 0 and -inf.

    Items above `num_learned`, unknown to the retriever, have the row's lowest score. Repeated items, and added ones of score
    -inf, are left out. Equal scores: the lower item first.
    """
    if not added.shape[1]:
        return items, scores
    lowest = lowest_score(scores)
    added_scores = np.where(added > num_learned, lowest, added_scores)
    item = np.concatenate([items, added], 1)
    score = np.concatenate([scores, added_scores], 1)
    order = np.argsort(item, axis=1, kind="stable")
    ordered = np.take_along_axis(item, order, 1)
    is_repeated = np.zeros(item.shape, bool)
    np.put_along_axis(is_repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    is_there = (item > 0) & ~is_repeated & ~np.isneginf(score)
    item, score = np.where(is_there, item, 0), np.where(is_there, score, np.float32(-np.inf))
    order = np.lexsort((item, -score), axis=1)
    return np.take_along_axis(item, order, 1), np.take_along_axis(score, order, 1)


def within_shortlists(added: Int32, shortlist: Shortlists, num_learned: int, most: int) -> Int32:
    """Added candidates [r, m] of limited rows within their shortlists, and beside them what the retriever does not know of those.

    Of the latter, items above `num_learned`, the first `most` of each row. The result is [r, m + …], padded with 0.
    """
    row, item = shortlist.pairs()
    row, item = row[item > num_learned], item[item > num_learned]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    row, item, place = row[place < most], item[place < most], place[place < most]
    unlearned = np.zeros((len(added), int(place.max(initial=-1)) + 1), np.int32)
    unlearned[row, place] = item
    return np.concatenate([np.where(shortlist.permits(added), added, np.int32(0)), unlearned], 1)


def lowest_score(scores: Float32) -> Float32:
    """[r, 1], lowest score of each row [r, n] above -inf; 0 without any."""
    lowest = np.where(np.isneginf(scores), np.float32(np.inf), scores).min(1, keepdims=True, initial=np.inf)
    return np.where(np.isposinf(lowest), np.float32(0), lowest)


def learned_items(items: Int32, num_learned: int) -> Int32:
    """Items 1..num_learned of an array of any shape, 0 for the others."""
    return np.where(items <= num_learned, items, 0).astype(np.int32)


def learned_part(histories: Histories, num_learned: int) -> Histories:
    """The rows without interactions on items above `num_learned`, and without such items in the rows' sets."""
    highest = int(histories.item_index.max(initial=0))
    for sets in (histories.left_out, histories.shown, histories.shortlist):
        highest = max(highest, 0 if sets is None else int(sets.item_index.max(initial=0)))
    if highest <= num_learned:
        return histories
    return histories.compact().translate(learned_items(np.arange(highest + 1, dtype=np.int32), num_learned))


def is_none_of(items: Int32, others: Int32) -> NDArray[np.bool_]:
    """[r, n], whether each item [r, n] is none of its row's others [r, m]."""
    width = max(int(items.max(initial=0)), int(others.max(initial=0))) + 1
    row: Int64 = np.arange(len(items), dtype=np.int64)[:, None] * width
    return np.isin(row + items, row + others, invert=True)
