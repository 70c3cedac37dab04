"""Trainer of encoders for a configuration, with checkpoints in a stage's workspace."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.encoder.batching import BatchPlan
from models.encoder.embeddings import ItemContent
from models.histories import Float32, Histories, Int64
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.loop import NAMED_ROWS, fit
from models.training.replay import with_replay
from models.training.result import EpochRecord, FitResult, Initial, NotFinite
from models.training.state import STATE_VERSION
from models.training.validation import Validation
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.exposure_weights import EventWeights
from pipeline.dataset.item_features import known_by_content, of_model
from pipeline.dataset.protocol import DAY, HORIZON_DAYS, Protocol
from pipeline.dataset.targets import counted, counts_by_reason
from pipeline.errors import LookbackError
from pipeline.modelling.training_facts import TrainingFacts

OnEpoch = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of an epoch and its number."""
LogMetric = Callable[[str, float, int], None]
"""Receives a metric's name, value and epoch."""
MINUTE = 60_000_000
"""Microseconds."""
UPDATE_PASSES, UPDATE_HISTORIES = 2, 32
"""Epochs of a training from a version, and its largest batch: a night has few histories, which need their steps."""
SELECTION = "selection"
"""Folder of the weights that validation chose, where a refit learned from validation too."""


def selection_folder(train: Path) -> Path:
    """Folder of the weights that learned from the training part alone, their epoch chosen on validation."""
    return train / SELECTION if (train / SELECTION).exists() else train


@dataclass(frozen=True)
class Trained:
    """An encoder trained on one part of a split and chosen on the next."""

    result: FitResult
    """Training of the evaluated encoder: the selection or, with `train.refit_validation`, the refit."""
    selection: FitResult
    """Training whose epoch validation chose."""
    histories: Histories
    """Rows that `result` learned from, in the items of the dataset."""
    numbering: ItemNumbering
    """Items of the dataset -> the encoder's."""
    selection_numbering: ItemNumbering
    """Items of the dataset -> the selection encoder's."""
    event_weights: EventWeights | None = None
    """Weights of the events of `histories`, where exposures weigh them."""


class Trainer:
    """Trains named encoders for a configuration, each with its own file in the folder `checkpoints`.

    `encoder` and `train` replace the configuration's own sections (for trained baselines), which without `reads_dislikes`
    neither read nor learn from dislikes. `on_epoch` receives the metrics
    of an epoch as it ends; `log` receives each of them once the training is complete; metrics of trainings other
    than the selection carry the training's name as a prefix.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        checkpoints: Path,
        *,
        encoder: EncoderSettings | None = None,
        train: TrainSettings | None = None,
        reads_dislikes: bool = True,
        on_epoch: OnEpoch = lambda *_: None,
        log: LogMetric = lambda *_: None,
        show_progress: bool = False,
    ) -> None:
        self._config = config
        self._encoder, self._train = encoder or config.model, train or config.train
        self._reads_dislikes = reads_dislikes
        self._on_epoch, self._log, self._show_progress = on_epoch, log, show_progress
        self.dataset = dataset
        self._types = dataset.event_types
        self._checkpoints = checkpoints
        checkpoints.mkdir(exist_ok=True)

    def fit_split(self, name: str = "selection", users: NDArray[np.bool_] | None = None) -> Trained:
        """Train on the training part, choose on validation, refit on both with `train.refit_validation`.

        `users` [num_users]: train on these users alone, validate on all.
        """
        dataset = self.dataset
        if users is not None:
            split = replace(dataset.split, train_user=dataset.split.train_user & users)
            dataset = replace(dataset, split=split)
        weights = self.event_weights(dataset, dataset.training_ends(with_validation=False))
        training = self._read(dataset.training_rows(with_validation=False, weight=weight_of(weights)))
        of_user = np.flatnonzero(dataset.split.train_user)
        numbering = before = self.numbering(training)
        validation = self._validation(numbering, dataset.occurring(training))
        selection = result = self.fit(name, training, numbering, of_user, validation=validation)
        if self._train.refit_validation:
            weights = self.event_weights(dataset, dataset.training_ends(with_validation=True))
            training = self._read(dataset.training_rows(with_validation=True, weight=weight_of(weights)))
            numbering = self.numbering(training)
            again = "refit_validation" if name == "selection" else f"{name}_refit_validation"
            if self._train.refit_from == "continue":
                initial = Initial(selection.model, numbering.inverse().compose(before).new)
                result = self.fit(again, training, numbering, of_user, initial=initial)
            else:
                result = self.refit(again, training, numbering, TrainingFacts.of(selection), of_user)
        return Trained(result, selection, training, numbering, before, weights)

    def event_weights(self, dataset: Dataset, ends: Int64) -> EventWeights | None:
        """Weights of a dataset's events as targets, by the exposures before each user's flat position `ends` [num_users].

        None without `train.exposure_weighting`. Raises LookbackError where no event is a reaction to an exposure.
        """
        if self._train.exposure_weighting == "off":
            return None
        assert self._config.exposures is not None
        weights = EventWeights.of(dataset, ends, self._config.exposures.window)
        if weights is None:
            raise LookbackError(
                "train.exposure_weighting: 'ips', and no event of the training part follows an exposure of its item within "
                "exposures.window_hours; check [exposures], its ids and its time zone, or set train.exposure_weighting = 'off'"
            )
        return weights

    def numbering(self, training: Histories) -> ItemNumbering:
        """Numbering of the encoder's items: those of the rows to train on, and those known by content."""
        known = self.dataset.occurring(training)
        if (
            self._encoder.item_content
            and (described := known_by_content(self._config, self.dataset)) is not None
        ):
            known |= described
        return ItemNumbering.of_known(known)

    def fit(
        self,
        name: str,
        histories: Histories,
        numbering: ItemNumbering,
        of_user: Int64 | None = None,
        *,
        validation: Validation | None = None,
        max_steps: int | None = None,
        initial: Initial | None = None,
        train: TrainSettings | None = None,
        content: ItemContent | None = None,
    ) -> FitResult:
        """Train on rows of the dataset, resuming from the checkpoint of that name where there is one.

        `of_user` [rows]: user of each row (None: its row number). `initial`: start from these weights, for one epoch unless
        `train` gives other settings. `content`: of the model's items; None: of the dataset. All ranks of torchrun call this
        alike. Raises ValueError as `models.training.fit`, naming the users of a step whose numbers are not finite.
        """
        config = self._config
        path = self._checkpoints / f"{name}.pt"
        if self._encoder.item_content and content is None:
            content = of_model(self.dataset, numbering, self.dataset.occurring(histories))
        arguments: dict[str, Any] = {
            "histories": histories.translate(numbering.new),
            "encoder": self._encoder,
            "train": train or (self._train if initial is None else replace(self._train, epochs=1)),
            "num_items": numbering.num_items,
            "num_event_types": len(self._types),
            "max_length": config.history.max_length,
            "type_weights": type_weights(config, self._types),
            "session": self._session,
            "horizon": self._horizon,
            "content": content,
            "seed": config.seed,
            "max_steps": max_steps,
        }
        resume = checkpoint.load_training(path) if path.exists() else None
        if resume is not None and resume.get("version") != STATE_VERSION:
            print(f"{path}: written by another version of lookback; training starts anew", file=sys.stderr)
            resume = None
        try:
            result = fit(
                **arguments,
                validation=validation,
                initial=initial,
                resume=resume,
                on_checkpoint=lambda state: checkpoint.save_training(state, path),
                on_epoch=lambda record: self._on_epoch(_metrics(name, record), record.epoch),
                show_progress=self._show_progress,
            )
        except NotFinite as error:
            users = error.rows if of_user is None else of_user[error.rows]
            raise ValueError(f"{error}{self._named(users)}") from error
        for record in result.history:
            for key, value in _metrics(name, record).items():
                self._log(key, value, record.epoch)
        return result

    def refit(
        self,
        name: str,
        histories: Histories,
        numbering: ItemNumbering,
        selection: TrainingFacts,
        of_user: Int64 | None = None,
    ) -> FitResult:
        """Train from the start on more events for the selection's best step, scaled by the number of targets."""
        config = self._config
        plan = BatchPlan(
            histories.translate(numbering.new),
            config.history.max_length,
            self._train.batch_histories,
            type_weights(config, self._types),
            config.seed,
            targets=self._train.targets,
            predict=self._train.predict,
            session=self._session,
            horizon=self._horizon,
        )
        scale = plan.num_targets / selection.resolved["targets_per_epoch"]
        steps = max(1, round(selection.best_step * scale))
        return self.fit(name, histories, numbering, of_user, max_steps=steps)

    def update(
        self,
        histories: Histories,
        numbering: ItemNumbering,
        initial: Initial,
        content: ItemContent | None,
        since: int,
    ) -> FitResult:
        """Train a version's weights on the events after `since`, microseconds, and on `train.replay` older histories.

        `histories`: rows of all users, numbered from 0. `content`: see `fit`. Few small steps at a constant rate.
        """
        train = replace(
            self._train,
            epochs=UPDATE_PASSES,
            batch_histories=min(UPDATE_HISTORIES, self._train.batch_histories),
            schedule="constant",
            warmup_steps=0,
        )
        rows, learned = with_replay(histories, since, self._train.replay, self._config.seed)
        return self.fit("update", learned, numbering, rows, initial=initial, train=train, content=content)

    def _read(self, histories: Histories) -> Histories:
        return histories if self._reads_dislikes else histories.without_dislikes()

    @cached_property
    def _protocol(self) -> Protocol:
        return Protocol.of(self._config, self.dataset)

    @property
    def _session(self) -> int | None:
        """Longest pause within a visit, microseconds; None where every event is a target after those before it."""
        if self._train.predict == "next" and self._protocol.ties == "order":
            return None
        return round(self._config.history.session_minutes * MINUTE)

    @property
    def _horizon(self) -> int:
        """Horizon of the evaluation's nights, or else the automatic one, microseconds; 0 unless the training looks ahead."""
        return (self._protocol.horizon or HORIZON_DAYS * DAY) if self._train.predict == "window" else 0

    def _validation(self, numbering: ItemNumbering, trained: NDArray[np.bool_]) -> Validation:
        """Validation requests with a history; items of the history are excluded where seen items are.

        Targets on items unseen in training count, as misses, where the protocol counts them.
        """
        config = self._config
        targets = targets_of(config, self.dataset, "validation", numbering, trained=trained)
        included = counted(targets, cold_users=False, cold_items=self._protocol.counts_new_items)
        warm = targets.select(included)
        if not targets.warm.any():
            left_out = counts_by_reason(targets.left_out | targets.num_cold)
            raise LookbackError(
                f"train: none of the validation targets can be ranked (left out: {left_out}); expected "
                "known items after known histories: use a longer log, or split.protocol = 'leave_one_out', which takes users of "
                "three events"
            )
        request = None if self._protocol.headline != "nightly" else warm.request
        return Validation(self._read(warm.histories), warm.item, self._protocol.exclude_seen, request)

    def _named(self, users: Int64) -> str:
        """Ending of an error message that names a step's users; empty without users."""
        if not len(users):
            return ""
        ids = self.dataset.users["user_id"].gather(users[:NAMED_ROWS])
        more = f" and {len(users) - NAMED_ROWS} more" if len(users) > NAMED_ROWS else ""
        return f"; the step's users are {', '.join(map(str, ids))}{more}"


def weight_of(weights: EventWeights | None) -> Float32 | None:
    """[events] the weights themselves; None where all are 1."""
    return None if weights is None else weights.weight


def type_weights(config: Config, names: list[str]) -> Float32:
    """Loss weight of a target by event type: [num_event_types + 1]."""
    weights = config.events.types or {}
    return np.array([1.0, *(weights.get(name, 1.0) for name in names)], np.float32)


def _metrics(name: str, record: EpochRecord) -> dict[str, float]:
    """An epoch's metrics as logged, prefixed by the training's name unless it is the selection."""
    prefix = "" if name == "selection" else f"{name}/"
    return {prefix + key: value for key, value in record.row().items() if key != "epoch"}
