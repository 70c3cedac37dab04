"""Ids outside, indices inside, and back."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.histories.vocabulary import Vocabulary


def test_by_pencil() -> None:
    items = Vocabulary.of(pl.Series("item_id", ["b", "a", None, "c", "a"]), first=1)
    assert items.ids.to_list() == ["a", "b", "c"]
    assert items.encode(pl.Series(["c", "a"])).tolist() == [3, 1]
    assert items.decode(np.array([3, 0, 1, 4])).to_list() == ["c", None, "a", None]


def test_strangers_raise_or_are_counted() -> None:
    users = Vocabulary.of(pl.Series("user_id", [5, -7]), first=0)
    with pytest.raises(ValueError, match="user_id: received 6"):
        users.encode(pl.Series("user_id", [5, 6]))
    index, strangers = users.encode_known(pl.Series([6, 5, -7]), unknown=-1)
    assert (index.tolist(), strangers) == ([-1, 1, 0], 1)


def test_ids_of_another_type_are_matched_by_value() -> None:
    users = Vocabulary.of(pl.Series("user_id", [5, -7]), first=0)
    assert users.encode_known(pl.Series(["5", "x", "-7"]), unknown=-1)[0].tolist() == [1, -1, 0]


def test_floats_are_the_whole_number_they_hold_or_strangers() -> None:
    users = Vocabulary.of(pl.Series("user_id", [1, 2]), first=0)
    assert users.encode_known(pl.Series([1.5, 2.0]), unknown=-1)[0].tolist() == [-1, 1]
    texts = Vocabulary.of(pl.Series("user_id", ["17850", "a"]), first=0)
    assert texts.encode_known(pl.Series([17850.0]), unknown=-1)[0].tolist() == [0]


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1)), min_size=1))
def test_there_and_back_exactly_for_every_int64(ids: list[int]) -> None:
    vocabulary = Vocabulary.of(pl.Series("id", ids, dtype=pl.Int64), first=1)
    asked = pl.Series("id", ids, dtype=pl.Int64)
    assert vocabulary.decode(vocabulary.encode(asked)).to_list() == ids
