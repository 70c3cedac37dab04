"""The numeric tests under every instruction set that this processor has, with one thread and two.

Kernels of torch, oneDNN and MKL are chosen by the processor: what holds on one may fail on another.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NUMERIC = (
    *("encoder/test_attention.py", "encoder/test_attention_bias.py", "encoder/test_encoder.py"),
    *("encoder/test_recurrent.py", "encoder/test_convolution.py", "encoder/test_readout.py"),
    *(
        "explanation/test_contributions.py",
        "explanation/test_attention_weights.py",
        "training/test_losses.py",
    ),
    *("retrieval/test_exact.py", "ranking/test_ranker.py", "evaluation/test_metrics.py"),
    *("test_topk.py", "test_recommender.py"),
)
LEVELS = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""Value of ATEN_CPU_CAPABILITY to the switches of oneDNN and MKL that go with it."""
SHOW = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


def available() -> list[str]:
    """The levels up to that of this processor."""
    names = list(LEVELS)
    here = torch.backends.cpu.get_cpu_capability().lower()
    return names[: names.index(here) + 1] if here in names else names[:1]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", LEVELS)
def test_numeric_tests_pass_on_every_processor(level: str, threads: int, tmp_path: Path) -> None:
    if level not in available():
        pytest.skip(f"this processor has no {level}")
    if (level, threads) == (available()[-1], 1):
        pytest.skip("the quick tests are run so")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    kept["LOOKBACK_UNCHECKED_SHAPES"] = "1"  # they are the same on every processor
    chosen = {"ATEN_CPU_CAPABILITY": level, "OMP_NUM_THREADS": str(threads), **LEVELS[level]}
    kept["OMP_WAIT_POLICY"] = "passive"  # threads that spin take the time of what runs beside

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=kept | chosen, capture_output=True, text=True, check=False
        )

    assert run("-c", SHOW).stdout.lower().split() == [level, str(threads)]
    files = [f"tests/models/{name}" for name in NUMERIC]
    options = ["-q", "-p", "no:xdist", f"-ocache_dir={tmp_path}/cache", f"--basetemp={tmp_path}/base"]
    done = run("-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert " passed" in done.stdout
