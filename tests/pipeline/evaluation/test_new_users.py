"""Users without a history at a night are evaluated on the lists that scoring gives them, worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from features.histories.splits import temporal
from models.evaluation.ranks import SystemRanks
from models.recommendation.rules import Rules
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.targets import NO_HISTORY, WARM, RankedTargets
from pipeline.evaluation.new_users import NewUsers
from pipeline.serving.bundle import Bundle
from pipeline.serving.popularity_fallback import DAY
from pipeline.serving.request import Request
from tests.factories import jagged, small_bundle

K = 4
SEGMENT = pl.Series(["a", "b", "a", None, "b", None])
OWN = ItemNumbering(np.array([0, 7, 6, 5, 4, 3, 0, 2, 1], np.int32))
"""The system lacks item 6, and counts the others backwards."""
COMMON = ItemNumbering(np.arange(9, dtype=np.int32))


def log() -> JaggedHistories:
    """Events of six users by day; of the last one the system does not know the only item before day 20."""
    by_day = [
        [(2, 1), (15, 2), (16, 2)],
        [(18, 3), (19, 1)],
        [(21, 2)],
        [(22, 3)],
        [(25, 1)],
        [(3, 6), (23, 2)],
    ]
    return jagged([[(DAY * day, item) for day, item in user] for user in by_day])


def targets() -> RankedTargets:
    """On day 20 users 1, 2, 3 and 5, on day 24 user 4; each takes its next item."""
    histories = log()
    user = np.array([1, 2, 3, 5, 4])
    moment = DAY * np.array([20, 20, 20, 20, 24])
    before = np.where(user == 5, 1, np.where(user == 1, 2, 0))
    starts = histories.offsets[user]
    position = np.where(user == 1, starts, starts + before)
    own = replace(rows(histories, starts, starts + before), request_time=moment)
    cold = np.where(before > 0, WARM, NO_HISTORY).astype(np.int8)
    return RankedTargets.one_each(own, histories.item_index[position], user, position, cold, {})


def fallback(folder: Path) -> NewUsers:
    histories = log()
    return NewUsers(Dataset(folder, histories, temporal(histories, 8)), SEGMENT, 10.0)


def test_ranks_and_lists_by_pencil(tmp_path: Path) -> None:
    """Day 20, ten days back: item 2 twice in segment a, items 1 and 3 once in b; of those item 1 was had more often ever.

    Day 24: item 2 three times, item 3 twice, item 1 once, of which the last two are of segment b.
    """
    by_the_model = SystemRanks(np.full(5, 9.0), np.full(5, 9.0), np.full((5, K), 8, np.int32))
    found = fallback(tmp_path).ranked(by_the_model, targets(), COMMON, OWN)
    assert found.lists.tolist() == [[8] * K, [2, 1, 3, 8], [2, 1, 3, 8], [2, 1, 3, 8], [3, 1, 2, 8]]
    assert found.rank.tolist() == [9, 1, 3, 1, 2]
    assert found.pessimistic.tolist() == [9, 1, 3, 1, 2]
    assert by_the_model.rank.tolist() == [9] * 5


def test_they_are_the_lists_of_scoring(tmp_path: Path) -> None:
    small_bundle(tmp_path / "bundle")
    asked, histories = targets(), log()
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.description["popularity"] = {"days": 10.0}
    none = SystemRanks(np.zeros(5), np.zeros(5), np.zeros((5, K), np.int32))
    evaluated = fallback(tmp_path).ranked(none, asked, COMMON, OWN).lists
    for row in range(1, 5):
        moment = int(asked.moment[row])
        request = Request(moment, moment, is_set=True)
        now = bundle.counting_until(request, histories, OWN.new, SEGMENT)
        user = asked.user[[row]]
        known = asked.histories.select(np.array([row])).translate(OWN.new)
        codes = now.popularity.codes(SEGMENT.gather(user))
        answer = now.engine.answer(known, K, Rules(), segment=codes)
        assert answer.cold.all()
        assert OWN.inverse().new[answer.item_index[0]].tolist() == evaluated[row].tolist()
