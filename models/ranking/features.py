"""Candidate features of the second stage: counts and times of events, co-occurrence with the history, content.

Letters: r rows (histories), n candidates per row, f features, l latest interactions, items = num_items + 1, e events.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from models.baselines.co_visitation import CoVisitation
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.shown import SHOWN_FEATURES, shown_features
from models.ranking.takings import DAY, OWN_FEATURES, SECOND, OwnItems, own_features

WINDOWS = (1, 7, 30)
"""Windows of recent popularity, in days before the request."""
HOUR = 3_600
"""Seconds."""
LATEST = 10
"""Number of latest interactions whose followers and content count."""
MAX_FOLLOWERS = 100
"""Maximum number of followers kept per item."""
FORMER_FEATURES = (
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
"""Features of rankers saved by version 0.7 or before."""
FEATURES = (*FORMER_FEATURES, *OWN_FEATURES)
DISLIKE_FEATURES = ("times_disliked", "content_of_disliked")
"""Features of rankers of logs with dislikes."""
_FILES = ("moments", "latest", "earlier", "first", "before", "follower_key", "follower_weight", "content")
_BEGAN = "began"
"""File that bundles of version 0.7 or before lack."""
_COUNTED = ("popularity", *(f"popularity_{days}d" for days in WINDOWS), "item_age", "item_last_seen")
_CONTENT = ("content_of_history", "content_of_last")
NEVER = -1
"""Second of a missing event."""


@dataclass(frozen=True)
class ItemStatistics:
    """Item statistics of the retriever's training interactions, in its numbering.

    A request uses the events up to its own time among these, and nothing later.
    """

    num_items: int
    moments: Int64
    """[e], `item * span + seconds since origin` of every event within the horizon, ascending"""
    latest: Int64
    """[e], seconds since origin of the events within the horizon, ascending"""
    earlier: Int64
    """[items], number of events before the horizon"""
    first: Int64
    """[items], second of the first event, or `NEVER`"""
    before: Int64
    """[items], second of the last event before the horizon, or `NEVER`"""
    origin: int
    """Time of the first event, in microseconds since the epoch; 0 for a log without times."""
    span: int
    """Seconds from the first event to the last, both included."""
    follower_key: Int64
    """[pairs], `item * items + follower`, ascending"""
    follower_weight: Float32
    """[pairs], followings within `LATEST` events, decayed by distance, per event of the item"""
    content: Float32
    """[items, c], unit vectors, zero without content; c is 0 where no item has any"""
    timed: bool
    """Whether times are real ones, not positions."""
    began: Int64
    """[users], second of each user's first event, ascending"""

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
        """Count the interactions of all rows with items 1..num_items, without dislikes.

        `days`: horizon before the last event, within which every event's time is kept; None: all. Events before it count as
        earlier than any request.
        """
        histories = histories.without_dislikes()
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

    def recounted(self, histories: Histories, days: float | None = None) -> "ItemStatistics":
        """Replace times and counts by those of other interactions in the same numbering; followers and content stay."""
        return replace(
            self, **_moments(histories.without_dislikes(), self.num_items, timed=self.timed, days=days)
        )

    def features(
        self, histories: Histories, items: Int32, scores: Float32, names: tuple[str, ...] = FEATURES
    ) -> Float32:
        """Features `names` [r, n, f] of each row's candidates [r, n], best first, with the retriever's scores [r, n].

        `retrieval_score` is the log-softmax over the row's candidates, popularity the logarithm of a share of events, times are
        ln(1 + days); `user_last_seen` is of the user's last event on any item. `OWN_FEATURES`: as `own_features`;
        `SHOWN_FEATURES`: as `shown_features`. Dislikes are no events here, but in `DISLIKE_FEATURES`: ln(1 + dislikes of the
        candidate), and the likeness of its content to the row's `LATEST` disliked items. A request is at
        `histories.request_time`, else at the row's last event. Candidate 0 is padding, with undefined features.
        """
        request, moment = self._request_seconds(histories), self._request(histories)
        disliked, histories = histories.only_dislikes(), histories.without_dislikes()
        own = OwnItems.of(histories, timed=self.timed)
        pairs = own.pairs(items)
        columns = {
            "retrieval_score": _log_softmax(scores, items > 0),
            "retrieval_rank": np.broadcast_to(np.log1p(np.arange(items.shape[1])), items.shape),
            "times_seen": np.log1p(own.times_seen(pairs)),
            "user_last_seen": np.broadcast_to(self._since_last(histories, request)[:, None], items.shape),
            "history_length": np.broadcast_to(np.log1p(histories.lengths)[:, None], items.shape),
        }
        columns |= dict(zip(_COUNTED, np.moveaxis(self._counts(items, request), -1, 0), strict=True))
        columns |= dict(zip(_CONTENT, np.moveaxis(self._likeness(histories, items), -1, 0), strict=True))
        if not set(OWN_FEATURES).isdisjoint(names):
            columns |= own_features(histories, own, pairs, moment if self.timed else None)
        if not set(DISLIKE_FEATURES).isdisjoint(names):
            of_dislikes = OwnItems.of(disliked, timed=False)
            columns["times_disliked"] = np.log1p(of_dislikes.times_seen(of_dislikes.pairs(items)))
            columns["content_of_disliked"] = self._likeness(disliked, items)[..., 0]
        if not set(SHOWN_FEATURES).isdisjoint(names):
            columns |= shown_features(histories.shown, items, moment)
        return np.stack([columns[name] for name in names], -1, dtype=np.float32)

    def followed(self, histories: Histories, items: Int32) -> Float32:
        """Follower weights [r, n, LATEST] of each candidate after the row's latest interactions, the last one first."""
        past = _latest_items(histories, LATEST).astype(np.int64)
        keys = past[:, None, :] * (self.num_items + 1) + items[:, :, None]
        if not len(self.follower_key):
            return np.zeros(keys.shape, np.float32)
        place = np.minimum(np.searchsorted(self.follower_key, keys), len(self.follower_key) - 1)
        return np.where(self.follower_key[place] == keys, self.follower_weight[place], np.float32(0))

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into an existing folder."""
        for name in (*_FILES, _BEGAN):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        facts = np.array([self.num_items, self.origin, self.span, int(self.timed)], np.int64)
        np.save(folder / "facts.npy", facts, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "ItemStatistics":
        """Load saved statistics."""
        num_items, origin, span, timed = np.load(folder / "facts.npy").tolist()
        parts = {name: np.load(folder / f"{name}.npy") for name in _FILES}
        path = folder / f"{_BEGAN}.npy"
        began = np.load(path) if path.exists() else np.zeros(0, np.int64)
        return cls(num_items=num_items, origin=origin, span=span, timed=bool(timed), began=began, **parts)

    def extended(self, content: Float32) -> "ItemStatistics":
        """Append items without events after the last, with `content` [more, c]."""
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

    def request_seconds(self, histories: Histories) -> Int64:
        """[r], full seconds from the epoch to each request; 0 without times."""
        if not self.timed:
            return np.zeros(len(histories), np.int64)
        return self._request(histories) // SECOND

    def items_between(self, start: int, end: int) -> Int64:
        """Items of the events from second `start` since the epoch to before `end`, the earliest first; none without times."""
        if not self.timed:
            return np.zeros(0, np.int64)
        origin = -(-self.origin // SECOND)
        return self._item_by_time[slice(*np.searchsorted(self.latest, (start - origin, end - origin)))]

    def activity(self, moment: Int64, days: float) -> Float64:
        """[r], events in the days before each moment (microseconds since the epoch) per user with an event before it.

        0 without times or users.
        """
        if not self.timed:
            return np.zeros(len(moment))
        second = (moment - self.origin) // SECOND
        events = np.searchsorted(self.latest, second) - np.searchsorted(self.latest, second - days * DAY)
        return np.asarray(events / np.maximum(np.searchsorted(self.began, second), 1) * (len(self.began) > 0))

    def counts_before(self, hour: int) -> Int64:
        """[windows + 1, num_items + 1], events of each item before an hour since the epoch: within each window, and all.

        Without times: all events alone, [1, num_items + 1].
        """
        base = np.arange(self.num_items + 1, dtype=np.int64) * self.span
        second = hour * HOUR - self.origin // SECOND if self.timed else self.span
        starts = [second - days * DAY for days in WINDOWS] if self.timed else []
        start, end, *since = (
            np.searchsorted(self.moments, base + min(max(part, 0), self.span))
            for part in (0, second, *starts)
        )
        return np.stack([*(end - part for part in since), end - start + self.earlier])

    @cached_property
    def _item_by_time(self) -> Int64:
        """[e], items of `latest`."""
        item, second = np.divmod(self.moments, self.span)
        return item[np.argsort(second, kind="stable")]

    def _request_seconds(self, histories: Histories) -> Int64:
        """[r], seconds from origin to each request; by default to the last event."""
        if not self.timed:
            return np.zeros(len(histories), np.int64)
        return np.maximum((self._request(histories) - self.origin) // SECOND, 0)

    def _request(self, histories: Histories) -> Int64:
        """[r], time of each request in microseconds since the epoch; by default of the last event."""
        if histories.request_time is not None:
            return histories.request_time
        if not len(histories.time):
            return np.full(len(histories), self.origin)
        last = np.maximum(histories.ends - 1, 0)
        return np.where(histories.lengths > 0, histories.time[last], self.origin)

    def _since_last(self, histories: Histories, request: Int64) -> Float64:
        if not self.timed:
            return np.zeros(len(histories))
        if not len(histories.time):
            return np.zeros(len(histories))
        last = histories.time[np.maximum(histories.ends - 1, 0)]
        return _log_days(np.where(histories.lengths > 0, request - (last - self.origin) // SECOND, 0))

    def _counts(self, items: Int32, request: Int64) -> Float64:
        """[r, n, 3 + windows]: popularity overall and within each window, age, time since the item's last event.

        Counts events before the request; with times, not those of its own second, since one may be the target.
        """
        base = items.astype(np.int64) * self.span
        moment = np.minimum(request, self.span) if self.timed else np.full_like(request, self.span)
        start, end = (np.searchsorted(self.moments, base + part[:, None]) for part in (0 * moment, moment))
        total = np.searchsorted(self.latest, moment)
        whole = int(self.earlier.sum()) + total
        shares = [self._share(end - start + self.earlier[items], whole[:, None])]
        if not self.timed:
            return np.concatenate([shares[0][..., None], np.zeros((*items.shape, len(WINDOWS) + 2))], -1)
        for days in WINDOWS:
            since = np.clip(request - days * DAY, 0, self.span)
            since_place = np.minimum(np.searchsorted(self.moments, base + since[:, None]), end)
            number = total - np.minimum(np.searchsorted(self.latest, since), total)
            shares.append(self._share(end - since_place, number[:, None]))
        known = self.moments[np.clip(end - 1, 0, None)] - base if len(self.moments) else base
        first, last = self.first[items], np.where(end > start, known, self.before[items])
        is_known = (first != NEVER) & (first < request[:, None])
        ages = [_log_days(request[:, None] - np.where(is_known, second, 0)) for second in (first, last)]
        return np.stack([*shares, *ages], -1)

    def _share(self, count: NDArray[np.integer], total: NDArray[np.integer]) -> Float64:
        """Log share of events, with 0.1 pseudo-events per item."""
        return np.asarray(np.log((count + 0.1) / (np.maximum(total, 0) + 0.1 * self.num_items)))

    def _likeness(self, histories: Histories, items: Int32) -> Float32:
        """[r, n, 2]: cosine of each candidate's content with the mean over the row's latest items and with the last."""
        if not self.content.shape[1]:
            return np.zeros((*items.shape, 2), np.float32)
        past = self.content[_latest_items(histories, LATEST)]
        mean = past.mean(1)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
        return np.asarray(self.content[items] @ np.stack([mean, past[:, 0]], -1))


class _Moments(TypedDict):
    """Time and count fields of `ItemStatistics`."""

    moments: Int64
    latest: Int64
    earlier: Int64
    first: Int64
    before: Int64
    origin: int
    span: int
    began: Int64


def _moments(histories: Histories, num_items: int, *, timed: bool, days: float | None) -> _Moments:
    row, position = histories.gather()
    is_known = histories.item_index[position] > 0
    row, position = row[is_known], position[is_known]
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
        "began": np.sort(second[np.flatnonzero(np.diff(row, prepend=-1))]),
    }


def _latest_items(histories: Histories, number: int) -> Int32:
    """[r, number], the row's latest items, the last one first, padded with 0; 0 in place of dislikes."""
    position = histories.ends[:, None] - 1 - np.arange(number)
    if not len(histories.item_index):
        return np.zeros(position.shape, np.int32)
    is_real = position >= histories.starts[:, None]
    if histories.dislikes is not None:
        is_real &= histories.dislikes[histories.event_type[np.maximum(position, 0)]] == 0
    return np.where(is_real, histories.item_index[np.maximum(position, 0)], 0).astype(np.int32)


def _log_softmax(scores: Float32, is_real: NDArray[np.bool_]) -> Float64:
    masked = np.where(is_real, scores.astype(np.float64), -np.inf)
    top = np.where(is_real.any(1), masked.max(1), 0.0)[:, None]
    total = np.exp(masked - top).sum(1, keepdims=True)
    return np.where(is_real, masked - top - np.log(np.maximum(total, 1e-300)), 0.0)


def _log_days(seconds: NDArray[np.integer]) -> Float64:
    return np.asarray(np.log1p(np.maximum(seconds, 0) / DAY))
