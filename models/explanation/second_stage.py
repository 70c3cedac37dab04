"""Contributions of past interactions through both stages, retriever and ranker.

Letters: b rows, k items explained per row, n candidates per row, l positions of the longest window.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.device import to_numpy
from models.encoder.encoder import Encoder
from models.explanation import contributions
from models.histories import Float32, Histories, Int32, Int64
from models.ranking.candidates import is_none_of, learned_items, lowest_score
from models.ranking.ranker import SecondStage

ROWS = 64
"""Shortened histories ranked per batch."""


def two_stage_contributions(
    encoder: Encoder,
    stage: SecondStage,
    histories: Histories,
    items: Int32,
    pool: tuple[Int32, Float32],
    method: contributions.Method = "balanced",
    explain: contributions.Explain | None = None,
) -> Float32:
    """Drop of each item's ranker score without a past interaction: [b, k, l], as `contributions`.

    `pool`: the candidates, items and retriever scores, two [b, n]. Of `items` [b, k], those that are not among them follow at
    retrieval's distances, and have the retriever's contributions. For candidates "exact" leaves each interaction out, scores and
    orders the same candidates by the retriever, and ranks them again. Otherwise: the retriever's contributions to the item's
    lead over the other candidates times the ranker's slope in that lead, plus the ranker's slope in the presence of the
    interaction in its history. `explain`: from `encode_to_explain` of these rows by the same method; None: encode them here.
    Items unknown to the encoder keep the lowest retrieval score, and have the ranker's own slopes alone.
    """
    explain = explain or partial(contributions.contributions, encoder, histories, method=method)
    is_behind = is_none_of(items, pool[0])
    ranked = np.where(is_behind, 0, items)
    if method == "exact":
        weights = _leave_one_out(encoder, stage, histories, ranked, pool)
    else:
        weights = explain(learned_items(ranked, encoder.num_items), less=_mean_vector(encoder, *pool))
        weights = _through_ranker(encoder, stage, histories, ranked, pool, weights)
    if (is_behind & (items > 0)).any():
        weights += explain(learned_items(np.where(is_behind, items, 0), encoder.num_items))
    return weights


def _through_ranker(
    encoder: Encoder,
    stage: SecondStage,
    histories: Histories,
    items: Int32,
    pool: tuple[Int32, Float32],
    weights: Float32,
) -> Float32:
    """Retriever's contributions `weights` (overwritten) through the ranker, plus the ranker's own, to first order."""
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
    weights *= slopes[0][..., stage.ranker.retrieval_score].unsqueeze(-1).cpu().numpy()
    windows = histories.last(encoder.max_length)
    column = windows.lengths[:, None] - 1 - np.arange(weights.shape[-1])
    is_read = (column >= 0) & (column < shape[-1])
    column = np.where(is_read, column, 0)
    own = np.take_along_axis(slopes[1].cpu().numpy(), column[:, None, :], axis=2)
    weights += own * is_read[:, None, :]
    weights[items == 0] = 0
    return weights


@torch.no_grad()
def _mean_vector(encoder: Encoder, items: Int32, scores: Float32) -> Float32 | None:
    """[b, d] mean vector of the candidates, weighted by the softmax p of their scores.

    The ranker reads ln softmax of scores, and `d ln softmax(s)_i = d s_i - sum of p_j d s_j`.
    """
    if not encoder.scores_by_vector:
        return None
    vectors = encoder.vectors_of(torch.from_numpy(learned_items(items, encoder.num_items)).to(encoder.device))
    share = torch.from_numpy(scores).to(encoder.device).softmax(-1)
    return to_numpy(torch.einsum("bn,bnd->bd", share, vectors))


@torch.no_grad()
def _leave_one_out(
    encoder: Encoder, stage: SecondStage, histories: Histories, items: Int32, pool: tuple[Int32, Float32]
) -> Float32:
    """`two_stage_contributions` by leave-one-out, row by row."""
    windows = histories.last(encoder.max_length)
    weights = np.zeros((*items.shape, int(windows.lengths.max(initial=0))), np.float32)
    for row, length in enumerate(windows.lengths.tolist()):
        if not length:
            continue
        history = histories.select(slice(row, row + 1))
        learned = learned_items(pool[0][row], encoder.num_items)
        scores = contributions.left_out_scores(encoder, windows.select(slice(row, row + 1)), learned)
        is_unknown = learned != pool[0][row]
        scores = np.where(is_unknown, lowest_score(np.where(learned > 0, scores, -np.inf)), scores)
        candidates = np.broadcast_to(pool[0][row], scores.shape)
        order = np.argsort(np.where(candidates > 0, -scores, np.inf), axis=1, kind="stable")
        candidates, scores = (np.take_along_axis(part, order, 1) for part in (candidates, scores))
        without = _scores_without(stage, history, length, candidates, scores)
        whole = stage.score(history, pool[0][[row]], pool[1][[row]])
        for place, item in enumerate(items[row].tolist()):
            if item:
                weights[row, place, :length] = whole[pool[0][[row]] == item] - without[candidates == item]
    return weights


def _scores_without(
    stage: SecondStage, history: Histories, length: int, candidates: Int32, scores: Float32
) -> Float32:
    """[l, n] ranker scores of candidates without each of the last l interactions, oldest first."""
    left_out = _each_left_out(history, length)
    features = stage.statistics.features(left_out, candidates, scores, stage.ranker.features)
    whole = history.select(np.zeros(length, np.int64))
    lists = replace(stage.lists(whole, candidates, scores), features=torch.from_numpy(features))
    presence = torch.ones(length, 1, lists.past_item.shape[1])
    column = torch.arange(length - 1, -1, -1)
    is_read = column < presence.shape[-1]
    presence[is_read, 0, column[is_read]] = 0
    device = stage.ranker.linear.device
    parts = torch.split(torch.arange(length), ROWS)
    batches = [stage.ranker(lists.select(part).to(device), presence[part].to(device)) for part in parts]
    return to_numpy(torch.cat(batches))


def _each_left_out(history: Histories, length: int) -> Histories:
    """[length] copies of a row without each of its last `length` interactions in turn, oldest first."""
    number = int(history.lengths[0])
    column = np.broadcast_to(np.arange(number - 1), (length, number - 1))
    position: Int64 = column + (column >= np.arange(number - length, number)[:, None]) + history.starts[0]
    ends = np.arange(1, length + 1, dtype=np.int64) * (number - 1)
    request = history.time[history.ends - 1] if history.request_time is None else history.request_time
    flat = position.ravel()
    return Histories(
        history.item_index[flat],
        history.time[flat],
        history.event_type[flat],
        ends - (number - 1),
        ends,
        None if history.value is None else history.value[flat],
        np.repeat(request, length),
        history.dislikes,
        shown=None if history.shown is None else history.shown.select(np.zeros(length, np.int64)),
    )
