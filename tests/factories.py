"""Factories of objects for the tests of several packages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def small_baseline_bundle(folder: Path, system: str, tuned: Mapping[str, float], **facts: Any) -> str:
    """Write a bundle of a baseline fitted on the events of `small_bundle`; facts: of bundle.json. Returns its digest."""
    import polars as pl

    from features import content
    from features.settings import ContentSettings
    from pipeline.dataset.dataset import rows
    from pipeline.modelling.recommenders import kind_of
    from pipeline.serving.bundle import seal

    for name in ("evaluated", "deployed", "histories"):
        (folder / name).mkdir(parents=True)
    histories = jagged([[(0, 1), (1, 2), (2, 3)], [(3, 4)], [(4, 5), (5, 6)]])
    histories.save(folder / "histories")
    numbers, offsets = np.arange(1, 8, dtype=np.int32), np.asarray(histories.offsets)
    for name in ("evaluated", "deployed"):
        kind_of(system).fit(rows(histories, offsets[:-1], offsets[1:]), 7, tuned).save(folder / name)
    items = {"item_index": numbers, "item_id": [f"i{n}" for n in numbers], "evaluated_index": numbers}
    table = pl.DataFrame(
        items | {"num_events": [1, 1, 1, 1, 1, 9, 5], "title": [None] * 7},
        schema_overrides={"title": pl.String},
    )
    table.write_parquet(folder / "items.parquet")
    content.build(folder, table.select("item_id"), np.ones(7, bool), ContentSettings())
    until = pl.Series([2, 3, 5]).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame({"user_id": [10, 20, 30], "trained_until": until}).write_parquet(folder / "users.parquet")
    description = {
        "name": "small",
        "event_types": [],
        "system": system,
        "system_settings": dict(tuned),
        "settings": {"history": {"min_item_events": 1}},
        "features": "same",
        "trained_until": 6,
    }
    return seal(folder, description | facts)
