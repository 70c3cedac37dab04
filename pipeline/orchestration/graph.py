"""The stages: what each reads, in what order they run, and the fingerprints that follow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import source_files, store
from pipeline.artifacts.files import fingerprint
from pipeline.config import Config, key_types
from pipeline.errors import ConfigError, LookbackError
from pipeline.tracking.registry import ModelSource


@dataclass(frozen=True)
class Stage:
    """One stage: its version number, the configuration that it reads, and the stages whose folders it reads."""

    name: str
    version: int
    needs: tuple[str, ...]
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sections that it reads, with the keys in them that it does not read: a new key is read unless it is named here."""
    single_keys: tuple[str, ...] = ()
    """Keys that it reads of other sections, which belong to other stages."""
    resumable: bool = False
    """Whether it can resume from the workspace that a killed run left."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that its fingerprint digests; a section of which all is read counts as one."""
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
            2,
            (),
            {
                "events": ("path", "exclude_users"),  # their contents are inputs
                "items": ("path", "text_dim", "text_max_words", "text_min_items"),
                "users": ("path",),
            },
        ),
        Stage(
            "features",
            3,
            ("ingest",),
            {"history": ("max_length",), "split": ("cuts",)},
            ("items.text_dim", "items.text_max_words", "items.text_min_items"),
        ),
        Stage(
            "train",
            4,
            ("features",),
            {"model": (), "train": ("refit", "checkpoint_seconds")},
            ("seed", "history.max_length", "events.types", "exclude_seen", "evaluate.target_types"),
            resumable=True,
        ),
        Stage("index", 3, ("features", "train"), {"index": ()}),
        Stage(
            "rank",
            2,
            ("features", "train", "index"),
            {"ranker": ()},
            ("seed", "exclude_seen", "evaluate.target_types", "events.timestamp_unit"),
        ),
        Stage(
            "baselines",
            2,
            ("features",),
            {
                "evaluate": (
                    *("exclude_seen", "cold_users", "resamples", "training_fractions"),
                    *("gate", "gate_metric", "gate_margin"),
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
            6,
            ("ingest", "features", "train", "index", "rank", "baselines"),
            {
                "evaluate": (
                    *("exclude_seen", "baselines", "recent_days", "gru_dim", "gru_epochs", "gru_patience"),
                    *("gate", "gate_metric", "gate_margin"),
                )
            },
            ("seed", "ranker.use", "exclude_seen", "split.cuts"),
            resumable=True,
        ),
        Stage(
            "publish",
            5,
            ("ingest", "features", "train", "index", "rank", "evaluate"),
            {"index": ()},
            ("name", "train.refit", "score.segment"),
            resumable=True,
        ),
        Stage(
            "score",
            4,
            ("ingest", "features", "publish"),
            {"score": ("model", "engine", "workers")},  # a registered model's digest is an input
            ("seed",),
            resumable=True,
        ),
        Stage(
            "report",
            6,
            ("ingest", "features", "train", "index", "evaluate", "publish", "score"),
            {"report": ()},
            ("name", "evaluate.gate", "evaluate.gate_metric", "evaluate.gate_margin"),
        ),
    )
}
"""In the order in which they run. `exclude_seen` stands for `evaluate.exclude_seen`, or else `score.exclude_seen`."""


@dataclass(frozen=True)
class Node:
    """One stage of one configuration: its fingerprint, and what that was made of."""

    stage: Stage
    artifact: store.Artifact
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Name of each needed stage to its fingerprint; source roles and models to content digests."""


def _needs(config: Config, name: str) -> tuple[str, ...]:
    """The stages a stage reads; scoring with a registered model needs no training."""
    needs = STAGES[name].needs
    return (
        tuple(each for each in needs if each != "publish")
        if name == "score" and config.score.model != "run"
        else needs
    )


def order(config: Config, names: Iterable[str]) -> list[str]:
    """The named stages and all they need, each after what it needs."""
    wanted: list[str] = []

    def visit(name: str) -> None:
        if name not in STAGES:
            raise ConfigError(f"stage {name!r}: no such stage; expected one of {', '.join(STAGES)}")
        for needed in _needs(config, name):
            visit(needed)
        if name not in wanted:
            wanted.append(name)

    for name in names:
        visit(name)
    return wanted


@dataclass(frozen=True)
class Pipeline:
    """One configuration's stages, in the order in which they run, with fingerprints."""

    config: Config
    nodes: dict[str, Node]
    sources: dict[str, dict[str, str]]
    """Role to {path: content digest} of every source file."""
    model: ModelSource | None
    """The registered model to score with, where the configuration names one."""
    earlier_cuts: "dict[str, Pipeline]"
    """What the evaluation of each earlier cut is called among the inputs of this one's, to its stages (`split.cuts`)."""


def resolve(config: Config, names: Iterable[str]) -> Pipeline:
    """The named stages and all they need, with fingerprints; nothing is built, and a source file is read only if it is new."""
    found = source_files.source_digests(config)
    model = _model_source(config) if "score" in (wanted := order(config, names)) else None
    cuts = (
        {
            f"evaluate cut {number}": resolve(cut, ["evaluate"])
            for number, cut in enumerate(earlier_cuts(config), 1)
        }
        if "evaluate" in wanted
        else {}
    )
    nodes: dict[str, Node] = {}
    for name in wanted:
        stage = STAGES[name]
        inputs = {each: nodes[each].artifact.name for each in _needs(config, name)}
        inputs |= _outside_inputs(config, name, found, model)
        if name == "evaluate":
            inputs |= {each: cut.nodes["evaluate"].artifact.name for each, cut in cuts.items()}
        settings = _settings(config, stage)
        content = {"stage": name, "version": stage.version, "settings": settings, "inputs": inputs}
        nodes[name] = Node(
            stage, store.Artifact(config.folder / name, fingerprint(content)), settings, inputs
        )
    return Pipeline(config, nodes, found, model, cuts)


def finished_folder(config: Config, stage: str) -> Path:
    """Folder of a stage's up-to-date artifact; raises LookbackError where there is none."""
    artifact = resolve(config, [stage]).nodes[stage].artifact
    if not artifact.is_complete():
        raise LookbackError(f"{stage}: no up-to-date artifact; make it with: lookback run {stage} --config …")
    return artifact.folder


def earlier_cuts(config: Config) -> list[Config]:
    """The configuration at each cut point before the last one, earliest first: the log as it was then."""
    split = config.split
    if split.cuts == 1:
        return []  # the usual case, without importing numpy
    from features.histories.splits import cuts

    return [
        config.model_copy(update={"split": replace(split, cuts=1, held_back=split.held_back + back)})
        for back in cuts(split.cuts, split.test_fraction, split.validation_fraction)[:-1]
    ]


def _settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The value of every key that the stage declares."""
    return {key: config.exclude_seen if key == "exclude_seen" else config.get(key) for key in stage.keys}


def _outside_inputs(
    config: Config, name: str, found: dict[str, dict[str, str]], model: ModelSource | None
) -> dict[str, str]:
    """Content digests of what a stage reads that is no stage's folder."""
    if name == "ingest":
        return {role: ",".join(_contents(role, digests)) for role, digests in found.items()}
    if name != "score":
        return {}
    inputs = {"model": model.bundle_digest} if model is not None else {}
    for key in ("users", "allow", "deny", "availability"):
        path = getattr(config.score, key)
        if isinstance(path, str) and path.endswith(".parquet"):
            inputs[key] = source_files.digest_of(config, f"score.{key}", path)
    return inputs


def _contents(role: str, digests: dict[str, str]) -> list[str]:
    """What shapes a stage of a role's files: contents, and the extensions that say how they are read.

    Of tables in order of their paths, as the first row of an item counts; else whatever the paths are.
    """
    if role == "exclude_users":
        return sorted(set(digests.values()))
    by_path = [digests[path] + source_files.extension(path) for path in sorted(digests)]
    return by_path if role in ("items", "users") else sorted(set(by_path))


def _model_source(config: Config) -> ModelSource | None:
    if config.score.model == "run":
        return None
    from pipeline.tracking import registry

    return registry.model_source(config)
