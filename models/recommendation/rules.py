"""Re-ranking rules from candidates to lists: category quota, popularity damping, diversity, exploration.

Letters in shapes: r rows, f candidates, k places, n items, c maximum categories per item, d components.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int32, Int64
from models.recommendation.category_quota import fullest, is_fullest
from models.settings.exploration import Exploration
from models.topk import row_chunks

Bool = NDArray[np.bool_]
UInt64 = NDArray[np.uint64]

MIN_POOL, POOL_FACTOR = 100, 4
"""Minimum candidate pool for re-ranking: absolute, and as a multiple of k."""
NOTHING_DRAWN = Exploration(0.0)
_CHUNK_CELLS = 2**22
"""Candidate components processed at once (16 MiB of float32)."""


@dataclass(frozen=True)
class Rules:
    """Filters and re-ranking terms of a list; by default the order of the scores."""

    exclude_seen: bool = True
    """Exclusion of the items in a row's history."""
    allowed: Bool | None = None
    """[n + 1], mask of items that may be recommended; None: all."""
    max_per_category: int = 0
    """Maximum items per category in a list; an item counts in each of its categories; 0: no limit."""
    diversity: float = 0.0
    """Weight of dissimilarity to the list so far, in [0, 1): 1 - lambda of maximal marginal relevance."""
    popularity_damping: float = 0.0
    """Penalty of the most popular item, in units of relevance (1: the range of the candidates' scores)."""
    exploration: Exploration = NOTHING_DRAWN
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_per_category", 0, np.inf),
            ("diversity", 0, 1),
            ("popularity_damping", 0, np.inf),
        ):
            if not low <= getattr(self, name) <= high or self.diversity == 1:
                expected = f"expected a number from {low}" + (f" to {high}" if high == 1 else "")
                raise ValueError(f"{name}: received {getattr(self, name)}, {expected} (diversity: below 1)")

    @property
    def reranks(self) -> bool:
        """Whether the order may differ from that of the scores."""
        return bool(self.diversity or self.popularity_damping or self.exploration.share)

    def pool(self, k: int) -> int:
        """Number of candidates to retrieve for k places."""
        return max(MIN_POOL, POOL_FACTOR * k) if self.reranks or self.max_per_category else k


@dataclass(frozen=True)
class Traits:
    """Item attributes that the rules read."""

    num_events: Float32
    """[n + 1], events of each item in the log"""
    categories: Int32 | None = None
    """[n + 1, c], from 1, distinct within an item, padded with 0; None: no item has any"""
    vectors: Float32 | None = None
    """[n + 1, d], of any length; needed for diversity"""

    @cached_property
    def popularity(self) -> Float32:
        """[n + 1], ln(1 + events) / ln(1 + events of the most popular item), in [0, 1]."""
        logarithm = np.log1p(self.num_events)
        return np.asarray(logarithm / max(float(logarithm[1:].max(initial=0)), 1e-9), np.float32)

    @cached_property
    def kinds(self) -> Int64:
        """[n + 1], number of each item's set of categories."""
        assert self.categories is not None, "there are no categories"
        _, kind = np.unique(np.sort(self.categories, axis=1), axis=0, return_inverse=True)
        return kind.reshape(-1)

    @cached_property
    def directions(self) -> Float32:
        """[n + 1, d], vectors scaled to length 1; zero stays zero."""
        assert self.vectors is not None, "diversity compares vectors"
        length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        zeros = np.zeros_like(self.vectors, np.float32)
        return np.asarray(np.divide(self.vectors, length, out=zeros, where=length > 0))


class Chosen(NamedTuple):
    """Lists of candidates."""

    items: Int32
    """[r, k], padded with 0"""
    scores: Float32
    """[r, k], the model's own, so they need not descend; padded with -inf"""
    propensity: Float32
    """[r, k], probability of the item at its place given the candidates and the places above; 1 where nothing is drawn"""


def choose(
    items: Int32,
    scores: Float32,
    k: int,
    rules: Rules,
    traits: Traits,
    keys: UInt64 | None = None,
    is_all: Bool | None = None,
) -> Chosen:
    """Lists of k places by `rules` from candidates [r, f] (best first, padded with 0).

    Greedy: each place takes the candidate of greatest worth whose categories are all below the quota. With
    relevance = (score - row minimum) / (row range), in [0, 1] for any model, and
    worth = relevance - popularity_damping * `Traits.popularity`, diversity D makes it
    (1 - D) worth - D max over the list's items j of cos(i, j): maximal marginal relevance (Carbonell & Goldstein 1998,
    lambda = 1 - D). The last places are drawn (`rules.exploration`) from the remaining candidates below the quota, by numbers
    that follow from (rules.seed, `keys` [r], item): uniformly, or by softmax one after the other, which is the distribution of
    Plackett (1975) and Luce (1959). A row's list depends on that row alone.
    Items of many categories may use up the quotas of others. So a row that has all candidates (`is_all` [r]) is filled from its
    `fullest` choice if that is longer: then no list by the rules is longer, and none as long has a greater sum of worth.
    Diversity and draws set the order of that choice, not its items.
    """
    if not (rules.reranks or rules.max_per_category):
        return Chosen(*_widened(items, scores, k), np.ones((len(items), k), np.float32))
    keys = np.zeros(len(items), np.uint64) if keys is None else keys
    chosen = np.zeros((len(items), k), np.int32)
    chosen_scores = np.full((len(items), k), -np.inf, np.float32)
    propensity = np.ones((len(items), k), np.float32)
    width = max(1, 0 if traits.vectors is None else traits.vectors.shape[1])
    for rows in row_chunks(len(items), items.shape[1] * width, _CHUNK_CELLS):
        item, score, key = items[rows], scores[rows], keys[rows]
        worth = relevance(item, score) - rules.popularity_damping * traits.popularity[item]
        place, propensity[rows] = _places(item, worth, k, rules, traits, key)
        if is_all is not None and rules.max_per_category and traits.categories is not None:
            _lengthen(place, propensity[rows], is_all[rows], item, worth, rules, traits, key)
        chosen[rows] = np.where(place >= 0, np.take_along_axis(item, place, 1), 0)
        chosen_scores[rows] = np.where(place >= 0, np.take_along_axis(score, place, 1), -np.inf)
    return Chosen(chosen, chosen_scores, propensity)


def _widened(items: Int32, scores: Float32, k: int) -> tuple[Int32, Float32]:
    """First k columns, padded."""
    missing = ((0, 0), (0, max(0, k - items.shape[1])))
    return np.pad(items[:, :k], missing), np.pad(scores[:, :k], missing, constant_values=-np.inf)


def _lengthen(
    place: Int64,
    propensity: Float32,
    is_all: Bool,
    items: Int32,
    worth: Float32,
    rules: Rules,
    traits: Traits,
    keys: UInt64,
) -> None:
    """Refill short rows of `place` [r, k] that have all candidates (`is_all`) from their fullest choice, in place.

    Draws set the order of that choice alone, and so does `propensity` [r, k].
    """
    assert traits.categories is not None
    k, most = place.shape[1], rules.max_per_category
    for row in np.flatnonzero(is_all & (place[:, -1] < 0)):
        column, chosen = np.flatnonzero(items[row]), place[row][place[row] >= 0]
        item, value = items[row, column], worth[row, column]
        categories = traits.categories[item]
        if is_fullest(categories, chosen, most):
            continue
        fuller = fullest(categories, traits.kinds[item], value, k, most)
        if len(fuller) > len(chosen):
            (order,), (propensity[row],) = _places(
                item[None, fuller], value[None, fuller], k, rules, traits, keys[row : row + 1]
            )
            place[row] = np.where(order >= 0, column[fuller[order]], -1)


def _places(
    items: Int32, worth: Float32, k: int, rules: Rules, traits: Traits, keys: UInt64
) -> tuple[Int64, Float32]:
    """[r, k], the candidate at each place, -1 where none is left; and its propensity, 1 there."""
    draw = _Draw(rules, items, keys)
    is_open = items > 0
    row = np.arange(len(items))
    quota = None
    if rules.max_per_category and traits.categories is not None:
        quota = CategoryQuota(traits.categories[items], rules.max_per_category)
    diversity = _Diversity(traits.directions[items], rules.diversity) if rules.diversity else None
    places, propensity = np.full((len(items), k), -1, np.int64), np.ones((len(items), k), np.float32)
    num_by_worth = k - rules.exploration.num_places(k)
    for place in range(k):
        is_eligible = is_open if quota is None else is_open & quota.is_left
        value = worth if diversity is None else diversity.worth(worth)
        if place < num_by_worth:
            best = np.where(is_eligible, value, -np.inf).argmax(axis=1)
        else:
            best, propensity[:, place] = draw(place, value, is_eligible)
        is_filled = is_eligible[row, best]
        places[is_filled, place] = best[is_filled]
        is_open[row, best] = False
        for state in (quota, diversity):
            if state is not None:
                state.take(best, is_filled)
    return places, propensity


class _Draw:
    """Draws of one candidate a row."""

    def __init__(self, rules: Rules, items: Int32, keys: UInt64) -> None:
        self._exploration, self._seed = rules.exploration, rules.seed
        self._items, self._keys = items, keys
        self._drawn = draws(rules.seed, keys, items) if rules.exploration.share else None
        """[r, f], one order of the candidates, of which every uniform draw takes the first eligible one."""

    def __call__(self, place: int, worth: Float32, is_eligible: Bool) -> tuple[Int64, Float32]:
        """The candidate drawn for a place [r], any where none is eligible, and its probability, 1 there."""
        if self._exploration.kind == "uniform":
            assert self._drawn is not None
            best = np.where(is_eligible, self._drawn, -np.inf).argmax(axis=1)
            return best, 1 / np.maximum(is_eligible.sum(1), 1).astype(np.float32)
        logit = np.where(is_eligible, worth / np.float64(self._exploration.temperature), -np.inf)
        # the largest of logits with Gumbel noise is a draw by softmax (Gumbel 1954; Yellott 1977)
        uniform = draws(self._seed + place + 1, self._keys, self._items) + np.float64(2.0**-25)
        best = (logit - np.log(-np.log(uniform))).argmax(axis=1)
        greatest = np.where(is_eligible.any(1), logit.max(axis=1), 0)[:, None]
        share = np.exp(logit - greatest)
        own = share[np.arange(len(best)), best] / np.maximum(share.sum(1), 1)
        return best, np.where(is_eligible.any(1), own, 1).astype(np.float32)


def relevance(items: Int32, scores: Float32) -> Float32:
    """[r, f], candidates' scores scaled from 0, the row's minimum, to 1, its maximum; 1 if all are equal."""
    is_real = items > 0
    low = np.where(is_real, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(is_real, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(high > low, high - low, 1).astype(np.float32)
    scaled = 1 - (np.where(high > -np.inf, high, 0) - np.where(is_real, scores, 0)) / spread
    return scaled.astype(np.float32)


def draws(seed: int, keys: UInt64, items: Int32) -> Float32:
    """[r, f], random numbers in [0, 1) from (seed, row key, item) alone, by splitmix64 (Steele et al. 2014)."""
    mixed = mix(keys ^ mix(np.array([seed % 2**64], np.uint64)))[:, None]
    return (mix(mixed + items.astype(np.uint64)) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def mix(state: UInt64) -> UInt64:
    """Finaliser of splitmix64, a bijection of 64 bits, elementwise."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class CategoryQuota:
    """Remaining quota of each candidate's categories."""

    def __init__(self, categories: Int32, most: int) -> None:
        self._categories, self._most = categories, most
        self._taken = np.zeros(categories.shape, np.int16)
        """[r, f, c], items in the row's list of each candidate's categories."""

    @property
    def is_left(self) -> Bool:
        """[r, f], whether all of a candidate's categories are below the quota."""
        return np.asarray((self._taken < self._most).all(axis=2))

    def take(self, best: Int64, is_filled: Bool) -> None:
        """Add candidate `best` [r] to the lists where `is_filled` [r]."""
        own = self._categories[np.arange(len(best)), best]
        for column in range(own.shape[1]):
            category = own[:, column, None, None]
            self._taken += (self._categories == category) & (category > 0) & is_filled[:, None, None]


class _Diversity:
    """Similarity of each candidate to the lists' items."""

    def __init__(self, directions: Float32, weight: float) -> None:
        self._directions, self._weight = directions, np.float32(weight)
        self._likeness: Float32 | None = None

    def worth(self, relevance: Float32) -> Float32:
        """[r, f], (1 - D) relevance - D * greatest cosine with an item of the list."""
        if self._likeness is None:
            return relevance
        return np.asarray((1 - self._weight) * relevance - self._weight * self._likeness)

    def take(self, best: Int64, _is_filled: Bool) -> None:
        """Add candidate `best` [r] to the lists."""
        own = self._directions[np.arange(len(best)), best]
        cosine = np.matmul(self._directions, own[:, :, None])[:, :, 0]
        self._likeness = cosine if self._likeness is None else np.maximum(self._likeness, cosine)
