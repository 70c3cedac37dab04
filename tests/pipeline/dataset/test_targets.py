"""Which held-out events are targets: by pencil, against plain loops, and with leaks that must be found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from features.histories import splits
from features.histories.jagged import JaggedHistories, user_ranges
from features.histories.leaks import LeakError, check_fitted, check_leaks
from features.histories.numbering import ItemNumbering
from features.histories.splits import Split
from models.baselines.popularity import Popularity
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.leak_checks import check_targets
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, WARM, RankedTargets, ranked_targets
from tests.factories import jagged

A, B, C, D, E = 1, 2, 3, 4, 5


HISTORIES = jagged(
    [
        [(1, A), (2, B), (8, C), (9, A), (9, E)],  # C ranked; A already seen; E unknown
        [(3, B), (7, D), (7, C), (8, B)],  # D under the core; C ranked; B already seen
        [(6, C), (8, A)],  # C without any history; A ranked
        [(2, D), (9, B)],  # B without a history that the model knows
        [(1, A), (9, B)],  # the user is under the core
    ]
)
SPLIT = Split(
    "temporal",
    train_end=np.array([2, 6, 9, 12, 14]),
    validation_end=np.array([2, 6, 9, 12, 14]),
    test_end=np.array([5, 9, 11, 13, 15]),
    train_user=np.ones(5, bool),
    kept_user=np.array([True, True, True, True, False]),
    kept_item=np.array([False, True, True, True, False, True]),
    validation_from=6,
    test_from=6,
)
ALL_KEPT = (np.ones(1, bool), np.ones(1, bool), np.arange(6) > 0)
MAPPING = np.array([0, 1, 2, 3, 0, 0], np.int32)


def test_every_test_event_is_a_target_or_counted():
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True
    )
    assert HISTORIES.item_index[targets.position].tolist() == [C, E, C, C, A, B]
    assert targets.item.tolist() == [C, 0, C, C, A, B]
    assert targets.user.tolist() == [0, 0, 1, 2, 2, 3]
    plain, cold_user, cold_item = WARM, NO_HISTORY, UNKNOWN_ITEM
    assert targets.cold.tolist() == [plain, cold_item, plain, cold_user, plain, cold_user]
    assert targets.num_cold == {"no_history": 2, "unknown_item": 1}
    assert targets.left_out == {"under_core": 2, "not_first": 0, "already_seen": 2}
    assert len(targets) + sum(targets.left_out.values()) == SPLIT.num_events(HISTORIES)["test"]


def with_dislikes(histories: JaggedHistories, *positions: int) -> JaggedHistories:
    """The events at flat positions as dislikes, of type 1."""
    types = np.zeros(len(histories.time), np.int16)
    types[list(positions)] = 1
    return replace(histories, event_type=types, dislikes=np.array([0, 2], np.float32))


def test_dislikes_are_no_targets_but_a_set_of_their_own():
    # the first C, the A already seen, user 1's D under the core, the last event of user 4, who is
    dataset = Dataset(Path(), with_dislikes(HISTORIES, 2, 3, 6, 14), SPLIT)
    numbering = ItemNumbering(MAPPING)
    targets = ranked_targets(dataset, "test", numbering, ties="order", exclude_seen=True)
    assert targets.item.tolist() == [0, C, C, A, B]
    assert targets.left_out == {"under_core": 2, "dislike": 2, "not_first": 0, "already_seen": 1}
    assert targets.histories.lengths.tolist() == [4, 1, 0, 1, 0]  # dislikes stay in the history
    disliked = ranked_targets(dataset, "test", numbering, ties="order", exclude_seen=True, dislikes=True)
    assert (disliked.item.tolist(), disliked.position.tolist(), disliked.user.tolist()) == ([C], [2], [0])
    assert disliked.left_out == {"under_core": 2, "not_first": 0, "already_seen": 1}


def test_the_last_event_that_is_no_dislike_is_left_out_of_the_training():
    # the middle event before the last one, and the last of all, are dislikes
    histories = with_dislikes(jagged([[(1, A), (2, B), (3, C), (4, D), (5, E)]]), 2, 4)
    split = splits.leave_one_out(histories, 5)
    assert (split.train_end.tolist(), split.validation_end.tolist()) == ([1], [3])
    dataset, every = Dataset(Path(), histories, split), ItemNumbering(np.arange(6, dtype=np.int32))
    test = ranked_targets(dataset, "test", every, ties="order", exclude_seen=True)
    assert (test.item.tolist(), test.left_out["dislike"]) == ([D], 1)
    disliked = ranked_targets(dataset, "test", every, ties="order", exclude_seen=True, dislikes=True)
    assert disliked.item.tolist() == [E]


def test_a_long_test_is_that_of_some_users_whole():
    dataset = Dataset(Path(), HISTORIES, SPLIT)
    targets = ranked_targets(dataset, "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True)
    assert targets.of_some_users(6, seed=0) is targets
    of_each = {0: [C, E], 1: [C], 2: [C, A], 3: [B]}
    drawn = set()
    for seed in range(20):
        some = targets.of_some_users(3, seed)
        users = sorted(set(some.user.tolist()))
        drawn.add(tuple(users))
        assert HISTORIES.item_index[some.position].tolist() == [
            item for user in users for item in of_each[user]
        ]
        assert len(some) <= 3
        assert some.left_out == targets.left_out | {"not_sampled": 6 - len(some)}
    assert len(drawn) > 3
    assert len(targets.of_some_users(1, seed=1)) in (1, 2), "one user at least, whole"


def test_warm_targets_have_a_known_item_and_a_history():
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True
    )
    warm = targets.select(targets.warm)
    assert (warm.user.tolist(), warm.item.tolist()) == ([0, 1, 2], [C, C, A])
    assert (warm.histories.lengths > 0).all()
    assert warm.num_cold == {"no_history": 0, "unknown_item": 0}
    assert warm.left_out == targets.left_out


def test_only_the_first_event_of_each_user():
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT),
        "test",
        ItemNumbering(MAPPING),
        ties="order",
        exclude_seen=True,
        first_only=True,
    )
    assert targets.user.tolist() == [0, 2, 3]  # user 1's first event is on D, under the core
    assert targets.position.tolist() == [2, 9, 12]
    assert targets.cold.tolist() == [WARM, NO_HISTORY, NO_HISTORY]
    assert targets.left_out == {"under_core": 2, "not_first": 5, "already_seen": 0}


def test_repeats_are_targets_where_seen_items_are_not_masked():
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=False
    )
    targets = targets.select(targets.warm)
    assert HISTORIES.item_index[targets.position].tolist() == [C, A, C, B, A]
    assert targets.left_out["already_seen"] == 0


def test_a_repeat_of_an_item_that_the_model_does_not_know_was_seen_too():
    histories = jagged([[(1, A), (2, B), (7, E), (8, E)]])
    ends = np.array([2])
    split = Split("temporal", ends, ends, ends + 2, *ALL_KEPT, validation_from=7, test_from=7)
    targets = ranked_targets(
        Dataset(Path(), histories, split), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True
    )
    assert (targets.position.tolist(), targets.cold.tolist()) == ([2], [UNKNOWN_ITEM])
    assert targets.left_out["already_seen"] == 1


def test_what_is_held_back_is_no_target():
    split = replace(SPLIT, test_end=np.array([3, 7, 10, 12, 14]))
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, split), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True
    )
    assert targets.position.tolist() == [2, 9]
    assert targets.left_out == {"under_core": 1, "not_first": 0, "already_seen": 0}


def test_the_core_of_leave_one_out_counts_the_whole_log():
    histories = jagged([[(1, A), (2, B), (3, A), (4, C)], [(1, A), (2, B), (3, A), (4, B)]])
    split = splits.leave_one_out(histories, 3, min_item_events=2)
    mapping = np.array([0, 1, 2, 0], np.int32)
    targets = ranked_targets(
        Dataset(Path(), histories, split), "test", ItemNumbering(mapping), ties="order", exclude_seen=False
    )
    assert (targets.user.tolist(), targets.num_cold["unknown_item"]) == ([0, 1], 0)
    assert targets.left_out["under_core"] == 1  # C, of which nothing was there to train on


def test_a_history_is_all_that_the_model_knows_before_the_target():
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=False
    )
    looked_at = targets.select(targets.warm).histories
    rows = [
        looked_at.item_index[start:end].tolist()
        for start, end in zip(looked_at.starts, looked_at.ends, strict=True)
    ]
    assert rows == [[A, B], [A, B, C], [B], [B, C], [C]]  # D is never in one


def test_strict_ties_leave_out_what_has_the_targets_own_time():
    histories = jagged([[(1, A), (2, B), (3, A), (3, B), (3, C)]])
    split = splits.leave_one_out(histories, 3)
    every_item = ItemNumbering(np.arange(4, dtype=np.int32))
    by_order = ranked_targets(
        Dataset(Path(), histories, split), "test", every_item, ties="order", exclude_seen=True
    )
    by_time = ranked_targets(
        Dataset(Path(), histories, split), "test", every_item, ties="strict", exclude_seen=True
    )
    assert (by_order.histories.lengths.tolist(), by_time.histories.lengths.tolist()) == ([4], [2])


# --- against plain loops, with planted leaks ---

LOGS = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), min_size=1, max_size=9).map(sorted),
    min_size=2,
    max_size=6,
)


@given(
    LOGS,
    st.sampled_from(["temporal", "held_back", "leave_one_out"]),
    st.sampled_from(["validation", "test"]),
    st.sampled_from(["order", "strict"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 12),
)
def test_targets_and_their_histories_are_as_a_plain_loop_says(
    rows: list[list[tuple[int, int]]],
    protocol: str,
    part: str,
    ties: str,
    exclude_seen: bool,
    first_only: bool,
    block_events: int,
):
    histories = jagged(rows)
    split = split_of(histories, protocol)
    assume(split is not None)
    assert split is not None
    mapping = np.array([0, 1, 2, 0, 3, 0], np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaggedHistories, "blocks", lambda self: user_ranges(self.offsets, block_events))
        targets = ranked_targets(
            Dataset(Path(), histories, split),
            part,
            ItemNumbering(mapping),
            ties=ties,
            exclude_seen=exclude_seen,
            first_only=first_only,
        )
        check_targets(
            targets, Dataset(Path(), histories, split), ItemNumbering(mapping), ties=ties, part=part
        )
    starts, ends = split.stretch(histories, part)
    expected = []
    for user, row in enumerate(rows):
        offset = int(histories.offsets[user])
        for place, (time, item) in enumerate(row):
            if not starts[user] <= offset + place < ends[user] or (
                first_only and offset + place > starts[user]
            ):
                continue
            before = [each for each in row[:place] if ties == "order" or each[0] < time]
            if exclude_seen and item in {seen for _, seen in before}:
                continue
            known = [int(mapping[seen]) for _, seen in before if mapping[seen]]
            cold = UNKNOWN_ITEM if not mapping[item] else WARM if known else NO_HISTORY
            expected.append((offset + place, int(mapping[item]), known, cold))
    looked_at = targets.histories
    found = [
        (int(position), int(item), looked_at.item_index[start:end].tolist(), int(cold))
        for position, item, start, end, cold in zip(
            targets.position, targets.item, looked_at.starts, looked_at.ends, targets.cold, strict=True
        )
    ]
    assert found == expected


def split_of(histories: JaggedHistories, protocol: str) -> Split | None:
    """A split without a core filter; None where the log is too short for it."""
    num_items = int(histories.item_index.max())
    try:
        if protocol == "leave_one_out":
            split = splits.leave_one_out(histories, num_items)
        else:
            split = splits.temporal(histories, num_items, held_back=0.2 if protocol == "held_back" else 0)
    except ValueError as error:
        if "part is empty" not in str(error):
            raise
        return None
    return replace(split, kept_item=np.arange(6) > 0)


def planted(**changes: Any) -> RankedTargets:
    """Targets without a leak, but for the given fields of their histories (of the second, user 0's A at 9)."""
    targets = ranked_targets(
        Dataset(Path(), HISTORIES, SPLIT), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=False
    )
    changed = {name: getattr(targets.histories, name).copy() for name in changes}
    for name, add in changes.items():
        changed[name][1] += add
    return replace(targets, histories=replace(targets.histories, **changed))


def check(targets: RankedTargets, ties: str = "order") -> None:
    check_targets(targets, Dataset(Path(), HISTORIES, SPLIT), ItemNumbering(MAPPING), ties=ties)


def test_targets_without_a_leak_pass_as_do_shorter_histories():
    check(planted())
    check(planted(starts=1))
    check(planted(ends=-1))
    targets = planted()
    check(targets.select(np.array([4, 1, 0])))
    check(replace(targets, histories=targets.histories.last(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": 1}, "an event at or after the target stands in the history, for 1 of 8 targets"),
        ({"ends": 3}, "an event at or after the target"),  # and all of the next user's
        (
            {"item_index": 1},
            "the items of the histories given to systems are not those of the features folder",
        ),
        ({"time": 5}, "the times of the histories given"),
        ({"event_type": 1}, "the event types of the histories given"),
    ],
)
def test_a_future_event_in_a_history_is_found(changes: dict[str, int], message: str):
    with pytest.raises(LeakError, match=message):
        check(planted(**changes))


def test_an_event_of_another_user_in_a_history_is_found():
    targets = planted()
    starts = targets.histories.starts.copy()
    row = int(np.flatnonzero(targets.user == 1)[0])
    starts[row] -= 1
    with pytest.raises(LeakError, match=r"an event of another user.*of user index 1"):
        check(replace(targets, histories=replace(targets.histories, starts=starts)))


def test_more_events_than_the_features_folder_has_are_found():
    histories = planted().histories
    names = ("item_index", "time", "event_type")
    longer: dict[str, Any] = {
        name: np.append(getattr(histories, name), getattr(histories, name)[-1]) for name in names
    }
    with pytest.raises(LeakError, match="hold 13 events, expected the 12"):
        check(replace(planted(), histories=replace(histories, **longer)))


def test_a_tie_is_a_leak_where_ties_are_strict():
    histories = jagged([[(1, A), (2, B), (3, A), (3, C)]])
    split, mapping = splits.leave_one_out(histories, 3), np.arange(4, dtype=np.int32)
    by_order, by_time = (
        ranked_targets(
            Dataset(Path(), histories, split), "test", ItemNumbering(mapping), ties=ties, exclude_seen=True
        )
        for ties in ("order", "strict")
    )
    check_targets(by_order, Dataset(Path(), histories, split), ItemNumbering(mapping), ties="order")
    check_targets(by_time, Dataset(Path(), histories, split), ItemNumbering(mapping), ties="strict")
    with pytest.raises(LeakError, match="an event of or after the target's visit"):
        check_targets(by_order, Dataset(Path(), histories, split), ItemNumbering(mapping), ties="strict")


def test_a_target_that_trained_is_found():
    targets = planted()
    position = targets.position.copy()
    position[0] = 1  # user 0's B, a training event
    with pytest.raises(LeakError, match="no test event of an evaluated user is the target, for 1 of 8"):
        check(replace(targets, position=position))
    with pytest.raises(LeakError, match="another item than that of its event is the target"):
        check(replace(targets, item=np.where(targets.item == A, B, targets.item).astype(np.int32)))


def test_a_features_folder_with_a_later_event_at_the_front_is_found(tmp_path: Path):
    HISTORIES.save(tmp_path)
    SPLIT.save(tmp_path / "split")
    for name in ("item_index", "time"):
        array = np.load(tmp_path / f"{name}.npy")
        array[:5] = np.roll(array[:5], 1)  # user 0's last event becomes the first
        np.save(tmp_path / f"{name}.npy", array)
    histories, split = JaggedHistories.load(tmp_path), Split.load(tmp_path / "split")
    targets = ranked_targets(
        Dataset(Path(), histories, split), "test", ItemNumbering(MAPPING), ties="order", exclude_seen=True
    )
    with pytest.raises(LeakError, match="1 events stand in a history after one that came later"):
        check_targets(targets, Dataset(Path(), histories, split), ItemNumbering(MAPPING), ties="order")
    with pytest.raises(LeakError, match="not in the order of time"):
        check_leaks(histories, split)


def test_popularity_counted_over_the_test_period_is_found():
    training = Popularity.fit(
        Dataset(Path(), HISTORIES, SPLIT).training_rows(with_validation=False), 5
    ).fitted_on
    check_fitted("popularity", training.num_events, training.latest, HISTORIES, SPLIT, with_validation=False)
    everything = Dataset(Path(), HISTORIES, SPLIT).all_rows()
    on = Popularity.fit(everything, 5).fitted_on
    with pytest.raises(LeakError, match=r"popularity was fitted on 15 events .*expected the 4 of"):
        check_fitted("popularity", on.num_events, on.latest, HISTORIES, SPLIT, with_validation=False)
