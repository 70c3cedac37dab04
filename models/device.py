"""Device, precision and compilation: capabilities of the machine, and the values of `auto` on it."""

import importlib.util
import os
import resource
import shutil
import sys

import torch
from torch import Tensor

from models.histories import Float32
from models.settings.training import Compile, Precision

COMPILERS = ("g++", "clang++", "c++")
COMPILE_MIN_TARGETS = 2e8
"""Targets over all epochs from which `compile = "auto"` compiles on a GPU."""


def pick_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run natively: AMX or AVX-512 BF16 on the CPU, compute capability 8 on CUDA."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
        return native and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  (sees ONEDNN_MAX_CPU_ISA)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def to_numpy(values: Tensor) -> Float32:
    """Detached fp32 array on the CPU."""
    array: Float32 = values.detach().float().cpu().numpy()
    return array


def resolved_precision(setting: Precision, device: torch.device) -> str:
    """fp32 or bf16; auto: bf16 where the hardware computes it natively."""
    if setting != "auto":
        return setting
    return "bf16" if computes_bf16(device) else "fp32"


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
