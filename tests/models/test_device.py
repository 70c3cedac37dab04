import pytest
import torch

from models.device import compiler, peak_bytes, resolved_compile, resolved_precision

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


def test_precision():
    assert resolved_precision("bf16", CPU) == "bf16"
    assert resolved_precision("fp32", CPU) == "fp32"
    assert resolved_precision("auto", CPU) in ("bf16", "fp32")


def test_peak_memory_counts_what_was_there():
    before = peak_bytes(CPU)
    held = torch.ones(before // 4 + 2**24)  # four bytes each
    assert peak_bytes(CPU) >= before // 4 * 4 + 2**26
    assert held[-1] == 1
