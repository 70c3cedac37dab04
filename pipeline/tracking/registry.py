"""The model registry: published bundles as versions of `lookback-<name>`, found again by their digest; the alias `champion`.

What the gate or a hand decided about a version is written to it: tags `lookback.gate…`, its description, metrics of its run.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artifacts.files import now, read_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking.client import client_at, fluent, reported, server_at, tracking_uri, version_of
from pipeline.tracking.models import delete_model, download_model, log_pyfunc, log_to_run
from pipeline.tracking.server import BUNDLE_DIGEST, GATE, ServerAway, Version

if TYPE_CHECKING:
    pass

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: the version that scores; the newest one that was refused and waits for a hand, none after the champion moved."""
Outcome = Literal["passed", "first", "off", "refused", "by hand"]
REFUSED: Outcome = "refused"
_HEADING = "\n\n**Gate.** "
SERVING_NEEDS = ("faiss-cpu", "mlflow", "numpy", "pandas", "polars", "pyarrow", "safetensors", "torch")
"""What pipeline/serving/pyfunc.py imports, directly or through the bundle."""


def model_name(config: Config) -> str:
    """The registered model of a configuration."""
    return f"lookback-{config.name}"


@dataclass(frozen=True)
class ModelSource:
    """A published model: its version in the registry (0: this configuration's own) and its bundle's digest."""

    version: int
    bundle_digest: str
    uri: str


@dataclass(frozen=True)
class Decision:
    """What was decided about a version, why, and the figures that it was decided by."""

    outcome: Outcome
    """passed: against the champion; first: there was none; off: without a test; refused; by hand"""
    reason: str
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """Name to figure: differences in the gate's metric, targets and users behind them, and what they were measured against."""

    @property
    def moves(self) -> bool:
        """Whether the version becomes champion."""
        return self.outcome != REFUSED

    def text(self, before: Version | None) -> str:
        """The decision in a sentence; `before` was champion until then."""
        stands = f"version {before.version} stays" if before is not None else "there is none"
        became = "champion" if self.moves else f"not champion ({stands})"
        return f"{became}; {self.outcome}: {self.reason}"


class Registry:
    """The registered models on one tracking server; every question raises ServerAway where it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._server = server_at(uri)

    @classmethod
    def from_config(cls, config: Config) -> "Registry":
        """The registry where a configuration's runs are logged."""
        return cls(tracking_uri(config))

    def champion(self, name: str) -> Version | None:
        """The version that `champion` points to; milliseconds."""
        number = self._server.alias(name, CHAMPION)
        return self._server.version(name, number) if number is not None else None

    def resolve(self, name_or_uri: str) -> Version:
        """The version behind NAME (its champion), models:/NAME/VERSION or models:/NAME@ALIAS; milliseconds.

        Raises LookbackError where there is none, or it is no bundle of ours.
        """
        uri = name_or_uri if name_or_uri.startswith("models:/") else f"models:/{name_or_uri}@{CHAMPION}"
        parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", uri)
        if parts is None:
            raise LookbackError(
                f"model: received {name_or_uri!r}, expected models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        name, number, alias = parts.groups()
        version = int(number) if number is not None else self._server.alias(name, alias)
        found = self._server.version(name, version) if version is not None else None
        if found is None:
            raise LookbackError(
                f"{uri}: no such model on {self.uri}; publish one with: lookback run publish --config …"
            )
        if not found.bundle_digest:
            raise LookbackError(
                f"{uri}: was not published by lookback (it has no tag {BUNDLE_DIGEST}); expected a bundle"
            )
        return found

    def version(self, name: str, version: int) -> Version | None:
        """A version by its number; milliseconds."""
        return self._server.version(name, version)

    def versions(self, name: str) -> list[Version]:
        """Every version, newest first."""
        with reported(self.uri):
            found = client_at(self.uri).search_model_versions(f"name='{name}'")
        return sorted((version_of(each) for each in found), key=lambda version: -version.version)

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
        """The version of a bundle: the one registered before under its digest, or a new one.

        `input_example` is columns of an input frame, such as {"user_id": [1, 2]}; the description is Markdown.
        """
        for version in self.versions(name):
            if version.bundle_digest == bundle_digest:
                return version
        source, model_id = log_pyfunc(
            self.uri, run_id, bundle_folder, _id_types(bundle_folder), input_example, requirements()
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

    def set_champion(self, name: str, version: int) -> None:
        """Point the alias `champion` to a version."""
        with reported(self.uri):
            client_at(self.uri).set_registered_model_alias(name, CHAMPION, str(version))

    def tags(self, version: Version) -> dict[str, str]:
        """All that a version is labelled with."""
        with reported(self.uri):
            found = client_at(self.uri).get_model_version(version.name, str(version.version))
        return dict(found.tags)

    def record(self, version: Version, decision: Decision, before: Version | None) -> None:
        """Write a decision to its version, and move the alias where it says so; `before` is the champion until now.

        The tag `lookback.gate` itself comes after the alias: where it is missing, nothing was decided yet.
        """
        figures = dict(decision.figures) | ({"champion_before": before.version} if before is not None else {})
        labels = {"reason": decision.reason, "at": now().isoformat(timespec="seconds")}
        labels |= {
            name: f"{each:.6g}" if isinstance(each, float) else str(each) for name, each in figures.items()
        }
        with reported(self.uri):
            client = client_at(self.uri)
            name, number = version.name, str(version.version)
            for label, text in labels.items():
                client.set_model_version_tag(name, number, f"{GATE}.{label}", text[:1000])
            card = (client.get_model_version(name, number).description or "").partition(_HEADING)[0]
            said = f"{card[:4400]}{_HEADING}{decision.text(before)}"
            client.update_model_version(name, number, said[:5000])
            if decision.moves:
                client.set_registered_model_alias(name, CHAMPION, number)
                client.delete_registered_model_alias(name, CHALLENGER)
            else:
                client.set_registered_model_alias(name, CHALLENGER, number)
            client.set_model_version_tag(name, number, GATE, decision.outcome)
        numbers = {
            f"gate/{label}": each for label, each in decision.figures.items() if not isinstance(each, str)
        }
        with contextlib.suppress(ServerAway):  # the run may have been deleted; the version has it all
            log_to_run(self.uri, version.run_id, numbers, {GATE: decision.outcome})

    def delete_version(self, name: str, version: int) -> None:
        """Remove a version from the registry, and its files."""
        with reported(self.uri):
            client = client_at(self.uri)
            source = client.get_model_version(name, str(version)).source or ""
            client.delete_model_version(name, str(version))
        if source.startswith("models:/m-"):
            delete_model(self.uri, source.removeprefix("models:/"))

    def download_bundle(self, version: Version, to: Path) -> Path:
        """Copy a version's bundle to a folder, complete or not at all; returns the folder."""
        if to.exists():
            return to
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".downloading-") as temporary:
            model = download_model(self.uri, version.uri, Path(temporary))
            found = sorted(model.glob("data/*/bundle.json"))
            if not found:
                raise LookbackError(
                    f"{version.uri}: holds no bundle; publish again with: lookback run publish --force"
                )
            shutil.move(found[0].parent, to)
        return to


def requirements() -> list[str]:
    """What serving needs, in the versions that are installed here (without a local suffix such as +cpu)."""
    from importlib.metadata import version

    return [f"{name}=={version(name).partition('+')[0]}" for name in SERVING_NEEDS]


def model_source(config: Config) -> ModelSource:
    """The registered model that score.model names (champion, or models:/NAME/VERSION)."""
    model = config.score.model
    version = Registry.from_config(config).resolve(model_name(config) if model == CHAMPION else model)
    return ModelSource(version.version, version.bundle_digest, version.uri)


def champion_digest(config: Config) -> str | None:
    """The digest of the bundle that is live; None where there is none."""
    if not config.tracking.enabled:
        return None
    version = Registry.from_config(config).champion(model_name(config))
    return version.bundle_digest if version is not None else None


def version_of_bundle(config: Config, publish: Artifact) -> int | None:
    """The version under which a publish artifact was registered on the present server; milliseconds."""
    found = linked_version(config, publish)
    return found.version if found is not None else None


def linked_version(config: Config, publish: Artifact) -> Version | None:
    """Version under which a publish artifact was registered on the present server; None where it is not there any more."""
    registry = Registry.from_config(config)
    with contextlib.suppress(OSError, DamagedArtifact, ServerAway):
        number = read_json(version_link(publish)).get(registry.uri)
        found = registry.version(model_name(config), int(number)) if number is not None else None
        if found is not None and found.bundle_digest == read_manifest(publish.folder)["bundle_digest"]:
            return found
    return None


def prune_versions(config: Config, *, keep: int, dry_run: bool) -> list[Version]:
    """Delete all but the `keep` newest versions and the champion; returns what went (or would go)."""
    if not config.tracking.enabled:
        return []
    registry, name = Registry.from_config(config), model_name(config)
    champion = registry.champion(name)
    old = [
        each
        for each in registry.versions(name)[keep:]
        if champion is None or each.version != champion.version
    ]
    for version in [] if dry_run else old:
        registry.delete_version(name, version.version)
    return old


def version_link(publish: Artifact) -> Path:
    """File beside a publish artifact: tracking URI -> version number."""
    return publish.run_link.with_suffix(".version.json")


def input_example(bundle_folder: Path) -> dict[str, list[Any]]:
    """Columns of a frame to predict from: two histories of the first items of the catalogue, which are nobody's."""
    import polars as pl

    ids = pl.read_parquet(bundle_folder / "items.parquet", columns=["item_id"])["item_id"].head(3).to_list()
    return {"history": [ids, ids[:1]]}


def _id_types(bundle_folder: Path) -> tuple[str, str]:
    """MLflow's types of user_id and item_id in a bundle."""
    import pyarrow.parquet

    files = (("users.parquet", "user_id"), ("items.parquet", "item_id"))
    kinds = [
        str(pyarrow.parquet.read_schema(bundle_folder / file).field(column).type) for file, column in files
    ]
    user, item = ("long" if kind == "int64" else "string" for kind in kinds)
    return user, item
