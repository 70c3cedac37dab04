"""Own calls between the command line and the kernels, counted in real runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workdir import Workdir

ROOT = Path(__file__).parents[2]
COUNTED = """
import importlib, json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor

import torch

root, module, names, *arguments = sys.argv[1:]
own = tuple(f"{root}/{package}/" for package in ("pipeline", "models", "features"))
submitter = threading.local()


def frames():
    above, frame = [], sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(own):
            above.append(f"{file.removeprefix(root + '/')}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return [*getattr(submitter, "frames", []), *reversed(above)]


def submit(pool, work, /, *given, submit=ThreadPoolExecutor.submit, **named):
    above = frames()

    def continued(*given, **named):  # a thread continues the stack that handed it its work
        submitter.frames = above
        return work(*given, **named)

    return submit(pool, continued, *given, **named)


def counted(*given, **named):
    if module == "torch.nn.functional" and not torch.is_grad_enabled():
        return kernel(*given, **named)
    print(json.dumps(frames()), flush=True)
    os._exit(0)


ThreadPoolExecutor.submit = submit
owner = importlib.import_module(module)
*classes, name = names.split(".")
for each in classes:
    owner = getattr(owner, each)
kernel = getattr(owner, name)
setattr(owner, name, counted)
sys.argv = ["lookback", *arguments]
importlib.import_module("pipeline.__main__").main()
"""
"""Run a command until the first call of a kernel (of attention: the first with gradients) and print the frames above it."""


def own_frames(workdir: Workdir, owner: str, kernel: str, *arguments: str) -> list[str]:
    """Our own frames, outermost first, that the first call of a kernel within a command has above it."""
    command = [sys.executable, "-c", COUNTED, str(ROOT), owner, kernel, *arguments]
    done = subprocess.run(
        [*command, "--config", workdir.config],
        cwd=workdir.folder,
        env=workdir.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert frames[0] == "pipeline/__main__.py:main"
    return frames


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "owner", "kernel", "innermost", "limit"),
    [
        # `attend` is ours and chooses the kernel: twelve above it
        ("train", "torch.nn.functional", "scaled_dot_product_attention", "models/encoder/attention.py:attend", 13),
        ("score", "models.retrieval.index", "ItemIndex.search", "models/recommendation/engine.py:_WarmRows.retrieve", 12),
    ],
)  # fmt: skip
def test_from_the_command_to_the_kernel(copied, stage, owner, kernel, innermost, limit):
    frames = own_frames(copied, owner, kernel, "run", stage, "--force")
    assert frames[-1] == innermost
    assert len(frames) <= limit, "\n".join(frames)
