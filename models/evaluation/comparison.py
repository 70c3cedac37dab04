"""Comparison of systems on the same targets: metrics, intervals, and differences paired by user."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.bootstrap import (
    NO_DIFFERENCE,
    Difference,
    PairedDifference,
    UserMeans,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    paired_difference,
    wilcoxon_p,
)
from models.evaluation.metrics import LOWER_IS_BETTER, Float64

# Letters in shapes: t targets, u users, s systems, m metrics over targets, b resamples.


@dataclass(frozen=True)
class SystemComparison:
    """Metrics of several systems on the same targets, resampled by the same draws so that differences are paired."""

    systems: tuple[str, ...]
    names: tuple[str, ...]
    """Metric names: over targets (`ndcg@10`), then over users (`user_ndcg@10`)."""
    users: NDArray[Any]
    """[u], users with targets."""
    targets: NDArray[np.int64]
    """[u], targets of each user."""
    means: Float64
    """[s, 2 m]"""
    resampled: Float64
    """[b, s, 2 m]"""
    by_user: tuple[NDArray[np.floating], ...]
    """[m, u] per system: mean over each user's targets, NaN where the metric is undefined for all of them."""

    @classmethod
    def of(
        cls,
        values: Iterable[tuple[str, Mapping[str, Float64]]],
        user: NDArray[Any],
        resamples: int,
        seed: int,
        weights: Mapping[str, Float64] | None = None,
    ) -> "SystemComparison":
        """Compare systems, given as (name, metric -> [t]), on targets of `user` [t].

        `values` is read one system at a time: pass a generator to hold only one system's per-target values. NaN: the
        target does not count for that metric. `weights` of a metric ([t], see `metrics.debias_weights`) make its mean
        sum(w v) / sum(w). All systems share the draws of users from `seed`. Raises ValueError for different metrics.
        """
        users, row, targets = np.unique(user, return_inverse=True, return_counts=True)
        systems: list[str] = []
        names: tuple[str, ...] = ()
        user_means, resampled = [], []
        for system, of_targets in values:
            if systems and tuple(of_targets) != names:
                raise ValueError(
                    f"SystemComparison: received metrics {', '.join(of_targets)} of {system!r},"
                    f" expected those of {systems[0]!r}: {', '.join(names)}"
                )
            systems.append(system)
            names = tuple(of_targets)
            user_means.append(UserMeans.of(of_targets, row, len(users), weights))
            resampled.append(bootstrap(user_means[-1], resamples, seed))
        if not systems:
            raise ValueError("SystemComparison: received no system, expected at least one")
        return cls(
            tuple(systems),
            names + tuple(f"user_{name}" for name in names),
            users,
            targets.astype(np.int64),
            np.array([np.concatenate([means.over_targets, means.over_users]) for means in user_means]),
            np.stack(resampled, axis=1),
            tuple(means.means for means in user_means),
        )

    @property
    def num_users(self) -> int:
        """Users with at least one target."""
        return len(self.users)

    @property
    def num_targets(self) -> int:
        """Targets of all users."""
        return int(self.targets.sum())

    def values(self, system: str) -> dict[str, float]:
        """Metric -> value of one system."""
        return dict(zip(self.names, self.means[self._place(system)].tolist(), strict=True))

    def intervals(self, system: str) -> dict[str, list[float]]:
        """Metric -> [low, high] of one system: 95 % bootstrap interval over users."""
        low, high = interval(self.resampled[:, self._place(system)])
        return {name: [float(low[column]), float(high[column])] for column, name in enumerate(self.names)}

    def of_users(self, system: str) -> dict[str, NDArray[Any]]:
        """`targets` [u] and the mean of each metric over the targets of each user, [u]."""
        own = self.by_user[self._place(system)]
        return {"targets": self.targets, **dict(zip(self.names, own, strict=False))}

    def paired(self, first: str, second: str) -> dict[str, Difference]:
        """Metric -> `first` minus `second`, from the same draws of users."""
        return {name: self._difference(first, second, name) for name in self.names}

    def compared(
        self, first: str, others: Sequence[str] | None = None
    ) -> dict[str, dict[str, PairedDifference]]:
        """Other system -> metric -> `first` minus other, with p-values, adjusted metric by metric for several others.

        The verdict is better or worse where the 95 % bootstrap interval of the difference excludes 0 and, with several
        others, `p_bootstrap_holm` is below .05 too: a 5 % chance of any false verdict on a metric if no system differs.
        Wilcoxon's test answers another question (whether users, each as one, are served better) and decides nothing.
        `others`: by default all other systems.
        """
        chosen = [name for name in self.systems if name != first] if others is None else list(others)
        table: dict[str, dict[str, PairedDifference]] = {other: {} for other in chosen}
        signed_ranks: dict[str, list[float]] = {}
        for name in self.names:
            own = name.removeprefix("user_")
            if own not in signed_ranks:
                signed_ranks[own] = [self._wilcoxon(first, other, own) for other in chosen]
            differences = [self._difference(first, other, name) for other in chosen]
            resampled = [self._bootstrap_p(first, other, name) for other in chosen]
            p_values = (signed_ranks[own], holm(signed_ranks[own]), resampled, holm(resampled))
            for other, difference, *four in zip(chosen, differences, *p_values, strict=True):
                paired = PairedDifference(*vars(difference).values(), *four)
                is_sure = len(chosen) == 1 or four[3] < 0.05
                table[other][name] = paired if is_sure else replace(paired, verdict=NO_DIFFERENCE)
        return table

    def _place(self, system: str) -> int:
        if system not in self.systems:
            raise ValueError(f"received system {system!r}, expected one of {', '.join(self.systems)}")
        return self.systems.index(system)

    def _resampled_difference(self, first: str, second: str, name: str) -> tuple[float, Float64]:
        one, other, column = self._place(first), self._place(second), self.names.index(name)
        difference = float(self.means[one, column] - self.means[other, column])
        return difference, self.resampled[:, one, column] - self.resampled[:, other, column]

    def _difference(self, first: str, second: str, name: str) -> Difference:
        """Difference of two systems; a single user gives no interval, since every resample is that user."""
        kind = name.removeprefix("user_").partition("@")[0]
        paired = paired_difference(
            *self._resampled_difference(first, second, name), lower_is_better=kind in LOWER_IS_BETTER
        )
        return paired if self.num_users > 1 else replace(paired, verdict=NO_DIFFERENCE)

    def _bootstrap_p(self, first: str, second: str, name: str) -> float:
        return bootstrap_p(*self._resampled_difference(first, second, name))

    def _wilcoxon(self, first: str, second: str, name: str) -> float:
        row = self.names.index(name)
        return wilcoxon_p(self.by_user[self._place(first)][row], self.by_user[self._place(second)][row])
