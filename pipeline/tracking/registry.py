"""Model registry: bundles as versions of `lookback-<name>`, identified by digest; aliases champion and challenger.

A version carries its decision (by the gate or by hand): tags `lookback.gate…`, its description, metrics of its run. The
decision is first written as an intention, which the next reader of the champion finishes where its writer was interrupted.
"""

import contextlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.files import now, read_json, read_record
from pipeline.artifacts.scratch import put_in_place, scratch
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.sections import MODEL, MODEL_URI
from pipeline.tracking import missing
from pipeline.tracking.client import client_at, fluent, reported, server_at, tracking_uri, version_of
from pipeline.tracking.decisions import Decision, Intention
from pipeline.tracking.models import (
    delete_model,
    download_model,
    log_pyfunc,
    log_to_run,
    unversioned_models,
)
from pipeline.tracking.server import BUNDLE_DIGEST, GATE, INTENTION, ServerAway, Version, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: the version that scores; the newest refused or waiting version, removed once the champion moves."""
DECIDING = "deciding"
"""Alias of the version whose decision is being carried out."""
_HEADING = "\n\n**Gate.** "
SERVING_NEEDS = ("faiss-cpu", "mlflow", "numpy", "pandas", "polars", "pyarrow", "safetensors", "torch")
"""Packages imported by pipeline/serving/pyfunc.py, directly or through the bundle."""

BASELINE_NEEDS = {"als": ("implicit", "scipy", "threadpoolctl")}
"""Further packages of published baselines; by default scipy."""


def model_name(config: Config) -> str:
    """Name of a configuration's registered model."""
    return f"lookback-{config.name}"


def version_uri(config: Config, version: str) -> str:
    """URI of a version of a configuration's model given by its number; other texts stay."""
    return f"models:/{model_name(config)}/{version}" if version.isdecimal() else version


@dataclass(frozen=True)
class ModelSource:
    """Published model: registry version (0: this configuration's own), bundle digest and URI."""

    version: int
    bundle_digest: str
    uri: str


class Registry:
    """Registered models of one tracking server; every method raises ServerAway where it does not answer."""

    def __init__(self, uri: str, config: Config | None = None) -> None:
        self.uri = uri
        self.config = config
        """Configuration whose command lines the messages name."""
        self._server = server_at(uri)

    @classmethod
    def from_config(cls, config: Config) -> "Registry":
        """Registry of a configuration's tracking server."""
        return cls(tracking_uri(config), config)

    def champion(self, name: str) -> Version | None:
        """Champion of a model, or None; takes milliseconds. Finishes an interrupted decision first."""
        self._finish(name)
        return self._of_alias(name, CHAMPION)

    def challenger(self, name: str) -> Version | None:
        """Newest refused or waiting version of a model, or None; takes milliseconds."""
        return self._of_alias(name, CHALLENGER)

    def resolve(self, name_or_uri: str) -> Version:
        """Version of NAME (its champion), models:/NAME/VERSION, /latest or @ALIAS; all but /latest take milliseconds.

        Raises LookbackError, with the next step, where there is none, or it is no bundle.
        """
        uri = name_or_uri if name_or_uri.startswith("models:/") else f"models:/{name_or_uri}@{CHAMPION}"
        parts = MODEL_URI.fullmatch(uri)
        if parts is None:
            raise LookbackError(
                f"model: received {name_or_uri!r}, expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS"
            )
        name, number, alias = parts.groups()
        self._finish(name)
        if number == "latest":
            version = next(iter(self.versions(name)), None)
        elif number is not None:
            version = self._server.version(name, int(number))
        else:
            version = self._of_alias(name, alias)
        if version is None:
            raise LookbackError(self._missing(uri, name))
        if not version.bundle_digest:
            raise LookbackError(
                f"{uri}: was not published by lookback (it has no tag {BUNDLE_DIGEST}); expected a bundle"
            )
        return version

    def _missing(self, uri: str, name: str) -> str:
        is_own = self.config is not None and name == model_name(self.config)
        known = [version for version in self.versions(name) if version.bundle_digest]
        own = self.config if is_own else None
        return missing.explain(uri, self.uri, known, self._of_alias(name, CHAMPION), own)

    def version(self, name: str, version: int) -> Version | None:
        """Version by number, or None; takes milliseconds."""
        return self._server.version(name, version)

    def versions(self, name: str) -> list[Version]:
        """All versions, newest first; creates no database."""
        path = sqlite_path(self.uri)
        if path is not None and not path.exists():
            return []
        with reported(self.uri):
            entities = client_at(self.uri).search_model_versions(f"name='{name}'")
        return sorted(map(version_of, entities), key=lambda version: -version.version)

    def aliased(self, name: str) -> list[Version]:
        """Versions with an alias."""
        with reported(self.uri):
            found = client_at(self.uri).search_registered_models(f"name='{name}'")
        numbers = {int(number) for model in found for number in model.aliases.values()}
        return [version for number in numbers if (version := self.version(name, number)) is not None]

    def register(
        self,
        name: str,
        bundle_folder: Path,
        bundle_digest: str,
        run_id: str,
        description: str = "",
        input_example: Mapping[str, list[Any]] | None = None,
        tags: Mapping[str, str] | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> Version:
        """Register a bundle, unless a version has its digest already; returns the version, its files restored if missing.

        input_example: columns of an input frame, such as {"user_id": [1, 2]}. description: Markdown. rules: parameters of
        requests that don't name them.
        """
        for version in self.versions(name):
            if version.bundle_digest == bundle_digest:
                if not self.has_files(version):
                    self.restore(version, bundle_folder, input_example, rules)
                return version
        source, model_id = self._log(bundle_folder, run_id, input_example, rules)
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

    def has_files(self, version: Version) -> bool:
        """Whether a version's files are there; only local ones are looked for. Takes milliseconds."""
        return self._server.has_files(version)

    def restore(
        self,
        version: Version,
        bundle_folder: Path,
        input_example: Mapping[str, list[Any]] | None,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the files of a version again, from a folder with its bundle."""
        model_id = version.source.removeprefix("models:/")
        self._log(bundle_folder, version.run_id, input_example, rules, model_id)

    def _log(
        self,
        bundle_folder: Path,
        run_id: str,
        input_example: Mapping[str, list[Any]] | None,
        rules: Mapping[str, Any] | None,
        model_id: str | None = None,
    ) -> tuple[str, str]:
        """Log a bundle as a model of a run, a new one by default; returns its URI and id."""
        description = read_json(bundle_folder / "bundle.json")
        with scratch(bundle_folder.parent):  # MLflow's copy of the bundle
            return log_pyfunc(
                self.uri,
                run_id,
                bundle_folder,
                _item_type(bundle_folder),
                input_example,
                requirements(bundle_folder),
                defaults={"exclude_seen": description.get("exclude_seen", True)} | dict(rules or {}),
                as_installed=":" in description.get("system", ""),  # a class of one's own
                model_id=model_id,
            )

    def tags(self, version: Version) -> dict[str, str]:
        """Tags of a version."""
        with reported(self.uri):
            return dict(client_at(self.uri).get_model_version(version.name, str(version.version)).tags)

    def record(self, version: Version, decision: Decision, before: Version | None) -> None:
        """Write a decision to its version and move the aliases; `before` is the champion until now.

        The intention is written first: interrupted at any step, the next reader of the champion finishes it.
        """
        number = before.version if before is not None else None
        intention = Intention(decision, number, now().isoformat(timespec="seconds"))
        with reported(self.uri):
            client = client_at(self.uri)
            client.set_registered_model_alias(version.name, DECIDING, str(version.version))
            client.set_model_version_tag(version.name, str(version.version), INTENTION, intention.to_json())
            self._carry_out(client, version, intention)

    def _carry_out(self, client: "MlflowClient", version: Version, intention: Intention) -> None:
        """Write all of a decision, then remove its intention; done again, it changes nothing."""
        name, number, decision = version.name, str(version.version), intention.decision
        for label, text in intention.labels.items():
            client.set_model_version_tag(name, number, f"{GATE}.{label}", text)
        card = (client.get_model_version(name, number).description or "").partition(_HEADING)[0]
        text = f"{card[:4400]}{_HEADING}{decision.text(intention.before)}"
        client.update_model_version(name, number, text[:5000])
        client.set_registered_model_alias(name, CHAMPION if decision.moves else CHALLENGER, number)
        if decision.moves:
            client.delete_registered_model_alias(name, CHALLENGER)
        client.set_model_version_tag(name, number, GATE, decision.outcome)
        numbers = {
            f"gate/{label}": figure
            for label, figure in decision.figures.items()
            if not isinstance(figure, str)
        }
        with contextlib.suppress(ServerAway):  # a deleted run; the version has all of it
            log_to_run(self.uri, version.run_id, numbers, {GATE: decision.outcome})
        self._forget_intention(client, version)

    def _forget_intention(self, client: "MlflowClient", version: Version) -> None:
        client.delete_model_version_tag(version.name, str(version.version), INTENTION)
        client.delete_registered_model_alias(version.name, DECIDING)

    def _finish(self, name: str) -> None:
        """Finish a model's interrupted decision; drop it where the champion was moved by hand meanwhile.

        Where the server cannot be written to, the decision waits for the next reader.
        """
        version = self._of_alias(name, DECIDING)
        if version is None:
            return
        champion = self._server.alias(name, CHAMPION)
        with contextlib.suppress(ServerAway), reported(self.uri):
            client = client_at(self.uri)
            intention = None
            with contextlib.suppress(ValueError):
                intention = Intention.from_json(version.intention)
            if intention is None or champion not in (intention.before, version.version):
                self._forget_intention(client, version)
                return
            self._carry_out(client, version, intention)
            text = f"{name} version {version.version} is {intention.decision.text(intention.before)}"
            print(f"finished an interrupted decision: {text}", file=sys.stderr, flush=True)

    def _of_alias(self, name: str, alias: str) -> Version | None:
        number = self._server.alias(name, alias)
        return self._server.version(name, number) if number is not None else None

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
        with scratch(to.parent) as temporary:
            model = download_model(self.uri, version.uri, temporary)
            bundles = sorted(model.glob("data/*/bundle.json"))
            if not bundles:
                raise LookbackError(
                    f"{version.uri}: holds no bundle; publish again with: lookback run publish --force"
                )
            return put_in_place(bundles[0].parent, to)


def requirements(bundle_folder: Path) -> list[str]:
    """Requirements of serving a bundle, pinned to the installed versions (without a local suffix such as +cpu)."""
    from importlib.metadata import version

    system = read_json(bundle_folder / "bundle.json").get("system", MODEL)
    names = SERVING_NEEDS + (() if system == MODEL else BASELINE_NEEDS.get(system, ("scipy",)))
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def model_source(config: Config) -> ModelSource:
    """Registered model named by score.model (champion, or models:/NAME/VERSION)."""
    model = config.score.model
    return source_of(config, model_name(config) if model == CHAMPION else model)


def source_of(config: Config, name_or_uri: str) -> ModelSource:
    """Registered model of a name (its champion) or URI; raises LookbackError as `Registry.resolve`."""
    version = Registry.from_config(config).resolve(name_or_uri)
    return ModelSource(version.version, version.bundle_digest, version.uri)


def digests_in_use(config: Config) -> set[str]:
    """Bundle digests of the versions with an alias, the champion's included, and of those that score.model and arms name."""
    if not config.tracking.enabled:
        return set()
    registry = Registry.from_config(config)
    digests = {version.bundle_digest for version in registry.aliased(model_name(config))}
    arms = () if config.experiment is None else config.experiment.arms
    for name in (config.score.model, *arms):
        if MODEL_URI.fullmatch(name):
            with contextlib.suppress(LookbackError):  # a version that is gone keeps nothing
                digests.add(registry.resolve(name).bundle_digest)
    return digests


def version_of_bundle(config: Config, publish: Artifact) -> int | None:
    """Version number of a publish artifact on the present server, or None; takes milliseconds."""
    version = linked_version(config, publish)
    return version.version if version is not None else None


def linked_version(config: Config, publish: Artifact) -> Version | None:
    """Version of a publish artifact on the present server, or None where it is gone."""
    registry = Registry.from_config(config)
    number = read_record(version_link(publish)).get(registry.uri)
    with contextlib.suppress(OSError, DamagedArtifact, ServerAway):
        version = registry.version(model_name(config), number) if isinstance(number, int) else None
        if version is not None and version.bundle_digest == read_manifest(publish.folder)["bundle_digest"]:
            return version
    return None


def prune_versions(config: Config, used: Collection[str], *, keep: int, dry_run: bool) -> list[Version]:
    """Delete all but the `keep` newest versions and those of `used` digests; returns the deleted ones (dry_run: to delete)."""
    if not config.tracking.enabled:
        return []
    registry, name = Registry.from_config(config), model_name(config)
    old = [version for version in registry.versions(name)[keep:] if version.bundle_digest not in used]
    for version in [] if dry_run else old:
        registry.delete_version(name, version.version)
    return old


def prune_logged_models(config: Config, *, dry_run: bool) -> list[str]:
    """Delete logged bundles that a killed command left without a version; returns their ids."""
    if not config.tracking.enabled:
        return []
    uri = tracking_uri(config)
    alone = unversioned_models(uri, config.name)
    for model_id in [] if dry_run else alone:
        delete_model(uri, model_id)
    return alone


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
