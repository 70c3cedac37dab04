"""Several systems judged on the same targets: metrics, intervals, and differences that are paired by user."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import (
    Float64,
    UserSums,
    bootstrap,
    interval,
    metrics_of_ranks,
    paired_difference,
    sum_by_user,
)

# Letters in shapes: t targets, u users, s systems, m metrics over targets, b resamples.


@dataclass(frozen=True)
class Judgement:
    """Metrics of several systems on the same targets, resampled together so that differences are paired."""

    systems: tuple[str, ...]
    names: tuple[str, ...]
    """Metric names: over targets (`ndcg@10`), then over users (`user_ndcg@10`)."""
    users: NDArray[np.integer]
    """[u], the users that have targets."""
    sums: UserSums
    """[u, s * m], the columns of one system side by side."""
    means: Float64
    """[s, 2 m]"""
    resampled: Float64
    """[b, s, 2 m]"""

    @classmethod
    def of(
        cls,
        ranks: dict[str, Float64],
        user: NDArray[np.integer],
        ks: tuple[int, ...],
        resamples: int,
        seed: int,
    ) -> "Judgement":
        """Judge `ranks` (system -> [t]) of targets that belong to `user` [t], at each list length of `ks`."""
        users, row = np.unique(user, return_inverse=True)
        parts = []
        for rank in ranks.values():
            values = metrics_of_ranks(rank, ks)
            parts.append(sum_by_user(row, len(users), np.stack(list(values.values()), axis=1)))
        names = tuple(values)
        sums = UserSums(np.hstack([part.sums for part in parts]), np.hstack([part.counts for part in parts]))
        of_users = sums.of_users()
        shape = (len(ranks), len(names))
        means = [each.over_targets().reshape(shape) for each in (sums, of_users)]
        both = UserSums(np.hstack([sums.sums, of_users.sums]), np.hstack([sums.counts, of_users.counts]))
        resampled = bootstrap(both, resamples, seed).reshape(resamples, 2, *shape)
        return cls(
            tuple(ranks),
            names + tuple(f"user_{name}" for name in names),
            users,
            sums,
            np.hstack(means),
            np.concatenate([resampled[:, 0], resampled[:, 1]], axis=2),
        )

    @property
    def num_users(self) -> int:
        """Users with at least one target."""
        return len(self.users)

    @property
    def num_targets(self) -> int:
        """Targets of all users."""
        return int(self.sums.counts[:, 0].sum())

    def values(self, system: str) -> dict[str, float]:
        """Metric -> value of one system."""
        return dict(zip(self.names, self.means[self.systems.index(system)].tolist(), strict=True))

    def intervals(self, system: str) -> dict[str, list[float]]:
        """Metric -> [low, high] of one system: 95 % bootstrap interval over users."""
        low, high = interval(self.resampled[:, self.systems.index(system)])
        return {name: [float(low[column]), float(high[column])] for column, name in enumerate(self.names)}

    def paired(self, first: str, second: str) -> dict[str, dict[str, Any]]:
        """Metric -> how much better `first` is than `second`, from the same draws of users."""
        one, other = self.systems.index(first), self.systems.index(second)
        differences = self.resampled[:, one] - self.resampled[:, other]
        return {
            name: asdict(
                paired_difference(
                    float(self.means[one, column] - self.means[other, column]), differences[:, column]
                )
            )
            for column, name in enumerate(self.names)
        }

    def of_users(self, system: str) -> dict[str, NDArray[Any]]:
        """`targets` [u] and the mean of each metric over the targets of each user, [u]."""
        own = self.sums.of_users().sums.reshape(self.num_users, len(self.systems), -1)[
            :, self.systems.index(system)
        ]
        columns = {name: own[:, column] for column, name in enumerate(self.names[: own.shape[1]])}
        return {"targets": self.sums.counts[:, 0].astype(np.int64), **columns}
