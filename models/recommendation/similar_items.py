"""Lists of similar items: by a recommender, by item vectors, by co-visitation.

Letters in shapes: q items with lists, n items, k places, d components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from models.histories import Float32, Histories, Int32, Int64
from models.recommendation.answer import Candidates, Run
from models.recommendation.baseline_engine import BaselineEngine
from models.recommendation.engine import RecommendationEngine
from models.recommendation.rules import Rules
from models.retrieval.exact import nearest
from models.topk import event_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MODEL, VECTORS, CO_VISITATION = "model", "vectors", "co_visitation"
"""Kinds of lists."""
Engine = RecommendationEngine | BaselineEngine


def similar_items(
    engine: Engine,
    follows: csr_array,
    items: Int32,
    k: int,
    *,
    time: int,
    allowed: NDArray[np.bool_] | None = None,
    run: Run = map,
) -> Iterator[tuple[str, Candidates]]:
    """Yield (kind, (items, scores)) of every kind: the k items most similar to each of `items` [q], without itself.

    Arguments as in `led_to` and `following`. A baseline has no item vectors, and no lists by them.
    """
    yield MODEL, led_to(engine, items, k, time=time, allowed=allowed, run=run)
    if isinstance(engine, RecommendationEngine):
        yield VECTORS, nearest_by_direction(engine.traits.directions, items, k, allowed)
    yield CO_VISITATION, following(follows, items, k, allowed)


def led_to(
    engine: Engine,
    items: Int32,
    k: int,
    *,
    time: int,
    allowed: NDArray[np.bool_] | None = None,
    run: Run = map,
) -> Candidates:
    """Recommendations for histories of one item, each of `items` [q] at the request's `time`, by retrieval alone.

    Items and scores, two [q, k], best first, padded with 0 and -inf, as the lists of an item that the recommender does not know.
    time: microseconds since the epoch. allowed: [n + 1], mask of items that may be recommended; None: all. run: over parts.
    """
    if isinstance(engine, RecommendationEngine):
        engine = replace(engine, second_stage=None)
    found, scores = _no_lists(len(items), k)
    known = np.flatnonzero(items <= engine.recommender.num_items)
    starts, moment = np.arange(len(known)), np.full(len(known), time, np.int64)
    types = np.zeros(len(known), np.int16)
    histories = Histories(items[known], moment, types, starts, starts + 1, request_time=moment)
    answer = engine.answer(histories, k, Rules(allowed=allowed), run=run, in_blocks=True)
    places = answer.item_index.shape[1]
    found[known, :places], scores[known, :places] = answer.item_index, answer.score
    return found, scores


def nearest_by_direction(
    directions: Float32, items: Int32, k: int, allowed: NDArray[np.bool_] | None = None
) -> Candidates:
    """Items of highest cosine with each of `items` [q], exact: items and scores as in `led_to`.

    directions: [n + 1, d], vectors of length 1, or zero for an item without one, which has no list and is in none.
    """
    has_vector = np.asarray(directions.any(axis=1))
    has_vector[0] = False
    candidates = np.flatnonzero(has_vector if allowed is None else has_vector & allowed)
    position = np.full(len(directions), -1, np.int64)
    position[candidates] = np.arange(len(candidates))

    def itself(rows: Int64) -> tuple[Int64, Int64]:
        own = position[items[rows]]
        return np.flatnonzero(own >= 0), own[own >= 0]

    queries, vectors = (torch.from_numpy(directions[chosen]) for chosen in (items, candidates))
    places, cosines = (values.numpy() for values in nearest(queries, vectors, k, itself))
    is_there = (places >= 0) & has_vector[items][:, None]
    found, scores = _no_lists(len(items), k)
    found[is_there], scores[is_there] = candidates[places[is_there]], cosines[is_there]
    return found, scores


def following(
    follows: csr_array, items: Int32, k: int, allowed: NDArray[np.bool_] | None = None
) -> Candidates:
    """Items of the largest entries in the rows of `items` [q] of `follows` [n + 1, n + 1] (see `CoVisitation`).

    Items and scores as in `led_to`; the lower item first of equal ones; entries of 0 are in no list.
    """
    rows = follows[items]
    lengths = np.diff(rows.indptr).astype(np.int64)
    found, scores = _no_lists(len(items), k)
    for part in event_chunks(lengths):
        entries = slice(int(rows.indptr[part.start]), int(rows.indptr[part.stop]))
        row = np.repeat(np.arange(part.start, part.stop), lengths[part])
        item, value = rows.indices[entries], rows.data[entries]
        order = np.lexsort((item, -value, row))
        order = order[(value > 0)[order] & (True if allowed is None else allowed[item[order]])]
        row, item, value = row[order], item[order], value[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        best = place < k
        found[row[best], place[best]], scores[row[best], place[best]] = item[best], value[best]
    return found, scores


def _no_lists(num_rows: int, k: int) -> Candidates:
    """Empty lists [num_rows, k]."""
    return np.zeros((num_rows, k), np.int32), np.full((num_rows, k), -np.inf, np.float32)
