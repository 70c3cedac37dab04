"""Files written whole, digests and fingerprints."""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedArtifact, LookbackError

TEMPORARY = ".part"
"""Ending of temporary files."""
_TEMPORARY_NAME = re.compile(rf"\..+\.([\w-]+)-(\d+)-[0-9a-f]{{8}}{re.escape(TEMPORARY)}")
"""Name of a temporary file: host and number of its process."""
_DAY_SECONDS = 86_400.0


def fingerprint(content: Any) -> str:
    """First 16 hexadecimal digits of the sha256 of JSON content in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """sha256 of a file, read once per process as long as its size, time and inode stay the same."""
    return _digest_of_version(path.absolute(), *_identity(path))


@functools.lru_cache(maxsize=100_000)
def _digest_of_version(path: Path, *_: int) -> str:
    return digest_file(path)


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def temporary_beside(path: Path) -> Path:
    """Hidden name beside a file to write it under; process numbers repeat across containers, so host and chance are in it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")


def is_abandoned(path: Path) -> bool:
    """Whether a file has a name of `temporary_beside` and its process is gone; on another host, if it is a day old."""
    name = _TEMPORARY_NAME.fullmatch(path.name)
    if name is None:
        return False
    if name[1] != _host():
        return time.time() - path.lstat().st_mtime > _DAY_SECONDS
    try:
        os.kill(int(name[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # a process of another user
        return False
    return False


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises DamagedArtifact if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedArtifact(f"{path}: is damaged, not valid JSON ({error})") from None


def read_record(path: Path) -> dict[str, object]:
    """JSON object that can be made again; empty where the file is missing, unreadable, damaged or of another type."""
    with contextlib.suppress(OSError, DamagedArtifact):
        content = read_json(path)
        if isinstance(content, dict):
            return content
    return {}


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now() -> datetime.datetime:
    """Current time, UTC."""
    return datetime.datetime.now(datetime.UTC)


class Digests:
    """Cache of file digests by (path, size, mtime, inode), so that each file is read once; thread-safe."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._known: dict[str, list[Any]] = {
            name: entry
            for name, entry in read_record(memory).items()
            if isinstance(entry, list) and entry and isinstance(entry[-1], str)
        }

    def __call__(self, path: Path) -> str:
        """sha256 of a file, cached while its identity stays the same.

        Raises LookbackError if the file changes meanwhile.
        """

        def compute() -> str:
            digest = digest_file(path)
            if _identity(path) != identity:
                raise changed_meanwhile(str(path))
            return digest

        identity = _identity(path)
        return self.remembered(str(path.absolute()), identity, compute)

    def remembered(self, name: str, identity: list[int], compute: Callable[[], str]) -> str:
        """Digest of a named file, computed only if its identity is new."""
        known = self._known.get(name)
        if known is not None and known[:-1] == identity:
            return str(known[-1])
        digest = compute()
        with self._lock:
            self._known[name] = [*identity, digest]
            with contextlib.suppress(OSError):  # on a read-only mount it is computed each time
                write_json(self._memory, self._known)
        return digest


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def changed_meanwhile(path: str) -> LookbackError:
    """Error for a source file that changed while it was read."""
    return LookbackError(
        f"{path}: changed while it was read, expected a complete file; nothing of it is kept: run again once it is complete"
    )
