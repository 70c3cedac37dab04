"""Stage graph: inputs and order of the stages, and their fingerprints."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.settings.training import SCRATCH
from pipeline.artifacts import class_source, source_changes, source_files, store
from pipeline.artifacts.files import fingerprint
from pipeline.config import Config, key_types
from pipeline.errors import ConfigError, DamagedArtifact, LookbackError
from pipeline.monitoring import earlier_lists, ledger
from pipeline.orchestration import registered_systems
from pipeline.orchestration.registered_systems import RegisteredSystems
from pipeline.tracking.registry import ModelSource

_ONLY_WHERE_PRESENT = ("exposures", "outcomes", "utility", "budgets")
"""Sections that are no part of a fingerprint where a configuration lacks them."""
_EVALUATED = ("rank", "evaluate", "report")
"""Stages that measure the model on held-out events."""
_TABLES = ("baselines", "evaluate", "report")
"""Stages that are asked for because of every baseline."""
CANDIDATES = "candidates"
"""Input of score, and of an evaluation that measures among them: the file of `score.candidates`."""
PREDECESSOR = "predecessor"
"""Input of a stage that continues its last artifact: that artifact's fingerprint."""


@dataclass(frozen=True)
class Stage:
    """Declaration of a stage: version number, and the configuration and stages that it reads."""

    name: str
    version: int
    needs: tuple[str, ...]
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sections read, each with its unread keys: a new key is read unless named here."""
    single_keys: tuple[str, ...] = ()
    """Keys read from sections of other stages."""
    resumable: bool = False
    """Whether the stage can resume from the workspace of a killed run."""
    is_in_all: bool = True
    """Whether `lookback run all` has it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys in the fingerprint; a section read as a whole counts as one."""
        of_sections = (
            key
            for section, unread in self.sections.items()
            for key in (
                [known for known in key_types() if known.startswith(f"{section}.")] if unread else [section]
            )
            if key.partition(".")[2] not in unread
        )
        return (*of_sections, *self.single_keys)


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "ingest",
            4,
            (),
            {
                # contents of the first are inputs
                "events": ("path", "database", "query", "exclude_users", "dislike_below"),
                "items": ("path", "database", "query", "text_dim", "text_max_words", "text_min_items"),
                "users": ("path", "database", "query"),
                "exposures": ("path", "database", "query", "window_hours"),
            },
        ),
        Stage(
            "features",
            5,
            ("ingest",),
            {"history": ("max_length",), "split": ("cuts",)},
            (
                *("items.text_dim", "items.text_max_words", "items.text_min_items"),
                *("exposures.window_hours", "events.dislike_below"),
            ),
        ),
        Stage(
            "train",
            5,
            ("features",),
            # the start version's digest is an input, `replay` a setting beside it
            {"model": (), "train": ("refit", "checkpoint_seconds", "start", "replay", "full_every_days")},
            (
                *("seed", "history.max_length", "events.types", "exclude_seen"),
                *("evaluate.target_types", "evaluate.targets", "evaluate.horizon_days"),
            ),
            resumable=True,
        ),
        Stage("index", 3, ("features", "train"), {"index": ()}),
        Stage(
            "rank",
            7,
            ("ingest", "features", "train", "index"),
            {"ranker": (), "outcomes": ()},
            ("seed", "exclude_seen", "evaluate.target_types", "events.timestamp_unit", "score.new_items"),
        ),
        Stage(
            "baselines",
            4,
            ("features",),
            {
                "evaluate": (
                    *("exclude_seen", "cold_users", "resamples", "training_fractions", "stale_days"),
                    *("gate", "gate_metric", "gate_margin", "min_effective_sample"),
                )
            },
            (
                *("seed", "events.types", "history.max_length", "exclude_seen", "model.item_content"),
                *("train.batch_histories", "train.refit_validation", "train.validation_targets"),
            ),
            resumable=True,
        ),
        Stage(
            "evaluate",
            8,
            ("ingest", "features", "train", "index", "rank", "baselines"),
            {
                "evaluate": (
                    *("exclude_seen", "baselines", "recent_days", "gru_dim", "gru_epochs", "gru_patience"),
                    *("gate", "gate_metric", "gate_margin"),
                ),
                "outcomes": (),
            },
            (
                *("seed", "ranker.use", "exclude_seen", "split.cuts", "score.new_items", "score.segment"),
                "utility",
            ),
            resumable=True,
        ),
        Stage(
            "publish",
            8,
            ("ingest", "features", "train", "index", "rank", "evaluate"),
            {"index": (), "publish": ()},
            ("name", "train.refit", "score.segment", "evaluate.gate_metric"),
            resumable=True,
        ),
        Stage(
            "monitor",
            4,
            ("ingest", "features"),  # and the ledger of deliveries, and its predecessor
            {"monitor": ()},
            (
                *("seed", "events.timestamp_unit", "evaluate.resamples", "evaluate.target_types"),
                *("score.segment", "utility"),
            ),
        ),
        Stage(
            "score",
            10,
            ("ingest", "features", "publish"),
            # a registered model's digest is an input
            {"score": ("model", "engine", "workers", "precision"), "budgets": ()},
            ("seed", "utility"),
            resumable=True,
        ),
        Stage(
            "report",
            9,
            ("ingest", "features", "train", "index", "evaluate", "publish", "monitor", "score"),
            {"report": ()},
            ("name", "evaluate.gate", "evaluate.gate_metric", "evaluate.gate_margin"),
        ),
        Stage(
            "similar",
            1,
            ("ingest", "features", "publish"),
            {"similar": ()},
            (
                *("seed", "score.allow", "score.deny", "score.availability", "score.at"),
                *("score.max_item_age_days", "score.new_items", "train.refit_validation"),
                *("evaluate.max_requests", "evaluate.resamples", "evaluate.target_types"),
            ),
            is_in_all=False,
        ),
    )
}
"""Stages in running order. `exclude_seen` stands for `evaluate.exclude_seen`, or else `score.exclude_seen`."""
ALL = tuple(name for name, stage in STAGES.items() if stage.is_in_all)
"""Stages of `lookback run all`."""
_BY_MODEL = ("score", "similar")
"""Stages that read the bundle that `score.model` names."""


@dataclass(frozen=True)
class Node:
    """A stage of one configuration: its artifact and the inputs of its fingerprint."""

    stage: Stage
    artifact: store.Artifact
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Needed stages to fingerprints; source roles and models to content digests."""
    with_fewer: store.Artifact | None = None
    """Artifact of the same stage with some of its parts (baselines)."""


def _needs(config: Config, name: str) -> tuple[str, ...]:
    """Stages that a stage reads; scoring with a registered model needs no training, publishing an update no evaluation.

    Raises ConfigError for an evaluation of an update, whose weights have seen the test.
    """
    needs = STAGES[name].needs
    if config.train.start != SCRATCH:
        if name in _EVALUATED:
            raise ConfigError(
                f"train.start: received {config.train.start!r} with the stage {name}, expected 'scratch': the weights of a "
                "registered version have learned from the test; judge them on the nights that follow (lookback update), or set "
                "train.start = 'scratch'"
            )
        if name == "train":
            return ("ingest", *needs)
        if name == "publish":
            return tuple(needed for needed in needs if needed not in (*_EVALUATED, "index"))
    if name in _BY_MODEL and config.score.model != "run":
        return tuple(needed for needed in needs if needed != "publish")
    return needs


def order(config: Config, names: Iterable[str]) -> list[str]:
    """Named stages and the stages they need, in running order."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name not in STAGES:
            raise ConfigError(f"stage {name!r}: no such stage; expected one of {', '.join(STAGES)}")
        for needed in _needs(config, name):
            visit(needed)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        visit(name)
    return ordered


@dataclass(frozen=True)
class Pipeline:
    """Stages of one configuration, in running order, with fingerprints."""

    config: Config
    nodes: dict[str, Node]
    sources: dict[str, dict[str, str]]
    """Role to {path: content digest} of the source files."""
    model: ModelSource | None
    """Registered model to score with, where the configuration names one."""
    shadows: RegisteredSystems
    """Registered models among `score.shadows`."""
    arms: RegisteredSystems
    """Registered models among `experiment.arms`, where they score by arm."""
    start: ModelSource | None
    """Registered version of `train.start`, where something is trained."""
    earlier_cuts: "dict[str, Pipeline]"
    """Input name of each earlier cut's evaluation to that cut's stages (`split.cuts`)."""


def for_lists(config: Config) -> Config:
    """Configuration that evaluates only the baselines that publishing waits for; `config` itself where those are all."""
    evaluated = config.evaluate.baseline_names
    needed = [name for name in evaluated if config.publishes_after(name)]
    if len(needed) == len(evaluated):
        return config
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"baselines": needed})})


def resolve(config: Config, names: Iterable[str]) -> Pipeline:
    """Resolve the named stages and the stages they need to fingerprints; builds nothing, reads only new source files.

    Where lists are asked for without an evaluation, they wait for neither every baseline nor metrics among candidates: the
    pipeline has the fullest evaluation that there is, else that of `for_lists`.
    """
    names, fewer = list(names), for_lists(config)
    if config.train.start != SCRATCH:
        return _resolved(config, names)
    has_few = fewer is not config and "publish" in order(config, names)
    kinds = (True, False) if config.score.candidates is not None else (False,)
    choices = [(config, fewer if has_few else None, among) for among in kinds]
    choices += [(fewer, None, False)] if has_few else []
    if not set(names).isdisjoint(_TABLES):
        return _resolved(config, names, *choices[0][1:])
    for own, quick, among in choices[:-1]:
        if _resolved(own, ["evaluate"], quick, among).nodes["evaluate"].artifact.is_complete():
            return _resolved(own, names, quick, among)
    own, quick, among = choices[-1]
    return _resolved(own, names, quick, among)


def _resolved(
    config: Config, names: Sequence[str], fewer: Config | None = None, among: bool = False
) -> Pipeline:
    """Nodes of the named stages and those they need.

    fewer: configuration with the baselines that publishing waits for. among: the evaluation reads `score.candidates`. What is
    published has the evaluation without either in its fingerprint, so that it does not depend on them.
    """
    is_more = fewer is not None or among
    quick = _resolved(fewer or config, ["evaluate"]).nodes if is_more else {}
    sources = source_files.source_digests(config)
    ordered = order(config, names)
    model = None if set(ordered).isdisjoint(_BY_MODEL) else _model_source(config)
    start = registered_systems.of_start(config) if "train" in ordered else None
    shadows, arms = registered_systems.of_shadows(config, model), registered_systems.of_arms(config, model)
    cuts = (
        {
            f"evaluate cut {number}": _resolved(cut, ["evaluate"])
            for number, cut in enumerate(earlier_cuts(config), 1)
        }
        if "evaluate" in ordered
        else {}
    )
    nodes: dict[str, Node] = {}
    for name in ordered:
        stage = STAGES[name]
        inputs = {needed: nodes[needed].artifact.name for needed in _needs(config, name)}
        inputs |= _outside_inputs(config, name, sources, model)
        if start is not None and name in ("train", "publish"):
            inputs["start"] = start.bundle_digest
        if name == "score":
            inputs |= {f"shadow {own}": source.bundle_digest for own, source in shadows.sources.items()}
            inputs |= registered_systems.arm_inputs(config, arms)
            if config.score.max_shown:
                entered = earlier_lists.delivered_before(config, inputs["features"])
                inputs["shown"] = earlier_lists.digest(entered)
        if name == "monitor":
            entered = ledger.preceding(config.folder / "score", inputs["features"])
            inputs["deliveries"] = ledger.digest(entered)
            inputs |= registered_systems.read_out_inputs(config)
        if name == "evaluate":
            inputs |= {cut: stages.nodes["evaluate"].artifact.name for cut, stages in cuts.items()}
            inputs |= _files(config, (CANDIDATES,)) if among else {}
        settings = {
            key: config.exclude_seen if key == "exclude_seen" else config.get(key)
            for key in stage.keys
            if (section := key.partition(".")[0]) not in _ONLY_WHERE_PRESENT or getattr(config, section)
        }
        if start is not None and name == "train":
            settings["train.replay"] = config.train.replay
        content = {"stage": name, "version": stage.version, "settings": settings, "inputs": inputs}
        if name == "publish" and quick:
            content["inputs"] = inputs | {"evaluate": quick["evaluate"].artifact.name}
        if name == "monitor":
            inputs |= _predecessor(config.folder / name, content)
        artifact = store.Artifact(config.folder / name, fingerprint(content))
        with_fewer = quick[name].artifact if name == "baselines" and fewer is not None else None
        nodes[name] = Node(stage, artifact, settings, inputs, with_fewer)
    return Pipeline(config, nodes, sources, model, shadows, arms, start, cuts)


def _predecessor(stage_folder: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Input of a stage that continues its last artifact: that artifact, or its own predecessor if it is up to date."""
    latest = store.linked(stage_folder).get(store.LATEST)
    if latest is None:
        return {}
    own = {PREDECESSOR: latest.name}
    with contextlib.suppress(OSError, DamagedArtifact, KeyError, TypeError):
        before: dict[str, str] = store.read_manifest(latest)["inputs"]
        kept = {name: value for name, value in before.items() if name == PREDECESSOR}
        if fingerprint({**content, "inputs": {**content["inputs"], **kept}}) == latest.name:
            return kept
    return own


def finished_folder(config: Config, stage: str) -> Path:
    """Folder of a stage's up-to-date artifact. Raises LookbackError where there is none."""
    artifact = resolve(config, [stage]).nodes[stage].artifact
    if not artifact.is_complete():
        raise LookbackError(f"{stage}: no up-to-date artifact; make it with: {config.command('run', stage)}")
    return artifact.folder


def earlier_cuts(config: Config) -> list[Config]:
    """Configurations at each cut point before the last, earliest first: the log as it was then."""
    split = config.split
    if split.cuts == 1:
        return []  # the usual case, without importing numpy
    from features.histories.splits import cuts

    return [
        config.model_copy(update={"split": replace(split, cuts=1, held_back=split.held_back + back)})
        for back in cuts(split.cuts, split.test_fraction, split.validation_fraction)[:-1]
    ]


def _outside_inputs(
    config: Config, name: str, sources: dict[str, dict[str, str]], model: ModelSource | None
) -> dict[str, str]:
    """Content digests of a stage's inputs other than stage folders."""
    if name == "ingest":
        logs = {"events": config.events, "exposures": config.exposures}
        identities = {
            role: source_changes.identities(sources[role], log.table)
            for role, log in logs.items()
            if log is not None
        }
        return {role: ",".join(_contents(role, digests)) for role, digests in (sources | identities).items()}
    if name == "baselines":
        return {own: _class_digest(config, own) for own in config.evaluate.custom_baselines}
    if name not in _BY_MODEL:
        return {}
    inputs = {"model": model.bundle_digest} if model is not None else {}
    inputs |= _files(config, ("allow", "deny", "availability"))
    return inputs | _files(
        config, ("users", "exclude", CANDIDATES, "pin", "budgets") if name == "score" else ()
    )


def _files(config: Config, keys: Iterable[str]) -> dict[str, str]:
    """Content digests of the files at keys of `score`."""
    paths = {key: getattr(config.score, key) for key in keys}
    return {
        key: source_files.digest_of(config, f"score.{key}", path)
        for key, path in paths.items()
        if isinstance(path, str) and path.endswith((".parquet", ".csv", ".toml"))
    }


def _class_digest(config: Config, name: str) -> str:
    """Content digest of the source file of a recommender of one's own."""
    key = "evaluate.baselines"
    return source_files.digest_of(config, key, str(class_source.source_of(key, name)))


def _contents(role: str, digests: dict[str, str]) -> list[str]:
    """Digests of a role's files with the extensions that decide the reader.

    In order of their paths, which decides between events at the same time and between rows of one item; lists of ids independent
    of paths.
    """
    if role.startswith("exclude_"):
        return sorted(set(digests.values()))
    by_path = [digests[path] + source_files.extension(path) for path in sorted(digests)]
    return by_path if role in ("items", "users") else list(dict.fromkeys(by_path))


def _model_source(config: Config) -> ModelSource | None:
    if config.score.model == "run":
        return None
    from pipeline.tracking import registry

    return registry.model_source(config)
