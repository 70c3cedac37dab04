"""Model registry: bundles as versions of `lookback-<name>`, identified by digest; aliases champion and challenger.

A version carries its decision (by the gate or by hand): tags `lookback.gate…`, its description, metrics of its run.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts.files import now, read_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.sections import MODEL
from pipeline.tracking.client import client_at, fluent, reported, server_at, tracking_uri, version_of
from pipeline.tracking.models import delete_model, download_model, log_pyfunc, log_to_run
from pipeline.tracking.server import BUNDLE_DIGEST, GATE, ServerAway, Version

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: the version that scores; the newest refused version, removed once the champion moves."""
Outcome = Literal["passed", "first", "off", "refused", "by hand"]
REFUSED: Outcome = "refused"
_HEADING = "\n\n**Gate.** "
SERVING_NEEDS = ("faiss-cpu", "mlflow", "numpy", "pandas", "polars", "pyarrow", "safetensors", "torch")
"""Packages imported by pipeline/serving/pyfunc.py, directly or through the bundle."""

BASELINE_NEEDS = {"als": ("implicit", "scipy", "threadpoolctl")}
"""Further packages of published baselines; by default scipy."""


def model_name(config: Config) -> str:
    """Name of a configuration's registered model."""
    return f"lookback-{config.name}"


@dataclass(frozen=True)
class ModelSource:
    """Published model: registry version (0: this configuration's own), bundle digest and URI."""

    version: int
    bundle_digest: str
    uri: str


@dataclass(frozen=True)
class Decision:
    """Decision about a version, with its reason and figures."""

    outcome: Outcome
    """passed: against the champion; first: no champion yet; off: no test; refused; by hand."""
    reason: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """Name to figure: differences in the gate's metric, numbers of targets and users, and the opponent."""

    @property
    def moves(self) -> bool:
        """Whether the version becomes champion."""
        return self.outcome != REFUSED

    def text(self, before: Version | None) -> str:
        """One-sentence decision; `before` is the previous champion."""
        stands = f"version {before.version} stays" if before is not None else "there is none"
        became = "champion" if self.moves else f"not champion ({stands})"
        return f"{became}; {self.outcome}: {self.reason}"


class Registry:
    """Registered models of one tracking server; every method raises ServerAway where it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._server = server_at(uri)

    @classmethod
    def from_config(cls, config: Config) -> "Registry":
        """Registry of a configuration's tracking server."""
        return cls(tracking_uri(config))

    def champion(self, name: str) -> Version | None:
        """Champion of a model, or None; takes milliseconds."""
        number = self._server.alias(name, CHAMPION)
        return self._server.version(name, number) if number is not None else None

    def resolve(self, name_or_uri: str) -> Version:
        """Version of NAME (its champion), models:/NAME/VERSION or models:/NAME@ALIAS; takes milliseconds.

        Raises LookbackError where there is none, or it is no bundle.
        """
        uri = name_or_uri if name_or_uri.startswith("models:/") else f"models:/{name_or_uri}@{CHAMPION}"
        parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", uri)
        if parts is None:
            raise LookbackError(
                f"model: received {name_or_uri!r}, expected models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        name, number, alias = parts.groups()
        resolved = int(number) if number is not None else self._server.alias(name, alias)
        version = self._server.version(name, resolved) if resolved is not None else None
        if version is None:
            raise LookbackError(
                f"{uri}: no such model on {self.uri}; publish one with: lookback run publish --config …"
            )
        if not version.bundle_digest:
            raise LookbackError(
                f"{uri}: was not published by lookback (it has no tag {BUNDLE_DIGEST}); expected a bundle"
            )
        return version

    def version(self, name: str, version: int) -> Version | None:
        """Version by number, or None; takes milliseconds."""
        return self._server.version(name, version)

    def versions(self, name: str) -> list[Version]:
        """All versions, newest first."""
        with reported(self.uri):
            entities = client_at(self.uri).search_model_versions(f"name='{name}'")
        return sorted(map(version_of, entities), key=lambda version: -version.version)

    def register(
        self,
        name: str,
        bundle_folder: Path,
        bundle_digest: str,
        run_id: str,
        description: str = "",
        input_example: Mapping[str, list[Any]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        """Register a bundle, unless a version has its digest already; returns the version.

        input_example: columns of an input frame, such as {"user_id": [1, 2]}. description: Markdown.
        """
        for version in self.versions(name):
            if version.bundle_digest == bundle_digest:
                return version
        source, model_id = log_pyfunc(
            self.uri,
            run_id,
            bundle_folder,
            _item_type(bundle_folder),
            input_example,
            requirements(bundle_folder),
            exclude_seen=read_json(bundle_folder / "bundle.json").get("exclude_seen", True),
        )
        with reported(self.uri), fluent(self.uri):
            client = client_at(self.uri)
            if not client.search_registered_models(f"name='{name}'"):
                client.create_registered_model(
                    name, description="Published by lookback; `champion` is the version that scores."
                )
            labels = {**(tags or {}), BUNDLE_DIGEST: bundle_digest}
            made = client.create_model_version(
                name, source, run_id, labels, description=description[:5000], model_id=model_id
            )
        return version_of(made)

    def tags(self, version: Version) -> dict[str, str]:
        """Tags of a version."""
        with reported(self.uri):
            return dict(client_at(self.uri).get_model_version(version.name, str(version.version)).tags)

    def record(self, version: Version, decision: Decision, before: Version | None) -> None:
        """Write a decision to its version and move the aliases; `before` is the champion until now.

        The tag `lookback.gate` is written after the aliases: without it the decision is unfinished.
        """
        figures = dict(decision.figures) | ({"champion_before": before.version} if before is not None else {})
        labels = {"reason": decision.reason, "at": now().isoformat(timespec="seconds")}
        labels |= {
            name: f"{figure:.6g}" if isinstance(figure, float) else str(figure)
            for name, figure in figures.items()
        }
        with reported(self.uri):
            client = client_at(self.uri)
            name, number = version.name, str(version.version)
            for label, text in labels.items():
                client.set_model_version_tag(name, number, f"{GATE}.{label}", text[:1000])
            card = (client.get_model_version(name, number).description or "").partition(_HEADING)[0]
            text = f"{card[:4400]}{_HEADING}{decision.text(before)}"
            client.update_model_version(name, number, text[:5000])
            if decision.moves:
                client.set_registered_model_alias(name, CHAMPION, number)
                client.delete_registered_model_alias(name, CHALLENGER)
            else:
                client.set_registered_model_alias(name, CHALLENGER, number)
            client.set_model_version_tag(name, number, GATE, decision.outcome)
        numbers = {
            f"gate/{label}": figure
            for label, figure in decision.figures.items()
            if not isinstance(figure, str)
        }
        with contextlib.suppress(ServerAway):  # a deleted run; the version has all of it
            log_to_run(self.uri, version.run_id, numbers, {GATE: decision.outcome})

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version and its files."""
        with reported(self.uri):
            client = client_at(self.uri)
            source = client.get_model_version(name, str(version)).source or ""
            client.delete_model_version(name, str(version))
        if source.startswith("models:/m-"):
            delete_model(self.uri, source.removeprefix("models:/"))

    def download_bundle(self, version: Version, to: Path) -> Path:
        """Copy a version's bundle to a folder, all or nothing; returns the folder."""
        if to.exists():
            return to
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".downloading-") as temporary:
            model = download_model(self.uri, version.uri, Path(temporary))
            bundles = sorted(model.glob("data/*/bundle.json"))
            if not bundles:
                raise LookbackError(
                    f"{version.uri}: holds no bundle; publish again with: lookback run publish --force"
                )
            shutil.move(bundles[0].parent, to)
        return to


def requirements(bundle_folder: Path) -> list[str]:
    """Requirements of serving a bundle, pinned to the installed versions (without a local suffix such as +cpu)."""
    from importlib.metadata import version

    system = read_json(bundle_folder / "bundle.json").get("system", MODEL)
    names = SERVING_NEEDS + (() if system == MODEL else BASELINE_NEEDS.get(system, ("scipy",)))
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def model_source(config: Config) -> ModelSource:
    """Registered model named by score.model (champion, or models:/NAME/VERSION)."""
    model = config.score.model
    version = Registry.from_config(config).resolve(model_name(config) if model == CHAMPION else model)
    return ModelSource(version.version, version.bundle_digest, version.uri)


def champion_digest(config: Config) -> str | None:
    """Bundle digest of the champion, or None."""
    if not config.tracking.enabled:
        return None
    version = Registry.from_config(config).champion(model_name(config))
    return version.bundle_digest if version is not None else None


def version_of_bundle(config: Config, publish: Artifact) -> int | None:
    """Version number of a publish artifact on the present server, or None; takes milliseconds."""
    version = linked_version(config, publish)
    return version.version if version is not None else None


def linked_version(config: Config, publish: Artifact) -> Version | None:
    """Version of a publish artifact on the present server, or None where it is gone."""
    registry = Registry.from_config(config)
    with contextlib.suppress(OSError, DamagedArtifact, ServerAway):
        number = read_json(version_link(publish)).get(registry.uri)
        version = registry.version(model_name(config), int(number)) if number is not None else None
        if version is not None and version.bundle_digest == read_manifest(publish.folder)["bundle_digest"]:
            return version
    return None


def prune_versions(config: Config, *, keep: int, dry_run: bool) -> list[Version]:
    """Delete all but the `keep` newest versions and the champion; returns the deleted ones (dry_run: the ones to delete)."""
    if not config.tracking.enabled:
        return []
    registry, name = Registry.from_config(config), model_name(config)
    champion = registry.champion(name)
    old = [
        version
        for version in registry.versions(name)[keep:]
        if champion is None or version.version != champion.version
    ]
    for version in [] if dry_run else old:
        registry.delete_version(name, version.version)
    return old


def version_link(publish: Artifact) -> Path:
    """File beside a publish artifact: tracking URI to version number."""
    return publish.run_link.with_suffix(".version.json")


def input_example(bundle_folder: Path) -> dict[str, list[Any]]:
    """Example input: two synthetic histories built from the first catalogue items."""
    import polars as pl

    ids = pl.read_parquet(bundle_folder / "items.parquet", columns=["item_id"])["item_id"].head(3).to_list()
    return {"history": [ids, ids[:1]]}


def _item_type(bundle_folder: Path) -> str:
    """MLflow type of item_id in a bundle."""
    import pyarrow.parquet

    kind = pyarrow.parquet.read_schema(bundle_folder / "items.parquet").field("item_id").type
    return "long" if str(kind) == "int64" else "string"
