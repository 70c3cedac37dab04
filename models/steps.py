"""What each optimiser step is given: its batch, cut into parts by tokens for processes and accumulation, and its negatives.

Letters: b rows, l positions, n targets.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.batching import Batch, BatchPlan, Window
from models.recommender import Int64
from models.sampling import Negatives, NegativeSampler

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One optimiser step of one process."""

    rows: NDArray[np.int64]
    """The plan's histories that the step learns from, over all processes."""
    parts: list[tuple[Batch, float]]
    """What this process computes, one after the other, each with its share of the step's weight; at least one."""
    negatives: Negatives | None
    """The same for all parts and processes."""
    weight: float
    """Sum of the weights of the step's targets."""
    lengths: Int64
    """[rows], inputs of each history of the step."""
    num_targets: int


def steps(
    plan: BatchPlan,
    epoch: int,
    first: int,
    *,
    sampler: NegativeSampler | None,
    accumulate: int,
    rank: int,
    size: int,
    device: torch.device,
) -> Iterator[Step]:
    """The steps of an epoch from step `first` on, as process `rank` of `size` takes them, its parts on the device."""
    for number, rows in enumerate(plan.epoch(epoch)[first:], first):
        batch = plan.batch(rows, epoch)
        weight = _total(batch)
        mine = cut(batch, size * accumulate)[rank * accumulate : (rank + 1) * accumulate]
        parts = [(part, _total(part) / weight) for part in mine if part is not None]
        negatives = sampler.draw(epoch, number, batch.target.to(device)) if sampler is not None else None
        yield Step(
            rows,
            [(part.to(device), share) for part, share in parts or [(_rows(batch, 0, 1), 0.0)]],
            negatives,
            weight,
            batch.window.lengths[: len(rows)].numpy(),
            len(batch.target),
        )


def cut(batch: Batch, parts: int) -> list[Batch | None]:
    """The rows of a batch in so many parts of about equally many tokens, in order; None where a part would be empty."""
    if parts == 1:
        return [batch]
    ends = np.cumsum(batch.window.lengths.numpy())
    middle = ends - batch.window.lengths.numpy() / 2
    part = (middle * (parts / ends[-1])).astype(np.int64)  # padding rows, at the end, are in none
    edges = np.searchsorted(part, np.arange(parts + 1))
    return [_rows(batch, first, last) if first < last else None for first, last in pairwise(edges)]


def _total(batch: Batch) -> float:
    return float(batch.weight.numpy().sum(dtype=np.float64))


def _rows(batch: Batch, first: int, last: int) -> Batch:
    """Rows first to last - 1 of a batch with the targets that are theirs."""
    columns = batch.window.item_index.shape[1]
    fields: list[Any] = [None if part is None else part[first:last] for part in vars(batch.window).values()]
    window = Window(*fields)
    theirs = (batch.position >= first * columns) & (batch.position < last * columns)
    position = batch.position[theirs] - first * columns
    return Batch(window, position, batch.target[theirs], batch.weight[theirs])


def prefetched(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items in the same order, each made in a thread while the one before it is used; exceptions come through."""
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
