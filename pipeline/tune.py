"""`lookback tune`: hyper-parameter search on validation NDCG@10, one up-to-date `train` artifact per trial."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pydantic
import tomli_w
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from pipeline.config import Config, all_keys
from pipeline.errors import ConfigError
from pipeline.run import bring_up_to_date
from pipeline.store import fingerprint

OBJECTIVE = "validation_ndcg@10"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Settings = dict[str, Any]


def tune(config: Config, trials: int, say: Callable[[str], object] = print) -> Path:
    """Search `[tune] space` with a seeded TPE until `trials` are finished; returns the best configuration's file.

    Each trial brings `train` up to date, so that settings seen before cost nothing; combinations that the
    configuration refuses are counted as pruned. The study is kept under `<data_dir>/<name>/tune/` and goes on from
    there. Raises ConfigError for a space that cannot be searched.
    """
    space = {key: _distribution(config, key, what) for key, what in config.tune.space.items()}
    study = _open(config)
    while len(done := study.get_trials(deepcopy=False, states=_FINISHED)) < trials:
        study.sampler = optuna.samplers.TPESampler(
            seed=config.seed + len(done)
        )  # resumed or not: the same trials
        trial = study.ask(space)
        try:
            tried = with_settings(config, trial.params)
        except pydantic.ValidationError as error:
            study.tell(trial, state=TrialState.PRUNED)
            say(f"trial {len(done) + 1}: {_show(trial.params)}: refused: {error.errors()[0]['msg']}")
            continue
        score = _score(tried)
        study.tell(trial, score)
        say(f"trial {len(done) + 1}: {_show(trial.params)}: {OBJECTIVE} {score:.4f}")
    return _write_best(config, study, say)


def with_settings(config: Config, settings: Settings) -> Config:
    """The configuration with some keys set; raises pydantic.ValidationError where they don't fit together."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        tree[section][name] = value
    return Config.model_validate(tree)


def _distribution(config: Config, key: str, what: dict[str, Any] | list[Any]) -> BaseDistribution:
    """The values of one key that are tried."""
    searched = [name for name in all_keys() if name.startswith(("model.", "train."))] + ["history.max_length"]
    if key not in searched:
        raise ConfigError(f"tune.space: received key {key!r}, expected one of {', '.join(searched)}")
    try:
        if isinstance(what, list):
            return CategoricalDistribution(what)
        if not {"low", "high"} <= set(what) <= {"low", "high", "log"} or what["low"] > what["high"]:
            raise ValueError("low and high are needed, low not above high; log is true or false")
        if isinstance(config.get(key), int):
            return IntDistribution(int(what["low"]), int(what["high"]), log=bool(what.get("log", False)))
        return FloatDistribution(float(what["low"]), float(what["high"]), log=bool(what.get("log", False)))
    except ValueError as error:
        raise ConfigError(
            f"tune.space.{key}: received {what!r}, expected a list of choices or {{low, high, log}}: {error}"
        ) from None


def _open(config: Config) -> optuna.Study:
    """The study of this configuration and space, with trials that a killed search left behind marked as failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = config.folder / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    content = config.model_dump(
        mode="json", exclude={"data_dir", "name", "score", "report", "tracking", "data"}
    )
    study = optuna.create_study(
        storage=f"sqlite:///{folder.resolve() / 'studies.db'}",
        study_name=fingerprint(content),
        direction="maximize",
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _score(config: Config) -> float:
    summaries = bring_up_to_date(
        config, ["train"], force=False, show_progress=sys.stderr.isatty(), say=lambda _: None
    )
    history = pl.read_parquet(Path(summaries[-1]["folder"]) / "history.parquet", columns=[OBJECTIVE])
    return float(history[OBJECTIVE].drop_nulls().to_numpy().max())


def _write_best(config: Config, study: optuna.Study, say: Callable[[str], object]) -> Path:
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise ConfigError(
            f"tune.space: received {config.tune.space}, expected some combination that is not refused"
        )
    best = study.best_trial
    tree = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for key, value in best.params.items():
        section, _, name = key.rpartition(".")
        tree.setdefault(section, {})[name] = value
    path = config.folder / "tune" / f"{study.study_name}.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    say(f"best of {len(study.get_trials(deepcopy=False, states=_FINISHED))}: {OBJECTIVE} {best.value:.4f}")
    for key, value in best.params.items():
        say(f"  {key} = {value}")
    say(f"written to {path}; use it with: lookback run … --config {path}")
    return path


def _show(settings: Settings) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings.items()
    )
