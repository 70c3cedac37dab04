"""Base class and shared counts of the reference recommenders.

Each is fitted by `X.fit(histories, num_items, **settings)`, implements `Recommender`, and is saved and loaded without pickle.
Its `GRID` lists the settings tried on validation, the default first.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.histories import Float32, Histories, Int32, Int64
from models.topk import event_chunks, recommend_in_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items, e events.

Settings = dict[str, float | int]
"""Keyword arguments of `fit`."""

ARRAYS_FILE, FACTS_FILE = "recommender.safetensors", "recommender.json"
PRIOR_WEIGHT = 1e-4
"""Prior score of an item with all events, far below a baseline's own scores."""


@dataclass(frozen=True)
class FittedOn:
    """Number and latest time of a system's training events."""

    num_events: int
    """Interactions with a known item (> 0)."""
    latest: int | None
    """Latest time, in microseconds since the epoch; None without events or times."""

    @classmethod
    def of(cls, histories: Histories) -> FittedOn:
        """Count the interactions of all rows and find the latest; overlapping rows count separately."""
        num_events, latest = 0, None
        for rows in event_chunks(histories.lengths):
            _, positions = histories.select(rows).gather()
            times = histories.time[positions][histories.item_index[positions] > 0]
            num_events += len(times)
            if len(times):
                newest = int(times.max())
                latest = newest if latest is None else max(latest, newest)
        return cls(num_events, latest)


@dataclass(frozen=True)
class State:
    """Everything that a fitted baseline consists of, as arrays and numbers."""

    arrays: Mapping[str, NDArray[Any]]
    """By name; a sparse matrix M as M.data, M.indices, M.indptr and M.shape (compressed rows)."""
    numbers: Settings
    fitted_on: FittedOn


class Baseline(abc.ABC):
    """Base class of baselines: `recommend` takes the top of `score_items`; `save` and `load` write and read the state.

    Attributes named in `ARRAYS` (arrays or csr arrays) and `NUMBERS` are arguments of the constructor under the same names,
    beside `fitted_on`; they are all that is saved.
    """

    GRID: ClassVar[tuple[Settings, ...]] = ({},)
    """Settings of `fit` tried on validation, the default first; at most six."""
    ARRAYS: ClassVar[tuple[str, ...]] = ()
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    needs_seen: ClassVar[bool] = False
    """Whether it recommends items of the history itself, and so applies only where those may be recommended."""
    moves: ClassVar[bool] = False
    """Whether its parameters are counts of events, counted anew at each night; others keep those of the boundary."""

    def __init__(self, num_items: int, fitted_on: FittedOn) -> None:
        self.num_items = num_items
        self.fitted_on = fitted_on

    @classmethod
    def fits(cls, histories: Histories, num_items: int, points: Sequence[Settings]) -> Iterable[Self]:
        """`fit` with each of several settings; a subclass computes what they share once."""
        fit: Callable[..., Self] = cls.fit  # type: ignore[attr-defined]
        return (fit(histories, num_items, **point) for point in points)

    @abc.abstractmethod
    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1] scores, higher is better; column 0 is -inf."""

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        """Top-k items of each row and their scores, as in `Recommender`."""
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)

    def state(self) -> State:
        """Arrays and numbers; arrays are not copied."""
        arrays: dict[str, NDArray[Any]] = {}
        for name in self.ARRAYS:
            values = getattr(self, name)
            if isinstance(values, np.ndarray):
                arrays[name] = values
            else:
                parts = {"data": values.data, "indices": values.indices, "indptr": values.indptr}
                arrays |= {f"{name}.{part}": array for part, array in parts.items()}
                arrays[f"{name}.shape"] = np.array(values.shape, np.int64)
        return State(arrays, {name: getattr(self, name) for name in self.NUMBERS}, self.fitted_on)

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Baseline with a given state, the inverse of `state`. Raises KeyError for a missing array or number."""
        values: dict[str, Any] = {name: state.numbers[name] for name in cls.NUMBERS}
        for name in cls.ARRAYS:
            is_sparse = f"{name}.indptr" in state.arrays
            values[name] = _sparse(state.arrays, name) if is_sparse else state.arrays[name]
        return cls(**values, fitted_on=state.fitted_on)

    def save(self, folder: Path) -> None:
        """Write recommender.safetensors and recommender.json (class, numbers, training events) into an existing folder."""
        state = self.state()
        save_file(
            {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}, folder / ARRAYS_FILE
        )
        facts = {
            "class": type(self).__name__,
            "numbers": state.numbers,
            "fitted_on": asdict(state.fitted_on),
        }
        (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises ValueError for damaged files, or those of another class."""
        try:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            if facts["class"] != cls.__name__:
                raise ValueError(f"{folder}: received a saved {facts['class']}, expected {cls.__name__}")
            arrays = load_file(folder / ARRAYS_FILE)
            return cls.from_state(State(arrays, facts["numbers"], FittedOn(**facts["fitted_on"])))
        except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder}: not a saved {cls.__name__}: {error!r}") from error


def _sparse(arrays: Mapping[str, NDArray[Any]], name: str) -> csr_array:
    """Matrix from its arrays, see `State`."""
    from scipy.sparse import csr_array

    parts = (arrays[f"{name}.data"], arrays[f"{name}.indices"], arrays[f"{name}.indptr"])
    return csr_array(parts, shape=tuple(arrays[f"{name}.shape"].tolist()))


def item_counts(histories: Histories, num_items: int, since: int | None = None) -> Int64:
    """[n + 1], events of each item over all rows, only those later than `since` (microseconds) if given; 0 at item 0."""
    counts = np.zeros(num_items + 1, np.int64)
    for rows in event_chunks(histories.lengths):
        _, positions = histories.select(rows).gather()
        if since is not None:
            positions = positions[histories.time[positions] > since]
        counts += np.bincount(histories.item_index[positions], minlength=num_items + 1)
    counts[0] = 0
    return counts


def popularity_prior(counts: Int64) -> Float32:
    """[n + 1], `PRIOR_WEIGHT` times each item's share of all events: ranks unscored items, and all for empty histories."""
    return np.asarray(counts / max(int(counts.sum()), 1) * PRIOR_WEIGHT, np.float32)


def interactions(histories: Histories, num_items: int) -> csr_array:
    """Binary interaction matrix X [r, n + 1], float32: X[i, j] = 1 if row i holds item j; column 0 is empty."""
    from scipy.sparse import csr_array, vstack

    parts = [csr_array((0, num_items + 1), dtype=np.float32)]
    for chunk in event_chunks(histories.lengths):
        row, position = histories.select(chunk).gather()
        item = histories.item_index[position]
        known = item > 0
        starts = np.searchsorted(row[known], np.arange(chunk.stop - chunk.start + 1)).astype(np.int32)
        ones = np.ones(int(starts[-1]), np.float32)
        part = csr_array((ones, item[known], starts), shape=(len(starts) - 1, num_items + 1))
        part.sum_duplicates()
        part.data[:] = 1
        parts.append(part)
    return vstack(parts, format="csr")
