"""What was shown, beside the log: parts by content, lists in one field, refused rows, and the join with the events."""

from pathlib import Path

import polars as pl
import pytest

from features import schema
from features.events import row_counts, validation
from features.histories.exposures import JaggedExposures
from pipeline.artifacts.store import read_manifest
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.orchestration.runner import bring_up_to_date

HOUR = 3600
START = 1_600_000_000
LATER = "".join(f"{user},13,{START + hour * HOUR}\n" for user in (1, 2) for hour in (50, 51))
EVENTS = f"u,i,t\n1,10,{START + HOUR}\n2,11,{START + 2 * HOUR}\n2,10,{START + 40 * HOUR}\n{LATER}"
COLUMNS = '{ user_id = "u", item_id = "i", timestamp = "t", rank = "r", propensity = "p", list_id = "l" }'
HEADER = "u,i,t,r,p,l\n"
DAY_1 = f"1,10,{START},1,0.5,x\n1,11,{START},2,0.25,x\n2,10,{START},1,1,y\n"
DAY_2 = f"2,10,{START + 30 * HOUR},1,0.5,z\n9,10,{START},1,0.5,w\n2,99,{START},2,0.5,y\n"
PLAIN = '{ user_id = "u", item_id = "i", timestamp = "t" }'


class Shown:
    """A log of two users, files of what they were shown, and the stages over both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shown").mkdir()
        (folder / "log.csv").write_text(EVENTS)

    def write(self, name: str, rows: str, header: str = HEADER) -> Path:
        path = self.folder / "shown" / name
        path.write_text(header + rows)
        return path

    def run(self, stage: str = "ingest", *, columns: str = COLUMNS, more: str = "", events: str = "") -> Path:
        """The folder of the stage's up-to-date artifact."""
        section = f'[exposures]\npath = "{self.folder}/shown"\ncolumns = {columns}\n{more}\n'
        text = (
            f'name = "log"\ndata_dir = "{self.folder}/data"\n[events]\npath = "{self.folder}/log.csv"\ncolumns = {PLAIN}\n'
            f'{events}\n{section if columns else ""}[split]\nprotocol = "leave_one_out"\n[tracking]\nenabled = false\n'
        )
        (self.folder / "log.toml").write_text(text)
        config = load_config(self.folder / "log.toml")
        bring_up_to_date(config, [stage], force=False, show_progress=False, say=lambda _: None)
        return (self.folder / "data" / "log" / stage / "latest").resolve()


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    """A log with the exposures of one day."""
    shown = Shown(tmp_path)
    shown.write("day1.csv", DAY_1)
    return shown


def read(artifact: Path) -> pl.DataFrame:
    parts = sorted((artifact / "exposures").glob("*.parquet"))
    return (
        schema.scan(parts, schema.EXPOSURES).collect().sort(schema.USER_ID, schema.TIMESTAMP, schema.ITEM_ID)
    )


def refused(artifact: Path) -> list[tuple[int, str]]:
    """Row and reason of every refused row."""
    rows = pl.read_parquet(artifact / "quarantine" / "*.parquet").sort(schema.SOURCE_ROW)
    return rows.select(schema.SOURCE_ROW, schema.REASON).rows()


def test_exposures_are_typed_and_joined_with_the_events_that_followed(
    shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    shown.write("day2.csv", DAY_2)
    features = shown.run("features")
    ingest = shown.folder / "data" / "log" / "ingest" / "latest"
    frame = read(ingest)
    assert frame[schema.USER_ID].to_list() == [1, 1, 2, 2, 2, 9]
    assert frame[schema.RANK].to_list() == [1, 2, 1, 2, 1, 1]
    assert frame[schema.PROPENSITY].to_list() == [0.5, 0.25, 1.0, 0.5, 0.5, 0.5]
    assert frame[schema.LIST_ID].to_list() == ["x", "x", "y", "y", "z", "w"]
    counted = read_manifest(ingest)["exposures"]
    assert (counted["rows_in"], counted["rows_out"], counted["rows_left_out"]) == (6, 6, {})
    assert [Path(source["paths"][0]).name for source in counted["sources"]] == ["day1.csv", "day2.csv"]
    joined = JaggedExposures.load(features / "exposures")
    hour = HOUR * 1_000_000
    assert joined.reaction_delay.tolist() == [hour, -1, -1, -1, 10 * hour]  # the third: 40 hours later
    assert read_manifest(features)["exposures"] == {
        "rows_in": 6,
        "rows_out": 5,
        "unknown_users": 1,
        "unknown_items": 1,
        "without_propensity": 0,
        "with_reaction": 2,
        "after_event": 0,
    }
    assert "none of" not in capsys.readouterr().err


def test_another_window_reads_nothing_again(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    first = shown.run("features")
    ingest = shown.run()
    second = shown.run("features", more="window_hours = 0.5")
    assert (first != second, shown.run(more="window_hours = 0.5")) == (True, ingest)
    assert read_manifest(second)["exposures"]["with_reaction"] == 0
    said = "none of 3 exposures is followed by an event of its user on its item within 0.5 hours"
    assert said in capsys.readouterr().err


def test_a_log_without_exposures_has_the_fingerprint_it_had(shown: Shown) -> None:
    manifest = read_manifest(shown.run(columns=""))
    assert not any(
        key.startswith("exposures") for key in (*manifest["settings"], *manifest["inputs"], *manifest)
    )


def test_a_second_night_reads_only_the_new_file(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    shown.run()
    read_files = []
    ingest_file = validation.ingest_file

    def spy(path: Path, *arguments: object, **more: object) -> row_counts.Counts:
        read_files.append(path.name)
        return ingest_file(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "ingest_file", spy)
    shown.write("day2.csv", DAY_2)
    assert len(read(shown.run())) == 6
    assert read_files == ["day2.csv"]


def test_a_read_that_was_stopped_leaves_nothing_that_counts(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shown.run()
    shown.write("day2.csv", DAY_2)
    ingest_file = validation.ingest_file

    def stopped(*arguments: object, **more: object) -> None:
        ingest_file(*arguments, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "ingest_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            shown.run()
    assert (shown.folder / "data" / "log" / "ingest" / "latest").resolve() == before
    assert len(read(shown.run())) == 6


def test_rows_that_are_none_are_refused_with_their_reason(shown: Shown) -> None:
    rows = [
        f"1,10,{START},0,0.5,x",
        f"1,10,{START},1,0,x",
        f"1,10,{START},1,1.5,x",
        f"1,10,{START},1,half,x",
        f"abc,10,{START},1,0.5,x",
        f",10,{START},1,0.5,x",
        "1,10,never,1,0.5,x",
        f"1,10,{START},,,",
    ]
    shown.write("day1.csv", "\n".join(rows) + "\n")
    artifact = shown.run(events="max_refused_fraction = 0.9")
    reasons = ["bad_rank", *["bad_propensity"] * 3, "bad_user", "missing_user", "impossible_time"]
    assert refused(artifact) == list(enumerate(reasons, 1))
    assert read(artifact).select(schema.RANK, schema.PROPENSITY, schema.LIST_ID).rows() == [
        (None, None, None)
    ]
    with pytest.raises(Exception, match=r"exposures: 7 of 8 rows were refused") as error:
        shown.run()
    assert "row 1 (bad_rank: '0' is no place, expected a whole number: places in a list begin at 1)" in str(
        error.value
    )
    assert "'1.5' is no propensity" in str(error.value)


def test_excluded_users_leave_no_trace(shown: Shown) -> None:
    shown.write("day1.csv", DAY_1 + "2,,,,,\n")
    pl.DataFrame({"user_id": [2]}).write_parquet(shown.folder / "forget.parquet")
    (shown.folder / "log.csv").write_text(EVENTS + f"3,10,{START}\n")
    artifact = shown.run(events=f'exclude_users = "{shown.folder}/forget.parquet"')
    assert read(artifact)[schema.USER_ID].to_list() == [1, 1]
    assert read_manifest(artifact)["exposures"]["rows_left_out"] == {"excluded_user": 2}
    assert refused(artifact) == []


def test_ids_have_the_types_of_the_events(shown: Shown) -> None:
    (shown.folder / "log.csv").write_text(EVENTS + f"a,10,{START}\n")
    frame = read(shown.run())
    assert dict(frame.select(schema.USER_ID, schema.ITEM_ID).schema) == {
        schema.USER_ID: pl.String(),
        schema.ITEM_ID: pl.Int64(),
    }


LISTS = [(1, 10, 1), (1, 11, 2), (2, 10, 1)]
"""User, item and place of DAY_1 in lists."""


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        ("10 11", "10", 'items_separator = " "'),
        ("10-1 11-0", "10-0", 'items_separator = " "\nclicked_suffix = "-1"'),
        ("10*|11", "10", 'items_separator = "|"\nclicked_suffix = "*"'),
    ],
)
def test_lists_in_one_field_are_a_row_per_item_with_its_place(
    shown: Shown, first: str, second: str, form: str
) -> None:
    shown.write("day1.csv", f"1,{first},{START}\n2,{second},{START}\n", "u,i,t\n")
    frame = read(shown.run(columns=PLAIN, more=form))
    assert frame.select(schema.USER_ID, schema.ITEM_ID, schema.RANK).rows() == LISTS


def test_columns_of_lists_are_a_row_per_item_with_its_place(shown: Shown) -> None:
    (shown.folder / "shown" / "day1.csv").unlink()
    table = pl.DataFrame({"u": [1, 2], "i": [[10, 11], [10]], "t": [START, START]})
    table.write_parquet(shown.folder / "shown" / "day1.parquet")
    assert read(shown.run(columns=PLAIN)).select(schema.USER_ID, schema.ITEM_ID, schema.RANK).rows() == LISTS
    (shown.folder / "shown" / "day1.parquet").unlink()
    table.write_ndjson(shown.folder / "shown" / "day1.jsonl")
    assert read(shown.run(columns=PLAIN)).select(schema.USER_ID, schema.ITEM_ID, schema.RANK).rows() == LISTS


@pytest.mark.parametrize(
    ("more", "columns", "events", "message"),
    [
        ("", '{ user_id = "u", item_id = "i" }', "", "a column for timestamp too"),
        ("", PLAIN.replace("user_id", "who"), "", "unknown key 'exposures.columns.who'"),
        ("window_hours = 0", COLUMNS, "", "exposures.window_hours: received 0.0, expected above 0"),
        ('timezone = "Mars"', COLUMNS, "", "exposures.timezone: received 'Mars'"),
        ('items_separator = " "', COLUMNS, "", "exposures.columns.rank: received 'r', expected none"),
        ("", COLUMNS, 'timestamp_unit = "position"', "exposures.timestamp_unit: received 'position'"),
    ],
)
def test_a_section_that_does_not_fit_is_one_message(
    shown: Shown, more: str, columns: str, events: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        shown.run(columns=columns, more=more, events=events)
    assert message in str(error.value)


def test_one_file_is_the_log_of_what_was_shown_and_of_what_was_taken(shown: Shown) -> None:
    rows = [
        f"{user},10-0 {taken}-1 12-0,{START + user}" for user, taken in ((1, 11), (2, 13), (1, 14), (2, 11))
    ]
    path = shown.write("day1.csv", "\n".join([*rows, f"1,10-1,{START + HOUR}"]) + "\n", "u,i,t\n")
    (shown.folder / "log.csv").write_text(path.read_text())
    form = 'items_separator = " "\nclicked_suffix = "-1"'
    features = shown.run("features", columns=PLAIN, more=form, events=form)
    joined = JaggedExposures.load(features / "exposures")
    assert joined.offsets.tolist() == [0, 7, 13]
    ids = pl.read_parquet(features / "items.parquet").select("item_index", schema.ITEM_ID).rows()
    item_of = dict([(0, 12), *ids])  # which nobody took
    reactions = [delay // 1_000_000 for delay in joined.reaction_delay[:7].tolist()]
    assert [item_of[index] for index in joined.item_index[:7].tolist()] == [10, 10, 11, 14, 12, 12, 10]
    assert reactions == [HOUR - 1, HOUR - 1, 0, 0, -1, -1, 0]
