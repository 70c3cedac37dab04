"""Inverse-propensity weights of targets that were shown, against position and selection bias.

The weight of a reaction to item i is 1 / P(a user looks at i), the inverse propensity of Schnabel et al. (2016), "Recommendations
as Treatments", with the probability of a look at each place of Joachims et al. (2017), "Unbiased Learning-to-Rank with Biased
Feedback". P is the sum of the looks at all places where i was shown: of the inverse probabilities that lists of places and
propensities give, those of single places have the same mean and a far larger variance.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Int64

Float64 = NDArray[np.float64]
Method = Literal["swaps", "items", "none"]
MIN_SWAP_REACTIONS = 1_000
"""Reactions to items that one user saw at several places; with fewer, looks are estimated from items."""
MIN_REACTIONS = 100
"""Reactions at known places; with fewer, all places are taken to be looked at alike."""
MAX_PLACES = 100
"""Places further down are taken to be looked at like the last of these."""
LARGEST = 10.0
"""Largest weight, in mean weights."""
_LEAST_LOOKS = 0.01
_ITERATIONS, _TOLERANCE = 500, 1e-7


@dataclass(frozen=True)
class PlaceLooks:
    """Probability that a user looks at each place, relative to the place that is looked at most."""

    by_place: Float64
    """[k], in (0, 1]"""
    method: Method
    """Source of the looks. swaps: items that one user saw at several places; items: all items; none: all places are alike."""

    @classmethod
    def fit(cls, user: Int64, item: Int64, place: Int64, is_taken: NDArray[np.bool_]) -> "PlaceLooks":
        """Looks of exposures [e] at places from 0.

        Reactions to what a group of exposures shows at place r have the mean looks[r] * rate[group] * exposures. The groups are
        pairs of a user and an item, whose rate is the same wherever it stood (Agarwal et al. 2019, "Estimating Position Bias
        without Intrusive Interventions"), or else items (the regression of Wang et al. 2018, "Position Bias Estimation for
        Unbiased Learning to Rank in Personal Search"). Looks and rates are those of the largest Poisson likelihood, which finds
        them whatever the distribution is (Wooldridge 1999).
        """
        place = np.minimum(place, MAX_PLACES - 1)
        if int(is_taken.sum()) < MIN_REACTIONS:
            return cls(np.ones(1), "none")
        pair = user * (int(item.max(initial=0)) + 1) + item
        groups, of_pair = np.unique(pair, return_inverse=True)
        num_places = int(place.max(initial=0)) + 1
        first, last = np.full(len(groups), num_places), np.full(len(groups), -1)
        np.minimum.at(first, of_pair, place)
        np.maximum.at(last, of_pair, place)
        swapped = (first < last)[of_pair]
        if int(is_taken[swapped].sum()) >= MIN_SWAP_REACTIONS:
            looks = _looks(of_pair[swapped], place[swapped], is_taken[swapped], num_places)
            return cls(looks, "swaps")
        return cls(_looks(item, place, is_taken, num_places), "items")


def _looks(group: Int64, place: Int64, is_taken: NDArray[np.bool_], num_places: int) -> Float64:
    """[num_places] looks, from exposures of groups [e]; a place without reactions has the smallest."""
    cells, cell, shown = np.unique(group * num_places + place, return_inverse=True, return_counts=True)
    group, place = np.unique(cells // num_places, return_inverse=True)[1], cells % num_places
    taken = np.bincount(cell, is_taken, len(cells))
    of_group, of_place = np.bincount(group, taken), np.bincount(place, taken, num_places)
    looks = np.ones(num_places)
    for _ in range(_ITERATIONS):
        rate = of_group / np.maximum(np.bincount(group, looks[place] * shown), 1e-300)
        expected = np.bincount(place, rate[group] * shown, num_places)
        new = np.divide(of_place, expected, out=np.zeros(num_places), where=expected > 0)
        new /= max(new.max(), 1e-300)
        is_settled = np.abs(new - looks).max() < _TOLERANCE
        looks = new
        if is_settled:
            break
    looks = np.where(looks > 0, looks, looks[looks > 0].min(initial=1))
    return np.maximum(looks, _LEAST_LOOKS)


def looks_at_items(item: NDArray[np.integer], looks: Float64, num_items: int) -> Float64:
    """[2, num_items + 1] sums over the exposures [e] of items, of looks at them [e] and of their squares."""
    return np.stack([np.bincount(item, part, num_items + 1) for part in (looks, np.square(looks))])


def without_chance(looked: Float64) -> Float64:
    """[num_items + 1] looks at items, drawn towards their mean by the share of their variance that is chance.

    looked: as `looks_at_items` gives it. Items that are shown alike differ by chance alone, by the variance of a sum of draws:
    the sum of their squares. Shrinkage of Efron and Morris (1973), "Stein's Estimation Rule and Its Competitors".
    """
    looks: Float64 = looked[0]
    squares: Float64 = looked[1]
    is_shown = looks > 0
    if not is_shown.any():
        return looks
    mean, variance = looks[is_shown].mean(), looks[is_shown].var()
    kept = 1 - min(1.0, squares[is_shown].mean() / variance) if variance > 0 else 0.0
    return np.asarray(np.where(is_shown, mean + kept * (looks - mean), 0.0))


def inverse_looks(item: Int64, looks: Float64) -> Float32:
    """[n] weights of targets on items [n], with mean 1 and at most LARGEST.

    looks: [num_items + 1], how often users looked at each item: the sum over its exposures.
    """
    if not len(item):
        return np.zeros(0, np.float32)
    weight = 1 / looks[item]
    weight /= weight.mean()
    while weight.max() > LARGEST * (1 + _TOLERANCE):  # what the bound cuts off raises the others
        weight = np.minimum(weight, LARGEST)
        weight /= weight.mean()
    return np.asarray(weight, np.float32)


def effective_share(weight: Float32) -> float:
    """Effective sample size as a share of the targets: (sum w)^2 / (n * sum w^2), Kish (1965)."""
    total = weight.sum(dtype=np.float64)
    return float(total**2 / (len(weight) * np.square(weight, dtype=np.float64).sum()))
