"""Factories of objects for the tests of several packages."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.histories.jagged import JaggedHistories

if TYPE_CHECKING:
    from models.settings.encoder import EncoderSettings

Rows = Sequence[Sequence[tuple[int, int]]]
"""Events of each user, as (time, item)."""


def jagged(rows: Rows) -> JaggedHistories:
    """Histories of one event type without values."""
    flat = [event for row in rows for event in row]
    time, item = np.array(flat, np.int64).reshape(-1, 2).T.copy()
    return JaggedHistories(
        np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        item.astype(np.int32),
        time,
        np.zeros(len(item), np.int16),
        np.full(len(item), np.nan, np.float32),
    )


def small_bundle(folder: Path, seed: int = 0, settings: "EncoderSettings | None" = None) -> str:
    """Write a bundle of random weights, items "i1".."i7", users 10, 20, 30 with [1, 2, 3], [4], [5, 6]; returns its digest."""
    import polars as pl
    import torch

    from models import checkpoint
    from models.encoder.encoder import Encoder
    from models.retrieval.build import build_index
    from models.settings.encoder import EncoderSettings
    from pipeline.serving.bundle import seal

    for name in ("deployed", "index", "histories"):
        (folder / name).mkdir(parents=True)
    torch.manual_seed(seed)
    encoder = Encoder(settings or EncoderSettings(dim=4, num_blocks=1, num_heads=1), 7, 0, 5)
    checkpoint.save_model(encoder, folder / "deployed")
    numbers = np.arange(1, 8, dtype=np.int32)
    build_index(encoder.item_vectors().detach().numpy()[1:], numbers).save(folder / "index")
    pl.DataFrame(
        {"item_index": numbers, "item_id": [f"i{n}" for n in numbers], "num_events": [1, 1, 1, 1, 1, 9, 5]}
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_index": [0, 1, 2], "user_id": [10, 20, 30]}).write_parquet(folder / "users.parquet")
    jagged([[(0, 1), (1, 2), (2, 3)], [(3, 4)], [(4, 5), (5, 6)]]).save(folder / "histories")
    return seal(folder, {"name": "small", "event_types": []})
