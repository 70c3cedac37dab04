"""Rows judged by parsed columns get the verdict that their text gets."""

import io
import itertools
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from features.events import plain_rows, validation, verdicts
from features.events.event_format import EventFormat
from features.events.row_filters import RowFilters
from features.readers import delimited, dialect
from features.settings import EventSettings
from features.tables import Chunk, Utf8Stream

COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "value")
LATEST = 1_700_000_000_000_000
NUMBERS = ["12", "0", "-5", "007", "+7", "-0", " 7", "7 ", "7.0", "7.00", "9223372036854775807", ""]
WORDS = ["9223372036854775808", "x", "ä ", "a\u00a0", "1e3", "100", "B.00", "0x1F", "1_0", "nan"]
TIMES = ["1600000000", " 1600000000", "1600000000.25", "1.6e9", "+1600000000", "0", "-1", "", "yesterday"]
FAR = ["1700000000", "1700000001", "99999999999999999", "9999999999999999999", "1600000000\t"]
KINDS = ["view", "buy", " view", "view\t", "", " ", "VIEW", "other", "ä"]
VALUES = [
    "1",
    "3.1",
    "3.0999999",
    "16777217",
    "-2",
    "",
    " ",
    "inf",
    "-inf",
    "nan",
    "1e39",
    " 2",
    "2 ",
    "€3",
    "abc",
]
PLAIN = "1,2,1600000000,view,1.5"


def lines(numbers: list[str], number: int, seed: int) -> str:
    """Rows in the order of COLUMNS, the first three plain ones, some with a field too few or too many."""
    chance = random.Random(seed)
    pools = (numbers, numbers, [*TIMES, *FAR], KINDS, VALUES)
    plain = PLAIN.split(",")
    rows = [
        [
            chance.choice(pool) if chance.random() < 0.3 else usual
            for pool, usual in zip(pools, plain, strict=True)
        ]
        for _ in range(number)
    ]
    texts = [
        ",".join(row[: chance.choice([5] * 20 + [3])] + ["more"] * (chance.random() < 0.02)) for row in rows
    ]
    return "\n".join([PLAIN] * 3 + texts) + "\n"


def form(**settings: Any) -> EventFormat:
    columns = {name: position for position, name in enumerate(COLUMNS, 1)}
    return EventFormat(EventSettings(path="log", columns=columns, header=False, **settings), latest=LATEST)


def chunks(text: str, form: EventFormat, types: dict[str, pl.DataType] | None) -> list[Chunk]:
    stream = Utf8Stream(io.BytesIO(text.encode()), "utf-8")
    return [reading() for reading in delimited.read(stream, form.settings.table, "log.csv", types)]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"types": {"view": 1.0, "ä": 1.0}, "min_value": 3.1},
    {"timestamp_unit": "position", "min_value": -2.0},
    {"id_types": "int64", "timestamp_unit": "us", "earliest": "1970-01-01"},
    {"timestamp_unit": "ns", "earliest": "1970-01-01", "ragged": "fill"},
]


@pytest.mark.parametrize(("settings", "kind"), [*itertools.product(SETTINGS, ("int64", "string"))])
def test_parsed_columns_give_the_verdict_of_the_text(
    settings: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "_FIRST_LINES", 3)
    log, filters, kinds = form(**settings), RowFilters(), {"user_id": kind, "item_id": kind}
    takes_words = kind == "string" or settings.get("id_types") == "int64"
    text = lines(
        [*NUMBERS[:3], *NUMBERS[6:], *WORDS] if takes_words else [*NUMBERS[:3], "7.0", " 7", ""], 2000, 5
    )
    (parsed,) = chunks(text, log, plain_rows.parsed_columns(log, filters))
    (as_text,) = chunks(text, log, None)
    assert parsed.texts is not None
    assert as_text.texts is None
    found, expected = (plain_rows.judge(chunk, log, kinds, filters) for chunk in (parsed, as_text))
    assert_series_equal(found.verdict, expected.verdict)
    kept = expected.verdict.is_null()
    assert 200 < kept.sum() < 1900
    assert_frame_equal(found.events.filter(kept), expected.events.filter(kept), categorical_as_str=True)
    impossible = expected.verdict.is_not_null()
    times = [each.events.filter(impossible)["timestamp"] for each in (found, expected)]
    assert_series_equal(*times)
    assert {reason: flags.to_list() for reason, flags in found.lost.items() if flags.any()} == {
        reason: flags.to_list() for reason, flags in expected.lost.items() if flags.any()
    }
    rows = pl.int_range(len(text.splitlines()), eager=True).to_numpy()
    assert parsed.fields(rows).rows() == as_text.fields(rows).rows()


def test_the_first_row_with_a_text_id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "_FIRST_LINES", 3)
    log, kinds = form(), {"user_id": "int64", "item_id": "int64"}
    text = (
        "\n".join([PLAIN] * 4 + ["x,2,never,view,1", "1,y,1600000000,view,1", "z,2,1600000000,view,1"]) + "\n"
    )
    (chunk,) = chunks(text, log, plain_rows.parsed_columns(log, RowFilters()))
    with pytest.raises(verdicts.TextIds) as found:
        plain_rows.judge(chunk, log, kinds, RowFilters())  # type: ignore[arg-type]
    assert vars(found.value) == {"column": "user_id", "source_row": 7, "text": "z"}


@pytest.mark.parametrize(
    "settings", [{"missing": ["", "0"]}, {"decimal": ","}, {"timestamp_unit": "iso"}], ids=str
)
def test_settings_that_ask_for_text_get_it(settings: dict[str, Any]) -> None:
    assert plain_rows.parsed_columns(form(**settings), RowFilters()) == {}


def test_numbers_are_parsed_only_where_the_first_rows_have_them() -> None:
    log = form()
    types = plain_rows.parsed_columns(log, RowFilters())
    (chunk,) = chunks("1,2,1600000000,view,\n" * 4, log, types)
    assert chunk.texts is None
    assert chunk.frame.dtypes == [pl.String] * 5


def test_examples_of_refused_rows_show_their_text(tmp_path: Path) -> None:
    text = (PLAIN + "\n") * 5 + "1,2,+99999999999999999,view,1\n1,2,1600000000,view,-inf\n"
    (tmp_path / "log.csv").write_text(text)
    counts = validation.ingest_file(
        tmp_path / "log.csv", "f" * 16, form(), {"user_id": "int64", "item_id": "int64"}, tmp_path
    )
    (example,) = counts.examples
    assert example["detail"] == "'+99999999999999999' is no time in the unit s"
    assert counts.value_examples == {"bad_value": "-inf"}
