"""Exposures joined with the events that followed: pencil examples, and a comparison with a plain search."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import schema
from features.histories import exposures
from features.histories.exposures import ExposureCounts, JaggedExposures
from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary
from tests.factories import Rows, jagged

USERS = Vocabulary(pl.Series("user_id", ["a", "b", "c"]), 0)
ITEMS = Vocabulary(pl.Series("item_id", [10, 20, 30]), 1)
Shown = tuple[str, int, int, int | None, float | None, str | None]
"""user, time, item, rank, propensity, list"""


def write(path: Path, rows: list[Shown]) -> Path:
    """A part with some exposures."""
    names = (schema.USER_ID, schema.TIMESTAMP, schema.ITEM_ID, schema.RANK, schema.PROPENSITY, schema.LIST_ID)
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    columns |= {schema.SOURCE_FILE: ["f"] * len(rows), schema.SOURCE_ROW: list(range(1, len(rows) + 1))}
    types = {name: kinds[0] for name, kinds in schema.EXPOSURES.items()} | {schema.USER_ID: pl.String()}
    frame = pl.DataFrame({name: columns[name] for name in types}, types)
    frame.write_parquet(path)
    return path


def build(
    folder: Path,
    rows: list[Shown],
    events: Rows | JaggedHistories,
    *,
    window: int = 10,
    bucket_rows: int = 100,
) -> tuple[JaggedExposures, ExposureCounts]:
    """Exposures in two parts, joined with the events of users a, b and c."""
    histories = events if isinstance(events, JaggedHistories) else jagged(events)
    half = len(rows) // 2
    parts = [write(folder / "1.parquet", rows[:half]), write(folder / "2.parquet", rows[half:])]
    place = folder / f"exposures-{bucket_rows}"
    counts = exposures.build(parts, place, USERS, ITEMS, histories, window=window, bucket_rows=bucket_rows)
    return JaggedExposures.load(place), counts


def test_the_reaction_is_the_first_event_on_the_item_within_the_window(tmp_path: Path) -> None:
    events = [[(5, 1), (12, 1), (13, 2), (14, 1), (40, 2)], [(10, 1)], []]
    rows: list[Shown] = [
        ("b", 12, 10, 1, 0.5, None),  # after the event
        ("a", 10, 20, 2, 0.25, None),  # 13
        ("a", 10, 10, 1, 1.0, None),  # 12, not 5 or 14
        ("a", 12, 10, None, None, None),  # at its own time
        ("a", 29, 20, 1, 0.5, None),  # 40 is too late
        ("a", 30, 20, 1, 0.5, None),  # at the end of the window
        ("c", 10, 10, 1, 0.5, None),  # no events
        ("c", 10, 77, 2, 0.5, None),  # not in the catalogue
        ("x", 10, 10, 1, 0.5, None),  # no such user
    ]
    shown, counts = build(tmp_path, rows, events)
    assert shown.num_users == 3
    assert shown.offsets.tolist() == [0, 5, 6, 8]
    assert shown.time.tolist() == [10, 10, 12, 29, 30, 12, 10, 10]
    assert shown.item_index.tolist() == [1, 2, 1, 2, 2, 1, 1, 0]
    assert shown.rank.tolist() == [1, 2, 0, 1, 1, 1, 1, 2]
    assert shown.propensity.tolist()[:2] == [1.0, 0.25]
    assert np.isnan(shown.propensity).tolist() == [False, False, True] + [False] * 5
    assert shown.reaction_delay.tolist() == [2, 3, 0, -1, 10, -1, -1, -1]
    assert shown.list_start.tolist() == [0, 0, 2, 3, 4, 5, 6, 6]  # of one user at one time
    assert counts == ExposureCounts(
        rows_in=9,
        rows_out=8,
        unknown_users=1,
        unknown_items=1,
        without_propensity=1,
        with_reaction=4,
        after_event=1,
    )


def test_a_list_is_known_by_its_id_whenever_its_items_are_seen(tmp_path: Path) -> None:
    rows: list[Shown] = [
        ("a", 1, 10, 1, None, "x"),
        ("a", 1, 20, 1, None, "y"),
        ("a", 3, 30, 2, None, "x"),
        ("b", 1, 10, 1, None, "x"),
    ]
    shown, _ = build(tmp_path, rows, [[], [], []])
    assert shown.list_start.tolist() == [0, 1, 0, 3]


def test_the_type_of_the_reaction_is_that_of_the_first_in_the_history(tmp_path: Path) -> None:
    histories = jagged([[(5, 1), (5, 1), (6, 2)], [], []])
    typed = JaggedHistories(**{**vars(histories), "event_type": np.array([2, 1, 0], np.int16)})
    shown, counts = build(tmp_path, [("a", 4, 10, 1, None, None), ("a", 4, 20, 2, None, None)], typed)
    assert shown.reaction_type.tolist() == [2, 0]
    assert shown.reaction_delay.tolist() == [1, 2]
    assert counts.with_reaction == 2


def test_a_log_of_unknown_users_alone_is_empty(tmp_path: Path) -> None:
    shown, counts = build(
        tmp_path, [("x", 1, 10, 1, None, None), ("y", 1, 10, 1, None, None)], [[(1, 1)], [], []]
    )
    assert shown.offsets.tolist() == [0, 0, 0, 0]
    assert len(shown.time) == 0
    assert (counts.rows_in, counts.rows_out, counts.unknown_users) == (2, 0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_every_size_of_bucket_gives_what_a_plain_search_finds(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    events = [sorted((int(t), int(i)) for t, i in random.integers(1, [30, 4], (n, 2))) for n in (12, 0, 25)]
    drawn = random.integers(0, [3, 30, 4, 3], (60, 4)).tolist()
    rows: list[Shown] = [("abc"[u], t, 10 * i, r or None, None, None) for u, t, i, r in drawn]
    whole, counts = build(tmp_path, rows, events)
    for bucket_rows in (1, 7):
        pieces, of_pieces = build(tmp_path, rows, events, bucket_rows=bucket_rows)
        assert of_pieces == counts
        for name, array in vars(whole).items():
            np.testing.assert_array_equal(getattr(pieces, name), array)
    ordered = sorted(drawn, key=lambda row: (row[0], row[1], row[3]))
    for place, (user, time, item, rank) in enumerate(ordered):
        after = [t - time for t, i in events[user] if i == item and 0 <= t - time <= 10]
        assert whole.reaction_delay[place] == min(after, default=-1)
        assert (whole.time[place], whole.item_index[place], whole.rank[place]) == (time, item, rank)
