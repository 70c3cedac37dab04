"""Optimiser steps: batches cut into parts by tokens for processes and accumulation, and their negatives.

Letters: b rows, l positions, n targets.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder.batching import Batch, BatchPlan
from models.histories import Int64
from models.shapes import Float
from models.training.negatives import Negatives, NegativeSampler

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One optimiser step of one process."""

    rows: NDArray[np.int64]
    """The plan's histories that the step learns from, over all processes."""
    parts: list[tuple[Batch, float]]
    """Batches of this process, each with its share of the step's weight; at least one."""
    negatives: Negatives | None
    """The same for all parts and processes."""
    weight: float
    """Sum of the weights of the step's targets."""
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
        target, weight = plan.targets_of(rows, epoch)
        lengths = plan.in_epoch(epoch).lengths[rows] - 1
        mine = cut(rows, lengths, size * accumulate)[rank * accumulate : (rank + 1) * accumulate]
        batches = [plan.batch(part, epoch) for part in mine if len(part)]
        negatives = sampler.draw(epoch, number, target.to(device)) if sampler is not None else None
        whole = _total(weight)
        yield Step(
            rows,
            [(batch.to(device), _total(batch.weight) / whole) for batch in batches]
            or [(plan.batch(rows[:1], epoch).to(device), 0.0)],
            negatives,
            whole,
            len(target),
        )


def cut(rows: NDArray[np.int64], lengths: Int64, parts: int) -> list[NDArray[np.int64]]:
    """The rows in so many parts of about equally many tokens, in order; some are empty where there are few rows."""
    ends = np.cumsum(lengths)
    part = ((ends - lengths / 2) * (parts / ends[-1])).astype(np.int64)
    return np.split(rows, np.searchsorted(part, np.arange(1, parts)))


def _total(weight: Float[Tensor, " n"]) -> float:
    return float(weight.double().sum())


def prefetched(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items in the same order, each made in a thread while the one before it is used; exceptions come through."""
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
