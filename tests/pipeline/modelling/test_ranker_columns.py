"""Tables of the ranker's columns: from the tables of ingest, by any numbering of users and items; kept as JSON."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from features.attributes import FIRST, MISSING, RARE, Attribute
from models.histories import histories_from_lists
from pipeline.errors import LookbackError
from pipeline.modelling.ranker_columns import ColumnFigures, RankerColumns, mostly_unseen

COLUMNS = RankerColumns(
    (
        Attribute("users", "country", ("fr", "de"), has_missing=True),
        Attribute("users", "age", ("18",)),
        Attribute("items", "genres", ("war", "love"), width=2),
        Attribute("items", "price", edges=(1.0, 2.5)),
    )
)
AGE, PRICE = 4, 4
"""Values before those of the second column of each table."""


@pytest.fixture
def ingest(tmp_path: Path) -> Path:
    users = {"user_id": [7, 8, 9], "country": ["de", None, "xx"], "age": [18, 18, 25]}
    pl.DataFrame(users).write_parquet(tmp_path / "users.parquet")
    items = {"item_id": ["a", "b"], "genres": [["love", "war"], ["odd"]], "price": ["2", "17"]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_each_column_has_values_of_its_own(ingest: Path) -> None:
    tables = COLUMNS.tables(ingest, pl.Series([9, 7, 8, 1]), pl.Series(["b", "a", "later"]))
    assert tables.users.tolist() == [
        [RARE, AGE + RARE],
        [FIRST + 1, AGE + FIRST],
        [MISSING, AGE + FIRST],
        [MISSING, AGE + RARE],
        [MISSING, AGE + RARE],
    ], "users 9, 7, 8, 1, whom the table lacks, and any unknown one"
    assert tables.items.tolist() == [
        [0, 0, 0],
        [RARE, 0, PRICE + FIRST + 2],
        [FIRST + 1, FIRST, PRICE + FIRST + 1],
        [RARE, 0, PRICE + RARE],
        [RARE, 0, PRICE + RARE],
    ]


def test_ids_of_another_type_are_the_same(ingest: Path) -> None:
    of_text = COLUMNS.tables(ingest, pl.Series(["7", "8"]), pl.Series(["a"]))
    assert (
        of_text.users.tolist() == COLUMNS.tables(ingest, pl.Series([7, 8]), pl.Series(["a"])).users.tolist()
    )


def test_a_table_or_column_that_is_gone_is_missing(ingest: Path) -> None:
    (ingest / "items.parquet").unlink()
    pl.DataFrame({"user_id": [7], "age": [18]}).write_parquet(ingest / "users.parquet")
    tables = COLUMNS.tables(ingest, pl.Series([7]), pl.Series(["a"]))
    assert tables.users.tolist() == [[MISSING, AGE + FIRST], [MISSING, AGE + RARE]]
    assert tables.items[1].tolist() == tables.items[2].tolist() == [RARE, 0, PRICE + RARE]


def test_a_column_that_cannot_be_read_is_named(ingest: Path) -> None:
    users = pl.DataFrame({"user_id": [7], "age": [timedelta(days=18)]})
    users.write_parquet(ingest / "users.parquet")
    with pytest.raises(LookbackError, match=r"ranker.columns: users.age: a column of type Duration"):
        COLUMNS.tables(ingest, pl.Series([7]), pl.Series(["a"]))


def test_unseen_values_are_counted(ingest: Path) -> None:
    tables = COLUMNS.tables(ingest, pl.Series([9, 7, 8]), pl.Series(["b", "a"]))
    assert COLUMNS.unseen(tables, histories_from_lists([[]])) == {
        "users.country": (1, 3),
        "users.age": (1, 3),
        "items.genres": (1, 3),
        "items.price": (0, 2),
    }, "xx, 25, odd; love and war are two values of one item"
    said = mostly_unseen({"users.age": (3, 6), "items.price": (1200, 2000)})
    assert said == ", 1,200 of 2,000 values of items.price rare or unseen in training"
    assert mostly_unseen({}) == ""


def test_every_value_knows_the_rare_one_of_its_column() -> None:
    embeddings = COLUMNS.embeddings(3)
    assert embeddings.unseen_user.tolist() == [0, 1, 1, 1, 1, 5, 5, 5]
    assert embeddings.unseen_item.tolist() == [0, 1, 1, 1, 1, 5, 5, 5, 5, 5]
    assert [(each.label, each.places) for each in COLUMNS.places] == [
        ("users.country", slice(0, 1)),
        ("users.age", slice(1, 2)),
        ("items.genres", slice(0, 2)),
        ("items.price", slice(2, 3)),
    ]


def test_columns_can_be_of_one_table(ingest: Path) -> None:
    only = COLUMNS.select(["items.price"])
    assert only.labels == ("items.price",)
    tables = only.tables(ingest, pl.Series([7]), pl.Series(["a"]))
    assert tables.users.shape == (2, 0)
    assert tables.items.tolist() == [[0], [FIRST + 1], [RARE]]
    assert only.embeddings(3).unseen_user.tolist() == [0]


def test_they_are_kept_as_json(tmp_path: Path) -> None:
    COLUMNS.save(tmp_path)
    assert RankerColumns.load(tmp_path) == COLUMNS


@pytest.mark.parametrize(
    ("taken", "gain", "left_out", "expected"),
    [
        (["users.age"], None, {}, "columns: users.age"),
        (
            ["users.age"],
            {"difference": 0.0123, "low": 0.004, "high": 0.02},
            {"users.zip": "no value"},
            "columns: users.age, NDCG@10 +0.0123 [+0.0040, +0.0200] over none, left out users.zip (no value)",
        ),
        (
            [],
            {"difference": 0.001, "low": -0.01, "high": 0.01},
            {},
            "columns: none, NDCG@10 +0.0010 [-0.0100, +0.0100] over none by users.age, users.sex",
        ),
        ([], None, {"users.zip": "no value"}, "columns: none, left out users.zip (no value)"),
    ],
)
def test_the_choice_in_words(
    taken: list[str], gain: dict[str, float] | None, left_out: dict[str, str], expected: str
) -> None:
    importance = {"users.age": 0.1, "users.sex": 0.0}
    assert ColumnFigures("auto", left_out, taken, 0.2, importance, gain).sentence == expected
