"""Choice of the columns that the ranker reads, by a paired test on held-out users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.evaluation.bootstrap import Difference, UserMeans, bootstrap, paired_difference
from models.evaluation.metrics import Float64
from models.ranking.columns import ColumnPlaces
from models.ranking.ranker import SecondStage
from models.ranking.training import RankerFit, Retrieved, ndcg_of

Fit = Callable[[Sequence[str]], RankerFit]
"""Trains a ranker that reads the columns of these labels; none: of no columns."""


@dataclass(frozen=True)
class ColumnChoice:
    """Chosen ranker, and the figures behind the choice; NDCG@10 on the lists that choose the epoch."""

    fit: RankerFit
    taken: tuple[str, ...]
    """Labels of the columns that it reads."""
    ndcg: float
    importance: dict[str, float]
    """NDCG that shuffling a column costs, by label, of the ranker that reads all of them."""
    gain: Difference | None = None
    """Of the ranker with the taken columns, or else with all, over the one without; None where there was no such one."""


def choose_columns(
    fit: Fit, columns: Sequence[ColumnPlaces], retrieved: Retrieved, seed: int
) -> ColumnChoice:
    """Choose among columns with at most three trainings.

    One without columns, one with all, and one with those whose shuffling costs the second something. The last whose paired
    difference from the first has an interval above 0 stands, else the first. The lists of the test chose the epochs and the
    third's columns too, so the difference is slightly optimistic.
    columns: in the tables of a ranker that reads all of them.
    """
    without = fit(())
    labels = tuple(column.label for column in columns)
    if not labels:
        return ColumnChoice(without, (), _mean(without, retrieved), {})
    every = fit(labels)
    importance = importances(every, columns, retrieved, seed)
    kept = tuple(label for label in labels if importance[label] > 0)
    tried = [(labels, every)] + ([(kept, fit(kept))] if kept and kept != labels else [])
    gains = [_gain(each, without, retrieved, seed) for _, each in tried]
    for (taken, best), gain in reversed([*zip(tried, gains, strict=True)]):
        if gain.low > 0:
            return ColumnChoice(best, taken, _mean(best, retrieved), importance, gain)
    return ColumnChoice(without, (), _mean(without, retrieved), importance, gains[0])


def given_columns(fit: Fit, columns: Sequence[ColumnPlaces], retrieved: Retrieved, seed: int) -> ColumnChoice:
    """Take all of the columns, in one training."""
    labels = tuple(column.label for column in columns)
    fitted = fit(labels)
    importance = importances(fitted, columns, retrieved, seed) if labels else {}
    return ColumnChoice(fitted, labels, _mean(fitted, retrieved), importance)


def importances(
    fit: RankerFit, places: Sequence[ColumnPlaces], retrieved: Retrieved, seed: int
) -> dict[str, float]:
    """NDCG@10 that shuffling each column among the users, items or requests of the choosing lists costs (Breiman 2001)."""
    chosen, stage = _choosing(fit, retrieved), fit.stage
    assert stage.columns is not None
    rows = {
        "users": np.unique(chosen.user),
        "items": np.unique(chosen.items[chosen.items > 0]).astype(np.int64),
    }
    whole = float(_ndcg(stage, chosen).mean())
    costs = {}
    for column in places:
        if column.table == "events":
            assert stage.columns.events is not None
            histories = stage.columns.events.shuffled(chosen.histories, column.places.start, seed)
            ndcg = _ndcg(stage, replace(chosen, histories=histories))
        else:
            tables = stage.columns.permuted(column.table, column.places, rows[column.table], seed)
            ndcg = _ndcg(stage.reading(tables), chosen)
        costs[column.label] = whole - float(ndcg.mean())
    return costs


def _choosing(fit: RankerFit, retrieved: Retrieved) -> Retrieved:
    """Lists that choose the epoch, without those of users who took nothing: these choose by their outcomes alone."""
    return retrieved.select(fit.chooses & retrieved.is_active)


def _ndcg(stage: SecondStage, retrieved: Retrieved) -> Float64:
    return ndcg_of(stage.score(retrieved.histories, retrieved.items, retrieved.scores), retrieved)


def _mean(fit: RankerFit, retrieved: Retrieved) -> float:
    return float(_ndcg(fit.stage, _choosing(fit, retrieved)).mean())


def _gain(first: RankerFit, second: RankerFit, retrieved: Retrieved, seed: int) -> Difference:
    """Paired difference in NDCG@10, resampled by users."""
    chosen = _choosing(first, retrieved)
    users, user = np.unique(chosen.user, return_inverse=True)
    values = {name: _ndcg(fit.stage, chosen) for name, fit in (("first", first), ("second", second))}
    means = UserMeans.of(values, user, len(users))
    resampled = bootstrap(means, seed=seed)
    difference = float(means.over_targets[0] - means.over_targets[1])
    return paired_difference(difference, resampled[:, 0] - resampled[:, 1])
