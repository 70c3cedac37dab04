"""The training loop over arrays: histories in, the weights that validated best out; no files, no tracking.

Letters: rows and items as in `models.recommender`; a target is a position whose next item bears loss.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.device import matmul_flops, peak_bytes, pick_device, resolved_compile, resolved_precision
from models.encoder.batching import BatchPlan
from models.encoder.embeddings import ItemContent
from models.encoder.encoder import Encoder
from models.histories import Float32, Histories, Int64
from models.settings.encoder import RECURRENT_BLOCKS, EncoderSettings
from models.settings.training import SAMPLED_LOSSES, TrainSettings, check_together
from models.training import distributed
from models.training.flops import matrix_entries, step_flops
from models.training.negatives import NegativeSampler
from models.training.objective import Objective
from models.training.optimizers import WeightAverage, build, clip_gradients, is_rowwise, learning_rate
from models.training.result import EpochRecord, FitResult, Initial, NotFinite
from models.training.steps import Step, prefetched, steps
from models.training.validation import VALIDATION_K, Validation, validate

STATE_VERSION = 2
WINDOW_WORK = 110_000
"""Tokens x dim of a window from which the padding that it saves is worth its own calls."""
NAMED_ROWS = 20
"""Histories that the message about a step names, at most."""


@dataclass
class _Progress:
    """Where a training stands; everything here is in the checkpoint."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed within the next epoch."""
    total_steps: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    targets: int = 0
    flops: int = 0
    grad_norm_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_step: int = 0
    best_ndcg: float = -math.inf

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum = self.weight_sum = self.grad_norm_sum = self.seconds = 0.0
        self.targets = self.flops = 0


def fit(
    histories: Histories,
    *,
    encoder: EncoderSettings,
    train: TrainSettings,
    num_items: int,
    num_event_types: int,
    max_length: int,
    type_weights: Float32 | None = None,
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
    """Minimise `train.loss` of the next item until validation NDCG@10 stops rising.

    `type_weights` [num_event_types + 1] weighs each target by its event type. With `validation` the best weights
    are returned and `train.patience` epochs without a better one end the training; without, all of `train.epochs` run.
    `max_steps` runs exactly that many optimiser steps, whatever `train.epochs` says, without validation; the learning rate
    goes the way it would over `train.epochs`. `initial`: go on from these weights instead of fresh ones, where a training
    ends: without warm-up, at the last learning rate of the schedule and the last temperature of Gumbel-softmax.
    `on_checkpoint` receives the whole state every `train.checkpoint_seconds` and after each epoch; passed back as
    `resume`, the training goes on from there and on the CPU ends in the same bits as one never interrupted.
    In a group of processes (`models.distributed`) all call this alike; `validation`, `resume` and what is called back are
    those of process 0. Raises ValueError where the settings contradict each other, no history bears a target, `resume` is of
    another training; NotFinite, one of these, where loss, gradient or weights are not.
    """
    check_together(encoder, train)
    if max_steps is not None:
        validation = None
    device = pick_device()
    plan = BatchPlan(
        histories,
        max_length,
        train.batch_histories,
        type_weights,
        seed,
        targets=train.targets,
        with_time=encoder.looks_at_time,
        with_value=encoder.value,
        one_window=encoder.block in RECURRENT_BLOCKS or device.type != "cpu" or train.compile == "on",
        window_tokens=WINDOW_WORK // encoder.dim,
    )
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Encoder(encoder, num_items, num_event_types, max_length, content=content)
        if initial is not None:
            initial.copy_into(model)
        if distributed.rank():
            torch.manual_seed(seed + distributed.rank())  # dropout of its own
        training = _Training(
            model.to(device), plan, train, validation, max_steps, initial is not None, on_checkpoint, on_epoch
        )
        training.run(distributed.told(resume), show_progress)
    return training.result()


class _Training:
    """One training: model, optimisers, where it stands, and the best weights so far."""

    def __init__(
        self,
        model: Encoder,
        plan: BatchPlan,
        settings: TrainSettings,
        validation: Validation | None,
        max_steps: int | None,
        goes_on: bool,
        on_checkpoint: Callable[[dict[str, Any]], None] | None,
        on_epoch: Callable[[EpochRecord], None] | None,
    ) -> None:
        if not plan.num_targets:
            raise ValueError(
                "training histories: received none with two events, expected at least one target to learn"
            )
        self.model, self.plan, self.settings, self.max_steps = model, plan, settings, max_steps
        self.on_checkpoint, self.on_epoch = on_checkpoint, on_epoch
        self.size, self.rank = distributed.size(), distributed.rank()
        self.device = next(model.parameters()).device
        self.validation = None
        if validation is not None and len(validation.target) and not self.rank:
            self.validation = validation.sample(settings.validation_targets, plan.seed)
        asked = [self.validation is not None, on_checkpoint is not None, goes_on]
        self.validates, self.saves, self.goes_on = (bool(flag) for flag in distributed.of_first(asked))
        self.precision = resolved_precision(settings.precision, self.device)
        self.compiled = resolved_compile(settings.compile, self.device, plan.num_targets * settings.epochs)
        self.known_items = self._known_items()
        self.sampler = self._sampler()
        self.num_candidates = settings.negatives + 1 if self.sampler is not None else len(self.known_items)
        self.entries = matrix_entries(model)
        sparse = self._sparse_table()
        self.optimizers = build(model, settings, sparse)
        objective = Objective(model, settings, compile=self.compiled == "on")
        self.objective = distributed.data_parallel(objective) if self.size > 1 else objective
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        self.planned_steps = settings.epochs * plan.steps_per_epoch
        self.resolved = self._resolved(sparse is not None)
        self.progress = _Progress()
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()
        self.save_is_due = False
        self.last_rows: Int64 = np.zeros(0, np.int64)
        """The histories of the last step."""

    def run(self, resume: dict[str, Any] | None, show_progress: bool) -> None:
        """Epoch after epoch until done, from where `resume` stands; an epoch without a step left is recorded all the same."""
        if resume is not None:
            self.load_state(resume)
        if self.compiled == "on" and not self._done():
            self._compile()
        while self.progress.step or not self._done():
            with _bar(self.plan.steps_per_epoch, self.progress, show_progress) as bar:
                self._run_steps(bar)
            record = self._end_epoch()
            if self.on_epoch is not None and not self.rank:
                self.on_epoch(record)
            self._checkpoint()

    def result(self) -> FitResult:
        """The outcome, with the best weights in the model."""
        if self.best:
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.average.swap()
        progress = self.progress
        return FitResult(
            self.model.eval(), progress.best_epoch, progress.best_step, self.history, self.resolved
        )

    def state(self, random: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Everything that the rest of the training depends on, in tensors and plain values; `random` of each process."""
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "model": _copy(self.model.state_dict()),
            "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers],
            "average": _copy(self.average.average) if self.average is not None else {},
            "best": dict(self.best),
            "progress": asdict(self.progress),
            "history": [asdict(record) for record in self.history],
            "random": random,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; ValueError where it is of another training."""
        expected = {"version": STATE_VERSION, "identity": self._identity()}
        received = {key: state.get(key) for key in expected}
        if received != expected:
            raise ValueError(
                f"checkpoint: received one of another training, {received}, expected {expected}; remove it to start afresh"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average is not None:
            self.average.load(state["average"])
        self.best = dict(state["best"])
        self.progress = _Progress(**state["progress"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        if self.rank < len(state["random"]):  # else a process that was not there: its dropout starts afresh
            self._set_random_state(state["random"][self.rank])

    def _identity(self) -> list[int]:
        """Sizes that tell one training from another."""
        sizes = [self.model.num_items, self.model.num_event_types, self.model.max_length]
        return [*sizes, self.plan.seed, self.plan.num_targets, self.plan.steps_per_epoch]

    def _done(self) -> bool:
        progress = self.progress
        if self.max_steps is not None:
            return progress.total_steps >= self.max_steps
        if self.validates and progress.epoch - progress.best_epoch >= self.settings.patience:
            return True
        return progress.epoch >= self.settings.epochs

    def _run_steps(self, bar: Any) -> None:
        """The rest of the present epoch, up to `max_steps`."""
        self.model.train()
        started = time.monotonic()
        with closing(prefetched(self._steps(self.progress.step))) as coming:
            for step in coming:
                if self.max_steps is not None and self.progress.total_steps >= self.max_steps:
                    break
                self._step(step)
                now = time.monotonic()
                self.progress.seconds += now - started
                started = now
                self._show(bar)
                if self.save_is_due:
                    self._check_weights()
                    self._checkpoint()

    def _steps(self, first: int) -> Iterator[Step]:
        """The present epoch's steps from `first` on."""
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

    def _step(self, step: Step) -> None:
        """One optimiser step."""
        progress = self.progress
        rate = learning_rate(self.settings, self._planned_step(), self.planned_steps)
        loss = self._backward(step)
        norm = clip_gradients(self.model.parameters(), self.settings.max_grad_norm or math.inf)
        is_due = self.saves and time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds
        value, due = distributed.total([loss.item(), float(is_due and not self.rank)])
        grad_norm, self.save_is_due = norm.item(), due > 0
        self.last_rows = self.plan.rows[step.rows]
        if not (math.isfinite(value) and math.isfinite(grad_norm)):
            raise _not_finite(
                progress.epoch,
                progress.step + 1,
                f"loss {value} and gradient norm {grad_norm}",
                self.last_rows,
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if self.average is not None:
            self.average.update(progress.total_steps)
        progress.step += 1
        progress.total_steps += 1
        progress.loss_sum += value * step.weight
        progress.weight_sum += step.weight
        progress.targets += step.num_targets
        progress.flops += step_flops(
            self.model.settings,
            entries=self.entries,
            lengths=step.lengths,
            num_targets=step.num_targets,
            num_candidates=self.num_candidates,
        )
        progress.grad_norm_sum += grad_norm

    def _planned_step(self) -> int:
        """Where schedules stand: behind their end where training goes on from trained weights."""
        if self.goes_on:
            return self.planned_steps + self.settings.warmup_steps
        return self.progress.total_steps

    def _backward(self, step: Step) -> Tensor:
        """The own part of the step's loss; gradients are those of the whole step, over all processes."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.model.anneal(min(1.0, self._planned_step() / self.planned_steps))
        total = torch.zeros((), device=self.device)
        for number, (batch, share) in enumerate(step.parts, 1):
            waits = self.size > 1 and number < len(step.parts)
            with self.objective.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._autocast():
                    loss = self.objective(batch, step.negatives) * share
                torch.autograd.backward(loss * self.size)  # their mean is taken
            total += loss.detach()
        return total

    def _compile(self) -> None:
        """Compile on the epoch's first batch, outside the clock; weights and random numbers stay as they are."""
        random = self._random_state()
        self.model.train()
        self._backward(next(self._steps(0)))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._set_random_state(random)

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _end_epoch(self) -> EpochRecord:
        """Validate, keep the weights if they are the best, and record the epoch."""
        progress = self.progress
        self._check_weights()
        with self.average.in_place() if self.average is not None else nullcontext():
            measured = self._validate()
            score = measured.get(f"validation_ndcg@{VALIDATION_K}", math.inf)
            is_best = score > progress.best_ndcg or not measured
            if is_best:
                self.best = _copy(self.model.state_dict()) if measured else {}
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
            matmul_share=self._matmul_share(),
            validation=measured,
        )
        self.history.append(record)
        if is_best:
            progress.best_epoch, progress.best_step, progress.best_ndcg = record.epoch, record.steps, score
        progress.next_epoch()
        return record

    def _matmul_share(self) -> float:
        progress = self.progress
        return progress.flops / self.size / progress.seconds / float(self.resolved["matmul_flops"])

    def _validate(self) -> dict[str, float]:
        """Process 0's measurements, everywhere."""
        if not self.validates:
            return {}
        started = time.monotonic()
        measured = validate(self.model, self.validation) if self.validation is not None else {}
        names = [
            f"validation_{name}" for name in (f"ndcg@{VALIDATION_K}", f"hit_rate@{VALIDATION_K}", "seconds")
        ]
        measured[names[-1]] = time.monotonic() - started
        return dict(
            zip(names, distributed.of_first([measured.get(name, 0.0) for name in names]), strict=True)
        )

    def _check_weights(self) -> None:
        """Refuse to keep weights that the last step has carried beyond all numbers."""
        extremes = [torch.stack(weight.detach().aminmax()).float() for weight in self.model.parameters()]
        if not torch.stack(extremes).isfinite().all():
            raise _not_finite(
                self.progress.epoch, self.progress.step, "weights that are not finite", self.last_rows
            )

    def _checkpoint(self) -> None:
        if not self.saves:
            return
        own = self._random_state()
        everyone = {name: distributed.gathered(state) for name, state in own.items()}
        if self.on_checkpoint is not None and not self.rank:
            random = [
                dict(zip(everyone, states, strict=True)) for states in zip(*everyone.values(), strict=True)
            ]
            self.on_checkpoint(self.state(random))
        self.saved_at = time.monotonic()

    def _known_items(self) -> Int64:
        """The items that the loss may choose from."""
        known = self.model.candidates()
        return np.arange(1, self.model.num_items + 1) if known is None else known.cpu().numpy()

    def _sampler(self) -> NegativeSampler | None:
        """Where negatives come from, if the loss wants any."""
        if self.settings.loss not in SAMPLED_LOSSES:
            return None
        counts = self.plan.item_counts(self.model.num_items)
        return NegativeSampler(self.settings, counts, self.known_items, self.plan.seed)

    def _sparse_table(self) -> Tensor | None:
        """The item vectors, with sparse gradients from now on, where they get an optimiser of their own."""
        table = self.model.items.ids
        if table is None or not is_rowwise(self.settings, self.model.num_items):
            return None
        if self.size > 1 and self.device.type == "cuda":
            if self.settings.item_optimizer == "auto":
                return None
            raise ValueError(
                f"train.item_optimizer: received 'rowwise_adagrad' with {self.size} processes on CUDA, expected 'adamw' "
                "there: nccl adds up no sparse gradients"
            )
        table.sparse = True
        return table.weight

    def _resolved(self, is_rowwise: bool) -> dict[str, Any]:
        """What `auto` came to, and the sizes that follow from the data."""
        plan = self.plan
        rows = plan.num_targets // (plan.steps_per_epoch * self.size * self.settings.accumulate)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        sizes = max(1, min(8192, rows)), self.model.settings.dim, min(4096, self.num_candidates)
        return {
            "device": self.device.type,
            "precision": self.precision,
            "compile": self.compiled,
            "item_optimizer": "rowwise_adagrad" if is_rowwise else "adamw",
            "processes": self.size,
            "threads": torch.get_num_threads(),
            "steps_per_epoch": plan.steps_per_epoch,
            "targets_per_epoch": plan.num_targets,
            "histories": len(plan.windows),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "matmul_flops": matmul_flops(self.device, dtype, *sizes),
        }

    def _show(self, bar: Any) -> None:
        """What the progress line says."""
        progress = self.progress
        bar.set_postfix(
            {
                "loss": f"{progress.loss_sum / progress.weight_sum:.4f}",
                "targets/s": f"{progress.targets / progress.seconds:,.0f}",
                "lr": f"{self.optimizers[0].param_groups[0]['lr']:.2g}",
                "grad": f"{progress.grad_norm_sum / progress.step:.3f}",
                "memory": f"{peak_bytes(self.device) / 2**30:.1f} GiB",
                "matmul": f"{self._matmul_share():.0%}",
            },
            refresh=False,
        )
        bar.update()


def _not_finite(epoch: int, step: int, what: str, rows: Int64) -> NotFinite:
    """What to say of a step, counted from 1, whose numbers are not, and of the rows that it learned from."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return NotFinite(
        f"training: received {what} at epoch {epoch + 1}, step {step} "
        f"(training histories {rows[:NAMED_ROWS].tolist()}{more}), expected finite numbers; the last checkpoint is kept as it "
        "was: lower train.learning_rate or train.max_grad_norm, add train.warmup_steps, or set train.precision = 'fp32'",
        rows,
    )


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def _bar(num_steps: int, progress: _Progress, show_progress: bool) -> Any:
    """A progress bar on stderr where it is a terminal."""
    if not (show_progress and sys.stderr.isatty()):
        return _NoBar()
    from tqdm import tqdm

    return tqdm(
        total=num_steps, initial=progress.step, desc=f"epoch {progress.epoch + 1}", unit="step", leave=False
    )


class _NoBar:
    """The progress bar nobody sees."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set_postfix(self, numbers: dict[str, str], *, refresh: bool) -> None:
        """Nothing to draw."""

    def update(self) -> None:
        """Nothing to draw."""
