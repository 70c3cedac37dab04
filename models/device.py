"""Device, precision and compilation: capabilities of the machine, and the values of `auto` on it."""

import functools
import importlib.util
import os
import re
import resource
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from models.histories import Float32
from models.settings.training import Compile, Precision

COMPILERS = ("g++", "clang++", "c++")
COMPILE_MIN_TARGETS = 2e8
"""Targets over all epochs from which `compile = "auto"` compiles on a GPU."""


def pick_device() -> torch.device:
    """CUDA where torch can use one, else Apple's MPS, else the CPU; see `fall_back`."""
    if _usable_gpu()[0]:
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fall_back() -> str:
    """Message about a GPU that cannot be used, or not for bf16, with the next step; empty without one."""
    is_usable, reason = _usable_gpu()
    if reason:
        upgrade = (
            "update the NVIDIA driver, or install the torch build for it (https://pytorch.org/get-started)"
        )
        return f"the CPU is used, not the GPU: {reason}; {upgrade}, or hide it by CUDA_VISIBLE_DEVICES=''"
    if is_usable and not computes_bf16(torch.device("cuda")):
        return f"{torch.cuda.get_device_name()} computes no bf16: train.precision = 'auto' is 'fp32', which is slower"
    return ""


@functools.cache
def _usable_gpu() -> tuple[bool, str]:
    """Whether a kernel runs on CUDA, and the reason where it does not although there is a driver."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            return False, _first_sentence(caught[0].message) if caught else ""
        try:
            torch.ones(1, device="cuda").add(1).item()
        except RuntimeError as error:  # a full GPU, or one that this build of torch has no kernels for
            return False, _first_sentence(error)
    return True, ""


def _first_sentence(message: object) -> str:
    """Beginning of a message of torch, which goes on about its own settings."""
    return re.split(r"\n|\. |\.$| \(Triggered", str(message).strip())[0]


@contextmanager
def memory_named(next_step: str) -> Iterator[None]:
    """Raise MemoryError with the next step for torch's errors about memory."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise MemoryError(f"{_first_sentence(error)}; {next_step}") from error


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run natively: AMX or AVX-512 BF16 on the CPU, compute capability 8 on CUDA."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
        return native and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  (sees ONEDNN_MAX_CPU_ISA)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def moved(part: Tensor, device: torch.device) -> Tensor:
    """Copy on the device; to a GPU from pinned memory, so that the CPU goes on meanwhile."""
    if device.type == "cuda" and part.device.type == "cpu":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)


def to_numpy(values: Tensor) -> Float32:
    """Detached fp32 array on the CPU."""
    array: Float32 = values.detach().float().cpu().numpy()
    return array


def resolved_precision(setting: Precision, device: torch.device) -> str:
    """fp32 or bf16; auto: bf16 where the hardware computes it natively."""
    if setting != "auto":
        return setting
    return "bf16" if computes_bf16(device) else "fp32"


def scoring_precision(setting: Literal["auto", "fp32"]) -> tuple[str, str]:
    """Precision in which a batch of histories is encoded on the CPU, fp32 either way, and the reason."""
    if setting == "fp32":
        return setting, "score.precision"
    if not computes_bf16(torch.device("cpu")):
        return "fp32", "the processor computes no bf16"
    return "fp32", "no lower precision scored a tenth faster where measured"


def resolved_compile(setting: Compile, device: torch.device, num_targets: int) -> str:
    """on, off, or off with its reason; auto compiles long trainings on CUDA alone: elsewhere kernels dominate the step.

    num_targets: over all epochs. Raises ValueError for "on" without a compiler.
    """
    is_long = device.type == "cuda" and num_targets >= COMPILE_MIN_TARGETS
    if setting == "off" or (setting == "auto" and not is_long):
        return "off"
    if compiler(device) is not None:
        return "on"
    if setting == "auto":
        return "off: no compiler"
    raise ValueError(
        "train.compile: received 'on', but there is no compiler for torch.compile to use; expected a C++ compiler (g++ or "
        "clang++), on CUDA triton too: install them, or set train.compile = 'off'"
    )


def compiler(device: torch.device) -> str | None:
    """C++ compiler for torch.compile; None where there is none (or, on CUDA, no triton)."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return None
    chosen = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [chosen] if chosen else COMPILERS)), None)


def peak_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of the allocator on CUDA, elsewhere of the process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
