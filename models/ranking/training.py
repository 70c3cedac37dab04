"""Training of the second stage on candidates for held-out requests."""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.device import memory_named, moved
from models.evaluation.metrics import Float64, ndcg, ranks
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.outcomes import OutcomeHeads, OutcomeLabels
from models.ranking.outputs import log_loss_gain, outputs
from models.ranking.ranker import Lists, Ranker, SecondStage
from models.shapes import Bool, Float
from models.topk import row_chunks

MIN_NIGHTS = 2
"""Nights from which on the newest one chooses the epoch."""
K = 10
"""List length of the early-stopping metric."""
STEP_CANDIDATES = 50
"""Candidates per list and training step: the relevant ones and others drawn from the list."""


@dataclass(frozen=True)
class Retrieved:
    """Candidates for the history before each request, and those of them that the user took afterwards."""

    histories: Histories
    items: Int32
    """[r, n], best first, padded with 0"""
    scores: Float32
    """[r, n], retriever scores"""
    relevant: NDArray[np.bool_]
    """[r, n], candidates that the user took; False for item 0"""
    num_relevant: Int64
    """[r], items that the user took, among the candidates or not; 0: none, for calibration alone"""
    user: Int64
    """[r]"""
    night: Int64 | None = None
    """[r], time of each request where they are those of nights; None: each list is of its own event"""
    disliked: Float32 | None = None
    """[r, n], size of the negative weight of candidates that the user disliked afterwards, 0 for others; None: no dislikes"""
    outcomes: OutcomeLabels | None = None
    """None: the ranker has no heads of outcomes"""
    compared: NDArray[np.bool_] | None = None
    """[r, n], candidates that training compares; None: all"""

    @classmethod
    def of(
        cls,
        histories: Histories,
        items: Int32,
        scores: Float32,
        target: Int32,
        request: Int64,
        user: Int64,
        night: Int64 | None = None,
    ) -> "Retrieved":
        """Lists of requests [r] whose relevant items are `target` [t], 0 for an unknown one, of list `request` [t]."""
        width = max(int(items.max(initial=0)), int(target.max(initial=0))) + 1
        keys = np.arange(len(items), dtype=np.int64)[:, None] * width + items
        relevant = np.isin(keys, request * width + target) & (items > 0)
        num_relevant = np.bincount(request, minlength=len(items))
        return cls(histories, items, scores, relevant, num_relevant, user, night)

    def with_dislikes(self, user: Int64, item: Int32, time: Int64, weight: Float32) -> "Retrieved":
        """Add dislikes [d] by user and item: those at the time of a request of their user or later are negatives of its list.

        Of several on an item the latest counts; items that the user took are none.
        """
        moment = self.histories.request_time
        assert moment is not None
        width = max(int(self.items.max(initial=0)), int(item.max(initial=0))) + 1
        latest = np.argsort(-time, kind="stable")
        keys, first = np.unique(user[latest] * width + item[latest], return_index=True)
        if not len(keys):
            return self
        own = self.user[:, None] * width + self.items
        place = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        event = latest[first][place]
        is_disliked = (
            (keys[place] == own) & (self.items > 0) & ~self.relevant & (time[event] >= moment[:, None])
        )
        return replace(self, disliked=np.where(is_disliked, weight[event], 0).astype(np.float32))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """[r], whether any candidate is relevant."""
        return np.asarray(self.relevant.any(1))

    @property
    def is_active(self) -> NDArray[np.bool_]:
        """[r], whether the user took any item."""
        return self.num_relevant > 0

    def select(self, rows: NDArray[np.bool_] | Int64) -> "Retrieved":
        """Keep the given rows."""
        lists = self.histories.select(rows), self.items[rows], self.scores[rows], self.relevant[rows]
        night = None if self.night is None else self.night[rows]
        disliked = None if self.disliked is None else self.disliked[rows]
        outcomes = None if self.outcomes is None else self.outcomes.select(rows)
        compared = None if self.compared is None else self.compared[rows]
        return Retrieved(
            *lists, self.num_relevant[rows], self.user[rows], night, disliked, outcomes, compared
        )

    @property
    def is_newest(self) -> NDArray[np.bool_]:
        """[r], whether a list is of the last of `MIN_NIGHTS` nights or more; False everywhere where there are fewer."""
        if self.night is None or len(np.unique(self.night)) < MIN_NIGHTS:
            return np.zeros(len(self), bool)
        return np.asarray(self.night == self.night.max())


@dataclass(frozen=True)
class Labels:
    """Candidates that users took or disliked, on the CPU."""

    relevant: Bool[Tensor, "r n"]
    disliked: Float[Tensor, "r n"] | None = None
    """Size of the negative weight, 0 for others; None: no dislikes"""
    done: Float[Tensor, "r n t"] | None = None
    """As `OutcomeLabels.done`; None: the ranker has no heads of outcomes"""
    value: Float[Tensor, "r n t"] | None = None
    """As `OutcomeLabels.value`"""
    weight: Float[Tensor, "r n"] | None = None
    """Weight of a candidate in the losses of outcomes"""

    @classmethod
    def of(cls, retrieved: Retrieved) -> "Labels":
        """Labels of lists."""
        disliked = None if retrieved.disliked is None else torch.from_numpy(retrieved.disliked)
        own = cls(torch.from_numpy(retrieved.relevant), disliked)
        if (outcomes := retrieved.outcomes) is None:
            return own
        weight = torch.ones(retrieved.items.shape)
        return replace(
            own, done=torch.from_numpy(outcomes.done), value=torch.from_numpy(outcomes.value), weight=weight
        )

    def select(self, rows: Tensor) -> "Labels":
        """Keep the given rows."""
        return self._mapped(lambda part: part[rows])

    def of_candidates(self, columns: Tensor) -> "Labels":
        """Keep the given candidates [r, m] of each row."""
        rows = torch.arange(len(columns)).unsqueeze(1)
        return self._mapped(lambda part: part[rows, columns])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Labels":
        return Labels(**{name: change(part) for name, part in vars(self).items() if part is not None})


@dataclass(frozen=True)
class RankerEpoch:
    """Training loss and held-out NDCG of one epoch."""

    epoch: int
    """From 1; 0 is the retriever's order."""
    loss: float
    """Mean over lists, in nats; NaN for epoch 0."""
    ndcg: float
    """NDCG@10 of the held-out users' lists; relevant items outside the candidates are misses."""
    outcome_gain: float | None = None
    """Share of the held-out log loss of the outcomes' base rates that the heads save; None without heads."""

    @property
    def stopping_metric(self) -> float:
        """NDCG, plus the outcomes' gain."""
        return self.ndcg + (self.outcome_gain or 0.0)


@dataclass(frozen=True)
class RankerFit:
    """Trained ranker with its training history."""

    stage: SecondStage
    history: list[RankerEpoch]
    best_epoch: int
    held_out: NDArray[np.bool_]
    """[r], lists of held-out users"""
    chooses: NDArray[np.bool_]
    """[r], those of them that chose the epoch"""


def ndcg_of(scores: Float32, retrieved: Retrieved, k: int = K) -> Float64:
    """[r], NDCG@k of each list by the scores [r, n] of its candidates, -inf for item 0.

    Each relevant candidate gains 1; the ideal has all `num_relevant` items first, k at most. Relevant items outside the
    candidates are misses, and lists without any have 0. Of lists with `compared` candidates those alone are ranked. Ties as
    in `ranks`.
    """
    row, column = np.nonzero(retrieved.relevant)
    gain = np.zeros(len(row))
    if retrieved.compared is not None:
        scores = np.where(retrieved.compared, scores, np.float32(-np.inf))
    if len(row):
        padded = np.pad(scores, ((0, 0), (1, 0)), constant_values=-np.inf)
        for part in row_chunks(len(row), padded.shape[1]):
            rank, _ = ranks(padded[row[part]], (column[part] + 1).astype(np.int32))
            gain[part] = ndcg(rank, k)
    ideal = np.cumsum(ndcg(np.arange(1, k + 1, dtype=np.float64), k))
    total = np.bincount(row, gain, minlength=len(retrieved))
    return np.asarray(total / ideal[np.clip(retrieved.num_relevant, 1, k) - 1])


@memory_named(
    "lower ranker.batch_lists or ranker.max_length, or set CUDA_VISIBLE_DEVICES='' to train on the CPU"
)
def fit_ranker(
    stage: SecondStage,
    retrieved: Retrieved,
    seed: int,
    *,
    on_epoch: Callable[[RankerEpoch], object] = lambda _: None,
) -> RankerFit:
    """Train `stage`'s ranker on the lists of `train_fraction` of the users; keep the best epoch on the others.

    Of `MIN_NIGHTS` nights or more the newest one chooses the epoch and the others train: users of the same nights do not show
    what a ranker learned of those days alone.
    Heads of outcomes learn with the ranking loss (`OutcomeHeads.loss`), from lists without a relevant candidate too; both choose
    the epoch.
    A list with `compared` candidates trains and chooses by those alone.
    Epoch 0, the retriever's order, is kept if none is better. Lists without a relevant candidate are not trained on.
    The same seed and threads give the same weights. Raises ValueError if no list has one or no user is held out; MemoryError
    with the next step.
    """
    settings, ranker = stage.ranker.settings, stage.ranker
    random = np.random.default_rng(seed)
    users = np.unique(retrieved.user)
    held = random.permutation(users)[round(settings.train_fraction * len(users)) :]
    held_out = np.isin(retrieved.user, held)
    is_newest = retrieved.is_newest
    chooses = held_out & retrieved.is_active & (is_newest | ~is_newest.any())
    rows = np.flatnonzero(~held_out & retrieved.is_hit & ~is_newest)
    if not len(rows) or not chooses.any():
        raise ValueError(
            f"ranker: received {len(rows):,} lists of {len(retrieved):,} with a relevant item among {settings.candidates} "
            "candidates, expected some, of two users at least; raise ranker.candidates or set ranker.use = 'never'"
        )
    if len(rows) > settings.max_lists:
        rows = np.sort(random.choice(rows, settings.max_lists, replace=False))
    if ranker.heads is None:
        train = retrieved.select(rows)
        labels = Labels.of(train)
    else:
        chooses = held_out & (is_newest | ~is_newest.any())
        train, labels = _with_idle(retrieved, rows, ~held_out & ~retrieved.is_hit & ~is_newest, random)
        ranker.heads.start(train.outcomes)
    validation = retrieved.select(chooses)
    lists = stage.lists(train.histories, train.items, train.scores)
    _standardise(stage.ranker, lists)
    if train.compared is not None:
        lists = replace(lists, there=torch.from_numpy(train.compared) & lists.there)
    optimizer = _optimizer(ranker)
    history = [_first_epoch(validation)]
    best, best_epoch = copy.deepcopy(ranker.state_dict()), 0
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        loss = _epoch(ranker, lists, labels, optimizer, draw)
        history.append(_measured(epoch, loss, stage, validation))
        on_epoch(history[-1])
        if history[-1].stopping_metric > history[best_epoch].stopping_metric:
            best, best_epoch = copy.deepcopy(ranker.state_dict()), epoch
        elif epoch - best_epoch >= settings.patience:
            break
    ranker.load_state_dict(best)
    return RankerFit(stage, history, best_epoch, held_out, chooses)


def _optimizer(ranker: Ranker) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        ranker.parameters(),
        ranker.settings.learning_rate,
        weight_decay=ranker.settings.weight_decay,
        fused=ranker.linear.device.type == "cuda",
    )


def _with_idle(
    retrieved: Retrieved, rows: Int64, is_idle: NDArray[np.bool_], random: np.random.Generator
) -> tuple[Retrieved, Labels]:
    """Lists `rows`, and at most as many without a relevant candidate, weighted so as to stand for all of those [r]."""
    idle = np.flatnonzero(is_idle)
    some = random.choice(idle, min(len(idle), len(rows)), replace=False)
    train = retrieved.select(np.sort(np.concatenate([rows, some])))
    labels = Labels.of(train)
    weight = torch.from_numpy(np.where(train.is_hit, 1.0, len(idle) / max(len(some), 1)).astype(np.float32))
    return train, replace(labels, weight=weight.unsqueeze(1).expand(train.items.shape))


def _first_epoch(validation: Retrieved) -> RankerEpoch:
    """The retriever's order, and outcomes at their base rates."""
    ndcg_first = ndcg_of(validation.scores, validation)[validation.is_active].mean()
    return RankerEpoch(0, float("nan"), float(ndcg_first), None if validation.outcomes is None else 0.0)


def _measured(epoch: int, loss: float, stage: SecondStage, validation: Retrieved) -> RankerEpoch:
    """An epoch on the held-out lists, the NDCG on those with an item taken."""
    lists = validation.histories, validation.items, validation.scores
    if validation.outcomes is None:
        return RankerEpoch(epoch, loss, float(ndcg_of(stage.score(*lists), validation).mean()))
    found = outputs(stage, *lists)
    own = ndcg_of(found.score, validation)[validation.is_active].mean()
    return RankerEpoch(
        epoch, loss, float(own), log_loss_gain(found.logit, validation.outcomes, validation.items)
    )


def _standardise(ranker: Ranker, lists: Lists) -> None:
    """Set the ranker's mean and standard deviation of every feature over the candidates."""
    features = lists.features[lists.there]
    ranker.mean.copy_(features.mean(0))
    ranker.scale.copy_(features.std(0, correction=0).clamp_min(1e-3))


def _epoch(
    ranker: Ranker, lists: Lists, labels: Labels, optimizer: torch.optim.Optimizer, draw: torch.Generator
) -> float:
    """Train on all lists in a random order, each with its relevant, disliked and some other candidates; return the mean loss."""
    ranker.train()
    losses, sizes = list[Tensor](), list[int]()
    number = len(labels.relevant)
    for rows in torch.split(torch.randperm(number, generator=draw), ranker.settings.batch_lists):
        losses.append(_step(ranker, optimizer, *_sampled(lists.select(rows), labels.select(rows), draw)))
        sizes.append(len(rows))
    ranker.eval()
    # read once: each read waits for the device
    return sum(map(operator.mul, torch.stack(losses).tolist(), sizes), 0.0) / number


def _step(
    ranker: Ranker, optimizer: torch.optim.Optimizer, lists: Lists, labels: Labels
) -> Float[Tensor, ""]:
    """Take an optimiser step; return its loss, still on the device."""
    inputs, kind = lists.to(ranker.linear.device), ranker.settings.loss
    if ranker.heads is None:
        loss = _ranking_loss(ranker(inputs), labels, lists, kind)
    else:
        loss = _joint_loss(ranker.heads, *ranker.with_outcomes(inputs), labels, lists, kind)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _ranking_loss(scores: Tensor, labels: Labels, lists: Lists, kind: str) -> Float[Tensor, ""]:
    loss = _loss(scores, labels.relevant, lists, kind)
    if labels.disliked is None:
        return loss
    return loss + _dislike_loss(scores, labels.relevant, labels.disliked)


def _joint_loss(
    heads: OutcomeHeads,
    scores: Tensor,
    logits: Tensor,
    values: Tensor,
    labels: Labels,
    lists: Lists,
    kind: str,
) -> Float[Tensor, ""]:
    """Loss of the ranking, over the lists with a relevant candidate, and of the outcomes."""
    assert labels.done is not None
    assert labels.value is not None
    assert labels.weight is not None
    hit = labels.relevant.any(1)
    ranking = scores.new_zeros(())
    if hit.any():
        own = moved(hit, scores.device)
        ranking = _ranking_loss(scores[own], labels.select(hit), lists.select(hit), kind)
    known = (labels.done, labels.value, labels.weight * lists.there)
    return heads.loss(ranking, logits, values, *(moved(part, scores.device) for part in known))


def _sampled(lists: Lists, labels: Labels, draw: torch.Generator) -> tuple[Lists, Labels]:
    """Lists of `STEP_CANDIDATES`, relevant and then disliked ones first, others drawn uniformly, and their labels."""
    chance = torch.rand(lists.item.shape, generator=draw).masked_fill(~lists.there, -1.0)
    if labels.disliked is not None:
        chance += (labels.disliked > 0).float()
    columns = (chance + 2.0 * labels.relevant).topk(min(STEP_CANDIDATES, chance.shape[1]), dim=1).indices
    return lists.of_candidates(columns), labels.of_candidates(columns)


def _dislike_loss(
    scores: Float[Tensor, "r n"], relevant: Tensor, disliked: Float[Tensor, "r n"]
) -> Float[Tensor, ""]:
    """Mean over lists of the mean over a list's dislikes of `weight * mean over relevant ones of -log σ(s+ - s-)`.

    The loss of the encoder's dislikes (`models.training.losses.dislike_loss`) within a list; 0 for a list without any. Scores are
    on the ranker's device, labels on the CPU.
    """
    row, liked, hated = (relevant[:, :, None] & (disliked > 0)[:, None, :]).nonzero(as_tuple=True)
    weight = disliked[row, hated] / relevant.sum(1)[row] / (disliked > 0).sum(1)[row]
    row, liked, hated, weight = (moved(part, scores.device) for part in (row, liked, hated, weight))
    return functional.softplus(scores[row, hated] - scores[row, liked]).dot(weight) / len(scores)


def _loss(scores: Tensor, relevant: Tensor, lists: Lists, kind: str) -> Tensor:
    """Mean over lists. listwise: of the cross-entropy of each relevant candidate among the others that are not relevant.

    Scores are on the ranker's device, labels and lists on the CPU.
    """
    labels = moved(relevant, scores.device)
    if kind == "listwise":
        if bool((relevant.sum(1) == 1).all()):
            return functional.cross_entropy(scores, labels.int().argmax(1))
        lowest = torch.finfo(
            scores.dtype
        ).min  # finite: a list of relevant candidates alone has loss and gradient 0
        others = scores.masked_fill(labels, lowest).logsumexp(1, keepdim=True)
        losses = functional.softplus(others - scores).masked_fill(~labels, 0.0)
        return (losses.sum(1) / labels.sum(1)).mean()
    there = tuple(moved(index, scores.device) for index in lists.there.nonzero(as_tuple=True))
    total = functional.binary_cross_entropy_with_logits(scores[there], labels[there].float(), reduction="sum")
    return total / len(scores)
