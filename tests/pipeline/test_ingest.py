"""The stage: parts by content, shared between artifacts; every row accounted for; bad input is one message."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import events, schema
from pipeline.config import load_config
from pipeline.errors import LookbackError
from pipeline.parts import PARTS, unused
from pipeline.run import bring_up_to_date
from pipeline.store import read_manifest

HEADER = "u,i,t,e\n"
DAY_1 = "1,10,1600000000,view\n2,11,1600000001,like\n2,11,1600000001,like\n3,x y,bad,view\n"
DAY_2 = "4,12,1600090000,view\n1,10,1600000000,view\n,12,1600090001,view\n"


class Log:
    """A log of csv files in a folder, and the ingest stage over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "log").mkdir()

    def write(self, name: str, rows: str, header: str = HEADER) -> Path:
        path = self.folder / "log" / name
        path.write_text(header + rows)
        return path

    def ingest(self, *overrides: str, items: str = "") -> Path:
        """The folder of the up-to-date artifact."""
        columns = '{ user_id = "u", item_id = "i", timestamp = "t", event_type = "e" }'
        text = f'name = "log"\ndata_dir = "{self.folder}/data"\n[events]\npath = "{self.folder}/log"\ncolumns = {columns}\n'
        text += f"max_refused_fraction = 0.5\n{items}\n[tracking]\nenabled = false\n"
        (self.folder / "log.toml").write_text(text)
        config = load_config(self.folder / "log.toml", overrides)
        bring_up_to_date(config, ["ingest"], force=False, show_progress=False, say=lambda _: None)
        return (self.folder / "data" / "log" / "ingest" / "latest").resolve()

    def parts(self) -> list[str]:
        """The parts that are kept."""
        return sorted(path.name for path in (self.folder / "data" / "log" / "ingest" / PARTS).glob("*/"))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log with one day."""
    log = Log(tmp_path)
    log.write("day1.csv", DAY_1)
    return log


def read(artifact: Path) -> pl.DataFrame:
    return events.scan(artifact / "events").sort("source_file", "source_row").collect()


def check_sums(manifest: dict[str, Any], artifact: Path) -> None:
    assert manifest["rows_in"] == manifest["rows_out"] + sum(manifest["rows_left_out"].values())
    assert manifest["rows_out"] == len(read(artifact))
    refused = pl.read_parquet(artifact / "quarantine" / "*.parquet")
    schema.check(refused.schema, schema.QUARANTINE, "quarantine")
    assert manifest["rows_refused"] == len(refused)


def test_the_manifest_accounts_for_every_row(log: Log) -> None:
    log.write("day2.csv", DAY_2)
    artifact = log.ingest("events.types={view=1}")
    manifest = read_manifest(artifact)
    check_sums(manifest, artifact)
    assert (manifest["rows_in"], manifest["rows_out"]) == (7, 3)
    assert manifest["rows_left_out"] == {"impossible_time": 1, "missing_user": 1, "type_not_listed": 2}
    assert (manifest["num_users"], manifest["num_items"]) == (2, 2)


def test_a_second_night_reads_only_the_new_file(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    first = log.ingest()
    log.write("day2.csv", DAY_2)
    read_files: list[str] = []
    original = events.ingest_file

    def spy(path: Path, *arguments: Any, **more: Any) -> events.Counts:
        read_files.append(path.name)
        return original(path, *arguments, **more)

    monkeypatch.setattr(events, "ingest_file", spy)
    second = log.ingest()
    assert read_files == ["day2.csv"]
    shared = {path.name for path in (first / "events").iterdir()}
    assert len(shared) == 1
    for name in shared:
        assert (first / "events" / name).samefile(second / "events" / name)
    check_sums(read_manifest(second), second)
    assert read_manifest(second)["rows_in"] == 7


def test_incremental_equals_from_zero(log: Log, tmp_path: Path) -> None:
    log.ingest()
    log.write("day2.csv", DAY_2)
    (tmp_path / "other").mkdir()
    other = Log(tmp_path / "other")
    other.write("b.csv", DAY_2)
    other.write("z.csv", DAY_1)
    assert read(log.ingest()).equals(read(other.ingest()))


def test_a_file_delivered_twice_counts_once(log: Log) -> None:
    first = log.ingest()
    log.write("again.csv", DAY_1)
    second = log.ingest()
    assert second == first  # the same content, so the same artifact
    log.write("day2.csv", DAY_2)
    manifest = read_manifest(log.ingest())
    assert manifest["rows_in"] == 7
    assert sorted(len(source["paths"]) for source in manifest["sources"]) == [1, 2]


def test_an_empty_file_among_others_adds_nothing(log: Log) -> None:
    before = read(log.ingest())
    log.write("day0.csv", "", "")
    log.write("day2.csv", "")
    assert read(log.ingest("events.max_days_ahead=1e9")).equals(before)


def test_a_file_that_changed_is_a_new_part(log: Log) -> None:
    log.ingest()
    log.write("day1.csv", DAY_1 + "7,10,1600000000,view\n")
    manifest = read_manifest(log.ingest())
    assert manifest["rows_in"] == 5
    assert len(log.parts()) == 2


def test_duplicates_are_dropped_across_files(log: Log) -> None:
    log.write("day2.csv", DAY_2)
    kept, dropped = log.ingest(), log.ingest("events.duplicates=drop")
    manifest = read_manifest(dropped)
    check_sums(manifest, dropped)
    assert manifest["rows_left_out"] == {"duplicate": 2, "impossible_time": 1, "missing_user": 1}
    keys = ["user_id", "item_id", "timestamp", "event_type"]
    assert read(dropped).select(keys).sort(keys).equals(read(kept).select(keys).unique().sort(keys))
    assert len(log.parts()) == 2  # the parts are the same: duplicates are left out of the artifact


def test_all_files_of_a_log_have_one_type_of_id(log: Log) -> None:
    assert read_manifest(log.ingest())["id_types"] == {"user_id": "int64", "item_id": "int64"}
    log.write("day2.csv", "u7,12,1600090000,view\n")
    artifact = log.ingest()
    assert read_manifest(artifact)["id_types"] == {"user_id": "string", "item_id": "int64"}
    assert sorted(read(artifact)["user_id"]) == ["1", "2", "2", "u7"]


def test_string_logs_are_not_tried_as_int64_every_night(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write("day2.csv", "u7,12,1600090000,view\n")
    log.ingest()
    monkeypatch.setattr(events, "ingest_file", None)  # reads nothing
    log.ingest("events.max_refused_fraction=0.6")


def test_excluded_users_leave_no_trace(log: Log, tmp_path: Path) -> None:
    log.write("day2.csv", DAY_2 + "2,13,bad,view\n5,13,1600090000,view\n")
    pl.DataFrame({"user_id": [2]}).write_parquet(tmp_path / "forget.parquet")
    artifact = log.ingest(f"events.exclude_users={tmp_path}/forget.parquet")
    manifest = read_manifest(artifact)
    check_sums(manifest, artifact)
    assert manifest["rows_left_out"]["excluded_user"] == 3
    assert 2 not in read(artifact)["user_id"]
    assert not any(
        raw.startswith("2,") for raw in pl.read_parquet(artifact / "quarantine" / "*.parquet")["raw"]
    )


def test_items_and_users_have_ids_as_the_events(log: Log) -> None:
    (log.folder / "items.jsonl").write_text(
        '{"item_id": "10", "title": "Ten"}\n{"item_id": 99, "title": "New"}\nbad\n'
    )
    tables = (
        f'[items]\npath = "{log.folder}/items.jsonl"\ncolumns = {{ item_id = "item_id", title = "title" }}'
    )
    artifact = log.ingest(items=tables)
    assert pl.read_parquet(artifact / "items.parquet").rows() == [(10, "Ten"), (99, "New")]
    assert read_manifest(artifact)["items_table"] == {
        "rows_in": 3,
        "rows_out": 2,
        "rows_left_out": {"unparseable": 1},
        "in_log_only": 1,
    }


def test_a_damaged_part_is_read_again(log: Log) -> None:
    first = log.ingest()
    part = next((first / "events").iterdir())
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"x")  # the kept part is the same file
    second = log.ingest("events.max_refused_fraction=0.6")
    assert (second / "events" / part.name).read_bytes() == content


def test_parts_that_no_artifact_shares_are_unused(log: Log) -> None:
    first = log.ingest()
    log.write("day1.csv", DAY_2)
    second = log.ingest()
    assert unused(first.parent) == []
    shutil.rmtree(first)
    assert [path.name for path in unused(first.parent)] == [
        name for name in log.parts() if not (second / "events" / f"{name}.parquet").exists()
    ]


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ("", (), "the log is empty"),
        ("1;2;3;4\n", (), "1 of 1 rows were refused"),
        ("1,10,1600000000,view\n1,11,1600000000,view\n", (), "1 user, expected at least 2 users"),
        ("1,10,1600000000,view\n2,10,1600000000,view\n", (), "1 item, expected at least 2 items"),
        (DAY_1, ("events.types={buy=1}",), "none of 4 rows is an event"),
        (DAY_1, ("events.columns.user_id=person",), "'person'"),
        (DAY_1, ("events.timestamp_unit=ms",), "timestamp_unit 'ms'"),
        (DAY_1, ("events.separator=;",), r"separator ';'"),
        (DAY_1, ("events.max_refused_fraction=0.1",), r"3,x y,bad,view"),
    ],
)
def test_a_log_that_does_not_fit_stops_with_one_message(
    tmp_path: Path, rows: str, overrides: tuple[str, ...], message: str
) -> None:
    log = Log(tmp_path)
    log.write("log.csv", rows)
    with pytest.raises((LookbackError, ValueError), match=message):
        log.ingest(*overrides)
    assert not list((tmp_path / "data" / "log" / "ingest").glob("*/manifest.json"))
