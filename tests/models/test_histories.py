"""Rows of past interactions: with and without dislikes."""

from dataclasses import replace

import numpy as np

from models.histories import Histories, ItemSets, histories_from_lists


def log() -> Histories:
    """Types 0, 1 and 2, of which 2 is a dislike; the second row is the first's beginning, the third is empty."""
    one = histories_from_lists([[11, 12, 13, 14]])
    return replace(
        one,
        event_type=np.array([0, 2, 1, 2], np.int16),
        starts=np.array([0, 0, 4]),
        ends=np.array([4, 3, 4]),
        request_time=np.array([7, 8, 9]),
        dislikes=np.array([0, 0, 1.5], np.float32),
    )


def items(histories: Histories) -> list[list[int]]:
    rows = zip(histories.starts, histories.ends, strict=True)
    return [histories.item_index[start:end].tolist() for start, end in rows]


def test_rows_with_and_without_dislikes() -> None:
    liked, disliked = log().without_dislikes(), log().only_dislikes()
    assert items(liked) == [[11, 13], [11, 13], []]
    assert items(disliked) == [[12, 14], [12], []]
    assert liked.dislikes is disliked.dislikes is None
    assert liked.request_time is not None
    assert liked.request_time.tolist() == [7, 8, 9]


def test_a_log_without_dislikes_stays_as_it_is() -> None:
    plain = replace(log(), dislikes=None)
    assert plain.without_dislikes() is plain
    assert items(plain.only_dislikes()) == [[], [], []]


def test_dislikes_keep_their_weight_under_another_number() -> None:
    renumbered = log().with_types(np.array([0, 0, 3], np.int16))
    assert renumbered.event_type.tolist() == [0, 3, 0, 3]
    assert renumbered.dislikes is not None
    assert renumbered.dislikes.tolist() == [0, 0, 0, 1.5]
    assert items(renumbered.without_dislikes()) == items(log().without_dislikes())
    unknown = log().with_types(np.array([0, 1, 0], np.int16))
    assert items(unknown.without_dislikes()) == items(log()), "a type that is not known is a plain event"


def test_rows_of_what_a_list_leaves_out() -> None:
    rows = histories_from_lists([[3, 1], [], [2]])
    sets = ItemSets.of(np.array([0, 1, 1]), np.array([5, 2, 4]), 3)
    assert sets.has(np.array([[5, 0], [4, 5], [2, 2]], np.int32)).tolist() == [
        [True, False],
        [True, False],
        [False] * 2,
    ]
    assert sets.select(np.array([2, 1])).lengths.tolist() == [0, 2]
    own = replace(rows, left_out=sets)
    assert rows.excluded(seen=False) is None
    assert rows.excluded(seen=True) is rows
    for seen, expected in ((False, [[5], [2, 4], []]), (True, [[3, 1, 5], [2, 4], [2]])):
        excluded = own.excluded(seen=seen)
        assert excluded is not None
        received = [
            excluded.item_index[slice(*ends)].tolist()
            for ends in zip(excluded.starts, excluded.ends, strict=True)
        ]
        assert received == expected
    renamed = own.translate(np.array([0, 1, 4, 3, 2, 0], np.int32))
    assert renamed.left_out is not None
    assert renamed.left_out.item_index.tolist() == [2, 4]
    assert renamed.left_out.lengths.tolist() == [0, 2, 0]
