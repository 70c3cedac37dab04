from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.encoder import batching
from models.encoder.batching import (
    BatchPlan,
    BlockShape,
    cut_by_tokens,
    cut_into_blocks,
    pad,
    rounded_up,
)
from models.histories import histories_from_lists


def typed(items, types):
    return replace(histories_from_lists(items), event_type=np.array(types, np.int16))


def random_histories(rows=300, seed=0):
    random = np.random.default_rng(seed)
    return histories_from_lists(
        [random.integers(1, 50, length).tolist() for length in random.integers(0, 40, rows)]
    )


def items_in(batch):
    """The item of every cell, one window and row after the other."""
    return torch.cat([window.item_index.flatten() for window in batch.windows])


def last_cells(batch):
    """The last cell of every row that is real."""
    lengths = torch.cat([window.lengths for window in batch.windows])
    columns = [window.item_index.shape[1] for window in batch.windows for _ in window.lengths]
    first = torch.tensor([0, *columns]).cumsum(0)[:-1]
    return (first + lengths - 1)[lengths > 0]


def shapes(batch):
    return [tuple(window.item_index.shape) for window in batch.windows]


def flat_steps(plan, epoch=0):
    """Every (last input, target) of an epoch, sorted, and the batches they are in."""
    batches = [plan.batch(rows, epoch) for rows in plan.epoch(epoch)]
    pairs = [
        (int(item), int(target))
        for batch in batches
        for item, target in zip(items_in(batch)[batch.position], batch.target, strict=True)
    ]
    return sorted(pairs), batches


def test_pad_by_pencil():
    window = pad(typed([[5, 6, 7], [], [8]], [1, 2, 3, 4]))
    assert window.item_index.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert window.event_type.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert window.lengths.tolist() == [3, 0, 1]
    assert window.value is window.time is window.request_time is window.position is None


def test_pad_with_times_values_and_what_is_asked():
    """What follows a column is asked for when it happened; what follows the last when the request says."""
    histories = replace(
        histories_from_lists([[5, 6, 7], [8]], [[10, 20, 40], [-30]]),
        value=np.array([1.5, np.nan, 2, 0], np.float32),
        request_time=np.array([70, 90]),
    )
    window = pad(histories, (3, 4), with_time=True, with_value=True)
    assert window.time is not None
    assert window.request_time is not None
    assert window.value is not None
    assert window.time.tolist() == [[10, 20, 40, 0], [-30, 0, 0, 0], [0] * 4]
    assert window.request_time.tolist() == [[20, 40, 70, 0], [90, 0, 0, 0], [0] * 4]
    assert window.value.nan_to_num(-1).tolist() == [[1.5, -1, 2, 0], [0] * 4, [0] * 4]
    assert window.lengths.tolist() == [3, 1, 0]
    unasked = pad(replace(histories, request_time=None), with_time=True)
    assert unasked.request_time is None
    assert unasked.value is None
    assert pad(histories, with_value=True).time is None


def test_pad_of_part_of_a_row_knows_what_followed_it():
    """Rows overlap: a prefix's last column is asked for at the request, not when the row went on."""
    histories = replace(
        histories_from_lists([[5, 6, 7]], [[10, 20, 40]]),
        starts=np.array([0, 1]), ends=np.array([2, 3]), request_time=np.array([33, 44]),
    )  # fmt: skip
    window = pad(histories, with_time=True)
    assert window.request_time is not None
    assert window.request_time.tolist() == [[20, 33], [40, 44]]


def test_a_window_s_parts_go_together():
    window = pad(random_histories(5), with_time=True).to(torch.device("cpu"))
    assert window.time is not None
    assert window.value is None


def test_rounding_by_pencil():
    assert [rounded_up(number) for number in (0, 1, 31, 32, 33, 63, 65, 13_800)] == [
        0,
        1,
        31,
        32,
        34,
        64,
        68,
        13_824,
    ]


@given(st.integers(1, 10**9))
def test_rounding_adds_a_sixteenth_at_most(number):
    assert number <= rounded_up(number) <= number * 17 / 16
    assert number <= rounded_up(number, 4) <= number * 9 / 8


@pytest.mark.parametrize("one_window", [False, True])
def test_a_batch_by_pencil(one_window):
    # window of 3 inputs: of [1 .. 5] the last four events; the target 7 has a type of weight 0, 0 is no item
    histories = typed([[1, 2, 3, 4, 5], [6, 7, 8], [9], [6, 0, 2]], [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1])
    plan = BatchPlan(histories, 3, 2, np.array([0, 0.5, 0], np.float32), seed=0, one_window=one_window)
    batch = plan.batch(np.array([0, 1, 2]), 0)
    # 7 inputs: a row of 3 cells is more than an eighth of them, so a window of its own
    assert shapes(batch) == ([(3, 3)] if one_window else [(1, 3), (1, 2), (1, 2)])
    rows = [row for window in batch.windows for row in window.item_index.tolist()]
    assert rows == ([[2, 3, 4], [6, 7, 0], [6, 0, 0]] if one_window else [[2, 3, 4], [6, 7], [6, 0]])
    assert torch.cat([window.lengths for window in batch.windows]).tolist() == [3, 2, 2]
    assert batch.position.tolist() == ([0, 1, 2, 4, 7] if one_window else [0, 1, 2, 4, 6])
    assert batch.target.tolist() == [3, 4, 5, 8, 2]
    assert batch.weight.tolist() == [0.5] * 5
    assert plan.num_targets == 5


def test_a_target_s_own_time_is_when_it_was_asked_for():
    histories = replace(
        histories_from_lists([[1, 2, 3], [4, 5]], [[10, 20, 30], [40, 50]]),
        value=np.arange(5, dtype=np.float32), request_time=np.array([999, 999]),
    )  # fmt: skip
    plan = BatchPlan(histories, 5, 2, None, seed=0, with_time=True, with_value=True, one_window=True)
    (window,) = plan.batch(np.array([0, 1]), 0).windows
    assert window.time is not None
    assert window.request_time is not None
    assert window.value is not None
    assert window.time.tolist() == [[10, 20], [40, 0]]
    assert window.request_time.tolist() == [[20, 30], [50, 0]]
    assert window.value.tolist() == [[0, 1], [3, 0]]


def test_last_targets_by_pencil():
    """The last event of weight above 0, from the max_length events before it."""
    histories = typed(
        [[1, 2, 3, 4, 5], [6, 7, 8], [9], [6, 0], [3, 4]], [1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2]
    )
    plan = BatchPlan(histories, 2, 3, np.array([0, 2, 0], np.float32), seed=0, targets="last")
    assert plan.num_targets == len(plan.windows) == 2
    for epoch in (0, 3):
        batch = plan.batch(np.array([0, 1]), epoch)
        assert [window.item_index.tolist() for window in batch.windows] == [[[2, 3]], [[6, 7]]]
        assert batch.target.tolist() == [4, 8]
        assert batch.position.tolist() == [1, 3]
        assert batch.weight.tolist() == [2, 2]
    (pairs, _) = flat_steps(plan)
    assert pairs == [(3, 4), (7, 8)]


def test_random_targets_are_one_of_each_history_and_others_in_another_epoch():
    histories = random_histories()
    types = np.random.default_rng(1).integers(1, 3, len(histories.item_index)).astype(np.int16)
    plan = BatchPlan(
        replace(histories, event_type=types), 11, 16, np.array([0, 1, 0], np.float32), 5, targets="random"
    )
    possible = [
        {at for at in range(start + 1, end) if types[at] == 1}
        for start, end in zip(plan.windows.starts.tolist(), plan.windows.ends.tolist(), strict=True)
    ]
    assert all(possible)
    assert plan.num_targets == len(possible)
    drawn = []
    for epoch in range(60):
        chosen = plan.in_epoch(epoch)
        at = chosen.ends - 1
        assert all(place in places for place, places in zip(at.tolist(), possible, strict=True))
        assert (chosen.starts == np.maximum(plan.windows.starts, chosen.ends - 12)).all()
        drawn.append(at)
    places_of = np.stack(drawn)
    assert (drawn[0] != drawn[1]).mean() > 0.7
    assert np.array_equal(plan.in_epoch(0).ends - 1, drawn[0])  # whatever was drawn in between
    short = [row for row, places in enumerate(possible) if len(places) <= 4]
    for row in short:  # a place of four is missed in 60 draws once in 3e7
        assert set(places_of[:, row]) == possible[row]


@pytest.mark.parametrize("one_window", [False, True])
def test_random_targets_reach_the_batches(one_window):
    plan = BatchPlan(random_histories(), 11, 16, None, seed=5, targets="random", one_window=one_window)
    chosen = plan.in_epoch(2)
    pairs, batches = flat_steps(plan, 2)
    items = plan.windows.item_index
    assert pairs == sorted(zip(items[chosen.ends - 2].tolist(), items[chosen.ends - 1].tolist(), strict=True))
    for batch in batches:
        assert torch.equal(batch.position, last_cells(batch))  # each history once, at its end


@pytest.mark.parametrize("targets", ["all", "last", "random"])
@pytest.mark.parametrize("one_window", [False, True])
def test_batches_hold_every_target_once_and_nothing_after_it(targets, one_window):
    plan = BatchPlan(
        random_histories(60), 20, 7, None, seed=1, targets=targets, with_time=True, one_window=one_window
    )
    pairs, batches = flat_steps(plan, 1)
    assert len(pairs) == plan.num_targets
    for window in (window for batch in batches for window in batch.windows):
        assert window.time is not None
        assert window.request_time is not None
        real = torch.arange(window.time.shape[1]) < window.lengths.unsqueeze(1)
        assert (window.request_time[real] == window.time[real] + 1).all()  # times count events
        assert not window.item_index[~real].any()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        # 629 inputs, so 79 cells a window: one row of 60 columns (57 has more than four binary digits), ten of 8
        ([8] * 64 + [60, 57], [(1, 60), (1, 60), *[(10, 8)] * 6, (4, 8)]),
        # 331 cells: 41 rows of 8 columns, in few different numbers 42; the last 37 become 38
        ([8] * 331, [*[(42, 8)] * 7, (38, 8)]),
        # 100 inputs, 12.5 cells: a row of 20 columns is more; two of 7 are about as much
        ([20, 17, *[7] * 9], [(1, 20), (1, 18), *[(2, 7)] * 4, (1, 7)]),
        ([1], [(1, 1)]),
    ],
)
def test_packing_by_pencil(lengths, expected):
    random = np.random.default_rng(0)
    rows = [random.integers(1, 50, length + 1).tolist() for length in random.permutation(lengths)]
    plan = BatchPlan(histories_from_lists(rows), 64, len(lengths), None, seed=0)
    (step,) = plan.epoch(0)
    batch = plan.batch(step, 0)
    assert shapes(batch) == expected
    packed = torch.cat([window.lengths for window in batch.windows])
    assert packed[packed > 0].tolist() == sorted(lengths, reverse=True)


def test_rows_of_one_length_keep_their_order():
    plan = BatchPlan(histories_from_lists([[row, 7, 7] for row in range(1, 14)]), 8, 13, None, seed=0)
    rows = np.array([5, 0, 12, 3])
    assert items_in(plan.batch(rows, 0)).view(4, 2)[:, 0].tolist() == [6, 1, 13, 4]


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_every_target_once_whatever_the_packing(targets, monkeypatch):
    histories = random_histories(200)
    typed_events = np.random.default_rng(2).integers(0, 3, len(histories.item_index)).astype(np.int16)
    histories = replace(histories, event_type=typed_events)
    type_weights = np.array([1, 0, 0.5], np.float32)

    def epoch(number, batch_histories, **options):
        plan = BatchPlan(histories, 17, batch_histories, type_weights, seed=3, targets=targets, **options)
        pairs, batches = flat_steps(plan, number)
        weighted = [
            each
            for batch in batches
            for each in zip(batch.target.tolist(), batch.weight.tolist(), strict=True)
        ]
        assert len(pairs) == plan.num_targets
        return pairs, sorted(weighted)

    expected = epoch(4, 16, one_window=True)
    if targets == "all":
        flat = [
            (histories.item_index[at - 1], histories.item_index[at], type_weights[typed_events[at]])
            for start, end in zip(histories.starts, histories.ends, strict=True)
            for at in range(max(start + 1, end - 17), end)
            if typed_events[at] != 1
        ]
        assert expected[0] == sorted((int(before), int(item)) for before, item, _ in flat)
        assert expected[1] == sorted((int(item), float(weight)) for _, item, weight in flat)
    for windows in (1, 3, 8, 50):
        monkeypatch.setattr(batching, "WINDOWS", windows)
        for batch_histories in (1, 16, 200):
            assert epoch(4, batch_histories) == expected


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_the_targets_of_rows_are_those_of_their_batches_in_the_rows_order(targets):
    types = np.random.default_rng(2).integers(0, 3, len(random_histories().item_index)).astype(np.int16)
    histories = replace(random_histories(), event_type=types)
    plan = BatchPlan(histories, 11, 16, np.array([1, 0, 0.5], np.float32), seed=3, targets=targets)
    rows = plan.epoch(2)[1]
    target, weight = plan.targets_of(rows, 2)
    alone = [plan.batch(rows[at : at + 1], 2) for at in range(len(rows))]
    assert torch.equal(target, torch.cat([batch.target for batch in alone]))
    assert torch.equal(weight, torch.cat([batch.weight for batch in alone]))
    assert target.dtype == torch.int64


def test_little_of_a_packed_batch_is_padding():
    """Lengths as logs have them, lognormal, up to the longest kept; as one window, sorted in pools, 28 % are padding."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 1, 2000), 2, 201).astype(np.int64)
    histories = histories_from_lists([[1] * length for length in lengths])

    def share(one_window):
        plan = BatchPlan(histories, 200, 128, None, seed=0, one_window=one_window)
        batches = [plan.batch(rows, 0) for rows in plan.epoch(0)]
        assert max(len(batch.windows) for batch in batches) <= (1 if one_window else 2 * batching.WINDOWS)
        return 1 - (lengths - 1).sum() / sum(len(items_in(batch)) for batch in batches)

    assert share(one_window=False) < 0.2 < share(one_window=True)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
def test_rows_cut_by_tokens(lengths, budget):
    batches = cut_by_tokens(np.array(lengths, np.int64), budget)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length]
    assert [lengths[row] for row in rows] == sorted(length for length in lengths if length)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@pytest.mark.parametrize(
    ("length", "longest", "most", "rows", "columns"),
    [
        (1, 200, 1000, 512, 8),  # 4,096 cells
        (9, 200, 1000, 256, 10),  # of 409 rows
        (17, 200, 1000, 128, 20),
        (193, 200, 1000, 16, 200),  # 224 are more than there are
        (3, 5, 1000, 512, 5),
        (3, 5, 100, 64, 5),
        (5000, 6000, 1000, 1, 5120),
    ],
)
def test_shape_of_a_block_by_pencil(length, longest, most, rows, columns):
    assert BlockShape.of(length, longest, most) == BlockShape(rows, columns)


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 20))
def test_rows_cut_into_blocks(lengths, most):
    blocks = cut_into_blocks(np.array(lengths, np.int64), 30, most)
    assert sorted(row for block in blocks for row in block) == list(range(len(lengths)))
    part_full = []
    for block in blocks:
        (shape,) = {BlockShape.of(lengths[row], 30, most) for row in block}
        assert len(block) <= shape.rows
        part_full += [shape] if len(block) < shape.rows else []
    assert len(part_full) == len(set(part_full)), "all but the last of a shape are full"


@pytest.mark.parametrize("one_window", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_history_once_in_batches_of_equal_size(epoch, one_window):
    plan = BatchPlan(random_histories(), 20, 16, None, seed=3, one_window=one_window)
    batches = plan.epoch(epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(plan.windows)))
    num_inputs = plan.windows.lengths - 1
    tokens = np.array([num_inputs[rows].sum() for rows in batches])
    assert len(batches) == plan.steps_per_epoch
    assert np.abs(tokens - tokens.mean()).max() <= 20  # no more than one history off


def test_batches_of_one_window_hold_histories_of_similar_length():
    plan = BatchPlan(random_histories(3000), 40, 16, None, seed=0, one_window=True)
    num_inputs = plan.windows.lengths - 1
    real = num_inputs.sum()
    padded = sum(len(rows) * num_inputs[rows].max() for rows in plan.epoch(0))
    mixed = sum(16 * 39 for _ in range(len(plan.windows) // 16))
    assert padded / real < 1.4 < mixed / real


def test_packed_batches_are_drawn_whatever_the_lengths():
    """A batch's mean length is that of a sample of its size, not of neighbours in length."""
    plan = BatchPlan(random_histories(3000), 40, 64, None, seed=0)
    num_inputs = plan.windows.lengths - 1
    means = np.array([num_inputs[rows].mean() for rows in plan.epoch(0)])
    assert np.abs(means - num_inputs.mean()).max() < 5 * num_inputs.std() / 8  # standard errors of 64


@pytest.mark.parametrize("one_window", [False, True])
def test_the_same_seed_gives_the_same_batches(one_window):
    def epoch(seed):
        plan = BatchPlan(random_histories(), 20, 16, None, seed, targets="random", one_window=one_window)
        return [plan.batch(rows, 3) for rows in plan.epoch(3)]

    for one, other in zip(epoch(1), epoch(1), strict=True):
        assert shapes(one) == shapes(other)
        for first, second in (
            (items_in(one), items_in(other)),
            (one.position, other.position),
            (one.target, other.target),
            (one.weight, other.weight),
        ):
            assert torch.equal(first, second)
    assert [batch.target.tolist() for batch in epoch(1)] != [batch.target.tolist() for batch in epoch(2)]


@pytest.mark.parametrize("one_window", [False, True])
def test_the_order_follows_from_seed_and_epoch(one_window):
    def order(seed, epoch):
        plan = BatchPlan(random_histories(), 20, 16, None, seed, one_window=one_window)
        return np.concatenate(plan.epoch(epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_histories_without_targets_are_left_out(targets):
    plan = BatchPlan(histories_from_lists([[1], [], [2, 3], [4, 0]]), 5, 2, None, seed=0, targets=targets)
    assert len(plan.windows) == 1
    assert plan.num_targets == 1


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_no_targets_at_all(targets):
    plan = BatchPlan(histories_from_lists([[1], []]), 5, 2, None, seed=0, targets=targets)
    assert plan.num_targets == 0
    assert plan.epoch(0) == []


@pytest.mark.parametrize("one_window", [False, True])
@pytest.mark.parametrize("batch_histories", [1, 2, 4])
def test_histories_longer_than_a_step_leave_no_step_empty(batch_histories, one_window):
    lengths = np.random.default_rng(0).lognormal(2, 1.2, 500).astype(int).clip(2, 201)
    rows = [np.arange(1, length + 1).tolist() for length in lengths]
    plan = BatchPlan(histories_from_lists(rows), 200, batch_histories, None, 0, one_window=one_window)
    for epoch in range(2):
        steps = plan.epoch(epoch)
        assert len(steps) == plan.steps_per_epoch == 500 // batch_histories
        assert sorted(np.concatenate(steps).tolist()) == list(range(500))


def test_few_shapes_hold_the_same_targets():
    """Lengths 1..31 round up to 1, 2, 3, 4, 6, 8, 12, 16, 24, 32; rows to three digits."""
    plan = BatchPlan(random_histories(2000), 40, 16, None, 0, one_window=True)
    usual = [plan.batch(rows, 0) for rows in plan.epoch(0)]
    plan.few_shapes = True
    few = [plan.batch(rows, 0) for rows in plan.epoch(0)]
    columns = {shapes(batch)[0][1] for batch in few}
    assert columns <= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40}
    assert len({shapes(batch)[0] for batch in few}) < len({shapes(batch)[0] for batch in usual}) / 2
    for one, other in zip(usual, few, strict=True):
        assert torch.equal(one.target, other.target)
        assert torch.equal(items_in(one)[one.position], items_in(other)[other.position])


def contrasted(plan):
    """(item of the state, liked, disliked, weight) of an epoch, sorted."""
    found: list[tuple[float, ...]] = []
    for rows in plan.epoch(0):
        batch = plan.batch(rows, 0)
        if (pairs := batch.contrasts) is not None:
            parts = items_in(batch)[pairs.position], pairs.liked, pairs.disliked, pairs.weight
            found += zip(*(part.tolist() for part in parts), strict=True)
    return sorted(found)


def test_dislikes_are_no_targets_but_contrasted_with_the_next_one():
    # type 2 is a dislike; row 0: 12 before 13; 14 before none; row 1: the first event has no state before it
    histories = replace(
        typed([[11, 12, 13, 14], [21, 22, 23, 24, 25]], [1, 2, 1, 2, 2, 1, 2, 2, 1]),
        dislikes=np.array([0, 0, 0.5], np.float32),
    )
    weights = np.array([1, 1, -0.5], np.float32)
    plan = BatchPlan(histories, 9, 2, weights, 0)
    targets, _ = flat_steps(plan)
    assert targets == [(12, 13), (21, 22), (24, 25)]
    expected = [(11, 13, 12, 0.5), (22, 25, 23, 0.5), (23, 25, 24, 0.5)]
    assert contrasted(plan) == expected
    assert contrasted(BatchPlan(histories, 9, 1, weights, 0, window_tokens=1)) == expected
    assert contrasted(BatchPlan(histories, 9, 2, weights, 0, learns_dislikes=False)) == []
    assert contrasted(BatchPlan(replace(histories, dislikes=None), 9, 2, None, 0)) == []


def test_a_dislike_is_contrasted_at_the_state_before_its_visit():
    # visits (11), (12, 13 disliked), (14): the dislike's state is that of 11, its next target 14
    histories = replace(
        typed([[11, 12, 13, 14]], [0, 0, 1, 0]),
        time=np.array([0, 5, 5, 9]),
        dislikes=np.array([0, 1], np.float32),
    )
    assert contrasted(BatchPlan(histories, 9, 1, None, 0, session=0)) == [(11, 14, 13, 1.0)]
