"""Training of the second stage on the candidates that a retriever found for targets which it did not learn from."""

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
"""Length of the lists that early stopping looks at."""
DRAWN = 50
"""Candidates of a list that a step looks at, the target and others drawn from the list."""


@dataclass(frozen=True)
class Retrieved:
    """Targets with the candidates that a retriever found from the history before each."""

    histories: Histories
    items: Int32
    """[r, n], best first, 0 where there are fewer"""
    scores: Float32
    """[r, n], the retriever's"""
    target: Int32
    """[r]"""
    user: Int64
    """[r]"""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def place(self) -> Int64:
        """[r] column of the target among the candidates, -1 where it is not there."""
        hit = self.items == self.target[:, None]
        found: Int64 = np.where(hit.any(1), hit.argmax(1), -1)
        return found

    def select(self, rows: NDArray[np.bool_] | Int64) -> "Retrieved":
        """The given rows."""
        return Retrieved(
            self.histories.select(rows),
            self.items[rows],
            self.scores[rows],
            self.target[rows],
            self.user[rows],
        )


@dataclass(frozen=True)
class RankerEpoch:
    """One pass over the lists."""

    epoch: int
    """From 1; 0 is the retriever's own order."""
    loss: float
    """Mean over lists, in nats; NaN for epoch 0."""
    ndcg: float
    """NDCG@10 of the held-out users' targets, those not among the candidates being misses."""


@dataclass(frozen=True)
class RankerFit:
    """A trained ranker and how it came about."""

    stage: SecondStage
    history: list[RankerEpoch]
    best_epoch: int
    held_out: NDArray[np.bool_]
    """[r] targets of the users that it did not learn from"""


def ndcg_of(scores: Float32, retrieved: Retrieved) -> Float64:
    """[r] NDCG@10 of each target by its score among the candidates [r, n]; 0 where it is none of them."""
    place = retrieved.place
    found = np.zeros(len(place))
    known = np.flatnonzero(place >= 0)
    if len(known):
        padded = np.pad(scores[known], ((0, 0), (1, 0)), constant_values=-np.inf)
        found[known] = ndcg(ranks(padded, (place[known] + 1).astype(np.int32))[0], K)
    return found


def fit_ranker(
    stage: SecondStage,
    retrieved: Retrieved,
    seed: int,
    *,
    on_epoch: Callable[[RankerEpoch], object] = lambda _: None,
) -> RankerFit:
    """Train `stage`'s ranker on the lists of `train_fraction` of the users, keeping the epoch best for the others.

    Epoch 0, the retriever's own order, is kept where none is better. Lists without their target bear no loss.
    The same seed and threads give the same weights. Raises ValueError where no list has its target.
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
    rows = (
        rows
        if len(rows) <= settings.max_lists
        else np.sort(random.choice(rows, settings.max_lists, replace=False))
    )
    judged, learned = retrieved.select(held_out), retrieved.select(rows)
    lists, place = (
        stage.lists(learned.histories, learned.items, learned.scores),
        torch.from_numpy(learned.place),
    )
    _standardise(stage.ranker, lists)
    optimizer = torch.optim.AdamW(
        ranker.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    history = [RankerEpoch(0, float("nan"), float(ndcg_of(judged.scores, judged).mean()))]
    best, best_epoch = copy.deepcopy(ranker.state_dict()), 0
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        loss = _epoch(ranker, lists, place, optimizer, draw)
        scores = stage.score(judged.histories, judged.items, judged.scores)
        history.append(RankerEpoch(epoch, loss, float(ndcg_of(scores, judged).mean())))
        on_epoch(history[-1])
        if history[-1].ndcg > history[best_epoch].ndcg:
            best, best_epoch = copy.deepcopy(ranker.state_dict()), epoch
        elif epoch - best_epoch >= settings.patience:
            break
    ranker.load_state_dict(best)
    return RankerFit(stage, history, best_epoch, held_out)


def _standardise(ranker: Ranker, lists: Lists) -> None:
    """Give the ranker the mean and spread of every feature over the candidates."""
    found = lists.features[lists.there]
    ranker.mean.copy_(found.mean(0))
    ranker.scale.copy_(found.std(0, correction=0).clamp_min(1e-3))


def _epoch(
    ranker: Ranker, lists: Lists, place: Tensor, optimizer: torch.optim.Optimizer, draw: torch.Generator
) -> float:
    """One pass over the lists in an order drawn anew, each with its target and some of the others; the mean loss."""
    settings, device = ranker.settings, ranker.linear.device
    ranker.train()
    total = 0.0
    for rows in torch.split(torch.randperm(len(place), generator=draw), settings.batch_lists):
        part, wanted = _some(lists.select(rows), place[rows], draw)
        loss = _loss(ranker(part.to(device)), wanted.to(device), part, settings.loss)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    ranker.eval()
    return total / len(place)


def _some(lists: Lists, place: Tensor, draw: torch.Generator) -> tuple[Lists, Tensor]:
    """The lists with `DRAWN` candidates each, the target in column 0 and others drawn alike, and the targets' columns."""
    chance = torch.rand(lists.item.shape, generator=draw).masked_fill(~lists.there, -1.0)
    chance.scatter_(1, place[:, None], 2.0)
    columns = chance.topk(min(DRAWN, chance.shape[1]), dim=1).indices
    return lists.of_candidates(columns), torch.zeros_like(place)


def _loss(scores: Tensor, place: Tensor, lists: Lists, kind: str) -> Tensor:
    if kind == "listwise":
        return functional.cross_entropy(scores, place)
    wanted = functional.one_hot(place, scores.shape[1]).float()[lists.there]
    found = functional.binary_cross_entropy_with_logits(scores[lists.there], wanted, reduction="sum")
    return found / len(scores)
