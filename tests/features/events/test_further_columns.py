"""Further columns of a log: text of any type, blanks, long values, files without them; parsed rows as all others."""

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.events import fields, validation
from features.events.event_format import EventFormat
from features.events.row_counts import Counts
from features.schema import IdType
from features.settings import EventSettings

COLUMNS = {"user_id": "user", "item_id": "item", "timestamp": "at", "device": "device"}
TYPES: dict[str, IdType] = {"user_id": "int64", "item_id": "int64"}
LONG = "x" * (fields.LONGEST_VALUE_BYTES + 1)


def ingested(path: Path, **settings: Any) -> tuple[Counts, pl.DataFrame]:
    """Counts and events of a file."""
    own = EventSettings(str(path), columns=COLUMNS, **settings)
    folder = path.parent
    counts = validation.ingest_file(path, "0" * 16, EventFormat(own, latest=10**15), TYPES, folder)
    return counts, pl.read_parquet(folder / "events.parquet")


@pytest.mark.parametrize("settings", [{}, {"missing": ["", "NA"]}])
def test_text_of_delimited_files(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The first settings parse columns while they are read, the second ones do not."""
    rows = ["phone", " tv ", "", " ", LONG, "phone"]
    lines = [f"{row},7,{700000000 + row},{device}" for row, device in enumerate(rows, 1)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,at,device", *lines, "x,,,tv"]) + "\n")
    counts, events = ingested(tmp_path / "log.csv", **settings)
    assert events["device"].to_list() == ["phone", "tv", None, None, None, "phone"]
    assert events["device"].dtype == pl.String
    assert counts.values_left_out == {"long_device": 1}
    assert counts.value_examples["long_device"].startswith("xxx")
    assert counts.refused.total() == 1
    part = pl.scan_parquet(tmp_path / "events.parquet").collect_schema()
    assert list(part)[-1] == "device"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None], ["1", None]),
        ([2.5, 20.0], ["2.5", "20.0"]),
        ([True, False], ["true", "false"]),
        ([datetime.date(2026, 1, 31), None], ["2026-01-31", None]),
    ],
)
def test_columns_of_other_types_are_text(tmp_path: Path, values: list[Any], expected: list[Any]) -> None:
    table = {"user": [1, 2], "item": [7, 8], "at": [700000000, 700000001], "device": values}
    pl.DataFrame(table).write_parquet(tmp_path / "log.parquet")
    assert ingested(tmp_path / "log.parquet")[1]["device"].to_list() == expected


def test_a_struct_is_refused(tmp_path: Path) -> None:
    table = {"user": [1, 2], "item": [7, 8], "at": [700000000, 700000001], "device": [{"name": "a"}] * 2}
    pl.DataFrame(table).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"events.columns.device: the column is Struct.*, expected text"):
        ingested(tmp_path / "log.parquet")


def test_a_file_without_the_column_lacks_its_values(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,at\n1,7,700000000\n")
    counts, events = ingested(tmp_path / "log.csv")
    assert events["device"].to_list() == [None]
    assert list(counts.absent_columns) == ["device"]


def test_a_column_may_be_one_that_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,at,worth\n1,7,700000000,3.50\n2,8,700000001,many\n")
    columns = {**COLUMNS, "value": "worth", "device": "worth"}
    own = EventFormat(EventSettings("log.csv", columns=columns), latest=10**15)
    counts = validation.ingest_file(tmp_path / "log.csv", "0" * 16, own, TYPES, tmp_path)
    events = pl.read_parquet(tmp_path / "events.parquet")
    assert events["device"].to_list() == ["3.50", "many"], "as the file has it"
    assert events["value"].to_list() == [3.5, None]
    assert counts.values_left_out == {"bad_value": 1}
