"""Tables of items and users, in every form."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from features import items
from features.items import ItemFormat, Table
from features.schema import IdType
from features.tables import TableFormat

ALL: dict[str, str | int] = {
    "item_id": "id",
    "title": "name",
    "categories": "tags",
    "text": "about",
    "embedding": "vector",
}


def read(path: Path, columns: dict[str, str | int] | None = None, id_type: IdType = "int64") -> Table:
    return items.read_items(
        [path], ItemFormat(TableFormat("items", ALL if columns is None else columns)), id_type
    )


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        'id,name,tags,about,vector\n7,"A, B",x| y||,t,"[0.5, 1]"\n8,,,,\n7,again,z,,1 2\n,no id,,,\nx,text id,,,\n9,short\n'
    )
    table = read(path)
    assert table.frame.rows() == [(7, "A, B", ["x", "y"], "t", [0.5, 1.0]), (8, None, None, None, None)]
    assert table.rows_in == 6
    assert table.left_out == {"unparseable": 1, "missing_item": 1, "bad_item": 1, "duplicate": 1}
    assert read(path, {"item_id": "id"}, "string").frame["item_id"].to_list() == ["7", "8", "x"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    lines = [
        {"id": 9007199254740993, "name": "A", "tags": ["x", 2], "about": None, "vector": [0.5, 1]},
        {"id": "8", "name": 5, "tags": "y|z", "vector": [1]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    with pytest.raises(ValueError, match="text: nothing at 'about'"):
        read(path)
    table = read(path, {ours: theirs for ours, theirs in ALL.items() if ours != "text"})
    assert table.frame.drop("embedding").rows() == [(9007199254740993, "A", ["x", "2"]), (8, "5", ["y", "z"])]
    assert table.left_out == {"unparseable": 1}
    assert table.notes == {"bad_embedding": 1}


def test_a_json_object_from_item_to_attributes(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text('{"4": [1, 2], "83": [], "165": ["a"]}')
    assert read(path, {}).frame.rows() == [(4, ["1", "2"]), (83, None), (165, ["a"])]
    path.write_text('{"4": {"name": "A", "tags": ["x"]}, "83": {"name": "B"}}')
    assert read(path, {"item_id": "id", "title": "name", "categories": "tags"}).frame.rows() == [
        (4, "A", ["x"]),
        (83, "B", None),
    ]
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not one JSON object"):
        read(path, {})


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    frame = pl.DataFrame(
        {
            "item_id": [7, 8],
            "title": ["A", None],
            "categories": [["x"], []],
            "embedding": [[1.0, 2.0], [3.0, float("inf")]],
            "other": [1, 2],
        }
    )
    frame.write_parquet(path)
    table = read(path, {})
    assert table.frame.rows() == [(7, "A", ["x"], [1.0, 2.0]), (8, None, None, None)]
    assert table.frame.schema["embedding"] == pl.List(pl.Float32)
    assert table.notes == {"bad_embedding": 1}


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for name, rows in (("a.csv", "1,A\n2,B\n"), ("b.csv", "2,C\n3,D\n")):
        (tmp_path / name).write_text("item_id,title\n" + rows)
    form = ItemFormat(TableFormat("items", {}))
    table = items.read_items([tmp_path / "a.csv", tmp_path / "b.csv"], form, "int64")
    assert table.frame.rows() == [(1, "A"), (2, "B"), (3, "D")]
    assert table.left_out == {"duplicate": 1}


def test_embeddings_of_many_widths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,embedding\n1,1\n2,1 2\n3,1 2 3\n4,1 2 3 4\n")
    with pytest.raises(ValueError, match="expected one width"):
        read(tmp_path / "items.csv", {})


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title\n1,A\n")
    with pytest.raises(ValueError, match=r"items\.columns\.item_id: received 'item_id'.*'id', 'title'"):
        read(tmp_path / "items.csv", {})


def test_users_have_any_attribute(tmp_path: Path) -> None:
    (tmp_path / "users.dat").write_bytes("1::F::Zürich\n2::M::\n\n2::M::again\n3\n".encode("latin-1"))
    form = TableFormat("users", {"user_id": 1, "city": 3}, separator="::", header=False, encoding="latin-1")
    table = items.read_users([tmp_path / "users.dat"], form, "int64")
    assert table.frame.rows() == [(1, "Zürich"), (2, "")]
    assert table.left_out == {"unparseable": 1, "duplicate": 1}


@pytest.mark.data
def test_real_tables(public_data: Callable[[str], Path]) -> None:
    films = TableFormat(
        "items", {"item_id": 1, "title": 2, "categories": 3}, separator="::", header=False, encoding="latin-1"
    )
    table = items.read_items([public_data("ml-1m") / "movies.dat"], ItemFormat(films), "int64")
    assert (table.rows_in, len(table.frame), table.left_out) == (3883, 3883, {})
    assert table.frame.row(0) == (1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    assert "Misérables, Les (1995)" in table.frame["title"].to_list()
    beauty = read(public_data("beauty") / "item_attributes.json", {})
    assert (len(beauty.frame), beauty.frame.row(0)) == (12_101, (4, ["1", "2", "3"]))
