"""Finished scorings of this configuration's log: by folder, fingerprint, link, or registered version."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts.store import MANIFEST, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking import registry
from pipeline.tracking.registry import Registry

FILES = ("users", "allow", "deny", "availability", "exclude", "candidates", "pin", "budgets")
"""Keys of `score` that may name a file, whose digest is an input."""


@dataclass(frozen=True)
class ScoredLists:
    """Recommendations of one finished scoring."""

    folder: Path
    label: str
    """Name in a table: `version 3`, or the fingerprint."""
    manifest: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, label: str = "") -> "ScoredLists":
        """Lists of a folder; by default labelled by the model's version, if it has one, and the fingerprint."""
        manifest = read_manifest(folder)
        version = manifest.get("model_version")
        named = f"version {version}, " if version is not None else ""
        return cls(folder, label or f"{named}{folder.name}", manifest)

    def scan(self) -> pl.LazyFrame:
        """Recommendations, a row per user and rank."""
        return pl.scan_parquet(self.folder / "recommendations" / "*.parquet")

    @property
    def features(self) -> Path:
        """Folder of the log that was scored."""
        return self._input("features")

    @property
    def ingest(self) -> Path:
        """Folder with the tables of items and users."""
        return self._input("ingest")

    def _input(self, stage: str) -> Path:
        return self.folder.parent.parent / stage / str(self.manifest["inputs"][stage])

    @property
    def evaluation(self) -> tuple[Path, str] | None:
        """Folder of the scored model's evaluation, and the name of its published system; None where it is gone."""
        for path in sorted((self.folder.parent.parent / "publish").glob(f"[!.]*/{MANIFEST}")):
            published = read_manifest(path.parent)
            if published.get("bundle_digest") == self.manifest["bundle_digest"]:
                folder = self.folder.parent.parent / "evaluate" / str(published["inputs"].get("evaluate"))
                if (folder / "targets.parquet").exists():
                    return folder, str(published["system"])
        return None


def of_pair(config: Config, first: str, second: str) -> tuple[ScoredLists, ScoredLists]:
    """Lists named by two texts: the newest pair of the same log and settings, else the newest of each.

    A text is a version (its number, models:/NAME/VERSION, /latest or @ALIAS), a folder of the stage score, or its name there.
    Raises LookbackError where there are none.
    """
    return newest_pair(_named(config, first), _named(config, second))


def newest_pair(first: list[ScoredLists], second: list[ScoredLists]) -> tuple[ScoredLists, ScoredLists]:
    """Newest of two non-empty sequences (newest first) that scored the same log by the same settings, else the newest of each."""
    pairs = list(product(first, second))
    return next((pair for pair in pairs if not differing(*pair)), pairs[0])


def differing(first: ScoredLists, second: ScoredLists) -> list[str]:
    """Reasons other than the model why lists may differ: `log`, and keys of settings."""
    one, other = (
        {**lists.manifest["settings"], **{f"score.{key}": lists.manifest["inputs"].get(key) for key in FILES}}
        for lists in (first, second)
    )
    log = ["the log"] if first.manifest["inputs"]["features"] != second.manifest["inputs"]["features"] else []
    return log + sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def of_bundle(config: Config, digest: str, label: str = "") -> list[ScoredLists]:
    """Finished scorings with a bundle, newest first; not those by the arms of an experiment."""
    own = []
    for path in (config.folder / "score").glob("[!.]*/_SUCCESS"):
        with contextlib.suppress(DamagedArtifact):
            lists = ScoredLists.of(path.parent, label)
            is_own = lists.manifest["bundle_digest"] == digest and "experiment" not in lists.manifest
            if is_own and not path.parent.is_symlink():
                own.append(lists)
    return sorted(own, key=lambda lists: str(lists.manifest["created_utc"]), reverse=True)


def _named(config: Config, text: str) -> list[ScoredLists]:
    for folder in (Path(text), config.folder / "score" / text):
        if (folder / "_SUCCESS").exists() and (folder / MANIFEST).exists():
            return [ScoredLists.of(folder.resolve())]
    version = Registry.from_config(config).resolve(registry.version_uri(config, text))
    scored = of_bundle(config, version.bundle_digest, f"version {version.version}")
    if not scored:
        score = config.command("run", "score")
        raise LookbackError(
            f"compare: {version.uri} has no finished lists in {config.folder / 'score'}; make them with: "
            f"{score} --set score.model={version.uri}"
        )
    return scored
