"""Second stage for a share of the users (`score.second_stage_share`): whose lists it ranks, and what that costs."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.histories import Histories, Int64
from models.ranking.candidates import learned_part
from models.recommendation.answer import Answer
from models.recommendation.engine import RecommendationEngine
from pipeline.artifacts.files import read_json
from pipeline.errors import LookbackError
from pipeline.modelling.history_gain import HistoryGain
from pipeline.modelling.second_stage import DESCRIPTION
from pipeline.serving import bundle_ranker
from pipeline.serving.assignment import keys_of
from pipeline.serving.bundle import Bundle
from pipeline.serving.current_log import Log
from pipeline.serving.shards import Counts

SALT = "second_stage_share"
"""Of the hash that orders users of equal gain."""
RANKED, _RANKED_TIME, _OTHER_TIME = "ranked_users", "ranked_microseconds", "other_microseconds"
"""Names of counts."""


def gain_of(bundle: Bundle) -> HistoryGain | None:
    """Gain of a bundle's second stage by length of history; None without a second stage, or in a bundle without the figures."""
    if bundle.second_stage is None:
        return None
    return HistoryGain.of_description(read_json(bundle.folder / bundle_ranker.FOLDER / DESCRIPTION))


def check_share(bundle: Bundle, share: float) -> None:
    """Raise LookbackError for a share below 1 of a bundle without a second stage, or without its gain by length of history."""
    if share == 1 or gain_of(bundle) is not None:
        return
    received = f"score.second_stage_share: received {share:g}, but the published system has no "
    if bundle.second_stage is None:
        raise LookbackError(
            f"{received}second stage; expected a bundle with a ranker (ranker.use, publish.system), or "
            "score.second_stage_share = 1.0"
        )
    raise LookbackError(
        f"{received}figures of its ranker's gain by length of history, which an earlier version did not measure; run the stages "
        "rank and publish with --force, or set score.second_stage_share = 1.0"
    )


def ranked_users(
    bundle: Bundle, log: Log, ids: pl.Series, index: Int64, share: float
) -> NDArray[np.bool_] | None:
    """[users] whether the second stage ranks a user's list; None: all. Follows from the log and the users to score alone.

    ids: [users]; index: [users] in the log, -1: without events.
    """
    if share == 1 or (gain := gain_of(bundle)) is None:
        return None
    offsets = np.asarray(log.histories.offsets)
    lengths = np.where(index >= 0, log.ends[index] - offsets[index], 0)
    return gain.chosen(lengths, keys_of(ids, SALT), share)


def answer(
    engine: RecommendationEngine,
    histories: Histories,
    ranked: NDArray[np.bool_],
    of_rows: Callable[[RecommendationEngine, NDArray[np.bool_]], Answer],
) -> tuple[Answer, Counts]:
    """Answer of an engine with its second stage for the rows of a mask [rows], and without it for the others; with counts.

    of_rows: answer of an engine for the rows of a mask. Rows of nothing but items that the encoder does not know are ranked
    whatever the mask says, since retrieval has no order for them. Counts: of ranked rows with a history, and the time of each
    kind of rows in microseconds, which belong to no list.
    """
    is_unread = learned_part(histories, engine.recommender.num_items).lengths == 0
    ranked = ranked | (is_unread & (histories.lengths > 0))
    started = time.monotonic()
    by_both = of_rows(engine, ranked)
    between = time.monotonic()
    whole = Answer.merged(ranked, by_both, of_rows(replace(engine, second_stage=None), ~ranked))
    counts = {
        RANKED: int((ranked & ~whole.cold).sum()),
        _RANKED_TIME: round((between - started) * 1e6),
        _OTHER_TIME: round((time.monotonic() - between) * 1e6),
    }
    return whole, counts


def predicted_seconds(counts: Counts, users_per_second: float) -> dict[str, float]:
    """Seconds that a scoring would take with the second stage for all its users (`all`), and for none (`none`).

    By the time of the lists made, in `counts` of all users; empty where those were all of one kind. For information alone.
    """
    of_kind = counts.get(_RANKED_TIME, 0), counts.get(_OTHER_TIME, 0)
    number, ranked = counts.get("users", 0), counts.get(RANKED, 0)
    if not 0 < ranked < number or not sum(of_kind) or not users_per_second:
        return {}
    seconds = number / users_per_second / sum(of_kind) * number
    return {"all": seconds * of_kind[0] / ranked, "none": seconds * of_kind[1] / (number - ranked)}
