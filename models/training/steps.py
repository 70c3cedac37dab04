"""Optimiser steps: batches, split by tokens for processes and accumulation, and their negatives."""

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
    """The plan's histories in the step, over all processes."""
    parts: list[tuple[Batch, float]]
    """Batches of this process, at least one, each with its share of the step's weight."""
    negatives: Negatives | None
    """Negatives shared by all parts and processes."""
    weight: float
    """Sum of target weights."""
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
    """Steps of an epoch from step `first` on, in process `rank` of `size`, with parts on the device."""
    for number, rows in enumerate(plan.epoch(epoch)[first:], first):
        target, weight = plan.targets_of(rows, epoch)
        lengths = plan.inputs(epoch).lengths[rows]
        own = cut(rows, lengths, size * accumulate)[rank * accumulate : (rank + 1) * accumulate]
        batches = [plan.batch(part, epoch) for part in own if len(part)]
        negatives = sampler.draw(epoch, number, target).to(device) if sampler is not None else None
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
    """Rows in `parts` parts of about equally many tokens, in order; some are empty where there are few rows."""
    ends = np.cumsum(lengths)
    part = ((ends - lengths / 2) * (parts / ends[-1])).astype(np.int64)
    return np.split(rows, np.searchsorted(part, np.arange(1, parts)))


def _total(weight: Float[Tensor, " n"]) -> float:
    return float(weight.double().sum())


def prefetched(items: Iterator[T]) -> Generator[T, None, None]:
    """Items in order, each computed in a thread while the previous one is used; raises their exceptions."""
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
