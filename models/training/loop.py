"""Training loop over arrays, without files or tracking: histories in, the weights of the best validation out.

A target is a position whose next item bears loss.
"""

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.device import memory_named, peak_bytes, pick_device, resolved_compile, resolved_precision
from models.encoder.batching import BatchPlan
from models.encoder.embeddings import ItemContent
from models.encoder.encoder import Encoder
from models.histories import Float32, Histories, Int64
from models.settings.encoder import RECURRENT_BLOCKS, EncoderSettings
from models.settings.training import SAMPLED_LOSSES, TrainSettings, check_together
from models.training import distributed
from models.training.negatives import NegativeSampler
from models.training.objective import Objective
from models.training.optimizers import WeightAverage, build, clip_gradients, learning_rate, rowwise_table
from models.training.result import EpochRecord, FitResult, Initial, NotFinite
from models.training.state import Measured, Progress, TrainingState, copied, random_state, set_random_state
from models.training.steps import Step, prefetched, steps
from models.training.validation import VALIDATION_K, Validation, validate

WINDOW_WORK = 110_000
"""Tokens x dim of a window from which the saved padding outweighs its own kernel calls."""
STEPS_PER_READ = {"cpu": 1, "cuda": 50, "mps": 50, "meta": 50}
"""Steps between two reads of loss and gradient norm: on a GPU each read waits until the steps before it are computed."""
NAMED_ROWS = 20
"""Maximum number of histories in the message about a step."""


@memory_named(
    "raise train.accumulate (the same result with less memory), lower train.batch_histories or history.max_length, or set "
    "CUDA_VISIBLE_DEVICES='' to train on the CPU"
)
def fit(
    histories: Histories,
    *,
    encoder: EncoderSettings,
    train: TrainSettings,
    num_items: int,
    num_event_types: int,
    max_length: int,
    type_weights: Float32 | None = None,
    session: int | None = None,
    horizon: int = 0,
    content: ItemContent | None = None,
    seed: int = 0,
    validation: Validation | None = None,
    max_steps: int | None = None,
    initial: Initial | None = None,
    resume: dict[str, Any] | None = None,
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    show_progress: bool = False,
) -> FitResult:
    """Minimise `train.loss` of `train.predict` until validation NDCG@10 stops rising.

    `type_weights` [num_event_types + 1]: weight of a target by its event type. `session`: longest pause within a visit, None:
    every event is a visit; `horizon`: time that `train.predict` = "window" looks ahead; microseconds (see `BatchPlan`).
    With `validation` the best weights are returned and training ends after `train.patience` epochs without improvement; without,
    all of `train.epochs` run.
    `max_steps`: exact number of optimiser steps, without validation; the learning-rate schedule still spans `train.epochs`.
    `initial`: starting weights, trained on without warm-up at the last learning rate and Gumbel-softmax temperature.
    `on_checkpoint` receives the whole state every `train.checkpoint_seconds` and after each epoch; passed back as `resume`, the
    training continues, on the CPU to the same bits as an uninterrupted one.
    In a process group (`models.training.distributed`) all call this alike; process 0 alone validates and calls back.
    Raises ValueError for contradicting settings, histories without a target, and a `resume` of another training; its subclass
    NotFinite for a loss, gradient or weights that are not finite. Raises MemoryError with the next step.
    """
    check_together(encoder, train)
    device = pick_device()
    plan = _plan(histories, encoder, train, max_length, type_weights, seed, device, session, horizon)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Encoder(encoder, num_items, num_event_types, max_length, content=content)
        if initial is not None:
            initial.copy_into(model)
        if distributed.rank():
            torch.manual_seed(seed + distributed.rank())  # dropout of its own
        training = _Training(
            model.to(device), plan, train, validation, max_steps, initial is not None, on_checkpoint
        )
        training.begin(resume)
        while not training.is_done:
            with closing(training.epoch(show_progress)) as coming:
                for step in coming:
                    training.update(step, training.backward(step))
            record = training.end_epoch()
            if on_epoch is not None and not distributed.rank():
                on_epoch(record)
            training.save_checkpoint()
    return training.result()


def _plan(
    histories: Histories,
    encoder: EncoderSettings,
    train: TrainSettings,
    max_length: int,
    type_weights: Float32 | None,
    seed: int,
    device: torch.device,
    session: int | None,
    horizon: int,
) -> BatchPlan:
    """Batches of every epoch; ValueError without any target."""
    plan = BatchPlan(
        histories,
        max_length,
        train.batch_histories,
        type_weights,
        seed,
        targets=train.targets,
        predict=train.predict,
        session=session,
        horizon=horizon,
        with_time=encoder.uses_time,
        with_value=encoder.value,
        one_window=encoder.block in RECURRENT_BLOCKS or device.type != "cpu" or train.compile == "on",
        window_tokens=WINDOW_WORK // encoder.dim,
        learns_dislikes=encoder.readout != "target",
    )
    if not plan.num_targets:
        raise ValueError(
            "training histories: received none with two events (or visits), expected at least one target to learn"
        )
    return plan


class _Training:
    """Model, optimisers and progress of one training, and the best weights so far."""

    def __init__(
        self,
        model: Encoder,
        plan: BatchPlan,
        settings: TrainSettings,
        validation: Validation | None,
        max_steps: int | None,
        continues: bool,
        on_checkpoint: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.plan, self.settings, self.max_steps = model, plan, settings, max_steps
        self.size, self.rank = distributed.size(), distributed.rank()
        self.device = next(model.parameters()).device
        self.continues, self.on_checkpoint, self.validation = continues, on_checkpoint, None
        if validation is not None and len(validation.target) and max_steps is None:
            self.validation = validation.sample(settings.validation_targets, plan.seed)
        self.precision = resolved_precision(settings.precision, self.device)
        self.compiled = resolved_compile(settings.compile, self.device, plan.num_targets * settings.epochs)
        plan.few_shapes = self.static_shapes = self.compiled == "on" and self.device.type == "cuda"
        self.compiled_shapes = set[tuple[int, ...]]()
        self.sampler = _sampler(model, plan, settings)
        sparse = rowwise_table(model, settings)
        self.optimizers = build(model, settings, sparse)
        objective = Objective(
            model, settings, compile=self.compiled == "on", static_shapes=self.static_shapes
        )
        self.objective = distributed.data_parallel(objective) if self.size > 1 else objective
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        self.planned_steps = settings.epochs * plan.steps_per_epoch
        self.resolved: dict[str, Any] = {
            "device": self.device.type,
            "precision": self.precision,
            "compile": self.compiled,
            "item_optimizer": "adamw" if sparse is None else "rowwise_adagrad",
            "processes": self.size,
            "threads": torch.get_num_threads(),
            "steps_per_epoch": plan.steps_per_epoch,
            "targets_per_epoch": plan.num_targets,
            "histories": len(plan.windows),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        sizes = [model.num_items, model.num_event_types, model.max_length]
        identity = [*sizes, plan.seed, plan.num_targets, plan.steps_per_epoch]
        self.state = TrainingState(identity, model, self.optimizers, self.average)
        self.saved_at = time.monotonic()
        self.save_is_due = False
        self.steps_per_read = STEPS_PER_READ[self.device.type]
        self.unread = list[Measured]()
        self.last_rows: Int64 = np.zeros(0, np.int64)
        """Histories of the last step, for messages."""

    @property
    def progress(self) -> Progress:
        """Progress of the state."""
        return self.state.progress

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left; a resumed epoch whose steps are complete is still to be recorded."""
        return not self.progress.step and self._has_spent_its_steps

    @property
    def _has_spent_its_steps(self) -> bool:
        progress = self.progress
        if self.max_steps is not None:
            return progress.total_steps >= self.max_steps
        if self.validation is not None and progress.epoch - progress.best_epoch >= self.settings.patience:
            return True
        return progress.epoch >= self.settings.epochs

    def begin(self, resume: dict[str, Any] | None) -> None:
        """Restore the state in `resume`."""
        if resume is not None:
            self.state.load(resume, self.rank)

    def epoch(self, show_progress: bool) -> Generator[Step, None, None]:
        """Remaining steps of the current epoch, up to `max_steps`; timed, with progress bar and due checkpoints."""
        progress = self.progress
        self.model.train()
        started = time.monotonic()
        bar = _bar(self.plan.steps_per_epoch, progress, show_progress)
        with bar as shown, closing(prefetched(self._steps(progress.step))) as coming:
            for step in coming:
                if self.max_steps is not None and progress.total_steps >= self.max_steps:
                    break
                started += self._compile(step)
                yield step
                now = time.monotonic()
                progress.seconds += now - started
                started = now
                _show(shown, self)
                if self.save_is_due:
                    _check_weights(self)
                    self.save_checkpoint()
        if self.unread:
            self._read()
            progress.seconds += time.monotonic() - started

    def _compile(self, step: Step) -> float:
        """Compile for the shapes of a step in a pass that leaves no trace, once; the seconds that it took."""
        shapes = {tuple(window.item_index.shape) for batch, _ in step.parts for window in batch.windows}
        is_known = shapes <= self.compiled_shapes if self.static_shapes else bool(self.compiled_shapes)
        if self.compiled != "on" or is_known:
            return 0.0
        started, random = time.monotonic(), random_state(self.device)
        self.backward(step, alone=True)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        set_random_state(random)
        self.compiled_shapes |= shapes
        seconds = time.monotonic() - started
        self.resolved["compiled_shapes"] = len(self.compiled_shapes) if self.static_shapes else 1
        self.resolved["compile_seconds"] = round(self.resolved.get("compile_seconds", 0.0) + seconds, 1)
        return seconds

    def _steps(self, first: int) -> Iterator[Step]:
        """Steps of the current epoch from `first` on."""
        return steps(
            self.plan,
            self.progress.epoch,
            first,
            sampler=self.sampler,
            accumulate=self.settings.accumulate,
            rank=self.rank,
            size=self.size,
            device=self.device,
        )

    def backward(self, step: Step, *, alone: bool = False) -> Tensor:
        """Loss of this process's part of a step; leaves gradients of the whole step, over all processes unless `alone`."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.model.anneal(min(1.0, self._planned_step / self.planned_steps))
        total = torch.zeros((), device=self.device)
        for number, (batch, share) in enumerate(step.parts, 1):
            waits = self.size > 1 and (alone or number < len(step.parts))
            with self.objective.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._autocast():
                    loss = self.objective(batch, step.negatives) * share
                torch.autograd.backward(loss * self.size)  # processes average gradients
            total += loss.detach()
        return total

    def update(self, step: Step, loss: Tensor) -> None:
        """Take an optimiser step; NotFinite for a loss or gradient that is not finite, on a GPU some steps later."""
        progress = self.progress
        norm = clip_gradients(self.model.parameters(), self.settings.max_grad_norm or math.inf)
        self.last_rows = self.plan.rows[step.rows]
        self.unread.append(Measured(progress.step + 1, self.last_rows, step.weight, loss, norm))
        if len(self.unread) >= self.steps_per_read:
            self._read()
        rate = learning_rate(self.settings, self._planned_step, self.planned_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if self.average is not None:
            self.average.update(progress.total_steps)
        progress.count(step)

    def _read(self) -> None:
        """Read the numbers of the steps since the last read, and whether a checkpoint is due, alike in all processes."""
        unread, self.unread = self.unread, []
        values = torch.stack([value for each in unread for value in (each.loss, each.grad_norm)]).tolist()
        is_late = time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds
        is_due = self.on_checkpoint is not None and is_late
        *losses, due = distributed.total([*values[::2], float(is_due and not self.rank)])
        self.save_is_due = due > 0
        for each, loss, grad_norm in zip(unread, losses, values[1::2], strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                numbers = f"loss {loss} and gradient norm {grad_norm}"
                raise _not_finite(self.progress.epoch, each.step, numbers, each.rows)
            self.progress.add(each, loss, grad_norm)

    @property
    def _planned_step(self) -> int:
        """Step of the schedules, past their end where training continues from trained weights."""
        if self.continues:
            return self.planned_steps + self.settings.warmup_steps
        return self.progress.total_steps

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def end_epoch(self) -> EpochRecord:
        """Validate, keep the best weights, and record the epoch."""
        progress = self.progress
        _check_weights(self)
        with self.average.in_place() if self.average is not None else nullcontext():
            measured = self._validate()
            score = measured.get(f"validation_ndcg@{VALIDATION_K}", math.inf)
            is_best = score > progress.best_ndcg or not measured
            if is_best:
                self.state.best = copied(self.model.state_dict()) if measured else {}
        record = EpochRecord(
            epoch=progress.epoch + 1,
            steps=progress.total_steps,
            loss=progress.loss_sum / progress.weight_sum,
            seconds=progress.seconds,
            targets=progress.targets,
            targets_per_second=progress.targets / progress.seconds,
            grad_norm=progress.grad_norm_sum / progress.step,
            learning_rate=self.optimizers[0].param_groups[0]["lr"],
            peak_bytes=peak_bytes(self.device),
            validation=measured,
        )
        self.state.history.append(record)
        if is_best:
            progress.best_epoch, progress.best_step, progress.best_ndcg = record.epoch, record.steps, score
        progress.next_epoch()
        return record

    def _validate(self) -> dict[str, float]:
        """Validation metrics of process 0, in every process."""
        if self.validation is None:
            return {}
        started = time.monotonic()
        measured = {} if self.rank else validate(self.model, self.validation)
        measured["validation_seconds"] = time.monotonic() - started
        metrics = f"ndcg@{VALIDATION_K}", f"hit_rate@{VALIDATION_K}", "seconds"
        names = [f"validation_{metric}" for metric in metrics]
        values = distributed.broadcast_floats([measured.get(name, 0.0) for name in names])
        return dict(zip(names, values, strict=True))

    def save_checkpoint(self) -> None:
        """Pass the state, with the random state of every process, to `on_checkpoint`."""
        if self.on_checkpoint is None:
            return
        gathered = {name: distributed.gathered(own) for name, own in random_state(self.device).items()}
        if not self.rank:
            random = [dict(zip(gathered, own, strict=True)) for own in zip(*gathered.values(), strict=True)]
            self.on_checkpoint(self.state.content(random))
        self.saved_at, self.save_is_due = time.monotonic(), False

    def result(self) -> FitResult:
        """Encoder with the best weights."""
        if self.state.best:
            self.model.load_state_dict(self.state.best)
        elif self.average is not None:
            self.average.swap()
        progress, history = self.progress, self.state.history
        return FitResult(self.model.eval(), progress.best_epoch, progress.best_step, history, self.resolved)


def _sampler(model: Encoder, plan: BatchPlan, settings: TrainSettings) -> NegativeSampler | None:
    """Sampler of negatives among the candidates of the loss; None for a loss without negatives."""
    if settings.loss not in SAMPLED_LOSSES:
        return None
    known = model.candidates()
    items = np.arange(1, model.num_items + 1) if known is None else known.cpu().numpy()
    return NegativeSampler(settings, plan.item_counts(model.num_items), items, plan.seed)


def _check_weights(training: _Training) -> None:
    """Raise NotFinite for weights that are not finite."""
    extremes = [torch.stack(weight.detach().aminmax()).float() for weight in training.model.parameters()]
    if not torch.stack(extremes).isfinite().all():
        raise _not_finite(
            training.progress.epoch, training.progress.step, "weights that are not finite", training.last_rows
        )


def _not_finite(epoch: int, step: int, received: str, rows: Int64) -> NotFinite:
    """Error about a step, counted from 1, and its histories."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return NotFinite(
        f"training: received {received} at epoch {epoch + 1}, step {step} "
        f"(training histories {rows[:NAMED_ROWS].tolist()}{more}), expected finite numbers; the last checkpoint is kept "
        "unchanged: lower train.learning_rate or train.max_grad_norm, add train.warmup_steps, or set train.precision = 'fp32'",
        rows,
    )


def _show(bar: Any, training: _Training) -> None:
    """Update the progress bar, if any."""
    if bar is None:
        return
    progress = training.progress
    if not training.unread:
        bar.set_postfix(
            {
                "loss": f"{progress.loss_sum / progress.weight_sum:.4f}",
                "targets/s": f"{progress.targets / progress.seconds:,.0f}",
                "lr": f"{training.optimizers[0].param_groups[0]['lr']:.2g}",
                "grad": f"{progress.grad_norm_sum / progress.step:.3f}",
                "memory": f"{peak_bytes(training.device) / 2**30:.1f} GiB",
            },
            refresh=False,
        )
    bar.update()


def _bar(num_steps: int, progress: Progress, show_progress: bool) -> AbstractContextManager[Any]:
    """Progress bar on a terminal, otherwise a context of None."""
    if not (show_progress and sys.stderr.isatty()):
        return nullcontext()
    from tqdm import tqdm

    bar: AbstractContextManager[Any] = tqdm(
        total=num_steps, initial=progress.step, desc=f"epoch {progress.epoch + 1}", unit="step", leave=False
    )
    return bar
