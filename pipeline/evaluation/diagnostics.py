"""Diagnostics of an evaluated model: calibration, attention, faithfulness of explanations, repeats, best and worst served users.

All on warm targets (a known item after a non-empty history), most on a sample.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.histories.numbering import ItemNumbering
from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation import metrics
from models.evaluation.metrics import Float64
from models.evaluation.ranks import SystemRanks
from models.explanation import attention_weights, faithfulness
from models.histories import Float32, Histories, Int32, Int64
from models.recommender import Recommender
from models.topk import contains, mask_seen, row_chunks, top_k
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets

CALIBRATION_TARGETS = 3_000
"""Targets sampled for calibration, at most; encoding their histories again dominates the time of diagnostics."""
CALIBRATION_CELLS = 2**30
"""Targets x items scored for calibration, at most (but at least 200 targets)."""
ATTENTION_TARGETS = 1_000
"""Targets sampled for attention."""
BECAUSE_TARGETS = 100
"""Targets sampled for faithfulness of explanations of the first recommendation."""
BECAUSE_CELLS = 2**20
"""Positions encoded by leave-one-out of those interactions, at most."""
MIN_USER_TARGETS = 3
"""Targets that a best or worst served user has at least, where any user has as many."""
SHOWN_USERS = 5
SHOWN_EVENTS = 5
"""Events of such a user shown, the most recent ones."""
POSITIONS = {"1": 1, "2": 2, "3-5": 3, "6-10": 6, "11-20": 11, "21-50": 21, "51+": 51}
"""Classes of positions from the end of the history (1: last event), each with its first position."""
AGES = {
    "under a minute": 0,
    "under an hour": 60,
    "under a day": 3_600,
    "under a week": 86_400,
    "under a month": 604_800,
    "under a year": 2_592_000,
    "a year or more": 31_536_000,
}
"""Classes of ages, each with its first second (a month: 30 days)."""

Row = dict[str, Any]


def build(
    recommender: AttentionRecommender,
    targets: RankedTargets,
    ranked: SystemRanks,
    dataset: Dataset,
    numbering: ItemNumbering,
    *,
    exclude_seen: bool,
    timed: bool,
    seed: int,
) -> Row:
    """Compute all diagnostics of a model, as JSON.

    `ranked`: the model's ranks of the `targets`, with lists of length `k`. `numbering`: items of the dataset -> the model's.
    `calibration`, `attention`, `because`, `repeats`, `users`: see the functions below.
    """
    has_history = (targets.histories.lengths > 0)[targets.request]
    warm, k = np.flatnonzero(targets.warm & has_history), ranked.lists.shape[1]
    if not len(warm):
        return {"k": k, "targets": 0}
    random = np.random.default_rng(seed)
    most = min(CALIBRATION_TARGETS, max(200, CALIBRATION_CELLS // recommender.num_items))
    sizes = (most, ATTENTION_TARGETS, BECAUSE_TARGETS)
    sample, fewer, fewest = (_sampled(warm, size, random) for size in sizes)
    request = targets.request
    histories, item = targets.histories.select(request[sample]), targets.item[sample]
    moments = targets.moment[request[fewer]]
    return {
        "k": k,
        "targets": len(warm),
        "calibration": calibration(recommender, histories, item, k, exclude_seen=exclude_seen),
        "attention": attention(
            recommender.encoder,
            targets.histories.select(request[fewer]),
            moments if timed else None,
            dataset.event_types,
        ),
        "because": because(
            recommender.encoder,
            targets.histories.select(request[fewest]),
            ranked.lists[request[fewest]],
            seed,
        ),
        "repeats": repeats(histories, ranked.lists[request[sample]], item)
        | {"exclude_seen": exclude_seen, "left_out": targets.left_out.get("already_seen", 0)},
        "users": best_and_worst(targets, ranked, warm, k, _Names.of(dataset, numbering)),
    }


def _sampled(rows: Int64, most: int, random: np.random.Generator) -> Int64:
    """Draw at most `most` rows without replacement, in their order."""
    return rows if len(rows) <= most else np.sort(random.choice(rows, most, replace=False))


# --- calibration ---


def calibration(
    recommender: Recommender,
    histories: Histories,
    target: Int32,
    k: int,
    *,
    exclude_seen: bool,
    bins: int = 10,
) -> Row:
    """Calibration of the softmax of the scores against hits.

    `top_1` and `list` (the k best items): `error`, and `bins` with mean predicted probability, observed share and number of
    targets; see `reliability`. `log_loss`: mean of `-ln p(target)`, nats; `log_loss_of_chance`: mean of
    `ln(number of candidates)`, the log loss of a uniform prediction. histories: t rows; target [t], items of the recommender.
    """
    predictions = predicted(recommender, histories, target, k, exclude_seen=exclude_seen)
    values: Row = {
        "targets": len(target),
        "log_loss": _number(-float(np.mean(predictions["log_probability"]))),
        "log_loss_of_chance": _number(float(np.mean(np.log(predictions["candidates"])))),
    }
    for name in ("top_1", "list"):
        table = reliability(predictions[name], predictions[f"{name}_hit"], bins)
        values[name] = {"error": calibration_error(table), "bins": table.to_dicts()}
    return values


def predicted(
    recommender: Recommender, histories: Histories, target: Int32, k: int, *, exclude_seen: bool
) -> Mapping[str, Float64]:
    """Probabilities of targets, [t] each, by the softmax of the scores over all candidates (items that can be recommended).

    `top_1`, `list`: of the best item, and of the k best together; `top_1_hit`, `list_hit`: whether they hold the target;
    `log_probability`: of the target; `candidates`: their number.
    """
    names = ("top_1", "top_1_hit", "list", "list_hit", "log_probability", "candidates")
    values = {name: np.empty(len(target)) for name in names}
    for rows in row_chunks(len(target), recommender.num_items):
        part, targets = histories.select(rows), target[rows]
        scores = recommender.score_items(part)
        if exclude_seen:
            mask_seen(scores, part)
        items, best = top_k(scores, k)
        values["candidates"][rows] = np.isfinite(scores).sum(1)
        own = scores[np.arange(len(targets)), targets].astype(np.float64)
        highest = best[:, 0].astype(np.float64)
        with np.errstate(under="ignore"):
            sums = highest + np.log(np.exp(scores - best[:, :1]).sum(1, dtype=np.float64))
            share = np.exp(best.astype(np.float64) - sums[:, None])
        values["top_1"][rows], values["list"][rows] = share[:, 0], share.sum(1)
        hit = items == targets[:, None]
        values["top_1_hit"][rows], values["list_hit"][rows] = hit[:, 0], hit.any(1)
        values["log_probability"][rows] = own - sums
    return values


def reliability(probability: Float64, hit: Float64, bins: int = 10) -> pl.DataFrame:
    """Reliability diagram of predictions [t]: a row per bin with `mean_predicted`, `observed` (share of hits), `targets`.

    Bins hold equally many targets, ordered by probability (adaptive bins, Nixon et al. 2019, section 4): over a catalogue nearly
    all probabilities are small, and would share one bin of equal width (Guo et al. 2017).
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return pl.DataFrame(
        {
            "mean_predicted": [float(probability[part].mean()) for part in parts],
            "observed": [float(hit[part].mean()) for part in parts],
            "targets": [len(part) for part in parts],
        },
        schema={"mean_predicted": pl.Float64, "observed": pl.Float64, "targets": pl.Int64},
    )


def calibration_error(table: pl.DataFrame) -> float:
    """Expected calibration error of a `reliability` table: sum over bins of |observed - mean_predicted| targets / all targets.

    Source: Guo et al. 2017, equation 3, over bins of equally many targets.
    """
    observed, mean_predicted, targets = table.to_numpy().T[[1, 0, 2]]
    return float(np.average(np.abs(observed - mean_predicted), weights=targets))


# --- attention ---


def attention(
    encoder: Encoder, histories: Histories, moments: Int64 | None, event_types: Sequence[str]
) -> Row:
    """Attention by class of interaction: `rows` of `attention_by` for several kinds of classes.

    Kinds: `position` (from the end), `age` (at the target's time, where `moments` [t] are given, microseconds), `event_type`
    (where there are types). Histories of one interaction are excluded. `not_applicable`: reason, for a model without attention.
    """
    if not attention_weights.has_attention(encoder):
        return {
            "not_applicable": f"blocks of type {encoder.settings.block} pay no attention to single interactions"
        }
    long = np.flatnonzero(histories.lengths > 1)
    windows = histories.select(long).last(encoder.max_length)
    weights = attention_weights.attention_weights(encoder, windows)
    rows, positions = windows.gather()
    from_end = windows.ends[rows] - positions
    classes = {"position": (_class_of(from_end, POSITIONS), list(POSITIONS))}
    if moments is not None:
        age = (moments[long][rows] - windows.time[positions]) / 1e6
        classes["age"] = (_class_of(age, AGES), list(AGES))
    if event_types:
        classes["event_type"] = (
            windows.event_type[positions].astype(np.int64),
            ["without a type", *event_types],
        )
    tables = [
        attention_by(weights, windows, code, names).select(pl.lit(kind).alias("kind"), pl.all())
        for kind, (code, names) in classes.items()
    ]
    return {"targets": len(long), "rows": pl.concat(tables).to_dicts()}


def _class_of(values: NDArray[np.number], firsts: Mapping[str, float]) -> Int64:
    """Class of each value, by the first value of each class."""
    code: Int64 = np.searchsorted(np.array(list(firsts.values())), values, side="right") - 1
    return code


def attention_by(weights: Float32, windows: Histories, code: Int64, names: Sequence[str]) -> pl.DataFrame:
    """Share of attention of each class of interactions, beside its share of the interactions.

    weights: [t, l] from `attention_weights` for the t rows of `windows`; code: class of every interaction, in the order of
    `windows.gather()`. A row per class that occurs: `value` (its name), `attention` (mean over rows of its weight),
    `interactions` (mean over rows of its share of the row: uniform attention), `lift` (their ratio), `num_interactions`.
    """
    rows, positions = windows.gather()
    own = weights[rows, positions - windows.starts[rows]].astype(np.float64)
    num_rows = max(1, len(windows))
    totals: dict[str, NDArray[Any]] = {
        "attention": np.bincount(code, own, len(names)) / num_rows,
        "interactions": np.bincount(code, 1 / windows.lengths[rows], len(names)) / num_rows,
        "num_interactions": np.bincount(code, minlength=len(names)),
    }
    table = pl.DataFrame({"value": list(names)} | totals).filter(pl.col("num_interactions") > 0)
    lift = (pl.col("attention") / pl.col("interactions")).alias("lift")
    return table.select("value", "attention", "interactions", lift, "num_interactions")


# --- because ---


def because(encoder: Encoder, histories: Histories, lists: Int32, seed: int) -> Row:
    """Faithfulness of the explanations of the first item of each list [t, k], of as many rows as `BECAUSE_CELLS` allows.

    See `faithfulness.measure_encoder`; its control `popularity` counts events in the flat arrays of the histories.
    """
    cost = np.minimum(histories.lengths, encoder.max_length) ** 2
    rows = slice(int(np.searchsorted(np.cumsum(cost), BECAUSE_CELLS, side="right")))
    num_events = np.bincount(histories.item_index, minlength=encoder.num_items + 1).astype(np.float32)
    return faithfulness.measure_encoder(encoder, histories.select(rows), lists[rows], num_events, seed=seed)


# --- repeats ---


def repeats(histories: Histories, lists: Int32, target: Int32) -> dict[str, float]:
    """Shares of recommended items (`recommended`) and of targets (`wanted`) that are in the history.

    histories: t rows; lists: [t, k], 0 for an empty place; target: [t]. Both are 0 where items of the history are excluded.
    """
    num_items = int(np.count_nonzero(lists))
    num_repeats = sum(int(contains(histories, column)[column > 0].sum()) for column in lists.T.copy())
    return {
        "targets": len(target),
        "recommended": num_repeats / max(1, num_items),
        "wanted": float(contains(histories, target).mean()) if len(target) else 0.0,
    }


# --- users ---


class ShownUser(TypedDict):
    """A user among the best or worst served, by one of the user's targets."""

    user_id: Any
    targets: int
    ndcg: float
    history_length: int
    history: list[str | None]
    """Titles of the most recent items, newest first."""
    target: str | None
    rank: float
    recommended: str | None


class BestAndWorst(TypedDict):
    """Users with the highest and the lowest mean NDCG@k."""

    min_targets: int
    best: list[ShownUser]
    worst: list[ShownUser]


class _Names:
    """Ids of users and titles of the model's items."""

    def __init__(self, user_id: pl.Series, title: pl.Series) -> None:
        self._user_id, self._title = user_id, title

    @classmethod
    def of(cls, dataset: Dataset, numbering: ItemNumbering) -> "_Names":
        """Names from a dataset; an item without a title has its id."""
        items = dataset.items
        by_id = pl.format("item {}", schema.ITEM_ID)
        title = pl.coalesce(pl.col(schema.TITLE), by_id) if schema.TITLE in items else by_id
        order = numbering.inverse().new[1:].astype(np.int64) - 1
        return cls(dataset.users[schema.USER_ID], items.select(title).to_series().gather(order))

    def user(self, index: int) -> Any:
        """Id of a user."""
        return self._user_id[index]

    def item(self, index: int) -> str | None:
        """Title of an item; None for item 0."""
        return str(self._title[index - 1]) if index > 0 else None


def best_and_worst(
    targets: RankedTargets, ranked: SystemRanks, warm: Int64, k: int, names: _Names
) -> BestAndWorst:
    """`SHOWN_USERS` users with the highest (`best`) and lowest (`worst`) mean NDCG@k over their requests with warm targets.

    Among users with at least `min_targets` = `MIN_USER_TARGETS` targets, or as many as any user has; ties by mean reciprocal
    rank, then by user. Each with its best ranked target (worst users: worst ranked), the first recommendation instead, and the
    most recent events before it.
    """
    user, rank = targets.user_of_target[warm], ranked.rank[warm]
    requests, request = np.unique(targets.request[warm], return_inverse=True)
    of_request = metrics.metrics_of_ranks(rank, (k,), request, len(requests))[f"ndcg@{k}"]
    table = (
        pl.DataFrame(
            {
                "user": user,
                "row": warm,
                "rank": rank,
                "ndcg": of_request[request],
                "reciprocal": 1 / rank,
            }
        )
        .group_by("user")
        .agg(
            pl.col("ndcg", "reciprocal").mean(),
            pl.len().alias("targets"),
            pl.col("row").sort_by("rank", "row").first().alias("best"),
            pl.col("row").sort_by("rank", "row", descending=[True, False]).first().alias("worst"),
        )
    )
    least = min(MIN_USER_TARGETS, int(table["targets"].to_numpy().max()))
    order = table.filter(pl.col("targets") >= least).sort(
        "ndcg", "reciprocal", "user", descending=[True, True, False]
    )
    num_shown = min(SHOWN_USERS, math.ceil(len(order) / 2))
    return {
        "min_targets": least,
        "best": [
            _user_row(row, int(row["best"]), targets, ranked, names)
            for row in order.head(num_shown).to_dicts()
        ],
        "worst": [
            _user_row(row, int(row["worst"]), targets, ranked, names)
            for row in order.reverse().head(min(num_shown, len(order) // 2)).to_dicts()
        ],
    }


def _user_row(row: Row, at: int, targets: RankedTargets, ranked: SystemRanks, names: _Names) -> ShownUser:
    """Description of a user by the target at `at`."""
    request = int(targets.request[at])
    history = targets.histories.select(slice(request, request + 1))
    last = history.item_index[history.ends[0] - min(SHOWN_EVENTS, int(history.lengths[0])) : history.ends[0]]
    return {
        "user_id": names.user(row["user"]),
        "targets": row["targets"],
        "ndcg": row["ndcg"],
        "history_length": int(history.lengths[0]),
        "history": [names.item(item) for item in reversed(last.tolist())],
        "target": names.item(int(targets.item[at])),
        "rank": float(ranked.rank[at]),
        "recommended": names.item(int(ranked.lists[request, 0])),
    }


def _number(value: float) -> float | None:
    """Finite number, else None, as JSON has no others."""
    return value if math.isfinite(value) else None
