"""Pins stand at their ranks, other items keep their order between them, and no filter gives way: by hand."""

from dataclasses import replace

import numpy as np
import pytest

from models.histories import Histories, ItemSets, Shortlists, histories_from_lists
from models.recommendation.answer import Answer, Because, Outcomes
from models.recommendation.pins import REASONS, Pins, pinned
from models.recommendation.rules import Rules


def pins_of(*pins: tuple[int, int, int], own: bool = True) -> Pins:
    """Pins of (row, item, rank)."""
    row, item, rank = np.array(pins, np.int64).reshape(-1, 3).T
    return Pins(row, item.astype(np.int32), rank, np.full(len(row), own))


def answer_of(*lists: list[int]) -> Answer:
    """Lists with scores 0.9, 0.8 …, each reason and outcome its item's number."""
    items = np.array(lists, np.int32)
    given = items > 0
    score = np.where(given, 0.9 - 0.1 * np.arange(items.shape[1]), -np.inf).astype(np.float32)
    number = items.astype(np.float32)
    because = Because(items[..., None], number[..., None])
    outcomes = Outcomes(number, number[..., None], number)
    return Answer(items, score, np.full(items.shape, 0.5, np.float32), ~given[:, 0], because, outcomes)


def test_a_pin_takes_its_rank_and_the_others_keep_their_order() -> None:
    lists, num_moved = pinned(answer_of([1, 2, 3, 4], [5, 6, 7, 8]), pins_of((0, 9, 2), (1, 7, 1)))
    assert lists.item_index.tolist() == [[1, 9, 2, 3], [7, 5, 6, 8]]
    assert lists.score[0].tolist() == pytest.approx([0.9, np.nan, 0.8, 0.7], nan_ok=True)
    assert lists.score[1].tolist() == pytest.approx([0.7, 0.9, 0.8, 0.6]), "7 was in the list: its own score"
    assert lists.propensity.tolist() == [[0.5, 1, 0.5, 0.5], [1, 0.5, 0.5, 0.5]]
    assert lists.because is not None
    assert lists.outcomes is not None
    assert lists.because.item_index[..., 0].tolist() == [[1, 0, 2, 3], [7, 5, 6, 8]], (
        "a new item has no reason"
    )
    assert np.isnan(lists.outcomes.score[0, 1])
    assert lists.outcomes.probability[1, :, 0].tolist() == [7, 5, 6, 8]
    assert num_moved == 0


def test_beyond_the_end_of_a_short_list_pins_follow_its_last_item() -> None:
    lists, num_moved = pinned(answer_of([1, 0, 0, 0], [0, 0, 0, 0]), pins_of((0, 9, 1), (0, 8, 4), (1, 7, 2)))
    assert lists.item_index.tolist() == [[9, 1, 8, 0], [7, 0, 0, 0]]
    assert np.isneginf(lists.score[0, 3])
    assert num_moved == 2, "8 and 7"


def test_a_whole_list_of_pins_is_those() -> None:
    lists, _ = pinned(answer_of([1, 2]), pins_of((0, 2, 1), (0, 9, 2)))
    assert lists.item_index.tolist() == [[2, 9]]
    assert pinned(answer_of([1, 2]), pins_of())[0].item_index.tolist() == [[1, 2]]


def test_filters_do_not_give_way_to_a_pin() -> None:
    """Row 0: 1 is seen, 2 left out, 3 not allowed, 0 unknown. Row 1 is limited to 5 and 6."""
    histories = replace(
        histories_from_lists([[1], []]),
        left_out=ItemSets.of(np.array([0]), np.array([2]), 2),
        shortlist=limited([[], [5, 6]], [False, True]),
    )
    allowed = np.arange(10) != 3
    pins = pins_of(*((0, item, 1 + item) for item in range(4)), (0, 4, 5), (1, 5, 1), (1, 7, 2))
    kept, dropped = pins.allowed(histories, Rules(allowed=allowed))
    assert list(zip(kept.row.tolist(), kept.item.tolist(), strict=True)) == [(0, 4), (1, 5)]
    assert dropped == dict.fromkeys(REASONS, 1) | {"overridden": 0}
    kept, dropped = pins.allowed(histories, Rules(exclude_seen=False))
    assert kept.item.tolist() == [1, 3, 4, 5]


def test_a_user_s_own_pin_goes_before_one_for_all() -> None:
    """Rank 1: own 5 before 8. Item 6: own rank 3 before rank 2 of all, so that rank is free; 7 twice: the lower rank."""
    own, others = (
        pins_of((0, 5, 1), (0, 6, 3)),
        pins_of((0, 8, 1), (0, 6, 2), (0, 7, 5), (0, 7, 4), own=False),
    )
    both = Pins(*(np.concatenate([getattr(own, name), getattr(others, name)]) for name in vars(own)))
    kept, dropped = both.allowed(histories_from_lists([[]]), Rules())
    assert sorted(zip(kept.rank.tolist(), kept.item.tolist(), strict=True)) == [(1, 5), (3, 6), (4, 7)]
    assert dropped["overridden"] == 3


def limited(rows: list[list[int]], is_limited: list[bool]) -> Shortlists:
    row = np.repeat(np.arange(len(rows)), [len(items) for items in rows])
    sets = ItemSets.of(row, np.array([item for items in rows for item in sorted(items)]), len(rows))
    return Shortlists(sets.item_index, sets.starts, sets.ends, np.array(is_limited))


def by_hand(items: list[int], pins: dict[int, int], k: int) -> list[int]:
    """One list with pins (rank to item), place by place."""
    rest = [item for item in items if item and item not in pins.values()]
    whole: list[int] = []
    for rank in range(1, k + 1):
        if rank in pins:
            whole.append(pins[rank])
        elif rest:
            whole.append(rest.pop(0))
    return [*whole, *[0] * k][:k]


def test_random_lists_are_those_made_by_hand_row_by_row() -> None:
    random = np.random.default_rng(0)
    num_rows, k = 300, 5
    lists, wanted = [], []
    for _ in range(num_rows):
        length = int(random.integers(0, k + 1))
        lists.append([*random.permutation(9)[:length] + 1, *[0] * (k - length)])
        number = int(random.integers(0, k + 1))
        ranks, items = random.permutation(k)[:number] + 1, random.permutation(12)[:number] + 1
        wanted.append(dict(zip(ranks.tolist(), items.tolist(), strict=True)))
    pins = [(row, item, rank) for row, own in enumerate(wanted) for rank, item in own.items()]
    order = random.permutation(len(pins))
    made, _ = pinned(answer_of(*lists), pins_of(*(pins[place] for place in order)))
    expected = [
        by_hand([int(item) for item in own], pins, k) for own, pins in zip(lists, wanted, strict=True)
    ]
    assert made.item_index.tolist() == expected
    empty: Histories = histories_from_lists([[]] * num_rows)
    assert len(pins_of(*pins).allowed(empty, Rules())[0]) == len(pins)
