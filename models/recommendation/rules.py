"""From retrieved candidates to lists: room for categories, damped popularity, diversity, exploration.

Letters in shapes: r rows, f candidates, k places, n items, c categories of an item at most, d components.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int32, Int64
from models.recommendation.category_quota import fullest, is_fullest
from models.topk import row_chunks

Bool = NDArray[np.bool_]
UInt64 = NDArray[np.uint64]

LEAST_POOL, POOL_FACTOR = 100, 4
"""Candidates that an order beside the score's is chosen from: so many, or so many times k."""
_CHUNK_CELLS = 2**22
"""Numbers of candidates looked at at a time (16 MiB of float32)."""


@dataclass(frozen=True)
class Rules:
    """Filters of a list and terms of its order beside the score; by default the order of the scores."""

    exclude_seen: bool = True
    """Whether the items of a row's history are left out."""
    allowed: Bool | None = None
    """[n + 1] the only items that are recommended; None: all."""
    max_per_category: int = 0
    """Items of one category in a list, at most; an item of several counts in each; 0: any number."""
    diversity: float = 0.0
    """Weight of being unlike what is in the list already, in [0, 1): 1 - lambda of maximal marginal relevance."""
    popularity_damping: float = 0.0
    """What the most popular item loses, in units of relevance (1: the range of the candidates' scores); 0: nothing."""
    exploration: float = 0.0
    """Share of the k places, the last ones, that are drawn from the candidates beyond, in [0, 1]."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_per_category", 0, np.inf),
            ("diversity", 0, 1),
            ("popularity_damping", 0, np.inf),
            ("exploration", 0, 1),
        ):
            if not low <= getattr(self, name) <= high or self.diversity == 1:
                expected = f"expected a number from {low}" + (f" to {high}" if high == 1 else "")
                raise ValueError(f"{name}: received {getattr(self, name)}, {expected} (diversity: below 1)")

    @property
    def reranks(self) -> bool:
        """Whether the order is another than that of the scores."""
        return bool(self.diversity or self.popularity_damping or self.exploration)

    def pool(self, k: int) -> int:
        """Candidates to retrieve for k places."""
        return max(LEAST_POOL, POOL_FACTOR * k) if self.reranks or self.max_per_category else k

    def explored(self, k: int) -> int:
        """Of k places, those that are drawn."""
        return int(self.exploration * k + 0.5)


@dataclass(frozen=True)
class Traits:
    """What rules look at in items."""

    num_events: Float32
    """[n + 1] how often each occurs in the log"""
    categories: Int32 | None = None
    """[n + 1, c] from 1, distinct within an item, 0 where it has fewer; None: no item has any"""
    vectors: Float32 | None = None
    """[n + 1, d] of any length; needed for diversity"""

    @cached_property
    def popularity(self) -> Float32:
        """[n + 1] ln(1 + events) / ln(1 + events of the most popular item), in [0, 1]."""
        logarithm = np.log1p(self.num_events)
        share: Float32 = (logarithm / max(float(logarithm[1:].max(initial=0)), 1e-9)).astype(np.float32)
        return share

    @cached_property
    def kinds(self) -> Int64:
        """[n + 1] a number for each set of categories."""
        assert self.categories is not None, "there are no sets"
        _, kind = np.unique(np.sort(self.categories, axis=1), axis=0, return_inverse=True)
        return kind.reshape(-1)

    @cached_property
    def directions(self) -> Float32:
        """[n + 1, d] vectors at length 1; zero stays zero."""
        assert self.vectors is not None, "diversity compares vectors"
        length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        unit: Float32 = np.divide(
            self.vectors, length, out=np.zeros_like(self.vectors, np.float32), where=length > 0
        )
        return unit


def choose(
    items: Int32,
    scores: Float32,
    k: int,
    rules: Rules,
    traits: Traits,
    keys: UInt64 | None = None,
    is_all: Bool | None = None,
) -> tuple[Int32, Float32]:
    """The lists [r, k] that `rules` make of candidates [r, f] (best first, 0 where there are fewer), and their scores.

    Places are filled one after the other by the candidate of greatest worth whose categories all have room. With
    relevance = (score - the row's lowest) / (the row's range), in [0, 1] for any model, and
    worth = relevance - popularity_damping * `Traits.popularity`, diversity D makes it
    (1 - D) worth - D max over the list's items j of cos(i, j): maximal marginal relevance (Carbonell & Goldstein 1998,
    lambda = 1 - D). The last `rules.explored(k)` places are drawn evenly from the candidates that are left, by numbers that
    follow from (rules.seed, `keys` [r], item). A row's list depends on that row alone.
    The scores given are the model's own: with any of these they need not descend. A list is shorter than k, item 0 with score
    -inf, where the candidates do not fill it.
    Items of many categories may use up what others would need. So a row whose candidates are all there are (`is_all` [r]) is made
    of its `fullest` choice, if it could be longer: no list by the rules is longer, and none as long has a greater sum of worth.
    Its places are filled as above from that choice: diversity and draws set its order, not its items.
    """
    if not (rules.reranks or rules.max_per_category):
        return _widened(items, scores, k)
    keys = np.zeros(len(items), np.uint64) if keys is None else keys
    chosen = np.zeros((len(items), k), np.int32)
    given = np.full((len(items), k), -np.inf, np.float32)
    width = max(1, 0 if traits.vectors is None else traits.vectors.shape[1])
    for rows in row_chunks(len(items), items.shape[1] * width, _CHUNK_CELLS):
        worth = (
            relevance(items[rows], scores[rows]) - rules.popularity_damping * traits.popularity[items[rows]]
        )
        place = _places(items[rows], worth, k, rules, traits, keys[rows])
        if is_all is not None and rules.max_per_category and traits.categories is not None:
            _lengthen(place, is_all[rows], items[rows], worth, rules, traits, keys[rows])
        found = place >= 0
        chosen[rows] = np.where(found, np.take_along_axis(items[rows], place, 1), 0)
        given[rows] = np.where(found, np.take_along_axis(scores[rows], place, 1), -np.inf)
    return chosen, given


def _widened(items: Int32, scores: Float32, k: int) -> tuple[Int32, Float32]:
    """The first k columns, as many as there are."""
    missing = ((0, 0), (0, max(0, k - items.shape[1])))
    return np.pad(items[:, :k], missing), np.pad(scores[:, :k], missing, constant_values=-np.inf)


def _lengthen(
    place: Int64, is_all: Bool, items: Int32, worth: Float32, rules: Rules, traits: Traits, keys: UInt64
) -> None:
    """Fill the rows of `place` [r, k] that could be longer, and whose candidates are all there are, from their fullest choice."""
    assert traits.categories is not None
    k, most = place.shape[1], rules.max_per_category
    for row in np.flatnonzero(is_all & (place[:, -1] < 0)):
        there, chosen = np.flatnonzero(items[row]), place[row][place[row] >= 0]
        item, value = items[row, there], worth[row, there]
        categories = traits.categories[item]
        if is_fullest(categories, chosen, most):
            continue
        fuller = fullest(categories, traits.kinds[item], value, k, most)
        if len(fuller) > len(chosen):
            among = _places(item[None, fuller], value[None, fuller], k, rules, traits, keys[row : row + 1])
            place[row] = np.where(among[0] >= 0, there[fuller[among[0]]], -1)


def _places(items: Int32, worth: Float32, k: int, rules: Rules, traits: Traits, keys: UInt64) -> Int64:
    """[r, k] the candidate at each place, -1 where none is left."""
    drawn = draws(rules.seed, keys, items) if rules.exploration else worth
    open_ = items > 0
    row = np.arange(len(items))
    room = None
    if rules.max_per_category and traits.categories is not None:
        room = _Room(traits.categories[items], rules.max_per_category)
    unlike = _Unlike(traits.directions[items], rules.diversity) if rules.diversity else None
    places = np.full((len(items), k), -1, np.int64)
    by_worth = k - rules.explored(k)
    for place in range(k):
        value = drawn if place >= by_worth else worth if unlike is None else unlike.worth(worth)
        value = np.where(open_ if room is None else open_ & room.is_left, value, -np.inf)
        best = value.argmax(axis=1)
        found = value[row, best] > -np.inf
        places[found, place] = best[found]
        open_[row, best] = False
        for state in (room, unlike):
            if state is not None:
                state.take(best, found)
    return places


def relevance(items: Int32, scores: Float32) -> Float32:
    """[r, f] the candidates' scores from 0, the row's lowest, to 1, its highest; all 1 where they are equal."""
    there = items > 0
    low = np.where(there, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(high > low, high - low, 1).astype(np.float32)
    scaled = 1 - (np.where(high > -np.inf, high, 0) - np.where(there, scores, 0)) / spread
    return scaled.astype(np.float32)


def draws(seed: int, keys: UInt64, items: Int32) -> Float32:
    """[r, f] numbers in [0, 1) that follow from (seed, the row's key, the item) alone, by splitmix64 (Steele et al. 2014)."""
    mixed = _mix(keys ^ _mix(np.array([seed % 2**64], np.uint64)))[:, None]
    return (_mix(mixed + items.astype(np.uint64)) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _mix(state: UInt64) -> UInt64:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class _Room:
    """How much room the lists have for each candidate's categories."""

    def __init__(self, categories: Int32, most: int) -> None:
        self._categories, self._most = categories, most
        self._taken = np.zeros(
            categories.shape, np.int16
        )  # of each candidate's categories, in its row's list

    @property
    def is_left(self) -> Bool:
        """[r, f]"""
        return np.asarray((self._taken < self._most).all(axis=2))

    def take(self, best: Int64, found: Bool) -> None:
        """Put candidate `best` [r] into the lists, where one was `found`."""
        own = self._categories[np.arange(len(best)), best]
        for column in range(own.shape[1]):
            category = own[:, column, None, None]
            self._taken += (self._categories == category) & (category > 0) & found[:, None, None]


class _Unlike:
    """How like the lists' items each candidate is."""

    def __init__(self, directions: Float32, weight: float) -> None:
        self._directions, self._weight = directions, np.float32(weight)
        self._likeness: Float32 | None = None

    def worth(self, relevance: Float32) -> Float32:
        """[r, f] (1 - D) relevance - D the greatest cosine with an item of the list."""
        if self._likeness is None:
            return relevance
        both: Float32 = (1 - self._weight) * relevance - self._weight * self._likeness
        return both

    def take(self, best: Int64, _found: Bool) -> None:
        """Put candidate `best` [r] into the lists."""
        own = self._directions[np.arange(len(best)), best]
        cosine = np.matmul(self._directions, own[:, :, None])[:, :, 0]
        self._likeness = cosine if self._likeness is None else np.maximum(self._likeness, cosine)
