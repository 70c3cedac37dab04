"""The stage: parts by content, shared between artifacts; every row accounted for; bad input is one message."""

import datetime
import gzip
import os
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import schema, tables
from features.events import row_counts, validation
from pipeline.artifacts import event_parts, files
from pipeline.artifacts.event_parts import PARTS, unused
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import load_config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.orchestration.runner import bring_up_to_date

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

    def ingest(self, *overrides: str, items: str = "", force: bool = False) -> Path:
        """The folder of the up-to-date artifact."""
        columns = '{ user_id = "u", item_id = "i", timestamp = "t", event_type = "e" }'
        text = f'name = "log"\ndata_dir = "{self.folder}/data"\n[events]\npath = "{self.folder}/log"\ncolumns = {columns}\n'
        text += f"max_refused_fraction = 0.5\n{items}\n[tracking]\nenabled = false\n"
        (self.folder / "log.toml").write_text(text)
        config = load_config(self.folder / "log.toml", overrides)
        bring_up_to_date(config, ["ingest"], force=force, show_progress=False, say=lambda _: None)
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
    return validation.scan(artifact / "events").sort("source_file", "source_row").collect()


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
    _, second = sorted(manifest["sources"], key=lambda source: -source["rows_in"])
    assert second["earliest"] == "2020-09-13T12:26:40.000000Z"
    assert second["latest"] == "2020-09-14T13:26:40.000000Z"
    assert second["events_by_type"] == {"view": 2}


@pytest.mark.parametrize(
    ("mark", "kind"),
    [("_delta_log/0.json", "Delta"), (".hoodie/x", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")],
)
def test_tables_whose_metadata_say_which_files_count_are_refused(log: Log, mark: str, kind: str) -> None:
    place = log.folder / "log" / mark
    place.parent.mkdir()
    place.write_text("{}")
    for path in ("log", "log/*.csv", "log/day1.csv"):
        with pytest.raises(
            LookbackError, match=f"is a {kind} table: .*Give the list of the files that count"
        ):
            log.ingest(f"events.path={log.folder}/{path}")


def test_a_glob_skips_what_is_hidden(log: Log) -> None:
    for name in ("_SUCCESS", ".part.crc"):
        (log.folder / "log" / name).write_text("")
    assert read_manifest(log.ingest(f"events.path={log.folder}/log/*"))["rows_out"] == 3
    (log.folder / "log" / "_old.csv").write_text(HEADER + DAY_2)
    manifest = read_manifest(log.ingest(f"events.path={log.folder}/log/_*.csv"))
    assert (manifest["rows_in"], len(manifest["sources"])) == (3, 1)


def test_a_file_beside_its_compressed_copy_is_announced(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    (log.folder / "log" / "day1.csv.gz").write_bytes(gzip.compress((HEADER + DAY_1).encode()))
    manifest = read_manifest(log.ingest())
    assert "have the same 4 rows, and every event counts twice" in capsys.readouterr().err
    assert len(manifest["warnings"]) == 1


def test_the_same_bytes_in_two_folders_of_days_are_two_sources(log: Log) -> None:
    (log.folder / "log" / "day1.csv").unlink()
    for day in ("2024-01-01", "2024-01-02"):
        folder = log.folder / "log" / f"day={day}"
        folder.mkdir()
        (folder / "log.csv").write_text(HEADER + "1,10,,view\n2,11,,view\n")
    keys = ("events.columns.timestamp=day", "events.timestamp_unit=iso")
    artifact = log.ingest(*keys)
    manifest = read_manifest(artifact)
    assert (manifest["rows_out"], manifest["new_sources"]) == (4, 2)
    assert sorted(set(read(artifact)["timestamp"].dt.day())) == [1, 2]
    folder = log.folder / "log" / "day=2024-01-03"
    folder.mkdir()
    shutil.copy(log.folder / "log" / "day=2024-01-01" / "log.csv", folder)
    manifest = read_manifest(log.ingest(*keys))
    assert (manifest["rows_out"], manifest["new_sources"]) == (6, 1)
    with pytest.raises(ValueError, match="none of 2 rows"):  # one content, where no folder is a column
        log.ingest("events.max_refused_fraction=1")


def test_text_of_windows_that_is_read_as_latin_1_is_told(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    (log.folder / "items.csv").write_bytes("i,title\n10,It\u2019s\n11,b\n".encode("cp1252"))
    keys = 'columns = { item_id = "i", title = "title" }'
    items = f'[items]\npath = "{log.folder}/items.csv"\n{keys}\nencoding = '
    log.ingest(items=items + '"latin-1"')
    assert 'is items.encoding = "cp1252" right?' in capsys.readouterr().err
    artifact = log.ingest(items=items + '"cp1252"')
    assert pl.read_parquet(artifact / "items.parquet")["title"].to_list() == ["It\u2019s", "b"]
    assert "cp1252" not in capsys.readouterr().err


def test_types_that_no_event_has_are_answered_with_those_of_the_log(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"lists 'VIEW'; rows left out: 'like' \(2\), 'view' \(1\)"):
        log.ingest("events.types={VIEW=1}")
    log.write("day2.csv", DAY_2)
    capsys.readouterr()
    log.ingest("events.types={view=1, likes=2}")
    said = capsys.readouterr().err
    assert (
        "no event has the type 'likes': events.types lists 'view', 'likes'; rows left out: 'like' (2)" in said
    )
    log.ingest("events.types={view=1, like=2}")
    assert "no event has the type" not in capsys.readouterr().err


def test_a_second_night_reads_only_the_new_file(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    first = log.ingest()
    log.write("day2.csv", DAY_2)
    read_files: list[str] = []
    original = validation.ingest_file

    def spy(path: Path, *arguments: Any, **more: Any) -> row_counts.Counts:
        read_files.append(path.name)
        return original(path, *arguments, **more)

    monkeypatch.setattr(validation, "ingest_file", spy)
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


def test_a_row_ahead_of_its_time_is_an_event_when_its_time_has_come(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime(2020, 9, 15, tzinfo=datetime.UTC)
    monkeypatch.setattr("pipeline.stages.ingest.now", lambda: now)
    log.write("day2.csv", "4,12,1600400000,view\n1,10,9000000000,view\n")  # three days ahead, and much more
    assert read_manifest(log.ingest())["rows_left_out"] == {"impossible_time": 3}
    now += datetime.timedelta(days=1)
    assert read_manifest(log.ingest("events.duplicates=drop"))["rows_left_out"]["impossible_time"] == 3
    now += datetime.timedelta(days=2)
    manifest = read_manifest(log.ingest("events.max_refused_fraction=0.6"))
    assert manifest["rows_left_out"] == {"impossible_time": 2}


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


def test_a_file_that_changed_is_a_new_part_and_announced(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    path = log.folder / "log" / "day1.csv"
    first = read_manifest(log.ingest())
    assert (first["new_sources"], first["changed_sources"], first["removed_sources"]) == (1, [], [])
    assert capsys.readouterr().err == ""
    log.write("day1.csv", DAY_1 + "7,10,1600000000,view\n")
    second = read_manifest(log.ingest())
    assert second["rows_in"] == 5
    assert len(log.parts()) == 2  # the one before is kept until it is pruned
    before, now = (manifest["sources"][0]["digest"] for manifest in (first, second))
    assert second["new_sources"] == 0
    assert second["changed_sources"] == [{"path": str(path), "before": before, "now": now}]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 file(s) changed" in said
    assert str(path) in said


def test_a_file_that_went_is_announced_and_one_that_moved_is_not(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write("day2.csv", DAY_2)
    log.ingest()
    (log.folder / "log" / "day1.csv").rename(log.folder / "log" / "moved.csv")
    (log.folder / "log" / "day2.csv").unlink()
    manifest = read_manifest(log.ingest())
    assert [each["path"] for each in manifest["removed_sources"]] == [str(log.folder / "log" / "day2.csv")]
    assert manifest["new_sources"] == 0
    assert "1 file(s) are gone" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [DAY_2, "8,u9,1600090000,view\n", "x" * 100])
def test_a_file_that_changes_while_it_is_read_is_no_part(
    log: Log, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read of it: good rows, ids of another type, no row of the format."""
    log.ingest()
    before = log.parts()
    path = log.write("day2.csv", "5,10,1600000000,view\n")
    original = validation.ingest_file

    def slow(*arguments: Any, **more: Any) -> row_counts.Counts:
        path.write_text(HEADER + rows)
        return original(*arguments, **more)

    monkeypatch.setattr(validation, "ingest_file", slow)
    with pytest.raises(LookbackError, match=r"day2\.csv: changed while it was read"):
        log.ingest()
    assert log.parts() == before


def test_a_file_that_changes_while_it_is_digested(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    path = log.folder / "log" / "day1.csv"
    original = files.digest_file

    def slow(each: Path) -> str:
        digest = original(each)
        if each == path:
            path.write_text(HEADER + DAY_2)
        return digest

    monkeypatch.setattr(files, "digest_file", slow)
    with pytest.raises(LookbackError, match=r"day1\.csv: changed while it was read"):
        log.ingest()


def test_a_new_night_opens_nothing_that_is_kept(log: Log) -> None:
    """Adding a file costs what the file costs: the kept parts could be anything meanwhile."""
    first = log.ingest()
    kept = list(first.rglob("*.parquet"))
    contents = [path.read_bytes() for path in kept]
    for path, content in zip(kept, contents, strict=True):
        overwrite(path, bytes(len(content)))
    log.write("day2.csv", DAY_2)
    second = log.ingest()
    for path, content in zip(kept, contents, strict=True):
        overwrite(path, content)
    assert len(list(second.rglob("*.parquet"))) == 2 * len(kept)
    check_sums(read_manifest(second), second)
    Artifact(second.parent, second.name).verify()  # what was taken from the records is true


def overwrite(path: Path, content: bytes) -> None:
    """Other bytes, of which size and time say nothing."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


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
    log.write("day2.csv", "u7,12,1600090000,view\n")
    artifact = log.ingest()
    assert read_manifest(artifact)["id_types"] == {"user_id": "string", "item_id": "int64"}
    assert sorted(read(artifact)["user_id"]) == ["1", "2", "2", "u7"]
    log.write("day3.csv", "9,12,1600090000,view\n")
    assert read_manifest(log.ingest())["id_types"] == {"user_id": "string", "item_id": "int64"}


@pytest.mark.slow
def test_a_later_file_that_would_change_the_type_stops_with_the_key(log: Log) -> None:
    first = log.ingest()
    assert read_manifest(first)["id_types"] == {"user_id": "int64", "item_id": "int64"}
    path = log.write("day2.csv", "7,12,1600090000,view\n8,x,bad,view\nu7,12,1600090000,view\n")
    said = rf'id_types: {path} row 3: user_id .u7. is not an int64.*events\.id_types = "string".*or "int64"'
    for _ in range(2):  # read, and then remembered
        with pytest.raises(LookbackError, match=said):
            log.ingest()
    assert (first.parent / "latest").resolve() == first
    assert read_manifest(log.ingest("events.id_types=string"))["id_types"]["item_id"] == "string"
    refused = read_manifest(log.ingest("events.id_types=int64"))
    assert refused["rows_left_out"] == {"bad_user": 1, "impossible_time": 2}
    with pytest.raises(LookbackError, match=said):
        log_of(log, first).ingest("events.max_refused_fraction=0.6")  # this key says nothing about ids
    decided = read_manifest(log.ingest(force=True))
    assert decided["id_types"] == {"user_id": "string", "item_id": "int64"}


def log_of(log: Log, artifact: Path) -> Log:
    """The log, with this artifact as its latest."""
    (artifact.parent / "latest").unlink()
    (artifact.parent / "latest").symlink_to(artifact.name)
    return log


def test_another_log_under_the_same_name_has_ids_of_its_own(log: Log) -> None:
    log.ingest()
    (log.folder / "log" / "day1.csv").unlink()
    log.write("other.csv", "u7,12,1600090000,view\nu8,13,1600090000,view\n")
    assert read_manifest(log.ingest())["id_types"] == {"user_id": "string", "item_id": "int64"}


def test_string_logs_are_not_tried_as_int64_every_night(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write("day2.csv", "u7,12,1600090000,view\n")
    log.ingest()
    monkeypatch.setattr(validation, "ingest_file", None)  # reads nothing
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


@pytest.mark.parametrize("types", ["auto", "int64"])
def test_excluded_users_with_ids_of_another_type_leave_no_trace(log: Log, types: str) -> None:
    """Neither as a refused row nor by making all ids text."""
    log.write("day2.csv", "u7,12,1600090000,view\n17850.0,12,1600090000,view\n4,13,1600090000,view\n")
    pl.DataFrame({"user_id": ["u7", "17850", "1"]}).write_parquet(log.folder / "forget.parquet")
    artifact = log.ingest(f"events.exclude_users={log.folder}/forget.parquet", f"events.id_types={types}")
    manifest = read_manifest(artifact)
    check_sums(manifest, artifact)
    assert manifest["rows_left_out"] == {"excluded_user": 3, "impossible_time": 1}
    assert sorted(read(artifact)["user_id"]) == [2, 2, 4]


def test_excluded_users_are_not_in_the_users_table(log: Log) -> None:
    (log.folder / "users.csv").write_text("user_id,age\n1,30\n2,40\n")
    pl.DataFrame({"user_id": [2]}).write_parquet(log.folder / "forget.parquet")
    log.write("day2.csv", DAY_2)
    users = f'[users]\npath = "{log.folder}/users.csv"\ncolumns = {{ user_id = "user_id", age = "age" }}'
    artifact = log.ingest(f"events.exclude_users={log.folder}/forget.parquet", items=users)
    assert pl.read_parquet(artifact / "users.parquet").rows() == [(1, "30")]
    assert read_manifest(artifact)["users_table"] == {
        "rows_in": 2,
        "rows_out": 1,
        "rows_left_out": {"excluded_user": 1},
        "rows_in_log": 1,
        "ids_without_row": 1,
    }


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
        "rows_in_log": 1,
        "ids_without_row": 1,
    }


def test_a_damaged_part_is_read_again(log: Log) -> None:
    first = log.ingest()
    part = next((first / "events").iterdir())
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"x")  # the kept part is the same file
    second = log.ingest("events.max_refused_fraction=0.6")
    assert (second / "events" / part.name).read_bytes() == content


def test_force_finds_damage_that_size_and_time_do_not_show(log: Log) -> None:
    first = log.ingest()
    part = next((first / "events").iterdir())
    content = part.read_bytes()
    overwrite(part, content[:-1] + b"x")
    log.write("day2.csv", DAY_2)
    second = log.ingest()
    with pytest.raises(DamagedArtifact, match=rf"{part.name}.*--force"):
        Artifact(second.parent, second.name).verify()  # before another stage reads it
    forced = log.ingest(force=True)
    assert forced == second
    Artifact(forced.parent, forced.name).verify()
    assert (forced / "events" / part.name).read_bytes() == content


def test_a_store_that_was_copied_without_its_times_is_read_once(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log.ingest()
    for path in (first.parent / PARTS).glob("*/*.parquet"):
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(validation, "ingest_file", None)  # reads no source
    log.ingest("events.max_refused_fraction=0.6")
    monkeypatch.setattr(event_parts, "digest_file", lambda _: pytest.fail("read again"))
    for path in (first.parent / PARTS).glob("*/"):
        assert event_parts.read(path) is not None


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


def test_a_hopeless_file_is_not_read_to_its_end(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(validation, "EARLY_ROWS", 500)
    log.write("wrong.csv", "9,12,1600000000,view\n" + "1;10;1600000000;view\n" * 100_000)
    with pytest.raises(ValueError, match=r"rows were refused, expected at most 50.0%") as stopped:
        log.ingest()
    row = "wrong.csv row 2 (unparseable: 1 field, the header has 4): 1;10;1600000000;view"
    assert row in str(stopped.value)
    said = re.search(r"(\S+) of the first (\S+) rows", str(stopped.value))
    assert said is not None
    refused, read_rows = (int(number.replace(",", "")) for number in said.groups())
    assert 500 <= read_rows == refused + 1 < 90_000
    assert len(log.parts()) <= 1  # of the other file
    whole = read_manifest(log.ingest("events.max_refused_fraction=0.999995"))
    assert (whole["rows_in"], whole["rows_refused"]) == (100_005, 100_001)


def test_a_file_under_another_extension_is_read_anew(log: Log) -> None:
    (log.folder / "log" / "day1.csv").rename(log.folder / "log" / "day1.jsonl")
    with pytest.raises(ValueError, match="5 of 5 rows were refused"):
        log.ingest()
    (log.folder / "log" / "day1.jsonl").rename(log.folder / "log" / "day1.csv")
    assert read_manifest(log.ingest())["rows_out"] == 3
    (log.folder / "log" / "day1.csv").rename(log.folder / "log" / "day1.csv.gz")
    manifest = read_manifest(log.ingest())
    assert (manifest["rows_out"], manifest["new_sources"]) == (3, 0)


def test_force_reads_every_source_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.ingest()
    seen = []
    real = validation.ingest_file

    def spy(path: Path, *arguments: Any, **more: Any) -> row_counts.Counts:
        seen.append(path.name)
        return real(path, *arguments, **more)

    monkeypatch.setattr(validation, "ingest_file", spy)
    log.ingest(force=True)
    assert seen == ["day1.csv"]


def test_a_moved_file_s_refused_rows_are_found_under_its_name_of_now(log: Log) -> None:
    log.ingest()
    (log.folder / "log" / "day1.csv").rename(log.folder / "log" / "first.csv")
    log.write("day2.csv", DAY_2)
    refused = pl.read_parquet(log.ingest() / "quarantine" / "*.parquet")
    assert {Path(path).name for path in refused["source_path"]} == {"first.csv", "day2.csv"}


@pytest.mark.parametrize("also", ["events.earliest=1991-01-01", "events.timezone=Europe/Berlin"])
def test_the_type_of_ids_is_settled_whatever_else_is_changed(log: Log, also: str) -> None:
    assert read_manifest(log.ingest())["id_types"]["user_id"] == "int64"
    log.write("day2.csv", "x7,12,1600090000,view\n")
    with pytest.raises(LookbackError, match=r"events\.id_types"):
        log.ingest(also)


def test_of_files_the_path_decides_the_order_and_of_duplicates_the_first_stays(log: Log) -> None:
    late = log.write("z.csv", "7,12,1600000000,view\n1,10,1600000000,view\n")
    artifact = log.ingest("events.duplicates=drop")
    paths = [source["paths"] for source in read_manifest(artifact)["sources"]]
    assert paths == [[str(late.parent / name)] for name in ("day1.csv", "z.csv")]
    assert 1 in read(artifact).filter(pl.col("source_file") != files.digest_file(late)[:16])["user_id"]
    late.rename(late.with_name("a.csv"))  # another order is another log
    again = log.ingest("events.duplicates=drop")
    assert again != artifact
    sources = read_manifest(again)["sources"]
    assert [Path(source["paths"][0]).name for source in sources] == ["a.csv", "day1.csv"]
    assert sources[0]["rows_out"] == 2
    assert read(again)["user_id"].to_list().count(1) == 1


def test_what_is_odd_is_said_and_kept_in_the_manifest(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"u{user},i{user % 9},16000{user:05},view,1\n" for user in range(40))
    log.write("a.csv", rows.replace("u3,", "NULL,") + "A,1,1600000000,view,much\n" * 9, "u,i,t,e,v\n")
    (log.folder / "items.csv").write_text("item_id,title\ni1,One\ni1,Eins\nbad\nx,Ex\ny,Why\n")
    items = f'[items]\npath = "{log.folder}/items.csv"\ncolumns = {{ item_id = "item_id", title = "title" }}'
    artifact = log.ingest("events.columns.value=v", "events.max_refused_fraction=0.4", items=items)
    manifest = read_manifest(artifact)
    said = "\n".join(manifest["warnings"])
    for part in (
        "1 of 2 files have no column for value",
        "user_id 'NULL' has 1 events",
        "user_id 'A' owns 17% of the events",
        "items: 1 of 3 rows are in the log, 11 of its 12 items have no row",
    ):
        assert part in said
    errors = capsys.readouterr().err
    assert all(f"ingest: {warning}\n" in errors for warning in manifest["warnings"])
    assert manifest["values_left_out"] == {"bad_value": 9}
    assert [source["values_left_out"] for source in manifest["sources"]] == [{"bad_value": 9}, {}]
    table = manifest["items_table"]
    assert (table["several_titles"], table["rows_in_log"], table["ids_without_row"]) == (1, 1, 11)
    refused = pl.read_parquet(artifact / "quarantine" / "items.parquet")
    assert refused.select("source_path", "source_row", "raw", "reason").rows() == [
        (str(log.folder / "items.csv"), 3, "bad", "unparseable")
    ]
    with pytest.raises(ValueError, match=r"items: 1 of 5 rows were refused"):
        log.ingest("events.columns.value=v", "events.max_refused_fraction=0.1", items=items)


def test_a_column_that_all_files_lack_is_refused(log: Log) -> None:
    with pytest.raises(ValueError, match=r"events\.columns\.value: received 'v', but .*day1\.csv"):
        log.ingest("events.columns.value=v")


def test_excluded_items_are_listed_or_in_a_file(log: Log) -> None:
    log.write("day2.csv", DAY_2)
    listed = log.ingest('events.exclude_items=["11"]')
    pl.DataFrame({"item_id": [11]}).write_parquet(log.folder / "postage.parquet")
    in_file = log.ingest(f"events.exclude_items={log.folder}/postage.parquet")
    for artifact in (listed, in_file):
        assert read_manifest(artifact)["rows_left_out"]["excluded_item"] == 2
        assert 11 not in read(artifact)["item_id"]


def test_a_log_that_is_too_small_says_what_was_refused(tmp_path: Path) -> None:
    small = Log(tmp_path)
    small.write("day.csv", "1,10,1600000000,view\n1,11,1600000000,view\n,10,1600000000,view\n")
    with pytest.raises(LookbackError, match=r"2 events of 1 user.*missing_user 1\.\n.*day\.csv row 3"):
        small.ingest()
