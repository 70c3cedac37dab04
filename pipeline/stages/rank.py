"""Stage rank: the second stage, trained on what the retriever finds for validation targets that it did not learn from."""

from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from features.histories.numbering import ItemNumbering
from models import checkpoint
from models.device import pick_device
from models.encoder.encoder import AttentionRecommender, Encoder
from models.ranking.calibration import Calibration, cross_fitted, quality
from models.ranking.ranker import Ranker, SecondStage
from models.ranking.training import RankerEpoch, RankerFit, Retrieved, fit_ranker, ndcg_of
from models.topk import row_chunks
from pipeline.artifacts.files import write_json
from pipeline.dataset.targets import targets_of
from pipeline.errors import LookbackError
from pipeline.modelling import second_stage
from pipeline.modelling.trainer import selection_folder
from pipeline.orchestration.context import Context

MIN_LISTS = 100
"""Lists with their target among the candidates below which no ranker is trained."""
MIN_USERS = 20
"""Users below which none is: some of them are held out to stop it, and their halves calibrate each other."""


def build(ctx: Context) -> None:
    """Write ranker.json, and where one is trained ranker.safetensors, ranker_config.json, items.npy, ranker_history.parquet."""
    settings = ctx.config.ranker
    if settings.use == "never":
        _without(ctx, "ranker.use is never: the order of retrieval stands")
        return
    folder = selection_folder(ctx.inputs["train"])
    encoder = checkpoint.load_model(folder, pick_device())
    numbering = ItemNumbering.load(folder / "items.npy")
    stage, retrieved = _prepared(ctx, encoder, numbering)
    num_lists = int((retrieved.place >= 0).sum())
    num_users = len(np.unique(retrieved.user))
    if num_lists < MIN_LISTS or num_users < MIN_USERS:
        reason = (
            f"{num_lists:,} of {len(retrieved):,} validation targets, of {num_users:,} users, are among {settings.candidates} "
            f"candidates, expected {MIN_LISTS} at least to learn from, of {MIN_USERS} users"
        )
        if settings.use == "always":
            raise LookbackError(
                f"ranker.use: received 'always', but {reason}: raise ranker.candidates or use a longer log"
            )
        _without(ctx, f"{reason}: the order of retrieval stands")
        return
    fitted = fit_ranker(stage, retrieved, ctx.config.seed, on_epoch=lambda epoch: _tell(ctx, epoch))
    checkpoint.save_ranker(fitted.stage.ranker, ctx.folder)
    numbering.save(ctx.folder / "items.npy")
    pl.DataFrame([asdict(epoch) for epoch in fitted.history]).write_parquet(
        ctx.folder / "ranker_history.parquet"
    )
    _report(ctx, fitted, retrieved, num_lists)


def _without(ctx: Context, reason: str) -> None:
    facts = {"trained": False, "setting": ctx.config.ranker.use, "reason": reason}
    write_json(ctx.folder / second_stage.DESCRIPTION, facts)
    ctx.summary(reason)


def _prepared(ctx: Context, encoder: Encoder, numbering: ItemNumbering) -> tuple[SecondStage, Retrieved]:
    """A fresh ranker behind the encoder that knows the training part alone, and its candidates for validation targets."""
    config, dataset = ctx.config, ctx.dataset
    training = dataset.training_rows(with_validation=False)
    targets = targets_of(config, dataset, "validation", numbering, trained=dataset.occurring(training))
    targets = targets.select(targets.ordinary)
    most = round(config.ranker.max_lists / config.ranker.train_fraction)
    if len(targets) > most:
        targets = targets.select(
            np.sort(np.random.default_rng(config.seed).choice(len(targets), most, replace=False))
        )
    looked_at = targets.histories
    recommender = AttentionRecommender(encoder)
    found = [
        recommender.recommend(looked_at.select(part), config.ranker.candidates, config.exclude_seen)
        for part in row_chunks(len(targets), encoder.num_items)
    ]
    items, scores = (np.concatenate([each[which] for each in found]) for which in range(2))
    retrieved = Retrieved(looked_at, items, scores, targets.item, targets.user)
    torch.manual_seed(config.seed)
    ranker = Ranker(config.ranker, _directions(encoder), encoder.num_event_types).to(encoder.device)
    statistics = second_stage.statistics(config, dataset, training.translate(numbering.new), numbering)
    return SecondStage(ranker, statistics, np.arange(encoder.num_items + 1, dtype=np.int32)), retrieved


def _directions(encoder: Encoder) -> torch.Tensor:
    """The encoder's item vectors at length 1; row 0 is zero."""
    vectors = functional.normalize(encoder.item_vectors().detach().float(), dim=-1).cpu()
    vectors[0] = 0
    return vectors


def _tell(ctx: Context, epoch: RankerEpoch) -> None:
    values = {"ranker/loss": epoch.loss, "ranker/held_out_ndcg@10": epoch.ndcg}
    ctx.live.metrics(values, epoch.epoch)
    for name, value in values.items():
        ctx.track.metric(name, value, epoch.epoch)


def _report(ctx: Context, fitted: RankerFit, retrieved: Retrieved, num_lists: int) -> None:
    """Calibrate on the users that it did not learn from, and say how it did there."""
    judged = retrieved.select(fitted.held_out)
    scores = fitted.stage.score(judged.histories, judged.items, judged.scores)
    there = judged.items > 0
    wanted = (judged.items == judged.target[:, None])[there]
    user = np.broadcast_to(judged.user[:, None], there.shape)[there]
    calibration = Calibration.fit(scores[there], wanted)
    probability = cross_fitted(scores[there], wanted, user, ctx.config.seed)
    measured = asdict(quality(probability, wanted))
    one, two = (float(ndcg_of(each, judged).mean()) for each in (judged.scores, scores))
    facts: dict[str, Any] = {
        "trained": True,
        "setting": ctx.config.ranker.use,
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history) - 1,
        "lists": num_lists,
        "targets": len(retrieved),
        "candidates": ctx.config.ranker.candidates,
        "held_out": {"targets": len(judged), "retrieval_ndcg@10": one, "two_stage_ndcg@10": two} | measured,
        "calibration": {
            "score": calibration.score.tolist(),
            "probability": calibration.probability.tolist(),
        },
    }
    write_json(ctx.folder / second_stage.DESCRIPTION, facts)
    ctx.manifest.update(rows_in=len(retrieved), rows_out=num_lists)
    ctx.manifest["rows_left_out"] = {"target_not_retrieved": len(retrieved) - num_lists}
    for name, value in (facts["held_out"]).items():
        if isinstance(value, float):
            ctx.track.metric(f"ranker/held_out_{name}" if "ndcg" not in name else f"ranker/{name}", value)
    for name in (second_stage.DESCRIPTION, "ranker_history.parquet"):
        ctx.track.artifact(name)
    ctx.summary(
        f"epoch {fitted.best_epoch} of {facts['epochs']} on {num_lists:,} lists of {ctx.config.ranker.candidates}: held-out "
        f"users' NDCG@10 {two:.4f}, of retrieval alone {one:.4f}; log loss {measured['log_loss']:.4f}"
    )
