"""Stage index: item vectors of the trained model and the index over them."""

import time

import numpy as np

from features.histories.numbering import ItemNumbering
from models.checkpoint import load_model
from models.device import pick_device
from models.histories import Float32
from models.retrieval.index import ItemIndex
from pipeline.artifacts.files import write_json
from pipeline.modelling.item_index import encoder_index, user_vectors
from pipeline.orchestration.context import Context

RATE_SECONDS = 0.3
"""Approximate duration of a rate measurement, in seconds."""
FIRST_QUERIES = 16
"""Queries of the first timing, which sets the number of queries to measure."""


def build(ctx: Context) -> None:
    """Write item_vectors.npy, the index, recall.json (against exact search) and speed.json (clock times)."""
    encoder = load_model(ctx.inputs["train"], pick_device())
    numbering = ItemNumbering.load(ctx.inputs["train"] / "items.npy")
    queries = user_vectors(ctx.config.index, ctx.dataset, encoder, numbering)
    started = time.monotonic()
    index = encoder_index(ctx.config.index, encoder, queries)
    speed = {"build_seconds": time.monotonic() - started} | _rates(index, queries)
    np.save(ctx.folder / "item_vectors.npy", index.vectors, allow_pickle=False)
    index.save(ctx.folder)
    facts = index.facts.flat() | {"num_items": encoder.num_items}
    write_json(ctx.folder / "recall.json", facts)
    write_json(ctx.folder / "speed.json", speed)
    ctx.manifest.update(rows_in=encoder.num_items, rows_out=encoder.num_items)
    for name in ("recall@10", "recall@100", "scanned_share", "num_bytes"):
        if name in facts:
            ctx.track.metric(f"index/{name}", facts[name])
    for name, value in speed.items():
        ctx.track.metric(f"index/{name}", value)
    for name in ("recall.json", "speed.json"):
        ctx.track.artifact(name)
    ctx.summary(_summary(index))


def _rates(index: ItemIndex, queries: Float32) -> dict[str, float]:
    """Top-100 lists per second on one thread, by the index and by exact search."""
    if not len(queries):
        return {}
    rates = {}
    for name, exactly in (("queries_per_second", False), ("exact_queries_per_second", True)):
        first = index.queries_per_second(queries[:FIRST_QUERIES], 100, exactly=exactly)
        number = max(FIRST_QUERIES, int(first * RATE_SECONDS))
        rates[name] = index.queries_per_second(queries[:number], 100, exactly=exactly)
    return rates


def _summary(index: ItemIndex) -> str:
    facts = index.facts
    shape = ", ".join(f"{name} {value:,}" for name, value in facts.parameters.items() if value)
    recall = f"recall@100 {facts.recall['recall@100']:.4f}" if facts.queries else "recall not measured"
    return (
        f"{index.num_items:,} items of {index.vectors.shape[1]} components, {facts.type}"
        f"{f' ({shape})' if shape else ''}: {recall}, {facts.scanned_share:.2%} scanned, {facts.num_bytes / 2**20:.1f} MiB"
    )
