"""Gain of the second stage by length of history, and the users chosen by it, worked out by hand."""

import numpy as np
import pytest

from pipeline.modelling.history_gain import ENTRY, HistoryGain

EDGES = (0, 1, 5, 20)


def test_gains_are_means_by_class_and_come_back_from_the_description() -> None:
    lengths = np.array([1, 4, 20, 300, 7])
    gain = HistoryGain.measure(lengths, np.array([0.2, 0.4, 0.1, 0.0, -0.5]), EDGES)
    rows = gain.as_rows()
    assert [(row["first_length"], row["lists"]) for row in rows] == [(1, 2), (5, 1), (20, 2)]
    assert [row["gain"] for row in rows] == pytest.approx([0.3, -0.5, 0.05])
    again = HistoryGain.of_description({ENTRY: rows})
    assert again is not None
    assert again.as_rows() == rows
    assert HistoryGain.of_description({}) is None, "of an earlier version"


def test_a_share_of_the_users_with_a_history_are_those_of_the_highest_gain() -> None:
    """Users of 1 to 4 events gain .3, of 20 and more .05, of 5 to 19 they lose; equal ones go by their keys."""
    gain = HistoryGain(np.array([1, 5, 20]), np.array([2, 1, 2]), np.array([0.3, -0.5, 0.05]))
    lengths = np.array([0, 6, 4, 25, 1, 0, 30, 3])
    keys = np.array([9, 8, 7, 6, 5, 4, 3, 2], np.uint64)
    orders = {
        share: np.flatnonzero(gain.chosen(lengths, keys, share)).tolist()
        for share in (0, 1 / 6, 0.5, 4 / 6, 1)
    }
    assert orders == {
        0: [],
        1 / 6: [7],
        0.5: [2, 4, 7],
        4 / 6: [2, 4, 6, 7],
        1: [1, 2, 3, 4, 6, 7],
    }
    order = np.random.default_rng(0).permutation(len(lengths))
    assert np.array_equal(
        gain.chosen(lengths[order], keys[order], 0.5), gain.chosen(lengths, keys, 0.5)[order]
    )


def test_a_length_without_lists_has_the_gain_of_the_class_below_it_or_of_the_first() -> None:
    gain = HistoryGain(np.array([5, 50]), np.array([1, 1]), np.array([0.1, 0.2]))
    keys = np.arange(4, dtype=np.uint64)
    assert gain.chosen(np.array([1, 10, 60, 5]), keys, 0.5).tolist() == [True, False, True, False]
