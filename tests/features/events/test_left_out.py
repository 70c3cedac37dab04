"""What a log may have beside plain events: words for nothing, guests, conditions, columns and times that are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import schema
from features.events import validation
from features.events.event_format import EventFormat
from features.events.row_counts import Counts, describe_reasons
from features.events.row_filters import RowFilters
from features.histories import buckets
from features.histories.event_types import EventTypes
from features.histories.vocabulary import Vocabulary
from features.settings import EventSettings
from features.tables import MissingColumn

COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t", "event_type": "e", "value": "v"}
HEADER = "u,i,t,e,v,c\n"
STRING: dict[str, schema.IdType] = {"user_id": "string", "item_id": "string"}
NOW = 1_800_000_000 * 10**6
Ingest = Callable[..., tuple[pl.DataFrame, pl.DataFrame, Counts]]


def form(columns: dict[str, str] = COLUMNS, **settings: Any) -> EventFormat:
    return EventFormat(EventSettings(path="log", columns=columns, **settings), latest=NOW)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """Events, quarantine and counts of a text."""

    def run(text: str, settings: EventFormat, **arguments: Any) -> tuple[pl.DataFrame, pl.DataFrame, Counts]:
        (tmp_path / "log.csv").write_text(text)
        counts = validation.ingest_file(
            tmp_path / "log.csv", "f" * 16, settings, STRING, tmp_path, **arguments
        )
        counts.check()
        parts = (
            (tmp_path / "events.parquet", schema.EVENTS),
            (tmp_path / "quarantine.parquet", schema.QUARANTINE),
        )
        events, refused = (schema.read(*part) for part in parts)
        return events, refused, counts

    return run


def test_words_for_nothing_are_missing_everywhere(ingest: Ingest) -> None:
    rows = "NA,1,1600000000,a,1,\n1, \\N ,1600000000,a,1,\n1,1,NA,a,1,\n1,1,1600000000,NA,\\N,\nna,1,1600000000,a,1,\n"
    events, refused, counts = ingest(HEADER + rows, form(missing=["NA", r"\N"]))
    assert refused["reason"].to_list() == ["missing_user", "missing_item", "missing_time"]
    assert events.select("user_id", "event_type", "value").rows() == [("1", None, None), ("na", "a", 1.0)]
    assert not counts.values_left_out
    assert counts.ids["user_id"].words == {"na": 1}  # not listed: to be warned of
    assert ingest(HEADER + rows, form())[2].ids["user_id"].words == {"NA": 1, "na": 1}


def test_a_bad_value_or_type_costs_itself_alone_and_is_counted(ingest: Ingest) -> None:
    rows = f"1,1,1600000000,a,much,\n1,1,1600000000,{'x' * 70_000},2,\n1,1,soon,a,much,\n"
    events, _, counts = ingest(HEADER + rows, form())
    assert events.select("event_type", "value").rows() == [("a", None), (None, 2.0)]
    assert counts.values_left_out == {"bad_value": 1, "bad_type": 1}
    assert counts.value_examples["bad_value"] == "much"
    assert counts.refused == {"impossible_time": 1}


def test_a_column_orders_the_events_of_one_time(ingest: Ingest, tmp_path: Path) -> None:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t", "order": "n"}
    rows = "u,i,t,n\n1,30,9,9007199254740991\n1,40,9,\n1,10,9, -1.5 \n1,20,9,first\n1,50,8,7\n1,11,9,2\n"
    events, _, counts = ingest(rows, form(columns, earliest="1970-01-01"))
    assert events["order"].to_list() == [2.0**53 - 1, None, -1.5, None, 7.0, 2.0]
    assert counts.values_left_out == {"bad_order": 1}
    events.write_parquet(tmp_path / "part.parquet")
    users, items = (Vocabulary.of(events[name], first) for name, first in (("user_id", 0), ("item_id", 1)))
    parts = [tmp_path / "part.parquet"]
    histories, _ = buckets.build(parts, tmp_path, users, np.array([6]), items, EventTypes([]))
    ordered = items.decode(histories.item_index).to_list()
    assert ordered == ["50", "10", "11", "30", "40", "20"]  # without a number last, as they stand in the log


def test_a_decimal_comma(ingest: Ingest) -> None:
    text = "u;i;t;e;v;c\n1;1;1600000000;a;1.234,5;\n1;1;1600000000;a;€ 3,50;\n"
    events, _, _ = ingest(text, form(separator=";", decimal=","))
    assert events["value"].to_list() == [1234.5, 3.5]


def test_one_id_is_one_whatever_its_spelling(ingest: Ingest) -> None:
    rows = "17850.0,A1,1600000000,a,1,\n17850,A1 ,1600000000,a,1,\n 17850, A1,1600000000,a,1,\nx,7.00,1600000000,a,1,\n"
    events, _, _ = ingest(HEADER + rows, form())
    assert events.select("user_id", "item_id").rows() == [("17850", "A1")] * 3 + [("x", "7")]


def test_rows_that_do_not_fit_a_condition_are_left_out_whatever_else_is_wrong(ingest: Ingest) -> None:
    rows = "1,1,1600000000,a,1,UK\n,1,1600000000,a,1,FR\n2,1,1600000000,a,1,UK\n,1,1600000000,a,1,UK\n2,1,1,a,1,\n"
    settings = form(where=[{"column": "c", "in": ["UK"]}, {"column": "u", "not_in": [2]}])
    events, refused, counts = ingest(HEADER + rows, settings)
    assert events["user_id"].to_list() == ["1"]
    assert (counts.left_out, refused["reason"].to_list()) == ({"where": 3}, ["missing_user"])
    with pytest.raises(ValueError, match=r"'country'.*6 column"):
        ingest(HEADER + rows, form(where=[{"column": "country", "in": ["UK"]}]))


def test_guests_and_items_can_be_left_out(ingest: Ingest) -> None:
    rows = ",2,1600000000,a,1,\n5,POST,1600000000,a,1,\n5,1.0,1600000000,a,1,\n5,2,1600000000,a,1,\n"
    filters = RowFilters.of([], STRING, items=pl.Series(["POST", "1"]))
    events, refused, counts = ingest(HEADER + rows, form(missing_user="leave_out"), filters=filters)
    assert events["item_id"].to_list() == ["2"]
    assert counts.left_out == {"missing_user": 1, "excluded_item": 2}
    assert len(refused) == 0


@pytest.mark.parametrize(
    ("kind", "text"), [("csv", "u,i,t\n1,2,1600000000\n"), ("jsonl", '{"u": 1, "i": 2, "t": 1600000000}\n')]
)
def test_an_optional_column_that_a_file_lacks_is_null(ingest: Ingest, kind: str, text: str) -> None:
    events, _, counts = ingest(text, form(format=kind))
    assert events.select("event_type", "value").rows() == [(None, None)]
    assert sorted(counts.absent_columns) == ["event_type", "value"]
    assert "'v'" in counts.absent_columns["value"]
    with pytest.raises(MissingColumn, match="user_id"):
        ingest("i,t\n2,1600000000\n", form())


def test_without_a_column_for_times_the_place_of_the_row_is_the_position(ingest: Ingest) -> None:
    settings = form({"user_id": "u", "item_id": "i"}, timestamp_unit="position")
    events, _, _ = ingest("u,i\n1,2\n,3\n1,4\n", settings)
    assert events["timestamp"].dt.epoch("us").to_list() == [1, 3]
    with pytest.raises(ValueError, match="expected a column for timestamp"):
        form({"user_id": "u", "item_id": "i"})


@pytest.mark.parametrize(
    ("row", "settings", "detail"),
    [
        ("1,1,1700000000000,a,1,", {}, "after 2027-01-15 read as s; as ms it would be 2023-11-14"),
        (
            "1,1,1700000000,a,1,",
            {"timestamp_unit": "ms"},
            "before 1990-01-01 read as ms; as s it would be 2023-11-14",
        ),
        ("1,1,soon,a,1,", {}, "'soon' is no time in the unit s"),
        ("1,1,1850-01-01,a,1,", {"timestamp_unit": "iso"}, "before 1990-01-01"),
    ],
)
def test_a_refusal_says_how_it_was_read(ingest: Ingest, row: str, settings: Any, detail: str) -> None:
    _, refused, counts = ingest(HEADER + row + "\n", form(**settings))
    assert refused["reason"].to_list() == ["impossible_time"]
    assert counts.examples[0]["detail"] == detail
    assert f"(impossible_time: {detail}): {row}" in describe_reasons(counts)


def test_the_earliest_time_is_in_the_zone_of_the_log(ingest: Ingest) -> None:
    rows = "1,1,2019-12-31 23:30,a,1,\n1,2,2020-01-01 00:30,a,1,\n"
    settings = form(timestamp_unit="iso", timezone="America/New_York", earliest="2020-01-01")
    assert ingest(HEADER + rows, settings)[0]["item_id"].to_list() == ["2"]
