"""Device code of models/ on a pretended CUDA device, by the CPU build of torch: trains, scores, ranks, explains, searches.

    python tests/benchmarks/fake_cuda.py [--only block=gru …] [--elsewhere]

Needs a C++ compiler: torch's hooks for CUDA, which the CPU build lacks, are compiled to do nothing, so that tensors with shapes
but no values pass forward and backward. Reports operations that mix devices, make float64 there, or let the CPU wait for the
device within a training step; with --elsewhere, waits outside of steps too. Ends with exit code 1 where there is a finding.
Not covered: kernels and their speed, cuDNN's cells (torch's own stand in), sparse gradients, torch.compile.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

HOOKS = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void init() const override {}
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Device zero() { return {c10::DeviceType::CUDA, 0}; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, zero()); }
  c10::Device exchangeDevice(c10::Device) const override { return zero(); }
  c10::Device getDevice() const override { return zero(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
"""
PREPARED = "LOOKBACK_FAKE_CUDA"
Scenario = Callable[[], Any]


def prepared() -> int:
    """Compile the hooks, and run this command with them; its exit code."""
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "hooks.cpp", Path(folder) / "hooks.so"
        source.write_text(HOOKS, encoding="utf-8")
        compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}"]
        libraries = [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run([*compiler, str(source), "-o", str(library), *libraries], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), PREPARED: "1"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def scenarios() -> dict[str, Scenario]:
    """Every variant of the model, every loss, target, negative sampling and option of training; the ranker; the index."""
    from models.settings.training import SAMPLED_LOSSES
    from tests.device_audit import ranked, scored, searched, trained
    from tests.models.conftest import VARIANTS

    bf16 = {"precision": "bf16"}
    few = {"negatives": 8}

    def both(encoder: dict[str, Any], train: dict[str, Any], **more: Any) -> None:
        scored(trained(encoder, bf16 | train, **more))

    found: dict[str, Scenario] = {}
    for variant in VARIANTS:
        name = " ".join(f"{key}={value}" for key, value in variant.items()) or "default"
        train: dict[str, Any] = {"loss": "bce"} | few if variant.get("readout") == "target" else {}
        if variant.get("direction") == "bidirectional":
            train = {"targets": "last"}
        found[name] = partial(both, variant, train)
    for block in ("transformer", "hstu", "gru"):
        for loss in SAMPLED_LOSSES:
            found[f"block={block} loss={loss}"] = partial(
                trained, {"block": block}, bf16 | few | {"loss": loss}
            )
        for predict in ("visit", "window"):
            times = {"session": 3_600_000_000, "horizon": 10**11}
            named = f"block={block} predict={predict}"
            found[named] = partial(trained, {"block": block}, bf16 | {"predict": predict}, **times)
    sampled: dict[str, Any] = {"loss": "sampled_softmax"} | few
    for sampling in ("popularity", "in_batch"):
        found[f"negatives={sampling}"] = partial(
            trained, {}, bf16 | sampled | {"negative_sampling": sampling}
        )
    found["readout=target visits"] = partial(
        trained, {"readout": "target"}, bf16 | few | {"loss": "bce"}, session=3_600_000_000
    )
    found["average, parts, schedule"] = partial(
        trained, {}, bf16 | {"ema_decay": 0.9, "accumulate": 2, "schedule": "cosine"}
    )
    found["precision=fp32"] = partial(trained, {}, {"precision": "fp32"})
    for kind in ("listwise", "pointwise"):
        found[f"ranker loss={kind}"] = partial(ranked, "cuda", loss=kind)
    found["ranker item_vectors=False hidden=0"] = partial(ranked, "cuda", item_vectors=False, hidden=0)
    found["exact search"] = partial(searched, "cuda")
    return found


def audited(name: str, scenario: Scenario, *, elsewhere: bool) -> int:
    """Run a scenario, print a line and its findings; their number."""
    import pytest

    from tests.device_audit import DeviceAudit, pretended, shown

    audit, started = DeviceAudit("cuda"), time.monotonic()
    with pytest.MonkeyPatch.context() as patch, pretended(audit, patch):
        scenario()
    serious = {
        key: number
        for key, number in audit.findings.items()
        if elsewhere or key[:2] != ("elsewhere", "waits")
    }
    number = sum(audit.operations.values())
    print(
        f"{name}: {number:,} operations, {len(serious)} findings, {time.monotonic() - started:.1f} s",
        flush=True,
    )
    for line in shown(serious):
        print(f"    {line}", flush=True)
    return len(serious)


def main() -> int:
    """Run the scenarios; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="scenarios whose name holds one of these")
    parser.add_argument("--elsewhere", action="store_true", help="show waits outside of training steps too")
    arguments = parser.parse_args()
    if PREPARED not in os.environ:
        return prepared()
    warnings.simplefilter("ignore")
    chosen = {
        name: scenario
        for name, scenario in scenarios().items()
        if any(part in name for part in arguments.only)
    }
    findings = sum(
        audited(name, scenario, elsewhere=arguments.elsewhere) for name, scenario in chosen.items()
    )
    print(f"{len(chosen)} scenarios, {findings} findings, torch {torch.__version__}")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
