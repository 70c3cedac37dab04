"""Registered models whose lists are made with those of `score.model`: shadows, and the arms of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.settings.training import SCRATCH
from pipeline.artifacts.files import fingerprint
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.experiment_section import ExperimentConfig
from pipeline.monitoring import ledger
from pipeline.sections import COUNTED_BASELINES
from pipeline.tracking import registry
from pipeline.tracking.registry import CHAMPION, ModelSource


@dataclass(frozen=True)
class RegisteredSystems:
    """Registered models by their names in the configuration."""

    sources: Mapping[str, ModelSource] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name to reason"""


def of_shadows(config: Config, model: ModelSource | None) -> RegisteredSystems:
    """Registered models among `score.shadows`; beside a model of the present run none are."""
    sources, left_out = {}, {}
    for name in config.score.shadows:
        if name in COUNTED_BASELINES:
            continue
        if model is None:
            left_out[name] = "registered models are scored beside score.model = champion or models:/… alone"
            continue
        try:
            source = _source(config, name, model)
        except LookbackError as error:
            left_out[name] = str(error)
        else:
            if source.bundle_digest == model.bundle_digest:
                left_out[name] = f"{source.uri} is the delivered model"
            else:
                sources[name] = source
    return RegisteredSystems(sources, left_out)


def of_start(config: Config) -> ModelSource | None:
    """Registered version of `train.start`; None for a training from scratch. Raises LookbackError where there is none."""
    start = config.train.start
    if start == SCRATCH:
        return None
    return registry.source_of(config, registry.model_name(config) if start == CHAMPION else start)


def of_arms(config: Config, model: ModelSource | None) -> RegisteredSystems:
    """Registered models among `experiment.arms`; none unless `score.model` is the champion.

    Raises ConfigError where the experiment has run with other arms or another salt.
    """
    if config.experiment is None or model is None or config.score.model != CHAMPION:
        return RegisteredSystems()
    ledger.check_unchanged(config.experiment, ledger.deliveries(config.folder / "score"))
    sources, left_out = {}, {}
    for name in config.experiment.arms:
        if name in COUNTED_BASELINES:
            continue
        try:
            sources[name] = model if name == CHAMPION else _source(config, name, model)
        except LookbackError as error:
            left_out[name] = str(error)
    return RegisteredSystems(sources, left_out)


def read_out_inputs(config: Config) -> dict[str, str]:
    """Inputs of an experiment's read-out; none without one."""
    experiment = config.experiment
    if experiment is None:
        return {}
    return {"experiment": fingerprint([_digest(experiment), experiment.smallest_effect])}


def _digest(experiment: ExperimentConfig) -> str:
    """Digest of all that lists by arm follow from, beside the systems; the order of the arms counts."""
    return fingerprint([experiment.name, experiment.salt, experiment.start, list(experiment.arms.items())])


def arm_inputs(config: Config, arms: RegisteredSystems) -> dict[str, str]:
    """Inputs of scoring by arm: the experiment and each model's digest; none where it can't be."""
    experiment = config.experiment
    if experiment is None or config.score.model != CHAMPION or arms.left_out:
        return {}
    return {"experiment": _digest(experiment)} | {
        f"arm {name}": source.bundle_digest for name, source in arms.sources.items()
    }


def _source(config: Config, name: str, model: ModelSource) -> ModelSource:
    """Registered model of a name in the configuration. Raises LookbackError where there is none."""
    own = registry.model_name(config)
    if name != "previous":
        return registry.source_of(config, f"models:/{own}@{name}" if name == registry.CHALLENGER else name)
    earlier = [
        delivery.model_version
        for delivery in ledger.deliveries(config.folder / "score")
        if delivery.model_version is not None and delivery.bundle_digest != model.bundle_digest
    ]
    if not earlier:
        raise LookbackError("no lists of another model were delivered before")
    return registry.source_of(config, f"models:/{own}/{earlier[-1]}")
