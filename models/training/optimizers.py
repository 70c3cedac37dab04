"""Optimisers, learning-rate schedule, gradient clipping, and moving average of the weights.

Letters: rows of an embedding, d components of each.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder.encoder import Encoder
from models.settings.training import SAMPLED_LOSSES, TrainSettings
from models.shapes import Float
from models.training import distributed

LAST_FACTOR = 0.01
"""Last learning rate of the cosine schedule, as a share of the first."""
ROWWISE_MIN_ITEMS = 1_000_000
"""Number of items from which `item_optimizer = "auto"` is rowwise_adagrad with a sampled loss."""
DECAYED = (nn.Linear, nn.RNNBase, nn.Conv1d)
"""Modules whose matrices decay."""


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row, for embeddings with sparse gradients.

    Each row i with a gradient g_i: `a_i += mean(g_i ** 2)`, `w_i -= lr * g_i / (sqrt(a_i) + eps)`; others stay.
    ValueError for a dense gradient. Source: Duchi et al. 2011; by rows: Mudigere et al. 2022 (DLRM), FBGEMM.
    """

    def __init__(self, parameters: list[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        assert closure is None, "gradients are computed before the step"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group["lr"], group["eps"])

    def _step(self, weight: Float[Tensor, "rows d"], lr: float, eps: float) -> None:
        if not weight.grad.is_sparse:  # type: ignore[union-attr]
            raise ValueError("RowwiseAdagrad: received a dense gradient, expected nn.Embedding(sparse=True)")
        state = self.state[weight]
        if not state:
            state["accumulated"] = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
        grad = weight.grad.coalesce()  # type: ignore[union-attr]
        rows, values = grad.indices()[0], grad.values().float()
        accumulated = state["accumulated"].index_add_(0, rows, values.square().mean(1))
        step = values / (accumulated[rows].sqrt() + eps).unsqueeze(1)
        weight.index_add_(0, rows, step.to(weight.dtype), alpha=-lr)


def rowwise_table(model: Encoder, settings: TrainSettings) -> Tensor | None:
    """Item vectors, set to sparse gradients, where `RowwiseAdagrad` optimises them; otherwise None.

    That is by `item_optimizer`, or (auto) with a sampled loss over a million items. Raises ValueError for several processes on
    CUDA.
    """
    table, optimizer = model.items.ids, settings.item_optimizer
    is_large = settings.loss in SAMPLED_LOSSES and model.num_items >= ROWWISE_MIN_ITEMS
    if table is None or not (optimizer == "rowwise_adagrad" or (optimizer == "auto" and is_large)):
        return None
    if distributed.size() > 1 and table.weight.device.type == "cuda":
        if optimizer == "auto":
            return None
        raise ValueError(
            f"train.item_optimizer: received 'rowwise_adagrad' with {distributed.size()} processes on CUDA, expected 'adamw' "
            "there: nccl reduces no sparse gradients"
        )
    table.sparse = True
    return table.weight


def build(
    model: nn.Module, settings: TrainSettings, sparse: Tensor | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW with decay for matrices of linear, recurrent and convolutional layers; RowwiseAdagrad for `sparse`."""
    matrices = {
        id(weight)
        for module in model.modules()
        if isinstance(module, DECAYED)
        for weight in module.parameters(recurse=False)
        if weight.ndim >= 2
    }
    dense = [weight for weight in model.parameters() if weight is not sparse]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in dense if id(weight) in matrices]},
        {"params": [weight for weight in dense if id(weight) not in matrices], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return [adamw] if sparse is None else [adamw, RowwiseAdagrad([sparse], settings.learning_rate)]


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Learning rate of a step, counted from 0, of a training planned for `total_steps`.

    In the first w = `warmup_steps` it is `(step + 1) / w` of `settings.learning_rate`; then, with the cosine schedule,
    `f + (1 - f) (1 + cos(pi p)) / 2` of it with p = (step - w) / (total_steps - w), at most 1, and f = 1/100. Unlike torch's
    `LambdaLR` it needs no state in checkpoints. Source: Loshchilov and Hutter 2017, without restarts.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    passed = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return settings.learning_rate * (LAST_FACTOR + (1 - LAST_FACTOR) * (1 + math.cos(math.pi * passed)) / 2)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Clip gradients to the Euclidean norm `max_norm` (may be infinite); return their norm before.

    As `torch.nn.utils.clip_grad_norm_`, but for sparse gradients too, which it coalesces.
    """
    weights, gradients = list[Tensor](), list[Tensor]()
    for weight in parameters:
        gradient = weight.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            weight.grad = gradient = gradient.coalesce()
        weights.append(weight)
        gradients.append(gradient.values() if gradient.is_sparse else gradient)
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    return norm


class WeightAverage:
    """Exponential moving average of weights: after step t (from 0) `average = k average + (1 - k) weight`.

    k = min(decay, (1 + t) / (10 + t)), so that initial weights fade soon. Source: Polyak and Juditsky 1992; rising decay as in
    TensorFlow's ExponentialMovingAverage with num_updates. torch's `AveragedModel` also copies every buffer at each step, item
    content among them (34 ms instead of 3 for 20,000 items with 384 features).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = dict(model.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after a step, counted from 0."""
        kept = min(self.decay, (1 + step) / (10 + step))
        weights = [weight.detach() for weight in self._weights.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the averaged weights in the model within this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def load(self, average: dict[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, weight in self.average.items():
            weight.copy_(average[name])

    def swap(self) -> None:
        """Swap the model's weights and the average."""
        for name, weight in self._weights.items():
            weight.data, self.average[name] = self.average[name], weight.data
