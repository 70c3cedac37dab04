"""Source files: listed, digested, fetched from object stores; the demo's are generated."""

import functools
import glob
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from features.parallel import in_order
from pipeline.artifacts import deliveries, remote_files
from pipeline.artifacts.files import Digests, changed_meanwhile, read_record, write_json
from pipeline.artifacts.remote_files import RemoteFile
from pipeline.config import Config
from pipeline.errors import LookbackError

if TYPE_CHECKING:
    import polars as pl

SPOOL = ".remote"
"""Folder of the copies of remote files."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
"""Extensions of compressed files."""
_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata/*.metadata.json": "Iceberg"}
"""What stands in the folder of a table whose metadata say which of its files count, and the table's kind."""
SIMULATION_VERSION = 1
"""Version of the demo log for the same settings and seed."""


def list_files(key: str, path: str | list[str]) -> list[Path | RemoteFile]:
    """Files of a path, folder, glob or list of them, local or in an object store, sorted by name.

    Skips hidden files, and in folders names that begin with `_`. Raises LookbackError, naming the configuration key, if there
    is no file.
    """
    files: set[Path | RemoteFile] = set()
    for place in path if isinstance(path, list) else [path]:
        if remote_files.is_remote(place):
            files |= set(remote_files.list_files(key, place))
        else:
            files |= set(_list_local(key, place))
    return sorted(files, key=str)


def _list_local(key: str, path: str) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        files = [file for file in place.rglob("*") if file.is_file() and not _hidden(file.relative_to(place))]
    elif place.is_file():
        files = [place]
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True)]  # noqa: PTH207
        fixed = len(
            place.parts[: next((at for at, part in enumerate(place.parts) if glob.has_magic(part)), 0)]
        )
        files = [
            file for file in found if file.is_file() and not _hidden(Path(*file.parts[fixed:]), named=place)
        ]
    _refuse_tables(key, path, files)
    if not files:
        expected = "a file, a folder with files, or a glob that matches some"
        if "://" in path:
            expected = f"a local path, or an address in an object store that begins with {' or '.join(remote_files.SCHEMES)}"
        raise LookbackError(
            f"{key}: nothing at {path!r} (from {Path.cwd()}); expected {expected}. If the configuration names a public data "
            "set, `lookback data` downloads it"
        )
    return files


def _hidden(relative: Path, named: Path = Path()) -> bool:
    """Whether a part of a path is hidden; names that begin so in `named`, the pattern they matched, are meant."""
    return any(
        part.startswith((".", "_")) and not named.name.startswith((".", "_")) for part in relative.parts
    )


def _refuse_tables(key: str, path: str, files: Sequence[Path]) -> None:
    """Raise LookbackError for a folder whose metadata say which of its files count."""
    folders = {parent for file in files for parent in file.parents} | {Path(path)}
    for folder in sorted(folders):
        for mark, kind in _TABLES.items():
            if any(folder.glob(mark)):
                raise LookbackError(
                    f"{key}: {folder} is a {kind} table: its metadata say which of its files count, and the folder holds others "
                    "too. Give the list of the files that count, or export the table to Parquet"
                )


def source_digests(config: Config) -> dict[str, dict[str, str]]:
    """Path or address to content digest of every source file, by role: events, items, users, exposures,
    exclude_users, exclude_items.

    Reads or fetches a file only if its identity (size and times) is new.
    """
    simulate_if_needed(config)
    digests = _digests(config)
    tables = {role: getattr(config, role) for role in deliveries.ROLES}
    sources = {}
    for role, table in tables.items():
        if table is not None and table.database is not None:
            sources[role] = deliveries.digests(config, role)
        elif table is not None and table.path is not None:
            sources[role] = _of_files(config, digests, f"{role}.path", table.path)
    if config.events.exclude_users is not None:
        sources["exclude_users"] = _of_excluded(config, digests)
    if isinstance(items := config.events.exclude_items, str):
        sources["exclude_items"] = _of_files(config, digests, "events.exclude_items", items)
    return sources


def _of_files(config: Config, digests: Digests, key: str, path: str | list[str]) -> dict[str, str]:
    """Path to digest of the files of a configuration key."""
    files = list_files(key, path)
    contents = in_order(functools.partial(_digest, config, digests), files)
    return dict(zip(map(str, files), contents, strict=True))


def _of_excluded(config: Config, digests: Digests) -> dict[str, str]:
    assert config.events.exclude_users is not None
    return _of_files(config, digests, "events.exclude_users", config.events.exclude_users)


def read_databases(config: Config, *, force: bool) -> Iterator[str]:
    """Read what is new in the databases of the configuration; yields a line about each.

    force: everything anew. Raises LookbackError as `deliveries.take`.
    """
    roles = [
        role
        for role in deliveries.ROLES
        if getattr(config, role) is not None and getattr(config, role).database is not None
    ]
    excluded = excluded_users(config) if roles else None
    for role in roles:
        yield deliveries.take(config, role, excluded, force=force)


def excluded_users(config: Config) -> "pl.Series | None":
    """Users of `events.exclude_users`, as text; None without the key."""
    if config.events.exclude_users is None:
        return None
    import polars as pl

    from features.events.row_filters import read_listed

    files = _of_excluded(config, _digests(config))
    users = [
        read_listed("events.exclude_users", local_path(config, *file), "user_id").cast(pl.String)
        for file in files.items()
    ]
    return pl.concat(users).unique()


def is_copy(config: Config, path: str) -> bool:
    """Whether a source is a copy that only we write: of a remote file, or of rows of a database."""
    return remote_files.is_remote(path) or deliveries.is_one(config, path)


def extension(path: str) -> str:
    """Last extension of a file's name, lower case, together with the one before if it is a compression."""
    *_, before, last = ["", "", *Path(path).suffixes]
    return (before + last if last.lower() in COMPRESSED else last).lower()


def digest_of(config: Config, key: str, path: str) -> str:
    """Content digest of the one local file at a configuration key. Raises LookbackError for a remote or missing one."""
    if remote_files.is_remote(path):
        raise LookbackError(
            f"{key}: received {path!r}, expected a local file: only sources may be in an object store"
        )
    return _digests(config)(_list_local(key, path)[0])


def _digests(config: Config) -> Digests:
    return Digests(config.folder / ".digests.json")


def _digest(config: Config, digests: Digests, file: Path | RemoteFile) -> str:
    if isinstance(file, Path):
        return digests(file)
    return digests.remembered(
        file.url, [file.size, file.modified], lambda: remote_files.fetch(file.url, _spool(config))
    )


def _spool(config: Config) -> Path:
    """Folder of copies of remote files until they are ingested."""
    return config.folder / SPOOL


def local_path(config: Config, path: str, digest: str) -> Path:
    """Path to read a source file from: itself or, for a remote one, its copy, fetched again if missing.

    Raises LookbackError if a remote file no longer has the content of this digest.
    """
    if not remote_files.is_remote(path):
        return Path(path)
    copy = remote_files.copy_of(path, digest, _spool(config))
    if not copy.exists() and remote_files.fetch(path, _spool(config)) != digest:
        raise changed_meanwhile(path)
    return copy


def release(config: Config, sources: dict[str, dict[str, str]]) -> None:
    """Remove the copies of ingested remote files (role to address to digest)."""
    for digests in sources.values():
        for path, digest in digests.items():
            if remote_files.is_remote(path):
                remote_files.discard(path, digest, _spool(config))


def simulate_if_needed(config: Config) -> None:
    """Generate the demo log into `<data_dir>/<name>/raw/` unless it is there for these settings and seed."""
    if config.simulate is None:
        return
    folder = config.folder / "raw"
    content = {"settings": asdict(config.simulate), "seed": config.seed, "version": SIMULATION_VERSION}
    marker = folder / "simulation.json"
    if read_record(marker) == content:
        return
    import filelock

    from features import simulate

    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if read_record(marker) == content:
            return  # another process was faster
        marker.unlink(missing_ok=True)
        simulate.write(simulate.simulate(config.simulate, config.seed), folder)
        write_json(marker, content)
