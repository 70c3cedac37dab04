"""Process-group helpers for data-parallel training; torch is imported where it is used.

Process 0 leads: it alone validates and writes. Without a group all of this is about one process.
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
"""Longest wait of a process for the others: process 0 may be busy with other stages."""


def launched() -> int:
    """Processes that torchrun started beside this one, itself included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group() -> Iterator[None]:
    """Join the processes that torchrun started: gloo between CPUs, nccl between GPUs (one for each process of a machine).

    After an error the group stays as it is, and the others learn of it when this process ends, after its message.

    At the end nothing may hold the group any more: its threads end with it, and one that still gives a tensor back when the
    interpreter is closing aborts the process. So the module whose default arguments are the group of the moment it is
    imported (torch._dynamo imports it, DistributedDataParallel does that) is imported before there is one.
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
    """Number of processes in the group; 1 without one."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 leads."""
    from torch import distributed

    return distributed.get_rank() if size() > 1 else 0


def is_lost(error: RuntimeError) -> bool:
    """Whether another process cannot be reached: nccl's errors have a class, gloo's name their source file."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def data_parallel(module: "nn.Module") -> "nn.Module":
    """The module with process 0's weights everywhere; its backward pass leaves every process the mean of all gradients."""
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch 2.13 has another name for it, torch 2.11 does not
        return DistributedDataParallel(module, broadcast_buffers=False)


def total(values: Sequence[float]) -> list[float]:
    """The sums over all processes."""
    import torch

    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums]


def broadcast_floats(values: Sequence[float]) -> list[float]:
    """Values of process 0, as many as every process passes."""
    return total(values if rank() == 0 else [0.0] * len(values))


def gathered(tensor: "Tensor") -> "list[Tensor]":
    """The tensor of every process, all of one shape, on the CPU."""
    import torch

    if size() == 1:
        return [tensor]
    everyone = [torch.empty_like(tensor, device="cpu") for _ in range(size())]
    torch.distributed.all_gather(everyone, tensor.cpu())
    return everyone


def broadcast(message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Message of process 0, of plain values, in every process."""
    import torch

    if size() == 1:
        return message
    own = bytearray(json.dumps(message).encode())
    (length,) = broadcast_floats([len(own)])
    content = (
        torch.frombuffer(own, dtype=torch.uint8)
        if rank() == 0
        else torch.empty(int(length), dtype=torch.uint8)
    )
    torch.distributed.broadcast(content, 0)
    received: dict[str, Any] | None = json.loads(content.numpy().tobytes())
    return received
