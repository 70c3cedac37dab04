"""`lookback tune`: hyper-parameter search on validation NDCG@10 with Optuna; each trial brings `train` up to date.

`<data_dir>/<name>/tune/` holds `studies.db` and a folder per study: `best.toml`, `trials.json` and the records of the MLflow
runs, one with a child run per trial. A study has one search space, one train stage and one features artifact.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
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
from optuna.trial import FrozenTrial, TrialState

from pipeline.artifacts.files import fingerprint, write_json
from pipeline.artifacts.store import Artifact
from pipeline.config import Config, key_types
from pipeline.credentials import masked
from pipeline.errors import ConfigError
from pipeline.orchestration.graph import STAGES, resolve
from pipeline.orchestration.parent_run import SEARCHES
from pipeline.orchestration.runner import bring_up_to_date, ended_by_sigterm
from pipeline.sections import TuneConfig
from pipeline.tracking.live import LiveRun, StopEarly, observed
from pipeline.tracking.record import TRACKING, Point, RunRecord, allowed
from pipeline.tracking.tracker import NOTE, RunIdentity, Tracker

OBJECTIVE = "validation_ndcg@10"
SHOWN_TRIALS = 10
"""Trials in the run description of a search."""
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_STATE, _REASON, _TRAIN = "state", "reason", "train"
"""User attributes of a trial: COMPLETE, PRUNED, REFUSED or FAILED; the reason; the fingerprint of its training."""

Settings = dict[str, Any]


def tune(config: Config, trials: int, say: Callable[[str], object] = print) -> Path:
    """Search `[tune] space` with a seeded TPE until `trials` have ended; returns the best configuration's file.

    A trial trains, without `train.refit_validation`, until its last epoch or until it is pruned; settings trained before
    are reused. Refused settings and failed trainings (a loss that is not finite) count as trials, with the reason. An
    interrupted search resumes the running trial from its checkpoint, then draws the same trials as without the interruption.
    Raises ConfigError for an invalid space, or one without a trainable combination.
    """
    search = _Search(config, say)
    with search.artifact.lock(search.inputs), ended_by_sigterm():
        return search.run(trials)


def with_settings(config: Config, settings: Settings) -> Config:
    """Configuration with some keys replaced; raises pydantic.ValidationError for incompatible values."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        tree[section][name] = value
    return Config.model_validate(tree)


class _Search:
    """One study: trials, files, runs."""

    def __init__(self, config: Config, say: Callable[[str], object]) -> None:
        self.config, self.say = config, say
        self.space = {key: _distribution(config, key, values) for key, values in config.tune.space.items()}
        train = resolve(config, ["train"]).nodes["train"]
        self.inputs = train.inputs
        self.settings = config.tune.model_dump(mode="json", exclude={"max_seconds"})
        study = fingerprint([self.settings, train.settings, train.inputs])
        self.artifact = Artifact(config.folder / SEARCHES, study)
        self.tracker = Tracker.from_config(config)

    def run(self, trials: int) -> Path:
        """Run the missing trials, write the best configuration and send the runs that the server lacks."""
        self.study = _open(self.artifact, self.config.tune)
        ended = self.artifact.folder / TRACKING
        if len(self._done()) < trials or not ended.exists():
            ended.unlink(missing_ok=True)
            self._bring_up_to_date(self.config, "features")  # bad data must not count as a failed trial
            with self.tracker.start(**self._identity(), reopen=True) as live:
                self._search(trials, live)
                self._save()
        best = self._write_best()
        self._log()
        return best

    def _done(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=_FINISHED)

    def _search(self, trials: int, live: LiveRun) -> None:
        seconds = self.config.tune.max_seconds or math.inf
        began = time.monotonic()
        for num_done in range(len(self._done()), trials):
            trial = self._next(num_done)
            identity = self._identity(trial.number)
            with self.tracker.start(**identity, parent_link_file=self.artifact.run_link) as trial_live:
                self._try(trial, trial_live)
            done = self._done()
            self._log_trial(done[-1])
            live.metrics(_progress(done)[-1], len(done))
            self.say(f"trial {len(done)} of {trials}: {_show(done[-1].params)}: {_outcome(done[-1])}")
            if time.monotonic() - began > seconds:
                break

    def _next(self, num_done: int) -> optuna.Trial:
        """Trial that was running when the search was killed, or a new one; the order does not depend on interruptions."""
        self.study.sampler = optuna.samplers.TPESampler(seed=self.config.seed + num_done)
        for running in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if running.params.keys() == self.space.keys():
                return optuna.Trial(self.study, running._trial_id)  # noqa: SLF001  (no public way to resume)
            self.study.tell(running.number, state=TrialState.FAIL)  # killed while it was drawn: drawn again
        return self.study.ask(self.space)

    def _try(self, trial: optuna.Trial, live: LiveRun) -> None:
        """Train with a trial's settings and report the result to the study."""
        score: float | None = None
        state, reason = "COMPLETE", ""
        try:
            score = self._train(trial, live)
        except pydantic.ValidationError as error:
            state, reason = "REFUSED", _problem(error)
        except StopEarly as error:
            state, reason = "PRUNED", str(error)
        except (
            ValueError,
            MemoryError,
        ) as error:  # a loss that is not finite, a model too large; others end the search
            state, reason = "FAILED", str(error)
        trial.set_user_attr(_STATE, state)
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, score, TrialState.COMPLETE if score is not None else TrialState.PRUNED)

    def _train(self, trial: optuna.Trial, live: LiveRun) -> float:
        """Best validation NDCG@10 over a trial's epochs; raises StopEarly where the pruner ends the trial."""
        tried = with_settings(self.config, {"train.refit_validation": False} | trial.params)
        trial.set_user_attr(_TRAIN, resolve(tried, ["train"]).nodes["train"].artifact.name)
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def report(epoch: int, value: float) -> None:
            if epoch not in reported:
                live.metrics({OBJECTIVE: value}, epoch)
                trial.report(value, epoch)
                reported.add(epoch)

        def observe(values: Any, epoch: int) -> None:
            if OBJECTIVE in values:
                report(epoch, values[OBJECTIVE])
                if trial.should_prune():
                    raise StopEarly(f"after epoch {epoch}, by pruner {self.config.tune.pruner!r}")

        with observed(observe):
            folder = self._bring_up_to_date(tried, "train")
        path = folder / "history.parquet"
        history = pl.read_parquet(path, columns=["epoch", OBJECTIVE]).drop_nulls()
        for epoch, value in history.filter(~pl.col("epoch").is_in(list(reported))).iter_rows():
            report(epoch, value)  # trained earlier
        return float(history[OBJECTIVE].to_numpy().max())

    def _bring_up_to_date(self, config: Config, stage: str) -> Path:
        show_progress = sys.stderr.isatty()
        done = bring_up_to_date(config, [stage], force=False, show_progress=show_progress, say=lambda _: None)
        return Path(done[-1]["folder"])

    def _best(self) -> FrozenTrial:
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise ConfigError(
                f"tune.space: received {self.config.tune.space}, expected a trainable combination: "
                + "; ".join(dict.fromkeys(trial.user_attrs[_REASON] for trial in self._done()))
            )
        return self.study.best_trial

    def _write_best(self) -> Path:
        best = self._best()
        path = self._write_configuration(best)
        self.say(f"best of {len(self._done())}: {OBJECTIVE} {best.value:.4f}")
        for key, value in best.params.items():
            self.say(f"  {key} = {value}")
        self.say(f"written to {path}; use it with: lookback run … --config {path}")
        return path

    def _write_configuration(self, trial: FrozenTrial) -> Path:
        tree = self.config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        for key, value in trial.params.items():
            section, _, name = key.rpartition(".")
            tree.setdefault(section, {})[name] = value
        path = self.artifact.folder / "best.toml"
        path.write_text(masked(tomli_w.dumps(tree)), encoding="utf-8")
        return path

    # --- MLflow runs ---

    def _identity(self, number: int | None = None) -> RunIdentity:
        """Identity of the search's run, or of a trial's run."""
        link = self.artifact.run_link
        tags = {f"lookback.input.{name}": value for name, value in self.inputs.items()}
        if number is None:
            name = f"tune {' '.join(key.rpartition('.')[2] for key in self.space)}"
            return {
                "stage": "tune",
                "fingerprint": link.stem,
                "run_name": name[:200],
                "tags": tags | {NOTE: "running"},
                "link_file": link,
            }
        trial_link = link.with_name(f"{link.stem}-{number:04}.json")
        return {
            "stage": "trial",
            "fingerprint": trial_link.stem,
            "run_name": f"trial {number + 1}",
            "tags": tags | self._link_to_training(number),
            "link_file": trial_link,
        }

    def _link_to_training(self, number: int) -> dict[str, str]:
        name = self.study.get_trials(deepcopy=False)[number].user_attrs.get(_TRAIN)
        if name is None:
            return {}
        run = self.tracker.linked_run(Artifact(self.config.folder / "train", name).run_link)
        return {"lookback.input.train": name} | ({"lookback.train_run": run} if run else {})

    def _save(self) -> None:
        """Write the record of the search's run: the best value after each trial and the table of trials."""
        done, best = self._done(), self._best()
        record = RunRecord(started=_milliseconds(done[0].datetime_start))
        record.params({"tune": self.settings, "seed": self.config.seed})
        for number, (trial, values) in enumerate(zip(done, _progress(done), strict=True), 1):
            moment = _milliseconds(trial.datetime_complete)
            record.points += [Point(allowed(key), value, number, moment) for key, value in values.items()]
        for key, value in _importances(self.study, self.config.seed).items():
            record.metric(f"importance/{key}", value, len(done))
        record.tag(NOTE, _description(done, best))
        record.tag("lookback.best", _show(best.params))
        record.tag("lookback.best_trial", str(best.number + 1))
        self._write_configuration(best)
        record.artifact(
            "best.toml", f"best/trial {best.number + 1}"
        )  # its own path, because a file is sent once
        columns = ["trial", "state", OBJECTIVE, "epochs", *self.space, "reason"]
        write_json(
            self.artifact.folder / "trials.json",
            {"columns": columns, "data": [_row(trial, list(self.space)) for trial in done]},
        )
        record.table("trials.json")
        record.save(self.artifact.folder)

    def _log_trial(self, trial: FrozenTrial) -> None:
        """Ensure that the present server has a trial's run."""
        folder = self.artifact.folder / "trials" / f"{trial.number:04}"
        if not (folder / TRACKING).exists():
            record = RunRecord(started=_milliseconds(trial.datetime_start))
            record.params(trial.params)
            for epoch, value in sorted(trial.intermediate_values.items()):
                record.metric(OBJECTIVE, value, epoch)
            if trial.state == TrialState.COMPLETE:
                record.metric(f"best_{OBJECTIVE}", trial.value or 0.0)
            record.tag("lookback.state", trial.user_attrs[_STATE])
            record.tag("lookback.reason", trial.user_attrs[_REASON])
            folder.mkdir(parents=True, exist_ok=True)
            record.save(folder)
        identity = self._identity(trial.number)
        if not self.tracker.is_logged(identity["link_file"]):
            self.tracker.replay(folder=folder, **identity, parent_link_file=self.artifact.run_link)

    def _log(self) -> None:
        """Ensure that the present server has the runs of the search and its trials."""
        if not self.tracker.is_logged(self.artifact.run_link):
            self.tracker.replay(folder=self.artifact.folder, **self._identity())
        for trial in self._done():
            self._log_trial(trial)


def _open(artifact: Artifact, settings: TuneConfig) -> optuna.Study:
    """Open or create the study of an artifact."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    artifact.folder.mkdir(parents=True, exist_ok=True)
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(settings.warmup_trials, settings.warmup_epochs),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(settings.warmup_epochs, 3),
        "none": optuna.pruners.NopPruner,
    }
    return optuna.create_study(
        storage=f"sqlite:///{artifact.stage_folder.resolve() / 'studies.db'}",
        study_name=artifact.name,
        direction="maximize",
        pruner=pruners[settings.pruner](),
        load_if_exists=True,
    )


def _distribution(config: Config, key: str, values: dict[str, Any] | list[Any]) -> BaseDistribution:
    """Search distribution of one key."""
    read = STAGES["train"].keys
    sections = ("model", "train", "history")
    searched = [
        name
        for name in key_types()
        if (section := name.partition(".")[0]) in sections and (name in read or section in read)
    ]
    if key not in searched:
        raise ConfigError(f"tune.space: received key {key!r}, expected one of {', '.join(searched)}")
    try:
        if isinstance(values, list):
            return _choices(config, key, values)
        if not {"low", "high"} <= set(values) <= {"low", "high", "log"} or values["low"] > values["high"]:
            raise ValueError("low and high are required, low not above high; log is true or false")
        value = config.get(key)
        if isinstance(value, bool | str):
            raise ValueError(f"{value!r} is no number")
        if isinstance(value, int):
            return IntDistribution(
                int(values["low"]), int(values["high"]), log=bool(values.get("log", False))
            )
        return FloatDistribution(
            float(values["low"]), float(values["high"]), log=bool(values.get("log", False))
        )
    except ValueError as error:
        raise ConfigError(
            f"tune.space.{key}: received {values!r}, expected a list of choices or {{low, high, log}}: {error}"
        ) from None


def _choices(config: Config, key: str, choices: list[Any]) -> CategoricalDistribution:
    """Categorical distribution of a key; refuses values of the wrong type, incompatible values fail as trials."""
    for value in choices:
        try:
            with_settings(config, {key: value})
        except pydantic.ValidationError as error:
            wrong = [problem["msg"] for problem in error.errors() if problem["type"] != "value_error"]
            if wrong:
                raise ValueError(f"{value!r}: {wrong[0]}") from None
    return CategoricalDistribution(choices)


def _progress(done: list[FrozenTrial]) -> list[dict[str, float]]:
    """Best value, number of trials and of complete trials, after each trial."""
    rows: list[dict[str, float]] = []
    for number in range(1, len(done) + 1):
        values = [trial.value or 0.0 for trial in done[:number] if trial.state == TrialState.COMPLETE]
        rows.append({"trials": number, "trials_complete": len(values)})
        if values:
            rows[-1][f"best_{OBJECTIVE}"] = max(values)
    return rows


def _importances(study: optuna.Study, seed: int) -> dict[str, float]:
    """Share of the objective's variance explained by each key (fANOVA); empty with fewer than 4 distinct values."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in done}) < 4:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _row(trial: FrozenTrial, keys: list[str]) -> list[Any]:
    attributes, settings = trial.user_attrs, [trial.params[key] for key in keys]
    epochs = len(trial.intermediate_values)
    return [trial.number + 1, attributes[_STATE], trial.value, epochs, *settings, attributes[_REASON]]


def _description(done: list[FrozenTrial], best: FrozenTrial) -> str:
    """Run description of a search, in Markdown: the best value and a table of the best trials."""
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    shown = sorted(complete, key=lambda trial: -(trial.value or 0.0))[:SHOWN_TRIALS]
    ends = Counter(trial.user_attrs[_STATE].lower() for trial in done)
    counted = ", ".join(f"{count} {state}" for state, count in ends.items())
    rows = [
        [str(trial.number + 1), f"{trial.value:.4f}", *(_value(trial.params[key]) for key in best.params)]
        for trial in shown
    ]
    table = [["trial", "validation NDCG@10", *best.params], ["---"] * (2 + len(best.params)), *rows]
    best_line = f"**Validation NDCG@10 {best.value:.4f}** in trial {best.number + 1}, the best of {len(done)} ({counted})."
    return "\n".join([best_line, "", *(f"| {' | '.join(row)} |" for row in table)])


def _problem(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    text = first["msg"].removeprefix("Value error, ")
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {text}" if "." in key else text


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"{OBJECTIVE} {trial.value:.4f}"
    return f"{trial.user_attrs[_STATE].lower()}: {trial.user_attrs[_REASON]}"


def _milliseconds(moment: datetime | None) -> int:
    assert moment is not None
    return int(moment.timestamp() * 1000)


def _show(settings: Settings) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
