"""What was delivered: the contents among the source files, and how they differ from those of the last artifact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import store
from pipeline.errors import DamagedArtifact

_NAME_DIGITS = 16
_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """One content, under all the paths at which it was delivered."""

    digest: str
    paths: tuple[str, ...]

    @property
    def path(self) -> str:
        """The one it is read from."""
        return self.paths[0]

    @property
    def source_file(self) -> str:
        """What its events carry."""
        return self.digest[:_NAME_DIGITS]


def distinct(digests: Mapping[str, str]) -> list[Source]:
    """The contents among the source files, in order of their digests."""
    paths: dict[str, list[str]] = {}
    for path, digest in sorted(digests.items()):
        paths.setdefault(digest, []).append(path)
    return [Source(digest, tuple(paths[digest])) for digest in sorted(paths)]


@dataclass(frozen=True)
class Changes:
    """How the files of a log differ from those of the last artifact."""

    new: int
    """Contents that were not there, those of changed files apart."""
    changed: list[dict[str, str]]
    """path, and the digests before and now."""
    removed: list[dict[str, str]]
    """path, and the digest before, of contents that are nowhere any more."""

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "new_sources": self.new,
            "changed_sources": self.changed,
            "removed_sources": self.removed,
        }

    def describe(self) -> str:
        """One line, empty where no file changed or went."""
        parts = [
            f"{len(files)} file(s) {what} since the last ingest: {_names(files)}"
            for what, files in (
                ("changed, and take the place of what they held", self.changed),
                ("are gone", self.removed),
            )
            if files
        ]
        return "; ".join(parts)


def _names(files: list[dict[str, str]]) -> str:
    shown = ", ".join(file["path"] for file in files[:_SHOWN])
    return shown + (", …" if len(files) > _SHOWN else "")


@dataclass(frozen=True)
class Last:
    """What the last artifact of the stage was made from."""

    digests: dict[str, str] = field(default_factory=dict)
    """Path to content digest."""
    settings: dict[str, Any] = field(default_factory=dict)
    id_types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stage_folder: Path) -> "Last":
        """The one that `latest` points to; empty where there is none that can be read."""
        try:
            manifest = store.read_manifest(stage_folder / "latest")
            digests = {path: each["digest"] for each in manifest["sources"] for path in each["paths"]}
            return cls(digests, manifest["settings"], manifest["id_types"])
        except (OSError, DamagedArtifact, KeyError, TypeError):
            return cls()

    def changes(self, digests: Mapping[str, str]) -> Changes:
        """What is different now."""
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
        return Changes(len(now - before - {each["now"] for each in changed}), changed, removed)

    def int64_columns(self, digests: Mapping[str, str], settings: Mapping[str, Any]) -> set[str]:
        """Columns whose ids were all int64, where it was the same log (a path or a content in common), read the same way."""
        shared = self.digests.keys() & digests.keys() or set(self.digests.values()) & set(digests.values())
        if not shared or any(self.settings.get(key) != value for key, value in settings.items()):
            return set()
        return {name for name, kind in self.id_types.items() if kind == "int64"}
