"""Stage index: the item vectors of the trained model and the FAISS index over them."""

import numpy as np

from features.histories import JaggedHistories
from features.splits import Split
from models.checkpoint import load_model
from models.encoder import AttentionRecommender, as_asked
from models.index import ItemIndex
from models.machine import pick_device
from models.recommender import Float32
from pipeline.histories import training_rows
from pipeline.stages import Context
from pipeline.store import write_json


def build(ctx: Context) -> None:
    """Write item_vectors.npy, items.faiss, items.npy and recall.json (against exact search)."""
    encoder = load_model(ctx.inputs["train"], pick_device())
    vectors: Float32 = encoder.item_vectors().detach().float().cpu().numpy()[1:]
    index = ItemIndex.build(vectors, np.arange(1, encoder.num_items + 1, dtype=np.int32))
    np.save(ctx.folder / "item_vectors.npy", vectors, allow_pickle=False)
    index.save(ctx.folder)
    queries = _queries(ctx, AttentionRecommender(encoder))
    recall = {f"recall@{k}": index.recall(queries, k) for k in (10, 100)}
    kind = ctx.config.index.type
    write_json(
        ctx.folder / "recall.json",
        {**recall, "num_items": encoder.num_items, "type": kind, "queries": len(queries)},
    )
    ctx.manifest.update(rows_in=encoder.num_items, rows_out=encoder.num_items)
    for name, value in recall.items():
        ctx.track.metric(f"index/{name}", value)
    ctx.track.artifact("recall.json")
    ctx.summary(
        f"{encoder.num_items:,} items of {vectors.shape[1]} components, {kind}: recall@100 {recall['recall@100']:.4f}"
    )


def _queries(ctx: Context, recommender: AttentionRecommender) -> Float32:
    """Vectors of users with training events, evenly spread over all of them: [at most index.recall_queries, d]."""
    histories = JaggedHistories.load(ctx.inputs["features"])
    split = Split.load(ctx.inputs["features"] / "split")
    mapping = np.load(ctx.inputs["train"] / "items.npy")
    users = training_rows(histories, split, with_validation=False).translate(mapping)
    users = users.select(users.lengths > 0)
    chosen = np.unique(
        np.linspace(0, len(users) - 1, min(len(users), ctx.config.index.recall_queries)).astype(np.int64)
    )
    return recommender.encode(as_asked(users.select(chosen), int(histories.time.max())))
