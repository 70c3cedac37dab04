import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.batching import BatchPlan, cut_by_tokens, pad, rounded_up
from models.recommender import Histories, histories_from_lists


def typed(items, types):
    rows = histories_from_lists(items)
    return Histories(rows.item_index, rows.time, np.array(types, np.int16), rows.starts, rows.ends)


def random_histories(rows=300, seed=0):
    random = np.random.default_rng(seed)
    return histories_from_lists(
        [random.integers(1, 50, length).tolist() for length in random.integers(0, 40, rows)]
    )


def test_pad_by_pencil():
    item_index, event_type = pad(typed([[5, 6, 7], [], [8]], [1, 2, 3, 4]))
    assert item_index.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert event_type.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]


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


def test_a_batch_by_pencil():
    # window of 3 inputs: of [1 .. 5] the last four events; the target 7 has a type of weight 0, 0 is no item
    histories = typed([[1, 2, 3, 4, 5], [6, 7, 8], [9], [6, 0, 2]], [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1])
    plan = BatchPlan(histories, 3, 2, np.array([0, 0.5, 0], np.float32), seed=0)
    batch = plan.batch(np.array([0, 1, 2]))
    assert batch.item_index.tolist() == [[2, 3, 4], [6, 7, 0], [6, 0, 0]]
    assert batch.position.tolist() == [0, 1, 2, 4, 7]
    assert batch.target.tolist() == [3, 4, 5, 8, 2]
    assert batch.weight.tolist() == [0.5] * 5
    assert plan.num_targets == 5


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
def test_rows_cut_by_tokens(lengths, budget):
    batches = cut_by_tokens(np.array(lengths, np.int64), budget)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length]
    assert [lengths[row] for row in rows] == sorted(length for length in lengths if length)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_history_once_in_batches_of_equal_size(epoch):
    plan = BatchPlan(random_histories(), 20, 16, None, seed=3)
    batches = plan.epoch(epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(plan.windows)))
    tokens = np.array([plan.num_inputs[rows].sum() for rows in batches])
    assert len(batches) == plan.steps_per_epoch
    assert np.abs(tokens - tokens.mean()).max() <= 20  # no more than one history off


def test_batches_hold_histories_of_similar_length():
    plan = BatchPlan(random_histories(3000), 40, 16, None, seed=0)
    real = plan.num_inputs.sum()
    padded = sum(len(rows) * plan.num_inputs[rows].max() for rows in plan.epoch(0))
    mixed = sum(16 * 39 for _ in range(len(plan.windows) // 16))
    assert padded / real < 1.4 < mixed / real


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(BatchPlan(random_histories(), 20, 16, None, seed).epoch(epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_an_epoch_can_start_in_the_middle():
    plan = BatchPlan(random_histories(), 20, 16, None, seed=0)
    whole, rest = list(plan.batches(1)), list(plan.batches(1, first=2))
    assert len(rest) == len(whole) - 2
    assert torch.equal(rest[0].item_index, whole[2].item_index)


def test_histories_without_targets_are_left_out():
    plan = BatchPlan(histories_from_lists([[1], [], [2, 3], [4, 0]]), 5, 2, None, seed=0)
    assert len(plan.windows) == 1
    assert plan.num_targets == 1


def test_no_targets_at_all():
    plan = BatchPlan(histories_from_lists([[1], []]), 5, 2, None, seed=0)
    assert plan.num_targets == 0
    assert plan.epoch(0) == []
