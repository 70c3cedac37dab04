"""Features of candidates for the second stage: counts and times of events, co-occurrence with the history, content.

Letters: r rows (histories), n candidates of each, f features, l latest interactions, items = num_items + 1, e events.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from models.baselines.co_visitation import CoVisitation
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int32, Int64

SECOND, DAY = 1_000_000, 86_400
"""Microseconds of a second; seconds of a day."""
WINDOWS = (1, 7, 30)
"""Days before the request within which events count as recent."""
LATEST = 10
"""Interactions, the latest ones, whose followers and content count."""
MAX_FOLLOWERS = 100
"""Items that are remembered to follow each item."""
FEATURES = (
    "retrieval_score",
    "retrieval_rank",
    "popularity",
    *(f"popularity_{days}d" for days in WINDOWS),
    "item_age",
    "item_last_seen",
    "content_of_history",
    "content_of_last",
    "times_seen",
    "user_last_seen",
    "history_length",
)
_FILES = ("moments", "latest", "earlier", "first", "before", "follower_key", "follower_weight", "content")
NEVER = -1
"""The second of no event."""


@dataclass(frozen=True)
class ItemStatistics:
    """What the interactions that a retriever learned from say about items, in its numbering.

    Nothing later enters: a request is described by the events up to its own time among these.
    """

    num_items: int
    moments: Int64
    """[e], `item * span + seconds since origin` of every event within the horizon, ascending"""
    latest: Int64
    """[e], seconds since origin of those events, ascending"""
    earlier: Int64
    """[items], events of each before the horizon"""
    first: Int64
    """[items], second of the first event of each, `NEVER` where there is none"""
    before: Int64
    """[items], second of the last event of each before the horizon, `NEVER` where there is none"""
    origin: int
    """Microseconds since the epoch of the first event; 0 where the log has no times."""
    span: int
    """Seconds from the first event to the last, both included."""
    follower_key: Int64
    """[pairs], `item * items + follower`, ascending"""
    follower_weight: Float32
    """[pairs], how often it followed within `LATEST` events, weighted by nearness, per event of the item"""
    content: Float32
    """[items, c], of length 1, zero where nothing is known; c is 0 where no item has any"""
    timed: bool

    @classmethod
    def of(
        cls,
        histories: Histories,
        num_items: int,
        content: Float32 | None = None,
        *,
        timed: bool = True,
        days: float | None = None,
    ) -> "ItemStatistics":
        """Count the interactions of all rows with items 1..num_items; `timed`: their times are a clock's.

        `days`: the horizon, before the last event, within which every event's time is kept; None: all are. What came before it
        counts as having come before any request.
        """
        follows = CoVisitation.fit(histories, num_items, window=LATEST, max_neighbours=MAX_FOLLOWERS).follows
        follows.sort_indices()
        row = np.repeat(np.arange(num_items + 1, dtype=np.int64), np.diff(follows.indptr))
        return cls(
            num_items=num_items,
            follower_key=row * (num_items + 1) + follows.indices,
            follower_weight=follows.data.astype(np.float32),
            content=np.zeros((num_items + 1, 0), np.float32) if content is None else content,
            timed=timed,
            **_moments(histories, num_items, timed=timed, days=days),
        )

    def counted_anew(self, histories: Histories, days: float | None = None) -> "ItemStatistics":
        """The same followers and content with the times and counts of other interactions, in the same numbering."""
        return replace(self, **_moments(histories, self.num_items, timed=self.timed, days=days))

    def features(self, histories: Histories, items: Int32, scores: Float32) -> Float32:
        """[r, n, f]: the `FEATURES` of each row's candidates [r, n], best first, with the retriever's scores [r, n].

        `retrieval_score` is the logarithm of the softmax over the row's candidates, popularity the logarithm of a share of
        events, times are ln(1 + days). A request is at `histories.request_time`, else at the row's last event. Candidate 0 is
        none, and its features mean nothing.
        """
        asked = self._asked(histories)
        per_row = np.stack([self._since_last(histories, asked), np.log1p(histories.lengths)], -1)
        parts = [
            _log_softmax(scores, items > 0)[..., None],
            np.broadcast_to(np.log1p(np.arange(items.shape[1])), items.shape)[..., None],
            self._counts(items, asked),
            self._likeness(histories, items),
            np.log1p(_times_seen(histories, items))[..., None],
            np.broadcast_to(per_row[:, None], (*items.shape, 2)),
        ]
        return np.concatenate(parts, -1, dtype=np.float32)

    def followed(self, histories: Histories, items: Int32) -> Float32:
        """[r, n, LATEST]: how often each candidate followed the row's latest interactions, the last of them first."""
        past = _latest_items(histories, LATEST).astype(np.int64)
        keys = past[:, None, :] * (self.num_items + 1) + items[:, :, None]
        found: Float32 = np.zeros(keys.shape, np.float32)
        if len(self.follower_key):
            place = np.minimum(np.searchsorted(self.follower_key, keys), len(self.follower_key) - 1)
            found[:] = np.where(self.follower_key[place] == keys, self.follower_weight[place], 0)
        return found

    def save(self, folder: Path) -> None:
        """Write an array each into an existing folder."""
        for name in _FILES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        facts = np.array([self.num_items, self.origin, self.span, int(self.timed)], np.int64)
        np.save(folder / "facts.npy", facts, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "ItemStatistics":
        """What `save` wrote."""
        num_items, origin, span, timed = np.load(folder / "facts.npy").tolist()
        parts = {name: np.load(folder / f"{name}.npy") for name in _FILES}
        return cls(num_items=num_items, origin=origin, span=span, timed=bool(timed), **parts)

    def extended(self, content: Float32) -> "ItemStatistics":
        """The same for more items, which nobody has met: `content` [more, c] of those behind the last."""
        num_items = self.num_items + len(content)
        item, follower = np.divmod(self.follower_key, self.num_items + 1)
        none, never = np.zeros(len(content), np.int64), np.full(len(content), NEVER, np.int64)
        return replace(
            self,
            num_items=num_items,
            follower_key=item * (num_items + 1) + follower,
            content=np.concatenate([self.content, content]),
            earlier=np.concatenate([self.earlier, none]),
            first=np.concatenate([self.first, never]),
            before=np.concatenate([self.before, never]),
        )

    def _asked(self, histories: Histories) -> Int64:
        """[r] seconds since origin of each request; by default of the last event."""
        if not self.timed:
            return np.zeros(len(histories), np.int64)
        moment = histories.request_time
        if moment is None:
            last = np.maximum(histories.ends - 1, 0)
            moment = np.where(histories.lengths > 0, histories.time[last], self.origin)
        return np.maximum((moment - self.origin) // SECOND, 0)

    def _since_last(self, histories: Histories, asked: Int64) -> Float64:
        if not self.timed:
            return np.zeros(len(histories))
        last = histories.time[np.maximum(histories.ends - 1, 0)]
        gone = np.where(histories.lengths > 0, asked - (last - self.origin) // SECOND, 0)
        return _log_days(gone)

    def _counts(self, items: Int32, asked: Int64) -> Float64:
        """[r, n, 3 + windows]: popularity in all and within each window, age, time since it was last met.

        Of events before the request; where there are times those of its own second are none, as one may be the target.
        """
        base = items.astype(np.int64) * self.span
        moment = np.minimum(asked, self.span) if self.timed else np.full_like(asked, self.span)
        start, end = (np.searchsorted(self.moments, base + part[:, None]) for part in (0 * moment, moment))
        total = np.searchsorted(self.latest, moment)
        whole = int(self.earlier.sum()) + total
        found = [self._share(end - start + self.earlier[items], whole[:, None])]
        if not self.timed:
            return np.concatenate([found[0][..., None], np.zeros((*items.shape, len(WINDOWS) + 2))], -1)
        for days in WINDOWS:
            since = np.clip(asked - days * DAY, 0, self.span)
            since_place = np.minimum(np.searchsorted(self.moments, base + since[:, None]), end)
            number = total - np.minimum(np.searchsorted(self.latest, since), total)
            found.append(self._share(end - since_place, number[:, None]))
        known = self.moments[np.clip(end - 1, 0, None)] - base if len(self.moments) else base
        last = np.where(end > start, known, self.before[items])
        met = (self.first[items] != NEVER) & (self.first[items] < asked[:, None])
        ages = [_log_days(asked[:, None] - np.where(met, each, 0)) for each in (self.first[items], last)]
        return np.stack([*found, *ages], -1)

    def _share(self, count: NDArray[np.integer], total: NDArray[np.integer]) -> Float64:
        """Logarithm of the share of events, every item having a tenth of an event more."""
        found: Float64 = np.log((count + 0.1) / (np.maximum(total, 0) + 0.1 * self.num_items))
        return found

    def _likeness(self, histories: Histories, items: Int32) -> Float32:
        """[r, n, 2]: cosine of each candidate's content with the mean of the row's latest items' and with the last's."""
        if not self.content.shape[1]:
            return np.zeros((*items.shape, 2), np.float32)
        past = self.content[_latest_items(histories, LATEST)]
        mean = past.mean(1)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
        both = np.stack([mean, past[:, 0]], -1)
        found: Float32 = self.content[items] @ both
        return found


class _Moments(TypedDict):
    """Fields of `ItemStatistics` that count events in time."""

    moments: Int64
    latest: Int64
    earlier: Int64
    first: Int64
    before: Int64
    origin: int
    span: int


def _moments(histories: Histories, num_items: int, *, timed: bool, days: float | None) -> _Moments:
    _, position = histories.gather()
    position = position[histories.item_index[position] > 0]
    item = histories.item_index[position].astype(np.int64)
    time = histories.time[position] if timed else np.zeros(len(position), np.int64)
    origin = int(time.min()) if len(time) else 0
    second = (time - origin) // SECOND
    span = int(second.max(initial=0)) + 1
    first, before = (np.full(num_items + 1, NEVER, np.int64) for _ in range(2))
    order = np.lexsort((-second, item))
    first[item[order]] = second[order]
    recent = second >= (0 if days is None else span - 1 - days * DAY)
    old = np.flatnonzero(~recent)
    np.maximum.at(before, item[old], second[old])
    return {
        "moments": np.sort(item[recent] * span + second[recent]),
        "latest": np.sort(second[recent]),
        "earlier": np.bincount(item[old], minlength=num_items + 1).astype(np.int64),
        "first": first,
        "before": before,
        "origin": origin,
        "span": span,
    }


def _latest_items(histories: Histories, number: int) -> Int32:
    """[r, number]: the row's latest items, the last one first, 0 where there are fewer."""
    position = histories.ends[:, None] - 1 - np.arange(number)
    there = position >= histories.starts[:, None]
    if not len(histories.item_index):
        return np.zeros(position.shape, np.int32)
    found: Int32 = np.where(there, histories.item_index[np.maximum(position, 0)], 0).astype(np.int32)
    return found


def _times_seen(histories: Histories, items: Int32) -> Int64:
    """[r, n]: how often each candidate is in its row's history."""
    row, position = histories.gather()
    width = max(int(items.max(initial=0)), int(histories.item_index[position].max(initial=0))) + 1
    seen, times = np.unique(row * width + histories.item_index[position], return_counts=True)
    keys = np.arange(len(items), dtype=np.int64)[:, None] * width + items
    if not len(seen):
        return np.zeros(items.shape, np.int64)
    place = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
    found: Int64 = np.where(seen[place] == keys, times[place], 0)
    return found


def _log_softmax(scores: Float32, there: NDArray[np.bool_]) -> Float64:
    found = np.where(there, scores.astype(np.float64), -np.inf)
    top = np.where(there.any(1), found.max(1), 0.0)[:, None]
    total = np.exp(found - top).sum(1, keepdims=True)
    return np.where(there, found - top - np.log(np.maximum(total, 1e-300)), 0.0)


def _log_days(seconds: NDArray[np.integer]) -> Float64:
    found: Float64 = np.log1p(np.maximum(seconds, 0) / DAY)
    return found
