"""Process-group helpers for data-parallel training; torch is imported where it is used.

Process 0 alone validates and writes. Without a group every function acts as for one process.
"""

import gc
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

PATIENCE = timedelta(days=30)
"""Timeout of collective calls: process 0 may be busy with other stages."""


def launched() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group() -> Iterator[None]:
    """Join torchrun's process group: gloo between CPUs, nccl between GPUs (one per process of a machine).

    After an error the group stays: the other processes fail when this one ends, after its message.

    No reference to the group may survive its end: a thread that returns a tensor while the interpreter closes aborts the process.
    torch.distributed.nn.functional, whose default arguments hold the group at import (DistributedDataParallel imports it), is
    therefore imported before.
    """
    import torch
    import torch.distributed.nn.functional

    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)
    yield
    gc.collect()
    torch.distributed.destroy_process_group()


def size() -> int:
    """Number of processes in the group; 1 without a group."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a group."""
    from torch import distributed

    return distributed.get_rank() if size() > 1 else 0


def is_lost(error: RuntimeError) -> bool:
    """Whether `error` is a lost connection: nccl's errors have a class, gloo's name their source file."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def data_parallel(module: "nn.Module") -> "nn.Module":
    """Module with process 0's weights in every process, whose backward pass averages gradients."""
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch 2.13 renamed it, torch 2.11 has the old name alone
        return DistributedDataParallel(module, broadcast_buffers=False)


def total(values: Sequence[float]) -> list[float]:
    """Sums over all processes."""
    import torch

    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums]


def broadcast_floats(values: Sequence[float]) -> list[float]:
    """Values of process 0 in every process; all pass equally many."""
    return total(values if rank() == 0 else [0.0] * len(values))


def gathered(tensor: "Tensor") -> "list[Tensor]":
    """Tensors of all processes, of one shape, on the CPU."""
    import torch

    if size() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor, device="cpu") for _ in range(size())]
    torch.distributed.all_gather(tensors, tensor.cpu())
    return tensors


def broadcast(message: dict[str, Any] | None) -> dict[str, Any] | None:
    """JSON message of process 0 in every process."""
    import torch

    if size() == 1:
        return message
    content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    (length,) = broadcast_floats([len(content)])
    if rank() > 0:
        content = torch.empty(int(length), dtype=torch.uint8)
    torch.distributed.broadcast(content, 0)
    received: dict[str, Any] | None = json.loads(content.numpy().tobytes())
    return received
