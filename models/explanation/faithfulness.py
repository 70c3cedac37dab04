"""Faithfulness of explanations: agreement with leave-one-out, deletion and insertion curves.

A weighting attributes a score to past interactions: Float32 [b, l], columns as in `models.explanation.contributions`.
Letters: b rows, l positions of the longest window, r resamples.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.device import to_numpy
from models.encoder.encoder import Encoder
from models.evaluation.bootstrap import UserMeans, bootstrap, interval, paired_difference
from models.evaluation.metrics import Float64
from models.explanation.attention_weights import attention_weights, has_attention
from models.explanation.contributions import Bools, Method, contributions, kept_scores
from models.histories import Float32, Histories, Int32

STEPS = 10
"""Steps of a deletion or insertion curve."""
CURVES = ("deletion", "insertion")

Weightings = Mapping[str, Float32]
ScoreOf = Callable[[Histories, Int32, Bools], Float32]
"""(histories, items [b], kept [b, l]) -> [b] score with the kept interactions alone; 0 for a row that keeps none."""


def spearman(first: Float32, second: Float32, lengths: NDArray[np.integer]) -> Float64:
    """[b] rank correlation of two weightings in each row's first `lengths` columns, ties at their mean rank.

    NaN for rows of fewer than two interactions, and for equal weights throughout. Source: Spearman 1904.
    """
    from scipy.stats import rankdata

    correlations = np.full(len(lengths), np.nan)
    for row, length in enumerate(lengths.tolist()):
        ranks = [rankdata(weights[row, :length]) - (length + 1) / 2 for weights in (first, second)]
        size = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
        if size > 0:
            correlations[row] = ranks[0] @ ranks[1] / size
    return correlations


def curves(
    weights: Float32, score_of: ScoreOf, histories: Histories, items: Int32
) -> tuple[Float64, Float64]:
    """Deletion and insertion curves of each row's item [b] by weight, strongest first: two [b, STEPS + 1].

    At step t `round(t n / STEPS)` of a row's n interactions are deleted, or alone inserted; without any the score is 0. Of equal
    weights the more recent one comes first. Histories are no longer than `score_of` reads. Source: Petsiuk et al. 2018 (RISE),
    section 3.3, for pixels.
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
    """[b] area under each row's curve [b, STEPS + 1] by trapezoids, total width 1, in units of `scale`.

    One scale for all rows and weightings, `mean_spread` (DeYoung et al. 2020 divide by each row's own): rows whose score hardly
    depends on the history then count little. Low is good for deletion, high for insertion. Leave-one-out is not optimal by
    construction: a step removes several interactions together.
    """
    area: Float64 = (curve[:, 1:-1].sum(1) + (curve[:, 0] + curve[:, -1]) / 2) / (STEPS * scale)
    return area


def mean_spread(deletion: Float64) -> float:
    """Mean over rows of the score with the whole history less that with none; NaN unless positive."""
    spread = float((deletion[:, 0] - deletion[:, -1]).mean())
    return spread if spread > 0 else math.nan


def controls(
    encoder: Encoder, histories: Histories, items: Int32, num_events: Float32, seed: int = 0
) -> dict[str, Float32]:
    """Control weightings, less specific to the score of each row's item [b] than an explanation.

    `random`; `recency` (later more); `popularity` (`num_events` [num_items + 1] of the past item); `item_cosine` (of past and
    recommended item vectors); `attention` (`attention_weights`), where the model has attention.
    """
    windows = histories.last(encoder.max_length)
    rows, flat = windows.gather()
    column, past = flat - windows.starts[rows], windows.item_index[flat]
    vectors = to_numpy(encoder.item_vectors())
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    columns = {
        "random": np.random.default_rng(seed).random(len(rows)),
        "recency": column,
        "popularity": num_events[past],
        "item_cosine": np.einsum("ed,ed->e", vectors[past], vectors[items[rows]]),
    }
    weightings = {}
    for name, values in columns.items():
        weightings[name] = np.zeros((len(items), int(windows.lengths.max(initial=0))), np.float32)
        weightings[name][rows, column] = values
    return weightings | ({"attention": attention_weights(encoder, windows)} if has_attention(encoder) else {})


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

    `methods`: per weighting and control `spearman` with the `exact` drops (`mean` over rows; `rows_without`: NaN rows), and for
    `deletion` and `insertion` the `area` and the mean `curve`; with the ends `low` and `high` of 95 % bootstrap intervals over
    rows, None where no row has a value. `against`: per weighting, control and area a `models.evaluation.bootstrap.Difference`,
    weighting minus control over the same rows.
    """
    values: dict[str, Float64] = {}
    measured: dict[str, Any] = {}
    scale = None
    for name, weights in {**weightings, **controls}.items():
        correlations = values[f"{name} spearman"] = spearman(weights, exact, histories.lengths)
        measured[name] = {"spearman": {"rows_without": int(np.isnan(correlations).sum())}}
        for kind, curve in zip(CURVES, curves(weights, score_of, histories, items), strict=True):
            scale = scale or mean_spread(curve)
            values[f"{name} {kind}"] = areas(curve, scale)
            measured[name][kind] = {"curve": [_number(score / scale) for score in curve.mean(0)]}
    means = _ResampledMeans.of(values, resamples, seed)
    for name, kinds in measured.items():
        for kind in kinds:
            kinds[kind] |= means.mean(f"{name} {kind}", "mean" if kind == "spearman" else "area")
    against = {
        name: {
            control: {kind: means.difference(name, control, kind) for kind in CURVES} for control in controls
        }
        for name in weightings
    }
    return {"rows": len(items), "steps": STEPS, "methods": measured, "against": against}


@dataclass(frozen=True)
class _ResampledMeans:
    """Means over rows and over bootstrap resamples, with the same resamples for all values."""

    column: dict[str, int]
    means: Float64
    resampled: Float64

    @classmethod
    def of(cls, values: Mapping[str, Float64], resamples: int, seed: int) -> "_ResampledMeans":
        """Means of values [b] by name, NaN where a row has none."""
        num_rows = len(next(iter(values.values())))
        rows = UserMeans.of(values, np.arange(num_rows), num_rows)
        column = {name: number for number, name in enumerate(values)}
        return cls(column, rows.over_users, bootstrap(rows, resamples, seed)[:, : len(values)])

    def mean(self, name: str, key: str) -> dict[str, float | None]:
        """Mean, under `key`, and the ends of its interval."""
        column = self.column[name]
        (low,), (high,) = interval(self.resampled[:, [column]])
        return {key: _number(self.means[column]), "low": _number(low), "high": _number(high)}

    def difference(self, first: str, second: str, kind: str) -> dict[str, str | float | None]:
        """Difference of two areas."""
        one, other = self.column[f"{first} {kind}"], self.column[f"{second} {kind}"]
        difference = paired_difference(
            float(self.means[one] - self.means[other]),
            self.resampled[:, one] - self.resampled[:, other],
            lower_is_better=kind == "deletion",
        )
        return {
            key: value if isinstance(value, str) else _number(value)
            for key, value in vars(difference).items()
        }


def _number(value: float) -> float | None:
    """JSON number, None for NaN and infinity."""
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

    `lists` [b, k], 0 where there are fewer, explained together as in scoring. `num_events` [num_items + 1]: events per item, for
    the control `popularity`. `{"rows": 0}` where no row is left.
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
    baselines = controls(encoder, windows, first, num_events, seed)
    score_of = partial(kept_scores, encoder)
    return measure(weightings, baselines, exact, score_of, windows, first, resamples=resamples, seed=seed)
