"""Commands forked from a process with the imports done: they behave as in a new interpreter, seconds faster.

A server process imports the heavy libraries, computes nothing, opens no database and has one thread; for each command it
forks a child with the command's arguments, folder, environment, stdout and stderr. The child imports the project's modules,
and polars, whose import starts a thread. torch is imported in the server but enters a child's `sys.modules` only when the
child imports it, as in a new process.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.machinery
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
WARM = (
    *(
        "numpy",
        "torch",
        "torch._dynamo",
        "torch.utils.data",
        "scipy.sparse",
        "scipy.stats",
        "sklearn.cluster",
        "faiss",
    ),
    *("pandas", "pyarrow.parquet", "pyarrow.dataset", "pydantic", "click", "filelock", "threadpoolctl"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("mlflow.pyfunc", "sqlalchemy.dialects.sqlite", "mlflow.system_metrics.metrics.cpu_monitor"),
    *("plotly.graph_objects", "plotly.offline"),
    *("optuna", "jinja2", "safetensors.torch", "requests", "tqdm.auto", "tomli_w"),
)
HIDDEN = "torch"
"""Package that stages look for in `sys.modules`; it appears in a child once the child imports it."""
OURS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""Every command's environment: this checkout, one thread."""
NO_THREADS = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "_RJEM_MALLOC_CONF": "background_thread:false",
}
READ_AT_IMPORT = (
    *("OMP_", "MKL_", "OPENBLAS_", "ATEN_", "ONEDNN_", "KMP_", "GOMP_", "TORCH_", "LD_", "PYTHON", "MALLOC_"),
    *("LC_", "LANG", "TZ"),
)
"""Prefixes of variables that libraries read at import; a command with other values needs a new process."""
MAX_REQUEST = 1 << 17
POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Ended:
    """Exit code as in subprocess, and both outputs."""

    code: int
    out: str
    err: str


class WarmServer:
    """Client of a server process that is started once and ends with the client."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = fixed_part(environment)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())],
                env=environment | NO_THREADS,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether a command with this environment can be forked."""
        return fixed_part(environment) == self._environment

    def run(
        self,
        module: str,
        words: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        kill_at: Callable[[], bool] | None = None,
    ) -> Ended:
        """Run `python -m MODULE WORDS` to its end, or to SIGKILL as soon as a condition holds (code -9)."""
        request = {"module": module, "words": list(words), "folder": str(folder), "environment": environment}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            answer = json.loads(self._ask(request, out, err, kill_at))
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return Ended(answer["code"], *texts)

    def threads(self) -> int:
        """Number of threads of the server process."""
        with tempfile.TemporaryFile() as nothing:
            self._ask({}, nothing, nothing)  # the answer comes after the imports
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def stop(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()

    def _ask(
        self,
        request: dict[str, Any],
        out: IO[bytes],
        err: IO[bytes],
        kill_at: Callable[[], bool] | None = None,
    ) -> bytes:
        """Last line of the answer; the first one of a command is its process number."""
        content = json.dumps(request).encode()
        assert len(content) < MAX_REQUEST, "a request of this size does not fit in one message"
        mine, other = socket.socketpair()
        with mine:
            with other:
                socket.send_fds(self._socket, [content], [other.fileno(), out.fileno(), err.fileno()])
            with mine.makefile("rb", buffering=0) as lines:
                answer = lines.readline()
                if request:
                    while kill_at is not None and not select.select([mine], [], [], POLL_SECONDS)[0]:
                        if kill_at():
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(int(answer), signal.SIGKILL)
                            break
                    answer = lines.readline()
        assert answer, "the server of warm commands has died"
        return answer


def fixed_part(environment: dict[str, str]) -> dict[str, str]:
    """Variables that libraries read at import."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


@functools.cache
def server() -> WarmServer:
    """Server of this process, started at the first call."""
    started = WarmServer({**os.environ, **OURS})
    atexit.register(started.stop)
    return started


def import_everything() -> None:
    """Import the heavy libraries, as a command does."""
    from pipeline.tracking.client import _QUIET

    os.environ.update(_QUIET)
    sys.modules["polars"] = None  # type: ignore[assignment]  # optional for mlflow; its import starts a thread
    for name in WARM:
        importlib.import_module(name)
    del sys.modules["polars"]
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("pipeline", "features", "models")
    ]:
        del sys.modules[name]
    from sqlalchemy.orm import configure_mappers

    configure_mappers()


class _Hidden:
    """Import hook that puts an already imported package back into `sys.modules` on demand."""

    def __init__(self, root: str) -> None:
        self._root = root
        names = [name for name in sys.modules if name.partition(".")[0] == root]
        self._modules = {name: sys.modules.pop(name) for name in names}

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the package, once."""
        if name != self._root or not self._modules:
            return None
        return importlib.machinery.ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return the imported module."""
        module = self._modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Restore the package and its submodules without executing them."""
        module.__spec__ = self._spec
        sys.modules.update(self._modules)
        self._modules = {}
        sys.meta_path.remove(self)


def serve(descriptor: int) -> None:
    """Fork a child for each request until the client is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox = socket.socket(fileno=descriptor)
    import_everything()
    sys.meta_path.insert(0, _Hidden(HIDDEN))
    gc.collect()
    gc.freeze()
    ready = selectors.DefaultSelector()
    ready.register(inbox, selectors.EVENT_READ)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for key, _ in ready.select():
            if key.fileobj is inbox:
                content, received, _, _ = socket.recv_fds(inbox, MAX_REQUEST, 3)
                if not content:
                    return
                reply, *outputs = received
                request = json.loads(content)
                pid = 0
                if request:
                    pid = os.fork()
                    if pid == 0:
                        ready.close()
                        inbox.close()
                        for pidfd, (_, other) in running.items():
                            os.close(pidfd)
                            os.close(other)
                        os.close(reply)
                        become(request, *outputs)
                    os.write(reply, b"%d\n" % pid)
                    pidfd = os.pidfd_open(pid)
                    ready.register(pidfd, selectors.EVENT_READ)
                    running[pidfd] = (pid, reply)
                else:
                    os.write(reply, b"{}\n")
                    os.close(reply)
                for output in outputs:
                    os.close(output)
            else:
                pidfd = key.fd
                ready.unregister(pidfd)
                pid, reply = running.pop(pidfd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(reply, json.dumps({"code": code}).encode() + b"\n")
                os.close(reply)
                os.close(pidfd)


def become(request: dict[str, Any], out: int, err: int) -> None:
    """Run the command in this process and exit with its code."""
    for source, target in ((out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = request["folder"]
    sys.argv = [request["module"], *request["words"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    sys.modules["numpy"].random.seed()
    code = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  (as an interpreter does)
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 255)


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    serve(int(sys.argv[1]))
