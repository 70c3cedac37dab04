"""Commands that the tests fork from a warm process end as those of a fresh interpreter."""

import json
import subprocess
import sys

import pytest

from tests import warm_commands
from tests.workdir import Workdir

FACTS = """
import atexit, json, os, random, signal, sys, threading
import numpy as np
print(json.dumps({
    "words": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "path": sys.path[0],
    "environment": dict(os.environ), "threads": threading.active_count(), "descriptors": os.listdir("/proc/self/fd").__len__(),
    "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "own": sorted(name for name in sys.modules if name.split(".")[0] in ("features", "models", "pipeline", "torch", "polars")),
    "level": __import__("logging").getLogger().level, "limit": sys.getrecursionlimit(), "tty": sys.stdout.isatty(),
}))
print("random", random.random(), np.random.random(), file=sys.stderr)
atexit.register(print, "the end")
if sys.argv[1] == "fail":
    raise ValueError("told")
sys.exit("a word" if sys.argv[1] == "say" else int(sys.argv[1]))
"""
COMMANDS = [
    ("run", "all"),
    ("run", "features", "--json"),
    ("path", "publish"),
    ("run", "trian"),
    ("recommend", "--user", "nobody"),
    ("run", "ingest", "--set", "events.path=absent.csv"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_forked_command_ends_as_a_fresh_one(finished: Workdir, words: tuple[str, ...]) -> None:
    assert finished(*words) == finished.fresh(*words)


def test_a_forked_process_begins_and_ends_as_a_fresh_one(workdir: Workdir) -> None:
    (workdir.folder / "facts.py").write_text(FACTS)
    server = warm_commands.server()
    for word, code in (("0", 0), ("3", 3), ("fail", 1), ("say", 1)):
        ended = server.run("facts", [word], workdir.folder, workdir.environment())
        fresh = subprocess.run(
            [sys.executable, "-m", "facts", word],
            cwd=workdir.folder,
            env=workdir.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.code == fresh.returncode == code
        assert ended.out.splitlines()[1:] == fresh.stdout.splitlines()[1:] == ["the end"]
        assert json.loads(ended.out.splitlines()[0]) == json.loads(fresh.stdout.splitlines()[0])
        last = [text.splitlines()[-1].partition(" 0.")[0] for text in (ended.err, fresh.stderr)]
        assert last[0] == last[1]
    random = [server.run("facts", ["0"], workdir.folder, workdir.environment()).err for _ in range(2)]
    assert random[0] != random[1]


def test_the_warm_process_has_one_thread_and_forks_side_by_side(finished: Workdir) -> None:
    server = warm_commands.server()
    assert server.threads() == 1
    finished("path", "train")
    assert server.threads() == 1


def test_another_number_of_threads_needs_a_fresh_process(
    finished: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = warm_commands.server()
    assert server.fits(finished.environment())
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert not server.fits(finished.environment())
    assert finished("path", "train").code == 0
