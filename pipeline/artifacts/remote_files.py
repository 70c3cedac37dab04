"""Source files in object stores (`s3://`, `gs://`, `az://`): listed, and fetched to a local copy that is digested on the way.

Access is through `pyarrow.fs`, configured by the environment variables of polars and the AWS tools: an address that
`polars.scan_parquet("s3://…")` reads works here too. obstore would read most of them itself (some 60 lines less), but neither
AWS_PROFILE nor a bucket's region, and is 15 MB more to install (tests/benchmarks/results/2026-11-29-readers.md).
"""

import contextlib
import datetime
import fnmatch
import functools
import glob
import hashlib
import os
import re
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import credentials
from pipeline.artifacts import event_parts
from pipeline.artifacts.files import changed_meanwhile
from pipeline.errors import LookbackError

_SETTINGS = {
    "s3": "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or AWS_SKIP_SIGNATURE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (or GOOGLE_SKIP_SIGNATURE)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
}
"""Scheme to the environment variables that configure the store."""
SCHEMES = tuple(f"{scheme}://" for scheme in _SETTINGS)
"""Prefixes of remote addresses."""
_own: dict[tuple[str, str], tuple[str, str]] = {}
"""(scheme, bucket) to the key and secret that an address of this process named; files are named without them."""
_CHUNK_BYTES = 8 * 2**20
_CHUNKS_AHEAD = 4
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 5.0
"""Timeout of a request, in seconds, to connect or for the next byte; pyarrow makes three."""
_RETRY_LIMIT = datetime.timedelta(seconds=10)
_LONGEST_NAME = 60
_NOISE = re.compile(r"\s*\(Request ID: .*?\)|\s*error_info=.*|\s*See Azure::Core::.*", re.DOTALL)
"""Parts of the vendors' messages that help no user."""


@dataclass(frozen=True)
class RemoteFile:
    """Address and identity of an object."""

    url: str
    size: int
    """Bytes."""
    modified: int
    """Seconds since 1970."""

    def __str__(self) -> str:
        return self.url


def is_remote(path: str) -> bool:
    """Whether a path is an address in an object store."""
    return path.startswith(SCHEMES)


def list_files(key: str, url: str) -> list[RemoteFile]:
    """Files at an object, folder or glob; skips hidden ones, and in folders names that begin with `_`.

    Raises LookbackError, naming the configuration key, for no file and for a store that does not answer or denies access.
    """
    where = f"{key}: {url}"
    scheme, path = _split(where, url)
    bucket = path.partition("/")[0]
    with _explained(where, scheme):
        system = _connect(scheme, bucket)
        files = _find(system, path)
        is_there = bool(files) or _is_there(system, bucket)
    if not is_there:
        kind = "container" if scheme == "az" else "bucket"
        raise LookbackError(
            f"{where}: there is no {kind} {bucket!r}; check the address and {_SETTINGS[scheme]}"
        )
    if not files:
        raise LookbackError(
            f"{where}: nothing there; expected an object, a folder with objects, or a glob that matches some"
        )
    return [RemoteFile(f"{scheme}://{file.path}", file.size, file.mtime_ns // 10**9) for file in files]


def fetch(url: str, spool: Path) -> str:
    """Copy an object to `copy_of(url, digest, spool)` and return its digest (sha256).

    Raises LookbackError if that fails or the object keeps changing meanwhile; no partial copy is left.
    """
    scheme, path = _split(url, url)
    temporary = spool / "fetching"
    with event_parts.locked(temporary):
        try:
            digest = _fetch(url, scheme, path, temporary)
            copy = copy_of(url, digest, spool)
            copy.parent.mkdir(exist_ok=True)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)
    return digest


def copy_of(url: str, digest: str, spool: Path) -> Path:
    """Path of the copy of an object with this content, whether it exists or not; keeps the end of the object's name."""
    return spool / digest[:16] / PurePosixPath(url).name[-_LONGEST_NAME:]


def discard(url: str, digest: str, spool: Path) -> None:
    """Remove the copy of an object, if it exists."""
    copy = copy_of(url, digest, spool)
    copy.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        copy.parent.rmdir()


def _split(where: str, url: str) -> tuple[str, str]:
    """Scheme, and bucket/key; credentials of the address are kept for `_connect`."""
    address, user, password = credentials.split(url)
    scheme, _, path = address.partition("://")
    path = path.rstrip("/")
    if not path or path.startswith("/"):
        raise LookbackError(f"{where}: names no bucket; expected {scheme}://bucket/folder/file.csv")
    if user and scheme == "gs":
        raise LookbackError(f"{where}: received credentials in the address, expected {_SETTINGS['gs']}")
    if user:
        named = urllib.parse.unquote(user), urllib.parse.unquote(password)
        _own[scheme, path.partition("/")[0]] = named
    return scheme, path


# --- finding ---


def _find(system: Any, path: str) -> list[Any]:
    """File infos at a path: the object itself, a folder's files, or a glob's matches."""
    from pyarrow import fs

    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return [info]
    if info.type == fs.FileType.Directory:
        return [file for file, names in _below(system, path) if not any(map(_is_hidden, names))]
    names = path.split("/")
    fixed = next((at for at, name in enumerate(names) if at and glob.has_magic(name)), None)
    if fixed is None:
        return []
    base, pattern = "/".join(names[:fixed]), names[fixed:]
    files = _below(system, base, recursive=len(pattern) > 1 or pattern == ["**"])
    return [file for file, below in files if matches(below, pattern)]


def _below(system: Any, base: str, *, recursive: bool = True) -> Iterator[tuple[Any, list[str]]]:
    """Every file below a folder, with the parts of its relative path."""
    from pyarrow import fs

    for info in system.get_file_info(fs.FileSelector(base, recursive=recursive, allow_not_found=True)):
        if info.type == fs.FileType.File:
            yield info, info.path[len(base) + 1 :].split("/")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, both split at slashes, as in `glob.glob(recursive=True)`."""
    if not pattern:
        return not names
    first, *rest = pattern
    if first == "**" and rest and matches(names, rest):
        return True
    if not names or (names[0].startswith(".") and not first.startswith(".")):
        return False
    if first == "**":
        return matches(names[1:], pattern) or not (names[1:] or rest)
    return fnmatch.fnmatchcase(names[0], first) and matches(names[1:], rest)


def _is_there(system: Any, bucket: str) -> bool:
    from pyarrow import fs

    with contextlib.suppress(OSError):
        return bool(system.get_file_info(bucket).type != fs.FileType.NotFound)
    return True


# --- fetching ---


class _Changed(Exception):
    """The object changed while it was read."""


def _fetch(url: str, scheme: str, path: str, target: Path) -> str:
    """Write an object to a file on disk and return its digest."""
    for _ in range(_ATTEMPTS):
        digest = hashlib.sha256()
        with contextlib.suppress(_Changed), target.open("wb") as file:
            for chunk in _read(url, scheme, path):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            return digest.hexdigest()
    raise changed_meanwhile(url)


def _read(url: str, scheme: str, path: str) -> Iterator[bytes]:
    """Bytes of an object. Raises _Changed at the end if its version changed meanwhile."""
    from tqdm import tqdm

    with _explained(url, scheme):
        system = _connect(scheme, path.partition("/")[0])
        stream = system.open_input_file(path)
        version, size = _version(stream), stream.size()
        with tqdm(
            total=size, desc=f"fetch {url}", unit="B", unit_scale=True, disable=None, leave=False
        ) as bar:
            for chunk in _chunks(stream, size):
                yield chunk
                bar.update(len(chunk))
        if _version(system.open_input_file(path)) != version:
            raise _Changed


def _version(stream: Any) -> Any:
    """Tag and size that identify a version of an object."""
    tags = {name.lower(): value for name, value in stream.metadata().items()}
    return tags.get("etag"), stream.size()


def _chunks(stream: Any, size: int) -> Iterator[bytes]:
    """Bytes of a file in order, with a few requests ahead of the reader."""
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_CHUNKS_AHEAD) as pool:
        for start in range(0, size, _CHUNK_BYTES):
            if len(pending) == _CHUNKS_AHEAD:
                yield pending.popleft().result()
            pending.append(pool.submit(stream.read_at, min(_CHUNK_BYTES, size - start), start))
        while pending:
            yield pending.popleft().result()


# --- connecting ---


def _connect(scheme: str, bucket: str) -> Any:
    """Pyarrow's file system for a bucket, with the credentials of its address where there are any."""
    user, password = _own.get((scheme, bucket), ("", ""))
    if scheme == "s3":
        options = s3_options(os.environ)
        if user:
            options |= {"access_key": user, "secret_key": password, "anonymous": False}
        if "endpoint_override" not in options and "region" not in options:
            options["region"] = _region_of(bucket)
        return _file_system("S3FileSystem", **options)
    if scheme == "gs":
        return _file_system("GcsFileSystem", **gcs_options(os.environ))
    named = {"AZURE_STORAGE_ACCOUNT_NAME": user, "AZURE_STORAGE_ACCOUNT_KEY": password} if user else {}
    return _file_system("AzureFileSystem", **azure_options({**os.environ, **named}))


@functools.cache
def _file_system(name: str, **options: Any) -> Any:
    from pyarrow import fs

    try:
        kind = getattr(fs, name)
    except ImportError as error:
        raise OSError(f"{error}; install a build of pyarrow that has it, or copy the files here") from None
    return kind(**options)


@functools.cache
def _region_of(bucket: str) -> str | None:
    """AWS region of a bucket; None if AWS does not answer: then the configured one is used."""
    from pyarrow import fs

    with contextlib.suppress(OSError):
        return str(fs.resolve_s3_region(bucket))
    return None


def s3_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `pyarrow.fs.S3FileSystem`, which finds keys and profile itself."""
    options: dict[str, Any] = {"connect_timeout": _TIMEOUT_SECONDS, "request_timeout": _TIMEOUT_SECONDS}
    endpoint = _first(environ, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    if endpoint:
        plain = "http" if _is_true(environ, "AWS_ALLOW_HTTP") else "https"
        options["scheme"], options["endpoint_override"] = _endpoint(endpoint, plain)
    if region := _first(environ, "AWS_REGION", "AWS_DEFAULT_REGION"):
        options["region"] = region
    if bundle := environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = bundle
    if _is_true(environ, "AWS_SKIP_SIGNATURE"):
        options["anonymous"] = True
    if _is_true(environ, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        options["force_virtual_addressing"] = True
    return options


def gcs_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `pyarrow.fs.GcsFileSystem`, which finds GOOGLE_APPLICATION_CREDENTIALS itself."""
    options: dict[str, Any] = {"retry_time_limit": _RETRY_LIMIT}
    if emulator := environ.get("STORAGE_EMULATOR_HOST"):
        options["scheme"], options["endpoint_override"] = _endpoint(emulator, "http")
    if emulator or _is_true(environ, "GOOGLE_SKIP_SIGNATURE"):
        options["anonymous"] = True
    return options


def azure_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `pyarrow.fs.AzureFileSystem`, which uses its default credential without a key.

    Raises OSError if no account is named.
    """
    account = environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise OSError("AZURE_STORAGE_ACCOUNT_NAME is not set, and the address names a container only")
    options: dict[str, Any] = {"account_name": account}
    if key := environ.get("AZURE_STORAGE_ACCOUNT_KEY"):
        options["account_key"] = key
    elif token := environ.get("AZURE_STORAGE_SAS_TOKEN"):
        options["sas_token"] = token
    if endpoint := environ.get("AZURE_STORAGE_ENDPOINT"):
        scheme, host = _endpoint(endpoint, "https")
        host = host.removesuffix(f"/{account}")
        if host.startswith(f"{account}."):
            host = host.removeprefix(account)  # pyarrow puts it there itself
        options |= {"blob_storage_scheme": scheme, "blob_storage_authority": host}
        options |= {"dfs_storage_scheme": scheme, "dfs_storage_authority": host.replace(".blob.", ".dfs.", 1)}
    return options


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on", "y")


def _endpoint(url: str, plain: str) -> tuple[str, str]:
    """Scheme and host:port of an endpoint; `plain`: scheme of one without."""
    parsed = urllib.parse.urlsplit(url if "://" in url else f"{plain}://{url}")
    return parsed.scheme, f"{parsed.netloc}{parsed.path}".rstrip("/")


# --- errors ---


@contextlib.contextmanager
def _explained(where: str, scheme: str) -> Iterator[None]:
    """Turn errors of the store into one LookbackError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(_NOISE.sub("", str(error)).split()).rstrip(".")
        raise LookbackError(
            f"{where}: cannot be read from the object store: {reason}; check the address, your rights to it, and "
            f"{_SETTINGS[scheme]}"
        ) from None
