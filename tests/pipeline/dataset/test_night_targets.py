"""Targets of nights: by pencil, and against a plain polars computation on random logs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.histories.leaks import LeakError
from features.histories.numbering import ItemNumbering
from features.histories.splits import Split
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.leak_checks import check_targets
from pipeline.dataset.night_targets import night_targets
from pipeline.dataset.protocol import Nights
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, WARM
from tests.factories import jagged

A, B, C, D = 1, 2, 3, 4
EVERY_ITEM = ItemNumbering(np.arange(5, dtype=np.int32))
TRAINED = np.array([False, True, True, True, False])
"""D is unseen in training."""
NIGHTS = Nights(np.array([10, 20]), 5)
HISTORIES = jagged(
    [
        [(1, A), (10, B), (12, B), (14, A), (15, C), (21, D)],  # night 10: B, A; night 20: D
        [(2, B), (9, C), (30, A)],  # nothing taken at either night
        [(11, C), (24, C), (25, B)],  # night 10: C without a history; night 20: C
        [(3, A), (13, A), (22, B)],
    ]
)


def split_of(histories: JaggedHistories, test_from: int, kept: list[bool] | None = None) -> Split:
    users = histories.num_users
    first = np.array(
        [
            np.searchsorted(histories.time[a:b], test_from) + a
            for a, b in zip(histories.offsets, histories.offsets[1:], strict=False)
        ]
    )
    everyone, every_item = np.ones(users, bool), np.arange(5) > 0
    ends = np.asarray(histories.offsets[1:])
    chosen = everyone if kept is None else np.array(kept)
    return Split("temporal", first, first, ends, everyone, chosen, every_item, test_from, test_from)


def dataset(kept: list[bool] | None = None) -> Dataset:
    return Dataset(Path(), HISTORIES, split_of(HISTORIES, 10, kept))


def test_nights_by_pencil() -> None:
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    # requests: (night 10, users 0, 2, 3), (night 20, users 0, 2, 3)
    assert targets.moment.tolist() == [10, 10, 10, 20, 20, 20]
    assert targets.user.tolist() == [0, 2, 3, 0, 2, 3]
    assert targets.histories.lengths.tolist() == [1, 0, 1, 5, 1, 2]
    assert targets.request.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert targets.item.tolist() == [B, A, C, A, D, C, B]
    assert targets.position.tolist() == [1, 3, 9, 13, 5, 10, 14]
    assert targets.cold.tolist() == [WARM, WARM, NO_HISTORY, WARM, UNKNOWN_ITEM, WARM, WARM]
    assert targets.left_out == {"under_core": 0, "nothing_taken": 2, "taken_again": 1, "nothing_left": 0}


def test_dislikes_of_a_night_are_a_set_of_their_own() -> None:
    types = np.zeros(len(HISTORIES.time), np.int16)
    types[[2, 3, 13]] = 1  # user 0's second B and A at night 10, user 3's A
    histories = replace(HISTORIES, event_type=types, dislikes=np.array([0, 1], np.float32))
    log = Dataset(Path(), histories, split_of(histories, 10))
    targets = night_targets(log, NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    assert targets.item.tolist() == [B, C, D, C, B]
    assert targets.left_out == {
        "under_core": 0, "nothing_taken": 2, "dislike": 3, "taken_again": 0, "nothing_left": 1,
    }  # fmt: skip
    disliked = night_targets(log, NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED, dislikes=True)
    assert (disliked.item.tolist(), disliked.user_of_target.tolist()) == ([B, A, A], [0, 0, 3])
    unseen = night_targets(log, NIGHTS, EVERY_ITEM, exclude_seen=True, trained=TRAINED, dislikes=True)
    assert (unseen.item.tolist(), unseen.left_out["already_seen"]) == ([B], 2)


def test_nights_of_some_users() -> None:
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    items = {0: [B, A, D], 2: [C, C], 3: [A, B]}
    for seed in range(10):
        some = targets.of_some_users(4, seed)
        users = sorted(set(some.user.tolist()))
        assert len(users) == 2
        assert some.user.tolist() == users * 2, "both nights of each"
        assert some.left_out["not_sampled"] == 2
        taken = {user: sorted(some.item[some.user_of_target == user].tolist()) for user in users}
        assert taken == {user: sorted(items[user]) for user in users}


def test_items_of_the_history_are_left_out_and_counted() -> None:
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=True, trained=TRAINED)
    # night 10: user 0's A and user 3's A repeat; night 20: user 2's C repeats
    assert targets.item.tolist() == [B, C, D, B]
    assert targets.user.tolist() == [0, 2, 0, 3]
    assert targets.left_out["already_seen"] == 3
    assert targets.left_out["nothing_left"] == 2, "user 3 at night 10, user 2 at night 20"


def test_users_who_are_not_evaluated_have_no_requests() -> None:
    kept = [False, True, True, False]
    targets = night_targets(dataset(kept), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    assert set(targets.user.tolist()) == {2}


def test_event_types_that_do_not_count() -> None:
    types = np.array([False, True])  # without a type: not included
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED, types=types)
    assert len(targets) == targets.num_requests == 0
    assert targets.left_out["other_type"] == 8


def test_selection_keeps_whole_requests_in_order() -> None:
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    warm = targets.select(targets.warm)
    assert warm.item.tolist() == [B, A, A, C, B]
    assert warm.request.tolist() == [0, 0, 1, 2, 3], "user 0 at night 20 has only an item unseen in training"
    assert warm.user.tolist() == [0, 3, 2, 3]
    late = targets.of_requests(targets.moment == 20)
    assert (late.item.tolist(), late.request.tolist()) == ([D, C, B], [0, 1, 2])
    assert targets.sample(6, 0) is targets
    few = targets.sample(2, 0)
    assert few.num_requests == 2
    assert set(few.request.tolist()) == {0, 1}


def test_leak_checks_pass_and_find_a_later_history() -> None:
    targets = night_targets(dataset(), NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    check_targets(targets, dataset(), EVERY_ITEM, ties="strict")
    targets.histories.ends[0] += 1  # the event at the night itself
    with pytest.raises(LeakError, match="stands in the history"):
        check_targets(targets, dataset(), EVERY_ITEM, ties="strict")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_nights_equal_a_plain_computation(seed: int, exclude_seen: bool) -> None:
    random = np.random.default_rng(seed)
    rows = [
        sorted(
            (int(time), int(item))
            for time, item in zip(random.integers(0, 60, size), random.integers(1, 5, size), strict=True)
        )
        for size in random.integers(0, 20, 12)
    ]
    histories = jagged(rows)
    data = Dataset(Path(), histories, split_of(histories, 30))
    nights = Nights(np.array([30, 37, 44, 51]), 7)
    found = night_targets(data, nights, EVERY_ITEM, exclude_seen=exclude_seen, trained=np.ones(5, bool))
    log = pl.DataFrame(
        [(user, time, item) for user, row in enumerate(rows) for time, item in row],
        schema=["user", "time", "item"],
        orient="row",
    )
    expected = set()
    for night in nights.moments.tolist():
        taken = log.filter(pl.col("time").is_between(night, night + 7, closed="left")).unique(
            ["user", "item"]
        )
        seen = log.filter(pl.col("time") < night).unique(["user", "item"])
        if exclude_seen:
            taken = taken.join(seen, on=["user", "item"], how="anti")
        expected |= {(night, user, item) for user, item in taken.select("user", "item").iter_rows()}
    got = zip(
        found.moment[found.request].tolist(), found.user_of_target.tolist(), found.item.tolist(), strict=True
    )
    assert set(got) == expected
    assert len(found) == len(expected)
    before = log.group_by("user").agg(pl.col("time"))
    times = dict(before.iter_rows())
    lengths = [
        sum(time < night for time in times[user])
        for night, user in zip(found.moment.tolist(), found.user.tolist(), strict=True)
    ]
    assert found.histories.lengths.tolist() == lengths


def test_requests_have_the_context_of_the_last_event_before_their_night() -> None:
    codes = np.arange(1, len(HISTORIES.time) + 1, dtype=np.int32)[:, None]
    own = dataset()
    own = replace(own, histories=replace(own.histories, event_columns=codes))
    targets = night_targets(own, NIGHTS, EVERY_ITEM, exclude_seen=False, trained=TRAINED)
    context = targets.histories.context
    assert context is not None
    assert targets.user.tolist() == [0, 2, 3, 0, 2, 3]
    assert context[:, 0].tolist() == [1, 0, 13, 5, 10, 14], "none of user 2's at the first night"
