"""The training loop over arrays: histories in, the weights that validated best out; no files, no tracking.

Letters: rows and items as in `models.recommender`; a target is a position whose next item bears loss.
"""

import copy
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batching import Batch, BatchPlan
from models.encoder import AttentionRecommender, Encoder
from models.losses import softmax_loss
from models.metrics import hit_rate, ndcg, ranks
from models.recommender import Float32, Histories, Int32
from models.settings import EncoderSettings, TrainSettings
from models.topk import mask_seen, row_chunks

VALIDATION_K = 10
STATE_VERSION = 1
COMPILE_MIN_TARGETS = 2e8
"""Targets over all epochs from which `compile = "auto"` compiles on a GPU."""


@dataclass(frozen=True)
class Validation:
    """Held-out next items, each ranked among the whole catalogue after every epoch."""

    histories: Histories
    target: Int32
    """[rows], the item that came next."""
    exclude_seen: bool = True
    """Whether items of the history are out of the ranking (the target itself never is)."""


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training histories, or the part of it that `max_steps` left."""

    epoch: int
    """From 1."""
    steps: int
    """Optimiser steps so far, over all epochs."""
    loss: float
    """Weighted mean over the epoch's targets, in nats."""
    seconds: float
    """Wall time of the optimiser steps, without validation and compilation."""
    targets: int
    """Targets that bear loss."""
    targets_per_second: float
    grad_norm: float
    """Mean over steps of the gradient's Euclidean norm before it is clipped."""
    learning_rate: float
    validation: dict[str, float]
    """`validation_ndcg@10`, `validation_hit_rate@10`, `validation_seconds`; empty without validation."""

    def row(self) -> dict[str, float]:
        """The record as one flat row."""
        flat = asdict(self)
        return {**{key: value for key, value in flat.items() if key != "validation"}, **self.validation}


@dataclass(frozen=True)
class FitResult:
    """A trained encoder and how it came about."""

    model: Encoder
    """In evaluation mode, with the weights of `best_epoch`."""
    best_epoch: int
    """The epoch whose validation NDCG@10 was highest; the last one without validation."""
    best_step: int
    """Optimiser steps up to the end of that epoch."""
    history: list[EpochRecord]
    resolved: dict[str, Any]
    """What `auto` came to, and the sizes that follow from the data."""


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
    grad_norm_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_step: int = 0
    best_ndcg: float = -math.inf

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum = self.weight_sum = self.grad_norm_sum = self.seconds = 0.0
        self.targets = 0


def fit(
    histories: Histories,
    *,
    encoder: EncoderSettings,
    train: TrainSettings,
    num_items: int,
    num_event_types: int,
    max_length: int,
    type_weights: Float32 | None = None,
    seed: int = 0,
    validation: Validation | None = None,
    max_steps: int | None = None,
    resume: dict[str, Any] | None = None,
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    show_progress: bool = False,
) -> FitResult:
    """Minimise the weighted cross-entropy of the next item with AdamW until validation NDCG@10 stops rising.

    `type_weights` [num_event_types + 1] weighs each target by its event type. With `validation` the best weights
    are returned and `train.patience` epochs without a better one end the training; without, all of `train.epochs` run.
    `max_steps` runs exactly that many optimiser steps, whatever `train.epochs` says, without validation.
    `on_checkpoint` receives the whole state every `train.checkpoint_seconds` and after each epoch; passed back as
    `resume`, the training goes on from there and on the CPU ends in the same bits as one never interrupted.
    Raises ValueError where no history bears a target, `resume` is of another training, or the loss is not finite.
    """
    if max_steps is not None:
        validation = None
    device = pick_device()
    plan = BatchPlan(histories, max_length, train.batch_histories, type_weights, seed)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Encoder(encoder, num_items, num_event_types, max_length).to(device)
        training = _Training(model, plan, train, validation, max_steps, seed)
        if resume is not None:
            training.load_state(resume)
        training.run(on_checkpoint, on_epoch, show_progress)
    return training.result()


def pick_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run natively: AMX or AVX-512 BF16 on the CPU, compute capability 8 on CUDA."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def validate(encoder: Encoder, validation: Validation) -> dict[str, float]:
    """Mean NDCG@10 and hit rate@10 of the targets, each ranked among the whole catalogue; ties count half."""
    recommender = AttentionRecommender(encoder)
    found = []
    for rows in row_chunks(len(validation.target), encoder.num_items):
        part, target = validation.histories.select(rows), validation.target[rows]
        scores = recommender.score_items(part)
        if validation.exclude_seen:
            at_target = np.arange(len(target)), target
            own = scores[at_target]
            mask_seen(scores, part)
            scores[at_target] = own
        found.append(ranks(scores, target)[0])
    rank = np.concatenate(found)
    return {
        f"validation_ndcg@{VALIDATION_K}": float(ndcg(rank, VALIDATION_K).mean()),
        f"validation_hit_rate@{VALIDATION_K}": float(hit_rate(rank, VALIDATION_K).mean()),
    }


class _Training:
    """One training: model, optimiser, where it stands, and the best weights so far."""

    def __init__(
        self,
        model: Encoder,
        plan: BatchPlan,
        settings: TrainSettings,
        validation: Validation | None,
        max_steps: int | None,
        seed: int,
    ) -> None:
        if not plan.num_targets:
            raise ValueError(
                "training histories: received none with two events, expected at least one target to learn"
            )
        self.model, self.plan, self.settings, self.max_steps = model, plan, settings, max_steps
        self.device = model.items.weight.device
        self.validation = _sample(validation, settings.validation_targets, seed)
        self.optimizer = _optimizer(model, settings)
        self.precision = _resolve_precision(settings, self.device)
        self.compiled = self._resolve_compile()
        self.forward: Callable[..., Tensor] = torch.compile(model, dynamic=True) if self.compiled else model
        self.progress = _Progress()
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def run(
        self,
        on_checkpoint: Callable[[dict[str, Any]], None] | None,
        on_epoch: Callable[[EpochRecord], None] | None,
        show_progress: bool,
    ) -> None:
        """Epoch after epoch until done."""
        if self.compiled and not self._done():
            self._compile()
        while not self._done():
            with _bar(self.plan.steps_per_epoch, self.progress, show_progress) as bar:
                self._run_steps(on_checkpoint, bar)
            record = self._end_epoch()
            if on_epoch is not None:
                on_epoch(record)
            self._checkpoint(on_checkpoint)

    def result(self) -> FitResult:
        """The outcome, with the best weights in the model."""
        if self.best:
            self.model.load_state_dict(self.best)
        progress = self.progress
        resolved = {
            "device": self.device.type,
            "precision": self.precision,
            "compile": "on" if self.compiled else "off",
            "threads": torch.get_num_threads(),
            "steps_per_epoch": self.plan.steps_per_epoch,
            "targets_per_epoch": self.plan.num_targets,
            "histories": len(self.plan.windows),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        return FitResult(self.model.eval(), progress.best_epoch, progress.best_step, self.history, resolved)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, in tensors and plain values."""
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "model": _copy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "best": dict(self.best),
            "progress": asdict(self.progress),
            "history": [asdict(record) for record in self.history],
            "random": self._random_state(),
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = dict(state["best"])
        self.progress = _Progress(**state["progress"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self._set_random_state(state["random"])

    def _identity(self) -> list[int]:
        """Sizes that tell one training from another."""
        sizes = [self.model.num_items, self.model.num_event_types, self.model.max_length]
        return [*sizes, self.plan.seed, self.plan.num_targets, self.plan.steps_per_epoch]

    def _done(self) -> bool:
        progress = self.progress
        if self.max_steps is not None:
            return progress.total_steps >= self.max_steps
        if self.validation is not None and progress.epoch - progress.best_epoch >= self.settings.patience:
            return True
        return progress.epoch >= self.settings.epochs

    def _run_steps(self, on_checkpoint: Callable[[dict[str, Any]], None] | None, bar: Any) -> None:
        """The rest of the present epoch, up to `max_steps`."""
        self.model.train()
        started = time.monotonic()
        for batch in self.plan.batches(self.progress.epoch, self.progress.step):
            if self.max_steps is not None and self.progress.total_steps >= self.max_steps:
                break
            self._step(batch.to(self.device))
            now = time.monotonic()
            self.progress.seconds += now - started
            bar.update()
            if now - self.saved_at >= self.settings.checkpoint_seconds:
                self._checkpoint(on_checkpoint)
            started = time.monotonic()

    def _step(self, batch: Batch) -> None:
        """One optimiser step."""
        progress = self.progress
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.max_grad_norm or math.inf
        )
        value, grad_norm = loss.item(), norm.item()
        if not (math.isfinite(value) and math.isfinite(grad_norm)):
            raise ValueError(
                f"training: received loss {value} and gradient norm {grad_norm} at epoch {progress.epoch + 1}, "
                f"step {progress.step + 1}, expected finite numbers; lower train.learning_rate or set "
                "train.precision = 'fp32'"
            )
        self.optimizer.step()
        weight = float(batch.weight.sum())
        progress.step += 1
        progress.total_steps += 1
        progress.loss_sum += value * weight
        progress.weight_sum += weight
        progress.targets += len(batch.target)
        progress.grad_norm_sum += grad_norm

    def _loss(self, batch: Batch) -> Tensor:
        with self._autocast():
            states = self.forward(batch.item_index, batch.event_type).flatten(0, 1)[batch.position]
            return softmax_loss(states, self.model.item_vectors(), batch.target, batch.weight)

    def _compile(self) -> None:
        """Compile on the first batch, outside the clock; weights and random numbers stay as they are."""
        random = self._random_state()
        self.model.train()
        torch.autograd.backward(self._loss(next(self.plan.batches(0)).to(self.device)))
        self.optimizer.zero_grad(set_to_none=True)
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
        measured = self._validate()
        record = EpochRecord(
            epoch=progress.epoch + 1,
            steps=progress.total_steps,
            loss=progress.loss_sum / progress.weight_sum,
            seconds=progress.seconds,
            targets=progress.targets,
            targets_per_second=progress.targets / progress.seconds,
            grad_norm=progress.grad_norm_sum / progress.step,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            validation=measured,
        )
        self.history.append(record)
        score = measured.get(f"validation_ndcg@{VALIDATION_K}", math.inf)
        if score > progress.best_ndcg or not measured:
            progress.best_epoch, progress.best_step, progress.best_ndcg = record.epoch, record.steps, score
            self.best = _copy(self.model.state_dict()) if measured else {}
        progress.next_epoch()
        return record

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        started = time.monotonic()
        measured = validate(self.model, self.validation)
        return {**measured, "validation_seconds": time.monotonic() - started}

    def _checkpoint(self, on_checkpoint: Callable[[dict[str, Any]], None] | None) -> None:
        if on_checkpoint is not None:
            on_checkpoint(self.state())
        self.saved_at = time.monotonic()

    def _resolve_compile(self) -> bool:
        """`auto` compiles long trainings on CUDA; on the CPU the eager step is already near the kernels' own time."""
        if self.settings.compile != "auto":
            return self.settings.compile == "on"
        return (
            self.device.type == "cuda" and self.plan.num_targets * self.settings.epochs >= COMPILE_MIN_TARGETS
        )


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def _sample(validation: Validation | None, targets: int, seed: int) -> Validation | None:
    """At most `targets` of the validation targets, always the same for a seed."""
    if validation is None or len(validation.target) <= targets:
        return validation if validation is not None and len(validation.target) else None
    rows = np.sort(np.random.default_rng(seed).choice(len(validation.target), targets, replace=False))
    return Validation(validation.histories.select(rows), validation.target[rows], validation.exclude_seen)


def _resolve_precision(settings: TrainSettings, device: torch.device) -> str:
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if computes_bf16(device) else "fp32"


def _optimizer(model: Encoder, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; only the matrices of linear layers decay."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    parameters = list(model.parameters())
    decayed = [weight for weight in parameters if weight.ndim >= 2 and id(weight) not in embeddings]
    others = [weight for weight in parameters if weight.ndim < 2 or id(weight) in embeddings]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=betas, weight_decay=settings.weight_decay, fused=True
    )


def _bar(steps: int, progress: _Progress, show_progress: bool) -> Any:
    """A progress bar on stderr where it is a terminal."""
    if not (show_progress and sys.stderr.isatty()):
        return _NoBar()
    from tqdm import tqdm

    return tqdm(
        total=steps, initial=progress.step, desc=f"epoch {progress.epoch + 1}", unit="step", leave=False
    )


class _NoBar:
    """The progress bar nobody sees."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self) -> None:
        """Nothing to draw."""
