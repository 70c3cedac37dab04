"""What is kept of a part is what its events say."""

import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from features import schema
from features.events.parquet_parts import PartWriter, describe

ROW = st.tuples(
    st.integers(-5, 5),
    st.sampled_from(["a", "b", "ä"]),
    st.integers(0, 10**15),
    st.sampled_from(["view", "like", None]),
)


@given(st.lists(ROW, max_size=20))
def test_a_description_is_what_a_look_at_every_event_finds(
    rows: list[tuple[int, str, int, str | None]],
) -> None:
    users, items = [row[0] for row in rows], [row[1] for row in rows]
    times, kinds = [row[2] for row in rows], [row[3] for row in rows]
    columns = {
        "user_id": pl.Series(users, dtype=pl.Int64),
        "item_id": pl.Series(items, dtype=pl.String),
        "timestamp": pl.Series(times, dtype=pl.Int64).cast(schema.TIME),
        "event_type": pl.Series(kinds, dtype=pl.Categorical()),
        "value": pl.Series([None] * len(rows), dtype=pl.Float32),
        "source_file": pl.Series(["f" * 16] * len(rows), dtype=pl.String),
        "source_row": pl.Series(range(len(rows)), dtype=pl.Int64),
    }
    log = pl.DataFrame(columns)
    with tempfile.TemporaryDirectory() as folder:
        with PartWriter(Path(folder) / "events.parquet", log.schema) as writer:
            writer.write(log)
        found = describe(Path(folder) / "events.parquet")
    assert found.user_ids == sorted({min(users), max(users)} if rows else set())
    assert found.item_ids == sorted({min(items), max(items)} if rows else set())
    assert (found.earliest, found.latest) == (min(times, default=None), max(times, default=None))
    assert found.events_by_type == Counter(kind or "" for kind in kinds)
