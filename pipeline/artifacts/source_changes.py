"""Distinct contents of the source files, and their changes since the previous ingest artifact."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.readers import partitions
from features.settings import TableFormat
from pipeline.artifacts import store
from pipeline.artifacts.source_files import COMPRESSED
from pipeline.errors import DamagedArtifact

_NAME_DIGITS = 16
_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """One content with all paths that have it."""

    digest: str
    paths: tuple[str, ...]
    folders: str = ""
    """Columns that the folders of the path give, `day=2026-01-31`: the same content elsewhere is another source."""

    @property
    def identity(self) -> str:
        """What makes two sources the same."""
        return _identity(self.digest, self.folders)

    @property
    def path(self) -> str:
        """Path to read from."""
        return self.paths[0]

    @property
    def source_file(self) -> str:
        """Name of the source in its events."""
        return self.identity[:_NAME_DIGITS]


def _identity(digest: str, folders: str) -> str:
    return hashlib.sha256(f"{digest} {folders}".encode()).hexdigest() if folders else digest


def folders_of(path: str, form: TableFormat) -> str:
    """The mapped columns that the folders of a path give, as text."""
    return "/".join(f"{name}={value}" for name, value in sorted(partitions.used(path, form).items()))


def identities(digests: Mapping[str, str], form: TableFormat) -> dict[str, str]:
    """Path to identity of source files (path to digest)."""
    return {path: _identity(digest, folders_of(path, form)) for path, digest in digests.items()}


def distinct(digests: Mapping[str, str], form: TableFormat) -> list[Source]:
    """The distinct sources among files (path to digest), in order of their first paths."""
    paths: dict[tuple[str, str], list[str]] = {}
    for path, digest in sorted(digests.items()):
        paths.setdefault((digest, folders_of(path, form)), []).append(path)
    return [Source(digest, tuple(same), folders) for (digest, folders), same in paths.items()]


def twins(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Files that have the same name but for their compression."""
    plain: dict[str, list[str]] = {}
    for path in sorted(paths):
        plain.setdefault(path.removesuffix(_compression(path)), []).append(path)
    return [pair for same in plain.values() for pair in itertools.pairwise(same)]


def _compression(path: str) -> str:
    return next((suffix for suffix in COMPRESSED if path.lower().endswith(suffix)), "")


@dataclass(frozen=True)
class Changes:
    """Changes of the log's files since the previous ingest artifact."""

    new: int
    """Number of new contents, without changed files."""
    changed: list[dict[str, str]]
    """path, and the digests before and now"""
    removed: list[dict[str, str]]
    """path, and the digest before, of contents at no path any more"""

    def describe(self) -> str:
        """One line; empty without changed or removed files."""
        parts = [
            f"{len(files)} file(s) {change} since the last ingest: {_names(files)}"
            for change, files in (
                ("changed, and replace their earlier content", self.changed),
                ("are gone", self.removed),
            )
            if files
        ]
        return "; ".join(parts)


def _names(files: list[dict[str, str]]) -> str:
    shown = ", ".join(file["path"] for file in files[:_SHOWN])
    return shown + (", …" if len(files) > _SHOWN else "")


@dataclass(frozen=True)
class PreviousIngest:
    """Inputs of the previous ingest artifact."""

    digests: dict[str, str] = field(default_factory=dict)
    """Path to identity of every source file."""
    settings: dict[str, Any] = field(default_factory=dict)
    id_types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stage_folder: Path) -> "PreviousIngest":
        """Inputs of the artifact at `latest`; empty if there is none or its manifest is unreadable."""
        try:
            manifest = store.read_manifest(stage_folder / "latest")
            digests = {
                path: _identity(source["digest"], source.get("folders", ""))
                for source in manifest["sources"]
                for path in source["paths"]
            }
            return cls(digests, manifest["settings"], manifest["id_types"])
        except (OSError, DamagedArtifact, KeyError, TypeError):
            return cls()

    def changes(self, digests: Mapping[str, str]) -> Changes:
        """Changes from these inputs to the present `digests` (path to identity)."""
        before, now = set(self.digests.values()), set(digests.values())
        changed = [
            {"path": path, "before": self.digests[path], "now": digest}
            for path, digest in sorted(digests.items())
            if self.digests.get(path, digest) != digest
        ]
        removed = [
            {"path": path, "before": digest}
            for path, digest in sorted(self.digests.items())
            if path not in digests and digest not in now
        ]
        return Changes(len(now - before - {file["now"] for file in changed}), changed, removed)

    def int64_columns(self, digests: Mapping[str, str], settings: Mapping[str, Any]) -> set[str]:
        """Columns whose ids were all int64, if the log (a shared path or content) and the `settings` are the same."""
        shared = self.digests.keys() & digests.keys() or set(self.digests.values()) & set(digests.values())
        if not shared or any(self.settings.get(key) != value for key, value in settings.items()):
            return set()
        return {name for name, kind in self.id_types.items() if kind == "int64"}
