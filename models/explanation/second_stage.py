"""Contributions of past interactions through both stages: the retriever's share and the ranker's.

Letters: b rows, k items explained of each, n candidates that they were ranked among, l positions of the longest window.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.encoder.encoder import Encoder
from models.explanation import contributions
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.features import FEATURES
from models.ranking.ranker import SecondStage

ROWS = 64
"""Histories without an interaction that are ranked at a time."""
RETRIEVAL_SCORE = FEATURES.index("retrieval_score")


def two_stage_contributions(
    encoder: Encoder,
    stage: SecondStage,
    histories: Histories,
    items: Int32,
    pool: tuple[Int32, Float32],
    method: contributions.Method = "balanced",
    explain: contributions.Explain | None = None,
) -> Float32:
    """How much lower the ranker would score each item if a past interaction had not been seen: [b, k, l].

    As `contributions`, through both stages: `items` [b, k] are among the candidates `pool`, items and the retriever's scores,
    two [b, n]. "exact" leaves each interaction out, scores the same candidates by the retriever, puts them in its order, and
    ranks them again. The others: the retriever's contributions to the item's lead over the other candidates, times the ranker's
    slope in that lead, plus the ranker's slope in the presence of the interaction where it looks at the history. `explain`: from
    `encode_to_explain` of these rows by the same method; None: encode them here.
    """
    if method == "exact":
        return _leave_one_out(encoder, stage, histories, items, pool)
    less = _expected(encoder, *pool)
    explain = explain or partial(contributions.contributions, encoder, histories, method=method)
    weights = explain(items, less=less)
    return _through_ranker(encoder, stage, histories, items, pool, weights)


def _through_ranker(
    encoder: Encoder,
    stage: SecondStage,
    histories: Histories,
    items: Int32,
    pool: tuple[Int32, Float32],
    weights: Float32,
) -> Float32:
    """The retriever's contributions (which are overwritten) as the ranker takes them, and the ranker's own, to first order."""
    place = (pool[0][:, None, :] == items[:, :, None]).argmax(-1)
    lists = (
        stage.lists(histories, *pool).of_candidates(torch.from_numpy(place)).to(stage.ranker.linear.device)
    )
    features = lists.features.clone().requires_grad_()
    shape = (*place.shape, lists.past_item.shape[1])
    presence = features.new_ones(shape, requires_grad=True)
    with torch.enable_grad():
        scores = stage.ranker(replace(lists, features=features), presence)
        slopes: tuple[Tensor, ...] = torch.autograd.grad(scores[lists.there].sum(), [features, presence])
    weights *= slopes[0][..., RETRIEVAL_SCORE].unsqueeze(-1).cpu().numpy()
    windows = histories.last(encoder.max_length)
    column = windows.lengths[:, None] - 1 - np.arange(weights.shape[-1])
    there = (column >= 0) & (column < shape[-1])
    column = np.where(there, column, 0)
    seen = np.take_along_axis(slopes[1].cpu().numpy(), column[:, None, :], axis=2)
    weights += seen * there[:, None, :]
    weights[items == 0] = 0
    return weights


@torch.no_grad()
def _expected(encoder: Encoder, items: Int32, scores: Float32) -> Float32 | None:
    """[b, d] the mean vector of the candidates, each weighted by its share in the softmax of their scores.

    `d ln softmax(s)_i = d s_i - sum of p_j d s_j`: what the ranker reads of scores moves with the item's own less that mean's.
    """
    if not encoder.scores_by_vector:
        return None
    vectors = encoder.vectors_of(torch.from_numpy(items).to(encoder.device))
    share = torch.from_numpy(scores).to(encoder.device).softmax(-1)
    found: Float32 = torch.einsum("bn,bnd->bd", share, vectors).cpu().numpy()
    return found


@torch.no_grad()
def _leave_one_out(
    encoder: Encoder, stage: SecondStage, histories: Histories, items: Int32, pool: tuple[Int32, Float32]
) -> Float32:
    """`contributions` row after row."""
    windows = histories.last(encoder.max_length)
    weights = np.zeros((*items.shape, int(windows.lengths.max(initial=0))), np.float32)
    for row, length in enumerate(windows.lengths.tolist()):
        if not length:
            continue
        here = slice(row, row + 1)
        scores = contributions.left_out_scores(encoder, windows.select(here), pool[0][row])
        candidates = np.broadcast_to(pool[0][row], scores.shape)
        order = np.argsort(np.where(candidates > 0, -scores, np.inf), axis=1, kind="stable")
        candidates, scores = (np.take_along_axis(part, order, 1) for part in (candidates, scores))
        without = _scores_without(stage, histories.select(here), length, candidates, scores)
        whole = stage.score(histories.select(here), pool[0][here], pool[1][here])
        for place, item in enumerate(items[row].tolist()):
            if item:
                left = without[candidates == item]
                weights[row, place, :length] = whole[pool[0][here] == item] - left
    return weights


def _scores_without(
    stage: SecondStage, history: Histories, length: int, candidates: Int32, scores: Float32
) -> Float32:
    """[l, n] the ranker's scores of candidates without each of the last l interactions, oldest first."""
    known = stage.statistics.features(_each_left_out(history, length), candidates, scores)
    whole = replace(history, starts=np.repeat(history.starts, length), ends=np.repeat(history.ends, length))
    if history.request_time is not None:
        whole = replace(whole, request_time=np.repeat(history.request_time, length))
    lists = replace(stage.lists(whole, candidates, scores), features=torch.from_numpy(known))
    presence = torch.ones(length, 1, lists.past_item.shape[1])
    column = torch.arange(length - 1, -1, -1)
    there = column < presence.shape[-1]
    presence[there, 0, column[there]] = 0
    device = stage.ranker.linear.device
    parts = torch.split(torch.arange(length), ROWS)
    found = [stage.ranker(lists.select(part).to(device), presence[part].to(device)) for part in parts]
    return torch.cat(found).float().cpu().numpy()


def _each_left_out(history: Histories, length: int) -> Histories:
    """[length] rows: a row without each of its last `length` interactions in turn, oldest first."""
    number = int(history.lengths[0])
    column = np.broadcast_to(np.arange(number - 1), (length, number - 1))
    position: Int64 = column + (column >= np.arange(number - length, number)[:, None]) + history.starts[0]
    ends = np.arange(1, length + 1, dtype=np.int64) * (number - 1)
    asked = history.request_time
    asked = history.time[history.ends[:1] - 1] if asked is None else asked
    flat = position.ravel()
    return Histories(
        history.item_index[flat],
        history.time[flat],
        history.event_type[flat],
        ends - (number - 1),
        ends,
        None if history.value is None else history.value[flat],
        np.repeat(asked, length),
    )
