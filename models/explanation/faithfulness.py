"""Faithfulness of explanations: agreement with leaving out, deletion and insertion curves.

A weighting says of every past interaction how much it carried a score: Float32 [b, l], columns as in
`models.explanation.contributions`. Letters: b rows, l positions of the longest window, r resamples.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder.encoder import Encoder
from models.evaluation.bootstrap import UserMeans, bootstrap, interval, paired_difference
from models.evaluation.metrics import Float64
from models.explanation.attention_weights import attention_weights, has_attention
from models.explanation.contributions import Bools, Method, contributions, kept_scores
from models.histories import Float32, Histories, Int32

STEPS = 10
"""Equal parts in which a row's interactions are taken away or put in."""
CURVES = ("deletion", "insertion")

Weightings = Mapping[str, Float32]
ScoreOf = Callable[[Histories, Int32, Bools], Float32]
"""[b] the score of each row's item [b] if only the kept interactions [b, l] had been seen; 0 for a row that keeps none."""


def spearman(first: Float32, second: Float32, lengths: NDArray[np.integer]) -> Float64:
    """[b] the rank correlation of two weightings of each row's first `lengths` columns; equal weights share their mean rank.

    NaN for rows of fewer than two interactions, and where either weighs all alike. Source: Spearman 1904.
    """
    from scipy.stats import rankdata

    found = np.full(len(lengths), np.nan)
    for row, length in enumerate(lengths.tolist()):
        ranks = [rankdata(part[row, :length]) for part in (first, second)]
        centred = [each - each.mean() for each in ranks] if length > 1 else ranks
        size = np.sqrt(np.prod([each @ each for each in centred])) if length > 1 else 0.0
        if size > 0:
            found[row] = centred[0] @ centred[1] / size
    return found


def curves(
    weights: Float32, score_of: ScoreOf, histories: Histories, items: Int32
) -> tuple[Float64, Float64]:
    """Scores of each row's item [b] while interactions go and come by weight, strongest first: two [b, STEPS + 1].

    At step t of the first ("deletion") `round(t n / STEPS)` of a row's n interactions are gone, of the second ("insertion") the
    others are; both hold the whole history at one end and none at the other, which scores 0. Of equal weights the more recent one
    comes first. Histories are no longer than what `score_of` looks at. Source: Petsiuk et al. 2018 (RISE), section 3.3, of
    pixels.
    """
    lengths, columns = histories.lengths, weights.shape[1]
    real = np.arange(columns) < lengths[:, None]
    order = np.argsort(np.where(real, -weights, np.inf)[:, ::-1], axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(columns)[None, :], 1)
    place = place[:, ::-1]
    deletion, insertion = np.zeros((2, len(items), STEPS + 1))
    deletion[:, 0] = insertion[:, -1] = score_of(histories, items, real)
    for step in range(1, STEPS):
        chosen = place < np.rint(step * lengths / STEPS)[:, None]
        deletion[:, step] = score_of(histories, items, real & ~chosen)
        insertion[:, step] = score_of(histories, items, real & chosen)
    return deletion, insertion


def areas(curve: Float64, scale: float) -> Float64:
    """[b] the area under each row's curve [b, STEPS + 1] by trapezoids, the steps together 1 wide, in units of `scale`.

    One scale for all rows and weightings, `mean_spread`: rows whose whole history says hardly more than none (DeYoung et al.
    2020 divide by each row's own) then count for little instead of for nearly everything. Low is good for deletion, high for
    insertion. Leaving out one by one is not best by construction: a step takes many away together.
    """
    inner = curve[:, 1:-1].sum(1) + (curve[:, 0] + curve[:, -1]) / 2
    found: Float64 = inner / (STEPS * scale)
    return found


def mean_spread(deletion: Float64) -> float:
    """Mean over rows of the whole history's score less that of none, from any weighting's curves; NaN unless positive."""
    spread = float((deletion[:, 0] - deletion[:, -1]).mean())
    return spread if spread > 0 else math.nan


def controls(
    encoder: Encoder, histories: Histories, items: Int32, num_events: Float32, seed: int = 0
) -> dict[str, Float32]:
    """Weightings that know less of the score of each row's item [b] than an explanation should.

    `random`; `recency` (later ones more); `popularity` (by `num_events` [num_items + 1] of the item); `item_cosine` (of the past
    item's vector and the recommended one's); `attention` (`attention_weights`), where the model pays any.
    """
    windows = histories.last(encoder.max_length)
    rows, flat = windows.gather()
    column, past = flat - windows.starts[rows], windows.item_index[flat]
    vectors = encoder.item_vectors().detach().float().cpu().numpy()
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    told = {
        "random": np.random.default_rng(seed).random(len(rows)),
        "recency": column,
        "popularity": num_events[past],
        "item_cosine": np.einsum("ed,ed->e", vectors[past], vectors[items[rows]]),
    }
    found = {}
    for name, values in told.items():
        found[name] = np.zeros((len(items), int(windows.lengths.max(initial=0))), np.float32)
        found[name][rows, column] = values
    return found | ({"attention": attention_weights(encoder, windows)} if has_attention(encoder) else {})


def measure(
    weightings: Weightings,
    controls: Weightings,
    exact: Float32,
    score_of: ScoreOf,
    histories: Histories,
    items: Int32,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Faithfulness of weightings of each row's item [b] and of controls, as JSON values.

    `methods`: for each of both `spearman` with the `exact` drops (`mean` over rows; `rows_without`: see `spearman`), and for
    `deletion` and `insertion` the `area` and the mean `curve`; with the ends `low` and `high` of 95 % bootstrap intervals over
    rows, None where no row has a value. `against`: for each weighting and control and both areas a
    `models.evaluation.bootstrap.Difference`, weighting minus control over the same rows.
    """
    every = {**weightings, **controls}
    values: dict[str, Float64] = {}
    found: dict[str, Any] = {name: {} for name in every}
    scale = None
    for name, weights in every.items():
        agreed = values[f"{name} spearman"] = spearman(weights, exact, histories.lengths)
        found[name]["spearman"] = {"rows_without": int(np.isnan(agreed).sum())}
        for kind, curve in zip(CURVES, curves(weights, score_of, histories, items), strict=True):
            scale = scale or mean_spread(curve)
            values[f"{name} {kind}"] = areas(curve, scale)
            found[name][kind] = {"curve": [_number(part / scale) for part in curve.mean(0)]}
    drawn = _Drawn.of(values, resamples, seed)
    for name, told in found.items():
        for kind in told:
            told[kind] |= drawn.mean(f"{name} {kind}", "mean" if kind == "spearman" else "area")
    against = {
        name: {
            control: {kind: drawn.difference(name, control, kind) for kind in CURVES} for control in controls
        }
        for name in weightings
    }
    return {"rows": len(items), "steps": STEPS, "methods": found, "against": against}


@dataclass(frozen=True)
class _Drawn:
    """Means of values over rows, and the same of rows drawn with replacement, one draw for all."""

    place: dict[str, int]
    means: Float64
    resampled: Float64

    @classmethod
    def of(cls, values: Mapping[str, Float64], resamples: int, seed: int) -> "_Drawn":
        """Of values [b] by name, NaN where a row has none."""
        num_rows = len(next(iter(values.values())))
        rows = UserMeans.of(values, np.arange(num_rows), num_rows)
        place = {name: number for number, name in enumerate(values)}
        return cls(place, rows.over_users, bootstrap(rows, resamples, seed)[:, : len(values)])

    def mean(self, name: str, called: str) -> dict[str, float | None]:
        """The mean and the ends of its interval."""
        place = self.place[name]
        (low,), (high,) = interval(self.resampled[:, [place]])
        return {called: _number(self.means[place]), "low": _number(low), "high": _number(high)}

    def difference(self, first: str, second: str, kind: str) -> dict[str, str | float | None]:
        """Of the areas of two."""
        one, other = self.place[f"{first} {kind}"], self.place[f"{second} {kind}"]
        found = paired_difference(
            float(self.means[one] - self.means[other]),
            self.resampled[:, one] - self.resampled[:, other],
            lower_is_better=kind == "deletion",
        )
        return {name: part if isinstance(part, str) else _number(part) for name, part in vars(found).items()}


def _number(value: float) -> float | None:
    """None for NaN and infinity, which JSON lacks."""
    return float(value) if math.isfinite(value) else None


def measure_encoder(
    encoder: Encoder,
    histories: Histories,
    lists: Int32,
    num_events: Float32,
    *,
    methods: tuple[Method, ...] = ("fast", "balanced", "exact"),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`measure` for an encoder and its own explanations of the first item of each row's list; empty rows are left out.

    `lists` [b, k], 0 where there are fewer, explained together as they are in scoring. `num_events` [num_items + 1] is what the
    control `popularity` goes by. `{"rows": 0}` where nothing is left.
    """
    chosen = (histories.lengths > 0) & (lists[:, 0] > 0)
    windows, lists = histories.select(chosen).last(encoder.max_length), lists[chosen]
    if not len(lists):
        return {"rows": 0}
    first = lists[:, 0]
    exact = contributions(encoder, windows, lists[:, :1], "exact")[:, 0]
    weightings: dict[str, Float32] = {
        name: exact if name == "exact" else contributions(encoder, windows, lists, name)[:, 0]
        for name in methods
    }
    beside = controls(encoder, windows, first, num_events, seed)
    score_of = partial(kept_scores, encoder)
    return measure(weightings, beside, exact, score_of, windows, first, resamples=resamples, seed=seed)
