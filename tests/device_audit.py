"""Audit of device code without a GPU: operations on a pretended device, recorded as they are dispatched.

The device "meta" needs nothing; "cuda" needs the hooks of tests/benchmarks/fake_cuda.py. Tensors of the CPU are computed, those
of the device have shapes alone; values read from the device are made up: zeros, and 1 for a single number.
"""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from models import device as device_module
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation import contributions
from models.explanation.attention_weights import attention_weights, has_attention
from models.explanation.second_stage import two_stage_contributions
from models.histories import Histories
from models.ranking import training as ranker_training
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.training import Retrieved, fit_ranker
from models.retrieval.exact import nearest
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings
from models.settings.training import TrainSettings
from models.training import loop
from models.training.loop import fit
from models.training.validation import Validation
from tests.models.conftest import (
    LENGTH,
    NUM_EVENT_TYPES,
    NUM_ITEMS,
    _random_content,
    _random_encoder,
    _random_histories,
)

SOURCES = f"{Path(__file__).resolve().parents[1] / 'models'}/"
ATEN = torch.ops.aten
WAITS = {
    ATEN._local_scalar_dense.default: "reads a number",
    ATEN.nonzero.default: "counts what is not zero",
    ATEN.masked_select.default: "counts what is selected",
    ATEN._unique2.default: "counts distinct values",
    ATEN.unique_consecutive.default: "counts distinct values",
    ATEN.unique_dim.default: "counts distinct values",
    ATEN.bincount.default: "reads the largest value",
    ATEN.repeat_interleave.Tensor: "reads a sum",
    ATEN._coalesce.default: "counts distinct rows",
    ATEN.equal.default: "reads a comparison",
}
"""Operations whose result, or its shape, the CPU must wait for."""
MADE_UP = {
    ATEN._local_scalar_dense.default,
    ATEN.equal.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN._unique2.default,
    ATEN._thnn_fused_gru_cell.default,
    ATEN._thnn_fused_gru_cell_backward.default,
}
"""Operations that need values, or that torch has no shapes for; a selection is empty."""
COPIES = {ATEN._to_copy.default, ATEN.copy_.default, ATEN.copy.default}
INDEXING = {
    ATEN.index.Tensor,
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN._index_put_impl_.default,
    ATEN._unsafe_index.Tensor,
}
Finding = tuple[str, str, str, str]
"""Phase ("step" or "elsewhere"), kind ("waits", "mixes devices" or "float64"), operation, place in the source."""


class DeviceAudit(TorchDispatchMode):
    """Records what operations on the device wait for, which mix it with the CPU, and which make float64 there."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.findings = Counter[Finding]()
        self.operations = Counter[str]()
        self.phase = "elsewhere"
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute on the CPU what is there alone; record the rest."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if self.is_there(tensor)]
        target = kwargs.get("device")
        goes_there = target is not None and torch.device(target).type == self.device
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not here and not goes_there:
            with _disable_current_modes():
                return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode operations come before they are taken apart
                return func.decompose(*args, **kwargs)
        self.operations[str(func)] += 1
        if func in COPIES:
            return self._copied(func, args, kwargs)
        if any(tensor.dim() for tensor in tensors if not self.is_there(tensor)):
            self.record("mixes devices", func)
        if func in INDEXING and self._reads_mask(args):
            self.record("waits", func, "counts what a mask selects")
            args = (args[0], _nothing_selected(args[1]), *args[2:])
        if func in WAITS:
            self.record("waits", func, WAITS[func])
        result = self._made_up(func, args) if func in MADE_UP else func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and self.is_there(leaf)]
        if any(tensor.dtype == torch.float64 for tensor in made):
            self.record("float64", func)
        return result

    def is_there(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return bool(tensor.device.type == self.device)

    def record(self, kind: str, func: Any, why: str = "") -> None:
        """Count a finding."""
        operation = f"{func}: {why}" if why else str(func)
        self.findings[self.phase, kind, operation, _place()] += 1

    def _reads_mask(self, args: tuple[Any, ...]) -> bool:
        """Whether an index is a mask; one number put at a mask needs no count."""
        is_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
        puts_number = len(args) > 2 and args[2].numel() == 1
        return is_mask and not puts_number

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copies between devices: those back, and those there that are not pinned, wait."""
        target, source = (args[0], args[1]) if func is not ATEN._to_copy.default else (None, args[0])
        goes_there = self.is_there(target) if target is not None else self._names_device(source, kwargs)
        comes_from = self.is_there(source)
        if comes_from and not goes_there:
            self.record("waits", func, "copies to the CPU")
            with _disable_current_modes():
                dtype = target.dtype if target is not None else kwargs.get("dtype") or source.dtype
                made_up = torch.zeros(tuple(source.shape), dtype=dtype)
                return target.copy_(made_up) if target is not None else made_up
        is_number = source.dim() == 0
        if goes_there and not comes_from and not is_number and not self._is_pinned(source, args, kwargs):
            self.record("waits", func, "copies from memory that is not pinned")
        result = func(*args, **kwargs)
        if result.dtype == torch.float64 and self.is_there(result):
            self.record("float64", func)
        return result

    def _names_device(self, source: Tensor, kwargs: dict[str, Any]) -> bool:
        target = kwargs.get("device")
        return self.is_there(source) if target is None else torch.device(target).type == self.device

    def _is_pinned(self, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        return bool(non_blocking) and (self.device == "meta" or any(source is each for each in self.pinned))

    def _made_up(self, func: Any, args: tuple[Any, ...]) -> Any:  # noqa: PLR0911  (one line per operation)
        """A result of an operation that the device can't give without values."""
        source = args[0]
        if func is ATEN._local_scalar_dense.default:
            return {torch.bool: True}.get(source.dtype, 1.0 if source.is_floating_point() else 1)
        if func is ATEN.equal.default:
            return False
        if func is ATEN.nonzero.default:
            return source.new_zeros((0, source.dim()), dtype=torch.int64)
        if func is ATEN.masked_select.default:
            return source.new_zeros(0)
        if func is ATEN._unique2.default:
            return source, torch.zeros_like(source), torch.zeros_like(source)
        if func is ATEN._thnn_fused_gru_cell.default:
            hidden = args[2]
            return torch.empty_like(hidden), hidden.new_empty(len(hidden), 5 * hidden.shape[1])
        assert func is ATEN._thnn_fused_gru_cell_backward.default, func
        gates = source.new_empty(len(source), 3 * source.shape[1])
        bias = gates.new_empty(gates.shape[1])
        return gates, torch.empty_like(gates), torch.empty_like(source), bias, torch.empty_like(bias)


def _nothing_selected(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices with places that select nothing instead of masks."""
    chosen = list[Tensor | None]()
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            chosen += [index.new_zeros(0, dtype=torch.int64) for _ in range(index.dim())]
        else:
            chosen.append(index)
    return chosen


def _place() -> str:
    """Nearest line of the source that is being run; the backward pass has none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(SOURCES):
            return f"{path.removeprefix(SOURCES)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "backward" if threading.current_thread() is not threading.main_thread() else "outside"


def moved_module(module: nn.Module, device: str | torch.device) -> nn.Module:
    """`module.to(device)` for a pretended device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(device), weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
        if isinstance(part, nn.RNNBase):
            part._init_flat_weights()
    return module


@contextlib.contextmanager
def pretended(audit: DeviceAudit, monkeypatch: Any) -> Iterator[DeviceAudit]:
    """Make models/ use the audited device, in one thread, and mark training steps."""
    target = torch.device(audit.device)
    seed = torch.zeros(16, dtype=torch.uint8)
    for module in [device_module, loop]:
        monkeypatch.setattr(module, "pick_device", lambda: target)
    monkeypatch.setattr(loop, "prefetched", lambda items: (item for item in items))
    monkeypatch.setattr(nn.Module, "to", moved_module)

    def pin(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        audit.pinned.append(copy)
        return copy

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: seed)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    if audit.device == "meta":  # autocast and the fused optimiser know no such device
        monkeypatch.setattr(
            sys.modules["torch.optim.optimizer"],
            "_get_fused_kernels_supported_devices",
            lambda: ["cpu", "meta"],
        )
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for owner, name in [(loop._Training, "backward"), (loop._Training, "update"), (ranker_training, "_step")]:
        _marked(audit, owner, name, monkeypatch)
    shapes = (
        FakeTensorMode(allow_non_fake_inputs=True) if audit.device != "meta" else contextlib.nullcontext()
    )
    with shapes, audit:
        yield audit


def _marked(audit: DeviceAudit, owner: Any, name: str, monkeypatch: Any) -> None:
    """Operations of a method belong to the phase "step"."""
    inner = getattr(owner, name)

    def method(*args: Any, **named: Any) -> Any:
        before, audit.phase = audit.phase, "step"
        try:
            return inner(*args, **named)
        finally:
            audit.phase = before

    monkeypatch.setattr(owner, name, method)


def shown(findings: Mapping[Finding, int]) -> list[str]:
    """A line per finding."""
    return [f"{' | '.join(finding)} ({number})" for finding, number in sorted(findings.items())]


def trained(encoder: dict[str, Any], train: dict[str, Any], **more: Any) -> Encoder:
    """An encoder after an epoch of two steps, with validation."""
    shape: dict[str, Any] = {"dim": 12, "num_heads": 3, "num_blocks": 2} | encoder
    usual: dict[str, Any] = {"epochs": 1, "batch_histories": 10, "compile": "off"} | train
    settings, log = EncoderSettings(**shape), _log()
    held_out = Validation(log.select(slice(0, 7)), log.item_index[:7])
    return fit(
        log,
        encoder=settings,
        train=TrainSettings(**usual),
        num_items=NUM_ITEMS,
        num_event_types=NUM_EVENT_TYPES,
        max_length=LENGTH,
        content=_random_content(NUM_ITEMS) if settings.item_content else None,
        validation=held_out,
        **more,
    ).model


def scored(encoder: Encoder) -> None:
    """Encode histories, rank the catalogue, look up attention weights, and explain recommendations by every method."""
    log = _log()
    items, _ = AttentionRecommender(encoder).recommend(log, 2)
    log, items = log.select(slice(2, 5)), items[2:5]
    items = np.maximum(items, 1)  # made up
    for method in get_args(contributions.Method):
        contributions.contributions(encoder, log, items, method)
    if has_attention(encoder):
        attention_weights(encoder, log)


def ranked(device: str, **settings: Any) -> None:
    """Train a second stage, score by it, and explain through both stages."""
    log, random = _log(), np.random.default_rng(0)
    items = np.stack([random.permutation(NUM_ITEMS)[:9] + 1 for _ in range(len(log))]).astype(np.int32)
    scores = -np.sort(-random.normal(size=items.shape), axis=1).astype(np.float32)
    chosen = RankerSettings(dim=8, max_length=5, epochs=1, batch_lists=8, **settings)
    ranker = Ranker(chosen, torch.randn(NUM_ITEMS + 1, 6), NUM_EVENT_TYPES)
    statistics = ItemStatistics.of(log, NUM_ITEMS, None)
    stage = SecondStage(moved_module(ranker, device), statistics, np.arange(NUM_ITEMS + 1, dtype=np.int32))  # type: ignore[arg-type]
    rows = np.arange(len(log), dtype=np.int64)
    fit_ranker(stage, Retrieved.of(log, items, scores, items[:, 4], rows, rows), 0)
    stage.score(log, items, scores)
    encoder = moved_module(_random_encoder(), device)
    log, items, scores = log.select(slice(0, 3)), items[:3], scores[:3]
    for method in get_args(contributions.Method):
        two_stage_contributions(encoder, stage, log, items[:, :2], (items, scores), method)  # type: ignore[arg-type]


def searched(device: str) -> None:
    """Search vectors exactly, with and without excluded ones."""
    queries, vectors = (torch.randn(size, 8).to(device) for size in (13, 500))
    nearest(queries, vectors, 5)
    nearest(queries, vectors, 5, lambda rows: (np.zeros_like(rows), np.arange(len(rows))))


def _log() -> Histories:
    return _random_histories([2 + row % LENGTH for row in range(21)])
