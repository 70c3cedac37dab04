"""Training of the second stage on a retriever's candidates for held-out targets."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.evaluation.metrics import Float64, ndcg, ranks
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.ranker import Lists, Ranker, SecondStage

K = 10
"""List length of the early-stopping metric."""
STEP_CANDIDATES = 50
"""Candidates per list and training step: the target and others drawn from the list."""


@dataclass(frozen=True)
class Retrieved:
    """Targets with a retriever's candidates for the history before each."""

    histories: Histories
    items: Int32
    """[r, n], best first, padded with 0"""
    scores: Float32
    """[r, n], retriever scores"""
    target: Int32
    """[r]"""
    user: Int64
    """[r]"""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def place(self) -> Int64:
        """[r], column of the target among the candidates, -1 if absent."""
        hit = self.items == self.target[:, None]
        return np.where(hit.any(1), hit.argmax(1), -1)

    def select(self, rows: NDArray[np.bool_] | Int64) -> "Retrieved":
        """Keep the given rows."""
        arrays = (self.items[rows], self.scores[rows], self.target[rows], self.user[rows])
        return Retrieved(self.histories.select(rows), *arrays)


@dataclass(frozen=True)
class RankerEpoch:
    """Training loss and held-out NDCG of one epoch."""

    epoch: int
    """From 1; 0 is the retriever's order."""
    loss: float
    """Mean over lists, in nats; NaN for epoch 0."""
    ndcg: float
    """NDCG@10 of the held-out users' targets; targets outside the candidates are misses."""


@dataclass(frozen=True)
class RankerFit:
    """Trained ranker with its training history."""

    stage: SecondStage
    history: list[RankerEpoch]
    best_epoch: int
    held_out: NDArray[np.bool_]
    """[r], targets of held-out users"""


def ndcg_of(scores: Float32, retrieved: Retrieved) -> Float64:
    """[r], NDCG@10 of each target by the scores [r, n] of the candidates; 0 if it is none of them."""
    place = retrieved.place
    values = np.zeros(len(place))
    known = np.flatnonzero(place >= 0)
    if len(known):
        padded = np.pad(scores[known], ((0, 0), (1, 0)), constant_values=-np.inf)
        values[known] = ndcg(ranks(padded, (place[known] + 1).astype(np.int32))[0], K)
    return values


def fit_ranker(
    stage: SecondStage,
    retrieved: Retrieved,
    seed: int,
    *,
    on_epoch: Callable[[RankerEpoch], object] = lambda _: None,
) -> RankerFit:
    """Train `stage`'s ranker on the lists of `train_fraction` of the users; keep the best epoch on the others.

    Epoch 0, the retriever's order, is kept if none is better. Lists without their target are not trained on. The same seed and
    threads give the same weights. Raises ValueError if no list has its target or no user is held out.
    """
    settings, ranker = stage.ranker.settings, stage.ranker
    random = np.random.default_rng(seed)
    users = np.unique(retrieved.user)
    held = random.permutation(users)[round(settings.train_fraction * len(users)) :]
    held_out = np.isin(retrieved.user, held)
    rows = np.flatnonzero(~held_out & (retrieved.place >= 0))
    if not len(rows) or not held_out.any():
        raise ValueError(
            f"ranker: received {len(rows):,} lists of {len(retrieved):,} with their target among {settings.candidates} "
            "candidates, expected some, of two users at least; raise ranker.candidates or set ranker.use = 'never'"
        )
    if len(rows) > settings.max_lists:
        rows = np.sort(random.choice(rows, settings.max_lists, replace=False))
    validation, train = retrieved.select(held_out), retrieved.select(rows)
    lists, place = stage.lists(train.histories, train.items, train.scores), torch.from_numpy(train.place)
    _standardise(stage.ranker, lists)
    optimizer = torch.optim.AdamW(
        ranker.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    history = [RankerEpoch(0, float("nan"), float(ndcg_of(validation.scores, validation).mean()))]
    best, best_epoch = copy.deepcopy(ranker.state_dict()), 0
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        loss = _epoch(ranker, lists, place, optimizer, draw)
        scores = stage.score(validation.histories, validation.items, validation.scores)
        history.append(RankerEpoch(epoch, loss, float(ndcg_of(scores, validation).mean())))
        on_epoch(history[-1])
        if history[-1].ndcg > history[best_epoch].ndcg:
            best, best_epoch = copy.deepcopy(ranker.state_dict()), epoch
        elif epoch - best_epoch >= settings.patience:
            break
    ranker.load_state_dict(best)
    return RankerFit(stage, history, best_epoch, held_out)


def _standardise(ranker: Ranker, lists: Lists) -> None:
    """Set the ranker's mean and standard deviation of every feature over the candidates."""
    features = lists.features[lists.there]
    ranker.mean.copy_(features.mean(0))
    ranker.scale.copy_(features.std(0, correction=0).clamp_min(1e-3))


def _epoch(
    ranker: Ranker, lists: Lists, place: Tensor, optimizer: torch.optim.Optimizer, draw: torch.Generator
) -> float:
    """Train on all lists in a random order, each with its target and some other candidates; return the mean loss."""
    settings, device = ranker.settings, ranker.linear.device
    ranker.train()
    total = 0.0
    for rows in torch.split(torch.randperm(len(place), generator=draw), settings.batch_lists):
        part, target = _sampled(lists.select(rows), place[rows], draw)
        loss = _loss(ranker(part.to(device)), target.to(device), part, settings.loss)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    ranker.eval()
    return total / len(place)


def _sampled(lists: Lists, place: Tensor, draw: torch.Generator) -> tuple[Lists, Tensor]:
    """Lists of `STEP_CANDIDATES`, the target in column 0 and others drawn uniformly, and the targets' columns."""
    chance = torch.rand(lists.item.shape, generator=draw).masked_fill(~lists.there, -1.0)
    chance.scatter_(1, place[:, None], 2.0)
    columns = chance.topk(min(STEP_CANDIDATES, chance.shape[1]), dim=1).indices
    return lists.of_candidates(columns), torch.zeros_like(place)


def _loss(scores: Tensor, place: Tensor, lists: Lists, kind: str) -> Tensor:
    if kind == "listwise":
        return functional.cross_entropy(scores, place)
    labels = functional.one_hot(place, scores.shape[1]).float()[lists.there]
    total = functional.binary_cross_entropy_with_logits(scores[lists.there], labels, reduction="sum")
    return total / len(scores)
