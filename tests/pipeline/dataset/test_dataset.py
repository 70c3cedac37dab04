"""Held-out events and their histories, with visits."""

from dataclasses import replace
from pathlib import Path

import pytest

from features.histories import splits
from features.histories.jagged import JaggedHistories, user_ranges
from features.histories.leaks import LeakError
from features.histories.numbering import ItemNumbering
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.leak_checks import check_targets
from pipeline.dataset.targets import ranked_targets
from tests.factories import jagged

MINUTE = 60_000_000


def dataset() -> Dataset:
    """Two users, times in minutes: visits of at most 5 minutes' pause are 0 3, 20, 40 44 46 and 46, 50, 60."""
    minutes = [[(0, 1), (3, 2), (20, 3), (40, 1), (44, 2), (46, 3)], [(46, 1), (50, 2), (60, 3)]]
    histories = jagged([[(minute * MINUTE, item) for minute, item in row] for row in minutes])
    return Dataset(Path(), histories, splits.leave_one_out(histories, 3))


@pytest.mark.parametrize("block_events", [1, 9])
def test_strict_ties_cut_at_the_visit_by_pencil(monkeypatch: pytest.MonkeyPatch, block_events: int):
    monkeypatch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
    lengths = {
        minutes: dataset().held_out("test", "strict", minutes).histories.lengths.tolist()
        for minutes in (0, 2, 4, 5, 100)
    }
    assert lengths == {0: [5, 2], 2: [4, 2], 4: [3, 2], 5: [3, 2], 100: [0, 0]}
    assert dataset().held_out("test", "order", 5).histories.lengths.tolist() == [5, 2]


def test_an_event_of_the_target_s_visit_is_a_leak():
    data, numbering = dataset(), ItemNumbering.of_known(dataset().split.kept_item)
    targets = ranked_targets(data, "test", numbering, ties="strict", exclude_seen=False)
    check_targets(targets, data, numbering, ties="strict")
    with pytest.raises(LeakError, match="an event of or after the target's visit"):
        check_targets(targets, data, numbering, ties="strict", session_minutes=5)
    cut = data.held_out("test", "strict", 5).histories
    without = replace(targets, histories=replace(targets.histories, ends=cut.ends))
    check_targets(without, data, numbering, ties="strict", session_minutes=5)
