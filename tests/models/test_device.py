import warnings

import pytest
import torch

from models import device
from models.device import (
    compiler,
    fall_back,
    memory_named,
    peak_bytes,
    pick_device,
    resolved_compile,
    resolved_precision,
    scoring_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def put_compiler(folder, monkeypatch):
    path = folder / "g++"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return str(path)


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_compiling_without_a_compiler(no_compiler):
    assert compiler(CPU) is None
    assert resolved_compile("off", CPU, 10**12) == "off"
    assert resolved_compile("auto", CUDA, 10**12) == "off: no compiler"
    with pytest.raises(ValueError, match=r"train\.compile: received 'on', but there is no compiler"):
        resolved_compile("on", CPU, 1)


def test_compiling_with_one(no_compiler, monkeypatch):
    path = put_compiler(no_compiler, monkeypatch)
    assert compiler(CPU) == path
    assert resolved_compile("on", CPU, 1) == "on"
    assert resolved_compile("auto", CPU, 10**12) == "off"
    assert resolved_compile("auto", CUDA, 10) == "off"
    monkeypatch.setenv("CXX", "not-there")
    assert compiler(CPU) is None


def test_a_full_device_is_an_error_with_the_next_step():
    message = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB.\nMore"
    with (
        pytest.raises(MemoryError, match=r"^CUDA out of memory; lower it$"),
        memory_named("lower it"),
    ):
        raise torch.OutOfMemoryError(message)
    with (
        pytest.raises(MemoryError, match=r"can't allocate memory: you tried to allocate 4 bytes; lower it$"),
        memory_named("lower it"),
    ):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
    with pytest.raises(RuntimeError, match="something else"), memory_named("lower it"):
        raise RuntimeError("something else")


@pytest.fixture
def asked_anew():
    clear = device._usable_gpu.cache_clear
    clear()
    yield
    clear()


def test_a_driver_that_is_too_old_is_said_and_the_cpu_used(monkeypatch, asked_anew):
    def is_available():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
            "driver by downloading (Triggered internally at CUDAFunctions.cpp:109.)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert pick_device() in (CPU, torch.device("mps"))
    assert fall_back().startswith(
        "the CPU is used, not the GPU: CUDA initialization: The NVIDIA driver on your system is too old (found version 11040); "
        "update the NVIDIA driver"
    )


def test_a_gpu_whose_kernels_do_not_run_is_not_used(monkeypatch, asked_anew):
    def ones(*_, **__):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCompile with …"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert pick_device() in (CPU, torch.device("mps"))
    assert "no kernel image is available for execution on the device; update" in fall_back()


def test_a_gpu_without_bf16_is_named(monkeypatch, asked_anew):
    monkeypatch.setattr(device, "_usable_gpu", lambda: (True, ""))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert pick_device() == CUDA
    assert resolved_precision("auto", CUDA) == "fp32"
    assert fall_back().startswith("Tesla T4 computes no bf16: train.precision = 'auto' is 'fp32'")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert not fall_back()


def test_precision():
    assert resolved_precision("bf16", CPU) == "bf16"
    assert resolved_precision("fp32", CPU) == "fp32"
    assert resolved_precision("auto", CPU) in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        (True, "no lower precision scored a tenth faster where measured"),
        (False, "the processor computes no bf16"),
    ],
)
def test_scoring_is_fp32_with_the_reason(monkeypatch, native, reason):
    monkeypatch.setattr(device, "computes_bf16", lambda _: native)
    assert scoring_precision("auto") == ("fp32", reason)
    assert scoring_precision("fp32") == ("fp32", "score.precision")


def test_peak_memory_counts_what_was_there():
    before = peak_bytes(CPU)
    held = torch.ones(before // 4 + 2**24)  # four bytes each
    assert peak_bytes(CPU) >= before // 4 * 4 + 2**26
    assert held[-1] == 1
