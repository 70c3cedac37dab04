"""The trainer: fits encoders for a configuration, with checkpoints in a stage's workspace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.encoder.batching import BatchPlan
from models.histories import Float32, Histories, Int64
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.loop import NAMED_ROWS, fit
from models.training.result import EpochRecord, FitResult, Initial, NotFinite
from models.training.validation import Validation
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.item_features import known_by_content, of_model
from pipeline.dataset.targets import targets_of, told
from pipeline.errors import LookbackError

OnEpoch = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of an epoch and its number."""
LogMetric = Callable[[str, float, int], None]
"""Receives a metric's name, value and epoch."""
SELECTION = "selection"
"""Folder of the weights that validation chose, where the others learned from validation too."""


def selection_folder(train: Path) -> Path:
    """Where a train artifact has the weights that learned from the training part alone, and chose their epoch on validation."""
    return train / SELECTION if (train / SELECTION).exists() else train


@dataclass(frozen=True)
class Trained:
    """An encoder trained on one part of a split and chosen on the next."""

    result: FitResult
    """The encoder to judge: of the selection, or of the refit with validation where the configuration asks for it."""
    selection: FitResult
    """The training whose epoch validation chose."""
    histories: Histories
    """Rows that `result` learned from, in the items of the dataset."""
    numbering: ItemNumbering
    """Items of the dataset -> the encoder's."""
    selection_numbering: ItemNumbering
    """Items of the dataset -> those of the selection's encoder."""


class Trainer:
    """Trains encoders for a configuration, each under a name with its own file in the folder `checkpoints`.

    `encoder` and `train` replace the configuration's own sections (for trained baselines). `on_epoch` receives the metrics
    of an epoch as it ends; `log` receives each of them once the training is complete. Trainings other than the selection
    carry their name as a prefix.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        checkpoints: Path,
        *,
        encoder: EncoderSettings | None = None,
        train: TrainSettings | None = None,
        on_epoch: OnEpoch = lambda *_: None,
        log: LogMetric = lambda *_: None,
        show_progress: bool = False,
    ) -> None:
        self._config = config
        self._encoder, self._train = encoder or config.model, train or config.train
        self._on_epoch, self._log, self._show_progress = on_epoch, log, show_progress
        self._dataset = dataset
        self._types = dataset.event_types
        self._checkpoints = checkpoints
        self._checkpoints.mkdir(exist_ok=True)

    def fit_split(self, name: str = "selection", users: NDArray[np.bool_] | None = None) -> Trained:
        """Train on the training part, choose on validation, train again on both where the configuration asks for it.

        `users` [num_users]: only those train (they are validated on all).
        """
        dataset = self._dataset
        if users is not None:
            split = replace(dataset.split, train_user=dataset.split.train_user & users)
            dataset = replace(dataset, split=split)
        training = dataset.training_rows(with_validation=False)
        of_user = np.flatnonzero(dataset.split.train_user)
        numbering = before = self.numbering(training)
        validation = self._validation(numbering, dataset.occurring(training))
        selection = result = self.fit(name, training, numbering, of_user, validation=validation)
        if self._train.refit_validation:
            training = dataset.training_rows(with_validation=True)
            numbering = self.numbering(training)
            again = "refit_validation" if name == "selection" else f"{name}_refit_validation"
            if self._train.refit_from == "continue":
                initial = Initial(selection.model, numbering.inverse().compose(before).new)
                result = self.fit(again, training, numbering, of_user, initial=initial)
            else:
                result = self.refit(again, training, numbering, _facts(selection), of_user)
        return Trained(result, selection, training, numbering, before)

    def numbering(self, training: Histories) -> ItemNumbering:
        """Items of the dataset -> the encoder's: those of the rows to train on, and those known by content."""
        known = self._dataset.occurring(training)
        if (
            self._encoder.item_content
            and (described := known_by_content(self._config, self._dataset)) is not None
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
    ) -> FitResult:
        """Train on rows of the dataset, going on from the checkpoint of that name where there is one.

        `of_user` [rows]: whose each row is; None: its number's. `initial`: from these weights, for one epoch. All
        ranks of torchrun call this alike. Raises ValueError as `models.training.fit`, naming users where a step's
        numbers are not finite.
        """
        config = self._config
        path = self._checkpoints / f"{name}.pt"
        content = None
        if self._encoder.item_content:
            content = of_model(self._dataset, numbering, self._dataset.occurring(histories))
        arguments: dict[str, Any] = {
            "histories": histories.translate(numbering.new),
            "encoder": self._encoder,
            "train": self._train if initial is None else replace(self._train, epochs=1),
            "num_items": numbering.num_items,
            "num_event_types": len(self._types),
            "max_length": config.history.max_length,
            "type_weights": type_weights(config, self._types),
            "content": content,
            "seed": config.seed,
            "max_steps": max_steps,
        }
        resume = checkpoint.load_training(path) if path.exists() else None
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
        selection: dict[str, Any],
        of_user: Int64 | None = None,
    ) -> FitResult:
        """Train again from the start on more events: the steps that validation chose, scaled by the number of targets."""
        config = self._config
        plan = BatchPlan(
            histories.translate(numbering.new),
            config.history.max_length,
            self._train.batch_histories,
            type_weights(config, self._types),
            config.seed,
            targets=self._train.targets,
        )
        scale = plan.num_targets / selection["targets_per_epoch"]
        steps = max(1, round(selection["best_step"] * scale))
        return self.fit(name, histories, numbering, of_user, max_steps=steps)

    def _validation(self, numbering: ItemNumbering, trained: NDArray[np.bool_]) -> Validation:
        """The validation targets that count: trained, with a history, and not in it where seen items are masked."""
        config = self._config
        targets = targets_of(config, self._dataset, "validation", numbering, trained=trained)
        apart, targets = targets.num_apart, targets.select(targets.ordinary)
        if not len(targets):
            raise LookbackError(
                f"train: none of the validation targets can be ranked (left out: {told(targets.left_out | apart)}); expected "
                "known items after known histories: use a longer log, or split.protocol = 'leave_one_out', which takes users of "
                "three events"
            )
        return Validation(targets.histories, targets.item, config.exclude_seen)

    def _named(self, users: Int64) -> str:
        """What to add to the message about a step that learned from these users."""
        if not len(users):
            return ""
        ids = self._dataset.users["user_id"]
        return f"; the step's users are {', '.join(map(str, ids.gather(users[:NAMED_ROWS])))}" + (
            f" and {len(users) - NAMED_ROWS} more" if len(users) > NAMED_ROWS else ""
        )


def type_weights(config: Config, names: list[str]) -> Float32:
    """[num_event_types + 1] weight in the loss of a target of each type."""
    wanted = config.events.types or {}
    return np.array([1.0, *(wanted.get(name, 1.0) for name in names)], np.float32)


def _facts(result: FitResult) -> dict[str, Any]:
    best = max(result.history, key=lambda record: record.epoch == result.best_epoch)
    return {
        "best_epoch": result.best_epoch,
        "best_step": result.best_step,
        "epochs": len(result.history),
        "history": [record.row() for record in result.history],
        "best": best.row(),
    } | result.resolved


def _metrics(name: str, record: EpochRecord) -> dict[str, float]:
    """An epoch's numbers as MLflow shows them: those of the selection plainly, those of another training under its name."""
    prefix = "" if name == "selection" else f"{name}/"
    return {prefix + key: value for key, value in record.row().items() if key != "epoch"}
