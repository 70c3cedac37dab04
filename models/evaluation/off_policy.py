"""What a policy would have earned, from lists that another one showed: off-policy evaluation.

A policy draws a list place by place. With w the evaluated policy's probability of what was shown over the logging policy's, the
mean of w times reward estimates the evaluated policy's reward, wherever the logging policy shows all that the evaluated one
may. What a place's reward depends on decides which probabilities count (`Weighting`):

- list: on the whole list; w is the product over all places (Horvitz & Thompson 1952);
- cascade: on the places down to it; w is the product over them (McInerney et al. 2020);
- place: on the item and the place alone; w is the ratio of the marginals (Li et al. 2018).

The fewer probabilities, the less variance and the more is assumed. Letters in shapes: n lists, k places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models.evaluation.bootstrap import UserMeans, bootstrap, interval
from models.evaluation.metrics import Float64

Weighting = Literal["list", "cascade", "place"]
WEIGHTINGS: Final[tuple[Weighting, ...]] = get_args(Weighting)
DIRECT: Final = "dm"
_SPREADS = 4.0
"""Standard errors that the mean weight may lie from 1 by chance."""


@dataclass(frozen=True)
class LoggedLists:
    """Lists that were shown, what followed, and the probabilities of both policies. Empty places: reward 0, probabilities 1."""

    reward: Float64
    """[n, k], reward of each place"""
    logging: Float64
    """[n, k], probability of the item at its place given the places above, under the policy that made the list, in (0, 1]"""
    evaluated: Float64
    """[n, k], the same under the policy to be judged, in [0, 1]"""
    logging_marginal: Float64
    """[n, k], probability of the item at its place, whatever stands above, in (0, 1]"""
    evaluated_marginal: Float64
    """[n, k], the same under the policy to be judged, in [0, 1]"""
    predicted: Float64
    """[n, k], reward that a model predicts of the item at its place"""
    expected: Float64
    """[n, k], mean prediction over the items that the policy to be judged puts at the place"""
    user: NDArray[np.integer]
    """[n], from 0: the lists of one user are resampled together"""

    def __post_init__(self) -> None:
        for name in ("logging", "logging_marginal"):
            _refuse_probabilities(name, getattr(self, name), above_zero=True)
        for name in ("evaluated", "evaluated_marginal"):
            _refuse_probabilities(name, getattr(self, name), above_zero=False)

    def weights(self, weighting: Weighting, clip: float | None = None) -> Float64:
        """[n, k], w of each place, at most `clip`."""
        weight: Float64
        if weighting == "place":
            weight = self.evaluated_marginal / self.logging_marginal
        else:
            weight = np.asarray(np.cumprod(self.evaluated / self.logging, axis=1), np.float64)
            if weighting == "list":
                weight = np.repeat(weight[:, -1:], weight.shape[1], axis=1)
        return np.asarray(weight if clip is None else np.minimum(weight, clip), np.float64)


@dataclass(frozen=True)
class Estimate:
    """Mean reward of a list under the evaluated policy."""

    value: float
    low: float
    high: float
    """Ends of the bootstrap interval over users."""
    effective_sample: float
    """Kish's size (sum w)^2 / sum w^2 of the weights, in lists; of several places the smallest."""


@dataclass(frozen=True)
class Refused:
    """Why there is no estimate."""

    reason: str
    effective_sample: float


def estimates(
    lists: LoggedLists,
    *,
    clip: float | None = None,
    min_effective_sample: float = 100,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate | Refused]:
    """Estimates by name: `dm`, and ips, snips and dr of each weighting, such as `ips_list`.

    With r reward and q its prediction, sums over places of means over lists:
    dm: E q under the evaluated policy; ips: w r; snips: sum(w r) / sum(w) (Swaminathan & Joachims 2015);
    dr: E q + w (r - q) (Dudik et al. 2011; in this form for lists unbiased where either w or q is right).
    clip: largest weight; None: none. Clipping lowers the variance and adds bias. Estimates by weights are refused below
    `min_effective_sample` lists, and where the weights' mean differs from 1, which is the sign of lists that the logging policy
    never shows; where not one list counts, that is the reason given. The direct method needs as many lists.
    """
    num_lists = len(lists.reward)
    sums: dict[str, Float64] = {DIRECT: lists.expected}
    weights: dict[str, Float64] = {}
    refused: dict[str, Refused] = {}
    samples: dict[str, float] = {DIRECT: float(num_lists)}
    for weighting in WEIGHTINGS:
        weight = lists.weights(weighting, clip)
        names = [f"{kind}_{weighting}" for kind in ("ips", "snips", "dr")]
        sums |= dict(
            zip(
                names,
                (
                    weight * lists.reward,
                    lists.reward,
                    lists.expected + weight * (lists.reward - lists.predicted),
                ),
                strict=True,
            )
        )
        weights[names[1]] = weight
        reason = _no_support(lists.weights(weighting))
        for name in names:
            samples[name] = effective_sample(weight)
            if reason:
                refused[name] = Refused(reason, samples[name])
    for name, size in samples.items():
        if size < min_effective_sample and (size > 0 or name not in refused):
            reason = f"an effective sample of {size:.0f} lists; at least {min_effective_sample:g} are needed"
            refused[name] = Refused(reason, size)
    found = _means(
        {name: value for name, value in sums.items() if name not in refused},
        weights,
        lists.user,
        num_resamples,
        seed,
        level,
    )
    return {
        name: refused[name] if name in refused else Estimate(*found[name], samples[name]) for name in sums
    }


def effective_sample(weights: Float64) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of weights [n, k], the smallest of the places; 0 of none."""
    squares = (weights**2).sum(axis=0)
    sizes = np.divide(weights.sum(axis=0) ** 2, squares, out=np.zeros(len(squares)), where=squares > 0)
    return float(sizes.min(initial=len(weights)))


def _means(
    values: Mapping[str, Float64],
    weights: Mapping[str, Float64],
    user: NDArray[np.integer],
    num_resamples: int,
    seed: int,
    level: float,
) -> dict[str, tuple[float, float, float]]:
    """Sum over places of the (weighted) means over lists of each name's values [n, k], with the ends of its interval."""
    if not values:
        return {}
    terms = {
        f"{name} {place}": column for name, value in values.items() for place, column in enumerate(value.T)
    }
    by_term = {
        f"{name} {place}": column
        for name, weight in weights.items()
        if name in values
        for place, column in enumerate(weight.T)
    }
    means = UserMeans.of(terms, user, int(user.max(initial=-1)) + 1, by_term)
    resampled = bootstrap(means, num_resamples, seed)[:, : len(terms)]
    shape = len(values), -1
    totals = resampled.reshape(num_resamples, *shape).sum(axis=2)
    low, high = interval(totals, level)
    value = means.over_targets.reshape(shape).sum(axis=1)
    return {name: (float(value[row]), float(low[row]), float(high[row])) for row, name in enumerate(values)}


def _no_support(weights: Float64) -> str | None:
    """Why weights [n, k] do not have the mean 1 that they have where the logging policy shows all that the evaluated one may."""
    if not len(weights):
        return "no lists"
    mean, spread = weights.mean(axis=0), weights.std(axis=0) / np.sqrt(len(weights))
    apart = np.abs(mean - 1) > _SPREADS * spread + 1e-9
    if not apart.any():
        return None
    worst = float(mean[apart][np.abs(mean[apart] - 1).argmax()])
    return (
        f"no common support: the mean weight is {worst:.3g} instead of 1, so lists are missing that it would show, or are not "
        "as probable as stated"
    )


def _refuse_probabilities(name: str, values: Float64, *, above_zero: bool) -> None:
    """Raise ValueError for what is no probability."""
    is_low = values <= 0 if above_zero else values < 0
    wrong = values[is_low | (values > 1 + 1e-6) | np.isnan(values)]
    if len(wrong):
        expected = "probabilities above 0, at most 1" if above_zero else "probabilities from 0 to 1"
        raise ValueError(f"{name}: received {wrong[0]} ({len(wrong)} of {values.size}), expected {expected}")
