"""Registration of published bundles and promotion of versions to champion."""

import contextlib
import sys

from pipeline.artifacts.files import read_json, read_record, write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError, one_line
from pipeline.sections import MODEL_URI
from pipeline.serving.bundle_cache import bundle_folder
from pipeline.tracking import missing
from pipeline.tracking.decisions import REFUSED, WAITING, Decision
from pipeline.tracking.registry import (
    ModelSource,
    Registry,
    input_example,
    linked_version,
    model_name,
    version_link,
    version_uri,
)
from pipeline.tracking.server import ServerAway, Version
from pipeline.tracking.tracker import Tracker

_ATTEMPTS = 3


def ensure_registered(config: Config, tracker: Tracker, publish: Artifact) -> None:
    """Register a published bundle where the server lacks it, and decide once whether it becomes champion (gate.py).

    A refused or waiting version becomes champion when called again with `evaluate.gate` off; other decisions are final. Without a
    reachable server this warns once, and the next run registers or decides.
    """
    if not config.tracking.enabled:
        return
    version = linked_version(config, publish)
    if version is None or _lacks_files(config, version):
        version = _register(config, tracker, publish) or version
    if version is None or _is_settled(config, version):
        return
    with tracker.tolerated():
        _settle(config, version, publish)


def _register(config: Config, tracker: Tracker, publish: Artifact) -> Version | None:
    run_id = tracker.linked_run(publish.run_link)
    if run_id is None:
        return None
    registry, name = Registry.from_config(config), model_name(config)
    bundle = publish.folder / "bundle"
    description = read_json(bundle / "bundle.json")

    def register(_: object) -> Version:
        from pipeline.release import model_card
        from pipeline.serving.business_rules import served_rules

        card = model_card.card(config, description, read_manifest(publish.folder)["inputs"])
        example = input_example(bundle)
        rules = served_rules(config.score, bundle, config.events.timezone)
        digest = description["digest"]
        version = registry.register(name, bundle, digest, run_id, card, example, rules=rules)
        link = version_link(publish)
        write_json(link, read_record(link) | {registry.uri: version.version})
        return version

    return tracker.attempt(register)


def _lacks_files(config: Config, version: Version) -> bool:
    """Whether a version's files are missing; False where the server does not answer."""
    with contextlib.suppress(ServerAway):
        return not Registry.from_config(config).has_files(version)
    return False


def _is_settled(config: Config, version: Version) -> bool:
    return bool(version.gate) and (version.gate not in (REFUSED, WAITING) or config.evaluate.gate)


def _settle(config: Config, version: Version, publish: Artifact) -> None:
    """Decide about a version against the current champion, record the decision and print it in one line."""
    registry = Registry.from_config(config)
    before = registry.champion(version.name)
    version = (
        registry.version(version.name, version.version) or version
    )  # an interrupted decision is finished now
    if _is_settled(config, version):
        return
    for _ in range(_ATTEMPTS):
        champion = before
        try:
            decision = _decide(config, version, publish, champion)
        except ServerAway:
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, the run goes on and the champion stays)
            text = str(error) if isinstance(error, LookbackError) else one_line(error)
            decision = Decision(REFUSED, f"cannot be compared with the champion: {text}")
        before = registry.champion(version.name)
        if before == champion:
            break
    else:
        decision = Decision(REFUSED, f"the champion moved {_ATTEMPTS} times while it was compared")
    registry.record(version, decision, before)
    remedy = f"; {missing.to_promote(config, version.version)}"
    message = f"gate: {version.name} version {version.version} is {decision.text(before)}"
    print(message + ("" if decision.moves else remedy), file=sys.stderr, flush=True)


def _decide(config: Config, version: Version, publish: Artifact, champion: Version | None) -> Decision:
    """Decision of the gate; a missing server or bundle of the champion raises LookbackError."""
    if champion is not None and champion.version == version.version:
        return Decision("by hand", "was champion before anything was decided about it")
    if not config.evaluate.gate:
        return Decision("off", "evaluate.gate is false: moved without a test")
    inputs = read_manifest(publish.folder)["inputs"]
    if "evaluate" not in inputs:
        return Decision(
            WAITING, "an update has seen the test: it is compared with the champion on the nights that follow"
        )
    from pipeline.release import gate

    current = None
    if champion is not None:
        digest = Registry.from_config(config).resolve(champion.uri).bundle_digest
        folder = bundle_folder(config, ModelSource(champion.version, digest, champion.uri))
        current = gate.Champion(champion.version, folder)
    features, evaluate = (config.folder / stage / inputs[stage] for stage in ("features", "evaluate"))
    return gate.decide(config, features, evaluate, publish.folder / "bundle", current)


def promote(config: Config, version: str) -> str:
    """Move `champion` to a version by hand and record it in the version's tags; returns the message to print.

    version: its number, or models:/NAME/VERSION, /latest or @ALIAS. Raises ConfigError for another text or model.
    """
    registry, name = Registry.from_config(config), model_name(config)
    uri = version_uri(config, version)
    parts = MODEL_URI.fullmatch(uri)
    if parts is None or parts[1] != name:
        raise ConfigError(
            f"promote: received {version!r}, expected the number of a version of {name}, models:/{name}/latest or "
            f"models:/{name}@ALIAS"
        )
    promoted, before = registry.resolve(uri), registry.champion(name)
    was = f", was version {before.version}" if before is not None else ""
    if before is None or before.version != promoted.version:
        earlier = f"; before that it was {promoted.gate}: {promoted.reason}" if promoted.gate else ""
        registry.record(promoted, Decision("by hand", f"lookback promote{was}{earlier}"), before)
    return f"{name}: champion is version {promoted.version} (bundle {promoted.bundle_digest}){was}"
