"""A training step on long histories, all attention scores at a time against blocks: processor time, peak memory, growth.

python tests/benchmarks/bench_attention.py        (512 to 2,048 events; a minute or so)
python tests/benchmarks/bench_attention.py --lengths 512 1024 2048 4096 --blocks transformer hstu --repeats 3

An encoder of dim 64, 2 blocks and 2 heads with relative positions and a time bias, softmax over 1,000 items, `--rows` histories
in one window, fp32. Each case is a process of its own; memory is the peak of a step above what the process held before.
Prints one JSON object; growth is the power of the length with which a figure grows from the length before.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Figures = dict[str, Any]


def measure(block: str, form: str, length: int, rows: int, repeats: int) -> Figures:
    """Processor seconds of a step, the median after a first one, and peak memory of all of them."""
    import torch

    from models.device import peak_bytes
    from models.encoder.batching import Window
    from models.encoder.encoder import Encoder
    from models.settings.encoder import EncoderSettings
    from models.training.losses import softmax_loss

    torch.manual_seed(0)
    shape, cpu = (rows, length), torch.device("cpu")
    settings = EncoderSettings(block=block, time_bias=True, attention=form)  # type: ignore[arg-type]
    encoder = Encoder(settings, 1_000, 0, length).train()
    items = torch.randint(1, 1_001, shape, dtype=torch.int32)
    gaps = torch.rand(shape).mul(15).exp().mul(1e6).long()
    window = Window(items, torch.zeros_like(items), torch.full((rows,), length), time=gaps.cumsum(1))
    target, weight = items.flatten().roll(-1).long(), torch.ones(rows * length)
    before, seconds = peak_bytes(cpu), []
    for _ in range(1 + repeats):
        started = time.process_time()
        encoder.zero_grad(set_to_none=True)
        loss = softmax_loss(encoder.states((window,)), encoder.item_vectors(), target, weight)
        torch.autograd.backward(loss)
        seconds.append(time.process_time() - started)
    return {
        "cpu_seconds": round(statistics.median(seconds[1:] or seconds), 3),
        "peak_megabytes": round((peak_bytes(cpu) - before) / 2**20),
        "loss": round(loss.item(), 5),
    }


def in_process(*words: object) -> Figures:
    """Figures of one case, measured in a process of its own."""
    command = [sys.executable, __file__, "--case", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    figures: Figures = json.loads(done.stdout)
    print(*words, figures, file=sys.stderr, flush=True)
    return figures


def growth(cases: list[Figures], key: str) -> list[float]:
    """Power of the length with which a figure grows from each length to the next."""
    return [
        round(math.log(later[key] / earlier[key]) / math.log(later["length"] / earlier["length"]), 2)
        for earlier, later in itertools.pairwise(cases)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--blocks", nargs="+", choices=["transformer", "hstu"], default=["transformer"])
    parser.add_argument("--forms", nargs="+", choices=["dense", "blocked"], default=["dense", "blocked"])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        block, form, *numbers = chosen.case
        print(json.dumps(measure(block, form, *map(int, numbers))))
        return
    found: Figures = {}
    for block in chosen.blocks:
        cases: dict[str, list[Figures]] = {form: [] for form in chosen.forms}
        for length in chosen.lengths:
            for form in chosen.forms:
                figures = in_process(block, form, length, chosen.rows, chosen.repeats)
                cases[form].append({"length": length, **figures})
        found[block] = {
            form: {
                "cases": each,
                **{f"growth_{key}": growth(each, key) for key in ("cpu_seconds", "peak_megabytes")},
            }
            for form, each in cases.items()
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
