"""The log: each row ends in exactly one place, exact and with its reason."""

import bz2
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from features import schema, tables
from features.events import parquet_parts, row_counts, row_filters, validation, verdicts
from features.events.event_format import EventFormat
from features.events.row_counts import Counts
from features.events.row_filters import RowFilters
from features.settings import EventSettings

NOW = 1_800_000_000 * 10**6
COLUMNS: dict[str, str | int] = {
    "user_id": "u",
    "item_id": "i",
    "timestamp": "t",
    "event_type": "e",
    "value": "v",
}
INT64: dict[str, schema.IdType] = {"user_id": "int64", "item_id": "int64"}
STRING: dict[str, schema.IdType] = {"user_id": "string", "item_id": "string"}
HEADER = "u,i,t,e,v\n"

BAD = {
    "1,10,1600000000,view": "unparseable",
    "1,10,1600000000,view,1,1": "unparseable",
    "---": "unparseable",
    ",10,1600000000,view,1": "missing_user",
    " ,10,1600000000,view,1": "missing_user",
    "1,,1600000000,view,1": "missing_item",
    "1,10,,view,1": "missing_time",
    "1,10,soon,view,1": "impossible_time",
    "1,10,16000000000,view,1": "impossible_time",
    "1,10,0,view,1": "impossible_time",
}
"""Row to the reason why it is refused."""


def form(columns: dict[str, str | int] = COLUMNS, **settings: Any) -> EventFormat:
    return EventFormat(EventSettings(path="log", columns=columns, **settings), latest=NOW)


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., tuple[pl.DataFrame, pl.DataFrame, Counts]]:
    """Events, quarantine and counts of a file with the given content."""

    def run(
        content: str | bytes, settings: EventFormat | None = None, name: str = "log.csv", **arguments: Any
    ) -> tuple[pl.DataFrame, pl.DataFrame, Counts]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        id_types = arguments.pop("id_types", INT64)
        counts = validation.ingest_file(
            path, "0123456789abcdef", settings or form(), id_types, tmp_path, **arguments
        )
        log = schema.read(tmp_path / "events.parquet", schema.EVENTS)
        refused = schema.read(tmp_path / "quarantine.parquet", schema.QUARANTINE)
        assert counts.rows_out == len(log)
        assert counts.refused.total() == len(refused)
        counts.check()
        return log, refused, counts

    return run


def test_an_event_is_typed(ingest: Any) -> None:
    log, _, _ = ingest(HEADER + "-9223372036854775808,17850.0,1465413032.5,view,2.5\n1,2,1465413032,,\n")
    first, second = log.rows(named=True)
    assert first["user_id"] == -(2**63)
    assert first["item_id"] == 17850
    assert first["timestamp"].isoformat() == "2016-06-08T19:10:32.500000+00:00"
    assert (first["event_type"], first["value"]) == ("view", 2.5)
    assert (second["event_type"], second["value"]) == (None, None)
    assert (first["source_file"], first["source_row"], second["source_row"]) == ("0123456789abcdef", 1, 2)


def test_every_bad_row_is_in_quarantine_with_its_reason(ingest: Any) -> None:
    good = "1,10,1600000000,view,1"
    rows = [good, *BAD, good]
    log, refused, counts = ingest(HEADER + "\n".join(rows) + "\n")
    assert log["source_row"].to_list() == [1, len(rows)]
    assert dict(zip(refused["raw"], refused["reason"], strict=True)) == BAD
    assert refused["source_row"].to_list() == list(range(2, len(rows)))
    assert [rows[number - 1] for number in refused["source_row"]] == refused["raw"].to_list()
    assert counts.rows_in == len(rows)
    assert [each["raw"] for each in counts.examples] == list(BAD)[:3]


def test_the_same_whatever_the_block_size(ingest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    rows = [
        rng.choice([*BAD, '"1",10,1600000000,"a,\nb",1', *[f"{n},10,1600000000,view,1" for n in range(20)]])
        for _ in range(300)
    ]
    whole = ingest(HEADER + "\n".join(rows))
    monkeypatch.setattr("features.readers.dialect.FIRST_BYTES", 20)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    monkeypatch.setattr(parquet_parts, "ROWS_PER_GROUP", 7)
    pieces = ingest(HEADER + "\n".join(rows))
    assert pieces[0].sort("source_row").equals(whole[0])
    assert pieces[1].equals(whole[1])
    assert pieces[2] == whole[2]


def test_what_is_left_out_on_purpose_is_counted(ingest: Any) -> None:
    text = (
        HEADER
        + "1,10,1600000000,view,1\n2,10,1600000000,ad,5\n3,10,1600000000,view,\n4,10,1600000000,view,3\n,1,1,ad,1\n"
    )
    settings = form(types={"view": 1.0}, min_value=2.0)
    filters = RowFilters.of([], INT64, pl.Series(["4"]))
    log, _, counts = ingest(text, settings, filters=filters)
    assert log["user_id"].to_list() == [3]
    assert counts.left_out == {"type_not_listed": 1, "value_below_minimum": 1, "excluded_user": 1}
    assert counts.refused == {"missing_user": 1}  # a bad row is refused whatever its type


def test_auto_is_int64_only_if_every_accepted_id_is_one(ingest: Any) -> None:
    text = HEADER + "007,10,1600000000,view,1\n"
    with pytest.raises(verdicts.TextIds) as found:
        ingest(text)
    assert found.value.column == "user_id"
    log, _, _ = ingest(text, id_types={"user_id": "string", "item_id": "int64"})
    assert log.select("user_id", "item_id").rows() == [("007", 10)]
    refused_only = HEADER + "x,10,soon,view,1\n1,10,1600000000,view,1\n"
    assert ingest(refused_only)[2].refused == {"impossible_time": 1}


def test_int64_asked_for_refuses_other_ids(ingest: Any) -> None:
    _, refused, _ = ingest(
        HEADER + "x,1,1600000000,view,1\n1,007,1600000000,view,1\n", form(id_types="int64")
    )
    assert refused["reason"].to_list() == ["bad_user", "bad_item"]


def test_string_ids_are_the_source_s_text_in_one_spelling(ingest: Any) -> None:
    log, _, _ = ingest(HEADER + "17850.0, 7,1600000000,view,1\n", form(id_types="string"), id_types=STRING)
    assert log.select("user_id", "item_id").rows() == [("17850", "7")]


def test_positions_have_no_time_to_be_impossible(ingest: Any) -> None:
    log, _, counts = ingest(
        HEADER + "1,10,0,view,1\n1,11,1,view,1\n1,11,x,view,1\n", form(timestamp_unit="position")
    )
    assert log["timestamp"].dt.epoch("us").to_list() == [0, 1]
    assert counts.refused == {"impossible_time": 1}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("log.csv.gz", gzip.compress),
        ("log.csv.bz2", bz2.compress),
        ("log.csv.zst", lambda text: pa.compress(text, "zstd", asbytes=True)),
    ],
)
def test_compressed_files_are_read_as_they_are(
    ingest: Any, name: str, pack: Callable[[bytes], bytes]
) -> None:
    content = (HEADER + "1,10,1600000000,view,1\n" * 50_000).encode()
    assert ingest(pack(content), name=name)[2].rows_out == 50_000
    assert ingest(content, name=name)[2].rows_out == 50_000
    with pytest.raises(ValueError, match="cannot be decompressed"):
        ingest(pack(content)[:-30], name=name)


def test_jsonl(ingest: Any) -> None:
    nested = {"u": "user.id", "i": "i", "t": "t", "e": "e", "v": "v"}
    columns: dict[str, str | int] = {ours: nested[str(theirs)] for ours, theirs in COLUMNS.items()}
    lines = [
        '{"user": {"id": -9223372036854775808}, "i": 9007199254740993, "t": 1600000000.25, "e": "view", "v": 1}',
        '{"user": {"id": "5"}, "i": 7.0, "t": "1600000000"}',
        '{"user": {}, "i": 7, "t": 1600000000}',
        '{"user": {"id": {"x": 1}}, "i": 7, "t": 1600000000}',
        '{"user": {"id": 1}, "i": "\\ud800", "t": 1600000000}',
        '{"user": {"id": 1}, "i": NaN, "t": 1600000000}',
        '{"user": {"id": 1}, "i": 1, "t": tomorrow}',
        "[1, 2]",
        "[" * 100_000,
        "",
        '{"user": {"id": 1}, "i": 1, "t": 1600000000, "v": false}',
    ]
    log, refused, counts = ingest("\n".join(lines), form(columns), name="log.jsonl")
    assert log.select("user_id", "item_id").rows() == [(-(2**63), 9007199254740993), (5, 7), (1, 1)]
    assert log["timestamp"].dt.epoch("us").to_list() == [1_600_000_000_250_000] + [1_600_000_000_000_000] * 2
    assert counts.refused == {"missing_user": 1, "unparseable": 6}
    assert counts.values_left_out == {"bad_value": 1}
    assert refused["raw"].to_list() == [line for line in lines[2:-1] if line]


def test_jsonl_without_a_key_names_those_there_are(ingest: Any) -> None:
    with pytest.raises(ValueError, match=r"user_id: received 'u'.*'person'"):
        ingest('{"person": 1, "i": 1, "t": 1600000000}\n', form(), name="log.jsonl")


def test_parquet(ingest: Any, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "u": pl.Series([1, 2, None, 4], dtype=pl.Int32),
            "i": pl.Series(["a", "b", "c", "a"], dtype=pl.Categorical()),
            "t": pl.Series([1_600_000_000_000, 5, 1_600_000_000_000, None]).cast(pl.Datetime("ms")),
            "e": ["view"] * 4,
            "v": pl.Series(["1.5", "2", "3", "4"]).cast(pl.Decimal(5, 2)),
        }
    )
    frame.write_parquet(tmp_path / "in.parquet")
    log, refused, _ = ingest(
        (tmp_path / "in.parquet").read_bytes(), name="log.parquet", id_types={**INT64, "item_id": "string"}
    )
    assert log.select("user_id", "item_id", "value").rows() == [(1, "a", 1.5)]
    assert refused["reason"].to_list() == ["impossible_time", "missing_user", "missing_time"]
    assert json.loads(refused["raw"][0])["u"] == 2


def test_parquet_that_is_none_or_has_other_columns(ingest: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        ingest(b"PAR1", name="log.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"user_id: received 'u'.*'x'"):
        ingest((tmp_path / "in.parquet").read_bytes(), name="log.parquet")


def test_parquet_with_bytes_that_are_no_text(ingest: Any, tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    table = pa.table({"u": wrong, "i": [1, 2], "t": [1_600_000_000] * 2, "e": ["view"] * 2, "v": [1.0] * 2})
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    log, refused, _ = ingest((tmp_path / "in.parquet").read_bytes(), name="log.parquet", id_types=STRING)
    assert log["user_id"].to_list() == ["a"]
    assert refused["reason"].to_list() == ["unparseable"]


def test_an_extension_that_says_nothing_needs_a_format(ingest: Any) -> None:
    with pytest.raises(ValueError, match=r"set events\.format"):
        ingest(HEADER, name="log.item")
    assert ingest(HEADER + "1,10,1600000000,view,1\n", form(format="csv"), name="log.item")[2].rows_out == 1


def test_too_many_refused_rows_stop_with_examples_and_settings(ingest: Any) -> None:
    settings = form()
    _, _, counts = ingest(HEADER + "1,10,1600000000,view,1\n1,10,1600000000000,view,1\n,1,1,,\n", settings)
    with pytest.raises(ValueError, match=r"2 of 3 rows were refused, expected at most 5\.0%") as error:
        row_counts.check_refused(counts, settings, 0.05)
    for part in (
        "impossible_time 1",
        "missing_user 1",
        "row 2",
        "1,10,1600000000000",
        "separator ','",
        "timestamp_unit 's'",
    ):
        assert part in str(error.value)
    row_counts.check_refused(counts, settings, 0.7)
    with pytest.raises(ValueError, match="the log is empty"):
        row_counts.check_refused(Counts(), settings, 0.05)
    with pytest.raises(ValueError, match="none of 1 rows is an event"):
        row_counts.check_refused(Counts(rows_in=1, left_out=counts.left_out + counts.refused), settings, 1.0)


def test_duplicates_are_all_but_the_first_in_order(
    ingest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_parts, "_BUCKET_ROWS", 2)
    row = "1,10,1600000000,view,{}\n"
    for digest, text in (
        ("b" * 16, row * 2 + "2,10,1600000000,view,1\n"),
        ("a" * 16, "3,1,1600000000,,1\n" + row + "3,1,1600000000,,1\n"),
    ):
        (tmp_path / digest).mkdir()
        (tmp_path / "log.csv").write_text(HEADER + text.format(1, 2))
        validation.ingest_file(tmp_path / "log.csv", digest, form(), INT64, tmp_path / digest)
    files = [tmp_path / (letter * 16) / "events.parquet" for letter in "ab"]
    found = parquet_parts.find_duplicates(files, 6).sort("source_file", "source_row")
    assert found.rows() == [("a" * 16, 3), ("b" * 16, 1), ("b" * 16, 2)]
    parquet_parts.write_without(files[1], found["source_row"].tail(2), tmp_path / "rest.parquet")
    rest = schema.read(tmp_path / "rest.parquet", schema.EVENTS)
    assert rest["source_row"].to_list() == [3]
    assert rest.schema == schema.read(files[1], schema.EVENTS).schema


def test_a_folder_of_parts_is_one_log(ingest: Any, tmp_path: Path) -> None:
    log, _, _ = ingest(HEADER + "1,10,1600000000,view,1\n")
    (tmp_path / "events").mkdir()
    for name in "ab":
        log.write_parquet(tmp_path / "events" / f"{name}.parquet")
    assert len(validation.scan(tmp_path / "events").collect()) == 2
    with pytest.raises(ValueError, match="no Parquet file"):
        validation.scan(tmp_path / "nothing")


def test_excluded_users_come_from_a_parquet_file(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [5.0, 5.0, None]}).write_parquet(tmp_path / "forget.parquet")
    assert row_filters.read_listed(
        "events.exclude_users", tmp_path / "forget.parquet", "user_id"
    ).to_list() == ["5"]
    pl.DataFrame({"user": [5]}).write_parquet(tmp_path / "forget.parquet")
    with pytest.raises(ValueError, match="has columns user, expected user_id"):
        row_filters.read_listed("events.exclude_users", tmp_path / "forget.parquet", "user_id")


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="expected a column for timestamp too"):
        form({"user_id": 1, "item_id": 2})
    with pytest.raises(ValueError, match="timestamp_unit"):
        form(timestamp_unit="minutes")


REAL: dict[str, tuple[str, EventFormat, int]] = {
    "ml-1m": (
        "ratings.dat",
        form({"user_id": 1, "item_id": 2, "value": 3, "timestamp": 4}, separator="::", header=False),
        1_000_209,
    ),
    "ml-100k": (
        "u.data",
        form({"user_id": 1, "item_id": 2, "value": 3, "timestamp": 4}, separator="\t", header=False),
        100_000,
    ),
    "beauty": (
        "events.csv",
        form(
            {"user_id": "user_id", "item_id": "item_id", "timestamp": "position"}, timestamp_unit="position"
        ),
        198_502,
    ),
    "deskdrop": (
        "users_interactions.csv",
        form(
            {
                "user_id": "personId",
                "item_id": "contentId",
                "timestamp": "timestamp",
                "event_type": "eventType",
            }
        ),
        72_312,
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_logs_lose_nothing(name: str, public_data: Callable[[str], Path], tmp_path: Path) -> None:
    file, settings, num_rows = REAL[name]
    counts = validation.ingest_file(public_data(name) / file, "f" * 16, settings, INT64, tmp_path)
    assert (counts.rows_in, counts.rows_out) == (num_rows, num_rows)


@pytest.mark.data
def test_deskdrop_is_what_a_standard_parser_reads(public_data: Callable[[str], Path], tmp_path: Path) -> None:
    path = public_data("deskdrop") / "users_interactions.csv"
    validation.ingest_file(path, "f" * 16, REAL["deskdrop"][1], INT64, tmp_path)
    found = schema.read(tmp_path / "events.parquet", schema.EVENTS).sort("source_row")
    expected = pl.read_csv(path, columns=["personId", "contentId", "timestamp", "eventType"])
    assert found["user_id"].equals(expected["personId"])
    assert found["item_id"].equals(expected["contentId"])
    assert found["timestamp"].dt.epoch("s").equals(expected["timestamp"])
    assert found["event_type"].cast(pl.String).equals(expected["eventType"])


@pytest.mark.data
def test_bytes_changed_at_random_never_lose_a_row(
    public_data: Callable[[str], Path], ingest: Any, tmp_path: Path
) -> None:
    rng = random.Random(1)
    with (public_data("deskdrop") / "users_interactions.csv").open("rb") as file:
        content = b"".join(file.readline() for _ in range(30))
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 3, 30])):
            changed[rng.randrange(content.index(b"\n") + 1, len(changed))] = rng.choice(
                [0, 10, 13, 34, 44, 0xFF, 45, 48]
            )
        ingest(bytes(changed), REAL["deskdrop"][1], id_types=STRING)


def test_a_value_that_is_no_number_costs_the_value_alone_in_every_format(tmp_path: Path) -> None:
    columns = {"user_id": [1, 2, 3], "item_id": [4, 5, 6], "timestamp": [1_600_000_000] * 3}
    frame = pl.DataFrame({**columns, "value": [1.0, float("nan"), None]})
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv")
    for name in ("log.parquet", "log.csv"):
        form = EventFormat(EventSettings("log", columns={each: each for each in frame.columns}), latest=2**62)
        counts = validation.ingest_file(
            tmp_path / name, "0" * 16, form, {"user_id": "int64", "item_id": "int64"}, tmp_path
        )
        assert (counts.rows_out, counts.values_left_out) == (3, {"bad_value": 1})


def test_event_types_left_out_are_counted_the_most_frequent_first(ingest: Any) -> None:
    rows = "".join(f"1,10,1600000000,{kind},\n" for kind in ["view", *3 * ["like"], *2 * [""], "buy"])
    _, _, counts = ingest(HEADER + rows, form(types={"view": 1.0}))
    assert counts.unlisted.most_common() == [("like", 3), ("", 2), ("buy", 1)]
    assert Counts.from_json(json.loads(json.dumps(counts.to_json()))).unlisted == counts.unlisted
    many = sum((Counts(unlisted=Counter({f"type {number}": 1 + number})) for number in range(50)), Counts())
    assert [*many.unlisted] == [f"type {number}" for number in range(49, 49 - row_counts.NUM_TYPES, -1)]


@pytest.mark.parametrize("block", [1 << 12, 1 << 22])
def test_a_column_of_text_is_no_event_type(ingest: Any, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(
        tables, "BLOCK_BYTES", block
    )  # counted over the file, and within what is read at once
    rows = [f"1,{row},1600000000,what they wrote {row},1" for row in range(10_200)]
    with pytest.raises(
        ValueError, match=r"log.csv: events.columns.event_type: 10,\d+ different types such as"
    ):
        ingest(HEADER + "\n".join(rows))
    kept, _, _ = ingest(HEADER + "\n".join(rows[:9_000]), name="fewer.csv")
    assert kept["event_type"].n_unique() == 9_000
