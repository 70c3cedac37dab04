"""Stage index: the item vectors of the trained model and the index over them."""

import time

import numpy as np

from features.histories.jagged import JaggedHistories
from features.histories.splits import Split
from models.checkpoint import load_model
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender, Encoder, as_asked
from models.recommender import Float32, Histories, Int32
from models.retrieval.index import ItemIndex
from pipeline.artifacts.files import write_json
from pipeline.dataset import dataset as rows
from pipeline.orchestration.graph import Context

RATE_SECONDS = 0.3
"""How long a rate is measured, about."""
FIRST_QUERIES = 16
"""Queries from whose time the number to measure on follows."""


def build(ctx: Context) -> None:
    """Write item_vectors.npy, the index, recall.json (against exact search: no clock enters it) and speed.json."""
    encoder = load_model(ctx.inputs["train"], pick_device())
    queries = user_vectors(ctx, encoder, np.load(ctx.inputs["train"] / "items.npy"))
    started = time.monotonic()
    index = index_of(ctx, encoder, queries)
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


def index_of(ctx: Context, encoder: Encoder, queries: Float32) -> ItemIndex:
    """The index over an encoder's item vectors that `[index]` asks for, tuned and measured on `queries` [q, d].

    Without queries (nobody has a known item) it is exact. Raises ValueError where an asked type stays below the asked recall.
    """
    vectors: Float32 = encoder.item_vectors().detach().float().cpu().numpy()[1:]
    items = np.arange(1, encoder.num_items + 1, dtype=np.int32)
    asked = queries if len(queries) else None
    return ItemIndex.build(vectors, items, ctx.config.index, asked, str(pick_device()))


def user_vectors(ctx: Context, encoder: Encoder, mapping: Int32) -> Float32:
    """Vectors of users as they are asked for, evenly spread over all: [at most index.recall_queries, d].

    Of histories that end in validation events, which the evaluated weights did not learn from; where no user has any, of
    training histories. `mapping`: from the features' items to the encoder's.
    """
    histories = JaggedHistories.load(ctx.inputs["features"])
    split = Split.load(ctx.inputs["features"] / "split")
    users = _held_out(histories, split).translate(mapping)
    users = users.select(users.lengths > 0)
    if not len(users):
        users = rows.training_rows(histories, split, with_validation=False).translate(mapping)
        users = users.select(users.lengths > 0)
    wanted = min(len(users), ctx.config.index.recall_queries)
    chosen = np.unique(np.linspace(0, len(users) - 1, wanted).astype(np.int64))
    asked = as_asked(users.select(chosen), int(histories.time.max(initial=0)))
    return AttentionRecommender(encoder).encode(asked)


def _held_out(histories: JaggedHistories, split: Split) -> Histories:
    """The history of every user with validation events, up to the last of them."""
    starts, ends = (np.asarray(edge) for edge in split.stretch(histories, "validation"))
    return rows.rows(histories, histories.offsets[:-1], ends).select(ends > starts)


def _rates(index: ItemIndex, queries: Float32) -> dict[str, float]:
    """Lists of 100 a second on one thread, by the index and by exact search."""
    if not len(queries):
        return {}
    found = {}
    for name, exactly in (("queries_per_second", False), ("exact_queries_per_second", True)):
        first = index.queries_per_second(queries[:FIRST_QUERIES], 100, exactly=exactly)
        wanted = max(FIRST_QUERIES, int(first * RATE_SECONDS))
        found[name] = index.queries_per_second(queries[:wanted], 100, exactly=exactly)
    return found


def _summary(index: ItemIndex) -> str:
    facts = index.facts
    shape = ", ".join(f"{name} {value:,}" for name, value in facts.parameters.items() if value)
    recall = f"recall@100 {facts.recall['recall@100']:.4f}" if facts.queries else "recall not measured"
    return (
        f"{index.num_items:,} items of {index.vectors.shape[1]} components, {facts.type}"
        f"{f' ({shape})' if shape else ''}: {recall}, {facts.scanned_share:.2%} scanned, {facts.num_bytes / 2**20:.1f} MiB"
    )
