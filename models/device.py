"""Device, precision and compilation: the machine's capabilities, and the values that `auto` takes on it."""

import importlib.util
import os
import resource
import shutil
import sys

import torch

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
        able = torch.cpu.get_capabilities()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolved_precision(wanted: Precision, device: torch.device) -> str:
    """fp32 or bf16; auto: bf16 where the hardware computes it natively."""
    if wanted != "auto":
        return wanted
    return "bf16" if computes_bf16(device) else "fp32"


def resolved_compile(wanted: Compile, device: torch.device, num_targets: int) -> str:
    """on, off, or why it is off; auto compiles long trainings on CUDA: on the CPU the step is near its kernels' own time.

    num_targets: over all epochs. Raises ValueError where it is wanted and there is no compiler.
    """
    is_long = device.type == "cuda" and num_targets >= COMPILE_MIN_TARGETS
    if wanted == "off" or (wanted == "auto" and not is_long):
        return "off"
    if compiler(device) is not None:
        return "on"
    if wanted == "auto":
        return "off: no compiler"
    raise ValueError(
        "train.compile: received 'on', but there is no compiler for torch.compile to use; expected a C++ compiler (g++ or "
        "clang++), on CUDA triton too: install them, or set train.compile = 'off'"
    )


def compiler(device: torch.device) -> str | None:
    """The C++ compiler that torch.compile would use, None where there is none (or, on CUDA, no triton)."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return None
    asked = os.environ.get("CXX")
    found = (shutil.which(name) for name in ((asked,) if asked else COMPILERS))
    return next((path for path in found if path is not None), None)


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: of the allocator on CUDA, elsewhere resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
