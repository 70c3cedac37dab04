"""Training state: progress, weights, optimisers and random generators, saved and restored as plain values."""

import copy
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.encoder.encoder import Encoder
from models.histories import Int64
from models.training.optimizers import WeightAverage
from models.training.result import EpochRecord
from models.training.steps import Step

STATE_VERSION = 3


@dataclass
class Progress:
    """Completed epochs and steps, and sums over the steps of the current epoch."""

    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed steps of the current epoch."""
    total_steps: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    targets: int = 0
    grad_norm_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_step: int = 0
    best_ndcg: float = -math.inf

    def count(self, step: Step) -> None:
        """Count a completed step."""
        self.step += 1
        self.total_steps += 1
        self.targets += step.num_targets

    def add(self, measured: "Measured", loss: float, grad_norm: float) -> None:
        """Add the numbers of a step, once they are read."""
        self.loss_sum += loss * measured.weight
        self.weight_sum += measured.weight
        self.grad_norm_sum += grad_norm

    def next_epoch(self) -> None:
        """Start another epoch with its sums at zero."""
        self.epoch, self.step, self.targets = self.epoch + 1, 0, 0
        self.loss_sum = self.weight_sum = self.grad_norm_sum = self.seconds = 0.0


@dataclass(frozen=True)
class Measured:
    """Numbers of a step that are still on the device."""

    step: int
    """Step of the epoch, from 1."""
    rows: Int64
    """Training histories of the step."""
    weight: float
    """Sum of target weights."""
    loss: Tensor
    """Loss of this process's part."""
    grad_norm: Tensor


@dataclass
class TrainingState:
    """State that determines the rest of a training, without random generators."""

    identity: list[int]
    """Sizes that distinguish trainings."""
    model: Encoder
    optimizers: list[torch.optim.Optimizer]
    average: WeightAverage | None
    progress: Progress = field(default_factory=Progress)
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best epoch, on the CPU; empty without validation."""

    def content(self, random: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Checkpoint of tensors and plain values, with the random state of each process."""
        return {
            "version": STATE_VERSION,
            "identity": self.identity,
            "model": copied(self.model.state_dict()),
            "optimizers": [_on_cpu(optimizer.state_dict()) for optimizer in self.optimizers],
            "average": copied(self.average.average) if self.average is not None else {},
            "best": dict(self.best),
            "progress": asdict(self.progress),
            "history": [asdict(record) for record in self.history],
            "random": random,
        }

    def load(self, content: dict[str, Any], rank: int) -> None:
        """Restore a checkpoint in process `rank`; ValueError for one of another training."""
        expected = {"version": STATE_VERSION, "identity": self.identity}
        received = {key: content.get(key) for key in expected}
        if received != expected:
            raise ValueError(
                f"checkpoint: received one of another training, {received}, expected {expected}; remove it to start afresh"
            )
        self.model.load_state_dict(content["model"])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average is not None:
            self.average.load(content["average"])
        self.best = dict(content["best"])
        self.progress = Progress(**content["progress"])
        self.history = [EpochRecord(**record) for record in content["history"]]
        if rank < len(content["random"]):  # an additional process starts with fresh dropout
            set_random_state(content["random"][rank])


def _on_cpu(state: Any) -> Any:
    """Copy of nested dictionaries and lists, tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else copy.deepcopy(state)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's random generators: of the CPU, and of CUDA on such a device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore a result of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies of weights."""
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}
