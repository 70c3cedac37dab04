"""Content map: ridge regression from the content of training items to their vectors.

Letters: n items, f features, d components.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from models.histories import Float32

FILE = "content_map.safetensors"
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties, chosen by cross-validation."""
FOLDS = 5
MIN_ITEMS = 20
"""Minimum number of training items for a map."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ContentMapAccuracy:
    """Cross-validated accuracy of item vectors predicted from content."""

    items: int
    features: int
    penalty: float
    """Member of `PENALTIES` with the greatest r2."""
    r2: float
    """1 - squared error / squared distance from the mean vector; 0: content predicts nothing."""
    cosine: float
    """Mean cosine of predicted and true vectors."""
    mean_cosine: float
    """Mean cosine of the mean vector, which needs no content, and true vectors."""

    def as_dict(self) -> dict[str, float]:
        """Fields rounded to four decimals, for a file."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ContentMap:
    """`vector = offset + features @ weight`."""

    weight: Float32
    """[f, d]"""
    offset: Float32
    """[d]"""

    @classmethod
    def fit(
        cls, features: Float32, vectors: Float32, seed: int = 0
    ) -> tuple["ContentMap", ContentMapAccuracy] | None:
        """Fit the map [n, f] -> [n, d] and its accuracy; None for fewer than `MIN_ITEMS` items or features of zeros.

        Minimises |y - Y~ - (x - X~) W|² + penalty |W|² over the items (Hoerl and Kennard 1970), with the penalty of least
        squared error over `FOLDS` folds drawn by `seed`.
        """
        if len(features) < MIN_ITEMS or not features.any():
            return None
        x, y = features.astype(np.float64), vectors.astype(np.float64)
        predicted = np.empty((len(PENALTIES), *y.shape))
        mean = np.empty_like(y)
        for fold in np.array_split(np.random.default_rng(seed).permutation(len(x)), FOLDS):
            others = np.ones(len(x), bool)
            others[fold] = False
            solutions = _solve(x[others], y[others], PENALTIES)
            predicted[:, fold] = [offset + x[fold] @ weight for weight, offset in solutions]
            mean[fold] = y[others].mean(axis=0)
        errors = ((predicted - y) ** 2).sum(axis=(1, 2))
        best = int(errors.argmin())
        r2 = float(1 - errors[best] / max(float(((y - mean) ** 2).sum()), 1e-30))
        cosines = _cosine(predicted[best], y), _cosine(mean, y)
        ((weight, offset),) = _solve(x, y, PENALTIES[best : best + 1])
        accuracy = ContentMapAccuracy(len(x), x.shape[1], PENALTIES[best], r2, *cosines)
        return cls(weight.astype(np.float32), offset.astype(np.float32)), accuracy

    def __call__(self, features: Float32) -> Float32:
        """Predicted vectors [n, d] from features [n, f]."""
        return self.offset + features @ self.weight

    def save(self, folder: Path) -> None:
        """Write content_map.safetensors."""
        save_file({"weight": self.weight, "offset": self.offset}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "ContentMap | None":
        """Load a saved map; None without a file."""
        return cls(**load_file(folder / FILE)) if (folder / FILE).exists() else None


def _solve(x: Float64, y: Float64, penalties: tuple[float, ...]) -> list[tuple[Float64, Float64]]:
    """(weight, offset) for each penalty, from one eigendecomposition."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - x_mean
    values, basis = np.linalg.eigh(centred.T @ centred)
    target = basis.T @ (centred.T @ (y - y_mean))
    weights = [basis @ (target / (np.maximum(values, 0) + penalty)[:, None]) for penalty in penalties]
    return [(weight, y_mean - x_mean @ weight) for weight in weights]


def _cosine(left: Float64, right: Float64) -> float:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(lengths, 1e-30)).mean())
