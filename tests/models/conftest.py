"""Every variant of the model, and random models and histories for the tests of this folder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.encoder.embeddings import ItemContent
from models.encoder.encoder import Encoder
from models.histories import Histories, histories_from_lists
from models.settings.encoder import EncoderSettings

NUM_ITEMS, NUM_EVENT_TYPES, LENGTH = 29, 2, 7
HOUR = 3_600_000_000

VARIANTS: list[dict[str, Any]] = [
    {},
    *({"score": score} for score in ("dot", "cosine", "general", "additive", "concat")),
    *({"weighting": kind} for kind in ("silu", "gumbel_softmax", "sparsemax", "entmax")),
    {"weighting": "gumbel_softmax", "gumbel_hard": True},
    *({"positions": kind} for kind in ("none", "absolute", "relative", "rotary")),
    {"positions": "rotary", "score": "general"},
    {"time_bias": True},
    {"time_bias": True, "request_time": True},
    {"window": 3},
    {"direction": "bidirectional"},
    {"feed_forward": "swiglu"},
    *({"block": block} for block in ("hstu", "ligr", "gru", "lstm", "conv", "pooling")),
    {"block": "gru", "direction": "bidirectional", "readout": "mean"},
    {"block": "lstm", "direction": "bidirectional", "readout": "attention"},
    *({"readout": readout} for readout in ("mean", "attention", "target")),
    {"block": "hstu", "readout": "target"},
    {"block": "pooling", "num_blocks": 0, "readout": "target", "score": "concat"},
    {"block": "gru", "readout": "attention"},
    {"weighting": "silu", "readout": "target"},
    {"num_blocks": 0, "block": "pooling", "readout": "mean"},
    {"num_blocks": 0, "readout": "attention", "score": "dot"},
    {"value": True},
    {"event_type": False},
    {"calendar": True},
    {"calendar": True, "request_time": True, "block": "gru"},
    {"item_content": True},
    {"item_content": True, "item_id": False},
    {"similarity": "cosine"},
    {"similarity": "cosine", "learned_temperature": True},
    {"block": "hstu", "positions": "rotary", "time_bias": True, "request_time": True, "window": 4},
    {"block": "ligr", "score": "additive", "weighting": "entmax", "positions": "relative", "time_bias": True},
    {"block": "hstu", "direction": "bidirectional", "time_bias": True, "readout": "mean"},
]
"""Each part of the model by itself, and some together."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `variant` is run for each; those that add no setting to the others are slow tests."""
    if "variant" in metafunc.fixturenames:
        seen = {pair for variant in VARIANTS if len(variant) == 1 for pair in variant.items()}
        chosen = []
        for variant in VARIANTS:
            adds = len(variant) < 2 or not set(variant.items()) <= seen
            seen |= set(variant.items())
            name = " ".join(f"{key}={value}" for key, value in variant.items())
            chosen.append(pytest.param(variant, id=name, marks=() if adds else pytest.mark.slow))
        metafunc.parametrize("variant", chosen)


def _random_content(num_items: int, seed: int = 0) -> ItemContent:
    """5 dense features, up to 3 of 4 categories; every seventh item is not in training, nor is padding."""
    random = np.random.default_rng(seed)
    dense = random.normal(size=(num_items + 1, 5)).astype(np.float32)
    categories = random.integers(0, 5, (num_items + 1, 3)).astype(np.int32)
    dense[0], categories[0] = 0, 0
    return ItemContent(dense, categories, 4, np.arange(num_items + 1) % 7 > 0)


def _random_encoder(
    implementation: Any = "auto",
    num_items: int = NUM_ITEMS,
    num_event_types: int = NUM_EVENT_TYPES,
    max_length: int = LENGTH,
    spread: float = 0.5,
    **settings: Any,
) -> Encoder:
    """Weights larger than at the start, so that everything tells; evaluation mode."""
    torch.manual_seed(0)
    chosen = EncoderSettings(**{"dim": 12, "num_heads": 3, **settings})
    content = _random_content(num_items) if chosen.item_content else None
    encoder = Encoder(chosen, num_items, num_event_types, max_length, implementation, content)
    for name, parameter in encoder.named_parameters():
        if name != "log_temperature":
            torch.nn.init.normal_(parameter, std=spread)
    encoder.items.forget_untrained()
    return encoder.eval()


def _random_histories(lengths: list[int], seed: int = 0, num_items: int = NUM_ITEMS) -> Histories:
    """Items, types, hours apart, values of which every third is missing, and requests after the last event."""
    random = np.random.default_rng(seed)
    rows = [random.integers(1, num_items + 1, length).tolist() for length in lengths]
    times = [(random.integers(1, 40, length).cumsum() * HOUR).tolist() for length in lengths]
    events = sum(lengths)
    value = random.normal(size=events).astype(np.float32)
    value[::3] = np.nan
    return replace(
        histories_from_lists(rows, times),
        event_type=random.integers(0, NUM_EVENT_TYPES + 1, events).astype(np.int16),
        value=value,
        request_time=np.full(len(lengths), 5_000 * HOUR),
    )


@pytest.fixture
def random_encoder() -> Callable[..., Encoder]:
    """An encoder of given settings (default: dim 12, 3 heads, 29 items, 2 event types, 7 positions)."""
    return _random_encoder


@pytest.fixture
def random_histories() -> Callable[..., Histories]:
    """Histories of given lengths."""
    return _random_histories


@pytest.fixture
def random_content() -> Callable[..., ItemContent]:
    """Content of a given number of items."""
    return _random_content
