"""Tables of items and users, in every form."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import schema, tables
from features.events import item_content, object_columns, side_tables, table_fit
from features.events.first_rows import Table
from features.events.item_content import ItemFormat
from features.schema import IdType
from features.settings import TableFormat

ALL: dict[str, str | int] = {
    "item_id": "id",
    "title": "name",
    "categories": "tags",
    "text": "about",
    "embedding": "vector",
}


def read(path: Path, columns: dict[str, str | int] | None = None, id_type: IdType = "int64") -> Table:
    return side_tables.read_items(
        [path], ItemFormat(TableFormat("items", ALL if columns is None else columns)), id_type
    )


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        'id,name,tags,about,vector\n7,"A, B",x| y||,t,"[0.5, 1]"\n8,,,,\n7,again,z,,1 2\n,no id,,,\nx,text id,,,\n9,short\n'
    )
    table = read(path)
    assert table.notes == {"several_titles": 1}  # a blank embedding is no bad one
    assert table.frame.rows() == [(7, "A, B", ["x", "y"], "t", [0.5, 1.0]), (8, None, None, None, None)]
    assert table.rows_in == 6
    assert table.left_out == {"unparseable": 1, "missing_item": 1, "bad_item": 1, "duplicate": 1}
    assert read(path, {"item_id": "id"}, "string").frame["item_id"].to_list() == ["7", "8", "x"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    lines = [
        {"id": 9007199254740993, "name": "A", "tags": ["x", 2], "about": None, "vector": [0.5, 1]},
        {"id": "8", "name": 5, "tags": "y|z", "vector": [-1, 2.5e-1]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    with pytest.raises(ValueError, match=r"text: .* nothing at 'about'"):
        read(path)
    table = read(path, {ours: theirs for ours, theirs in ALL.items() if ours != "text"})
    assert table.frame.rows() == [
        (9007199254740993, "A", ["x", "2"], [0.5, 1.0]),
        (8, "5", ["y", "z"], [-1.0, 0.25]),
    ]
    assert (table.rows_in, table.left_out) == (3, {"unparseable": 1})


def test_a_json_object_from_item_to_attributes(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text('{"4": [1, 2], "83": [], "165": ["a"]}')
    assert read(path, {}).frame.rows() == [(4, ["1", "2"]), (83, None), (165, ["a"])]
    path.write_text('{"4": {"name": "A", "tags": ["x"]}, "83": {"name": "B"}}')
    assert read(path, {"item_id": "id", "title": "name", "categories": "tags"}).frame.rows() == [
        (4, "A", ["x"]),
        (83, "B", None),
    ]
    path.write_text('{"4": {"name": "A", "id": 9}, "5": [], "4": {"name": "B"}, "4": {"name": "C"}}')
    table = read(path, {"item_id": "id", "title": "name"})
    assert table.frame.rows() == [(4, "A"), (5, None)]  # the first of a repeated key, which is the id
    assert (table.rows_in, table.left_out) == (4, {"duplicate": 2})
    path.write_text('[{"item_id": 4, "title": "A"},\n {"item_id": 5, "title": "B"}]')
    assert read(path, {"item_id": "item_id", "title": "title"}).frame.rows() == [(4, "A"), (5, "B")]
    path.write_text('"text"')
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
    (tmp_path / "a.csv").write_text("item_id,title\n1,A\n2,B\n")
    (tmp_path / "b.csv").write_text("item_id,title,text\n2,C,c\n3, D ,d\n3,,\n4,  ,\n")
    (tmp_path / "c.jsonl").write_text('{"item_id": 5.0, "categories": ["x"]}\n')
    form = ItemFormat(TableFormat("items", {}))
    table = side_tables.read_items([tmp_path / name for name in ("a.csv", "b.csv", "c.jsonl")], form, "int64")
    assert table.frame.rows() == [
        (1, "A", None, None),
        (2, "B", None, None),
        (3, "D", "d", None),
        (4, None, None, None),
        (5, None, None, ["x"]),
    ]
    assert (table.rows_in, table.left_out) == (7, {"duplicate": 2})


def test_lists_and_separated_text_are_the_same_categories(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("item_id,categories\n1,x;y z\n2, ;\n3,x;;w\n")
    lists = [["x", "y z"], [" "], ["x", "", "w"]]
    pl.DataFrame({"item_id": [1, 2, 3], "categories": lists}).write_parquet(tmp_path / "lists.parquet")
    nested = [[["x"], ["y z"]], [], [["x", "w"]]]
    pl.DataFrame({"item_id": [1, 2, 3], "categories": nested}).write_parquet(tmp_path / "nested.parquet")
    (tmp_path / "nested.json").write_text(json.dumps({"1": nested[0], "2": nested[1], "3": nested[2]}))
    form = ItemFormat(TableFormat("items", {}), category_separator=";")
    for path in sorted(tmp_path.iterdir()):
        frame = side_tables.read_items([path], form, "int64").frame
        assert frame.rows() == [(1, ["x", "y z"]), (2, None), (3, ["x", "w"])], path.name


def test_text_in_parts_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": 1, "text": ["one", "two"]}\n{"item_id": 2, "text": "three"}\n'
    )
    assert read(tmp_path / "items.jsonl", {}).frame["text"].to_list() == ["one two", "three"]


def test_embeddings_are_of_one_width(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,embedding\n" + "".join(f"{row},{row} 0.5\n" for row in range(19)) + "19,1 2 3\n20,\n"
    )
    table = read(path, {})
    assert table.notes == {"bad_embedding": 1}
    assert table.frame["embedding"].to_list() == [[row, 0.5] for row in range(19)] + [None, None]
    with path.open("a") as file:
        file.write("21,nan 1\n22,1e99 1\n23,x 1\n24,7 8 9\n")
    with pytest.raises(ValueError, match="item 19 has 3 numbers, expected one width, and most have 2"):
        read(path, {})


@pytest.mark.parametrize("value", [{"a": 1}, [{"a": 1}], [[b"\xff"]]])
@pytest.mark.parametrize("name", ["title", "categories", "text", "embedding"])
def test_a_column_of_an_impossible_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [1], name: [value]}).write_parquet(path)
    with pytest.raises(ValueError, match=rf"items\.columns\.{name}: .*: received .*, expected "):
        read(path, {})


def test_a_table_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    for name, text in (
        ("items.csv", "item_id,title\nx,A\n,B\n"),
        ("items.jsonl", '{"item_id": "x", "title": "A"}\n{"item_id": null, "title": "B"}\n'),
        ("empty.csv", "item_id,title\n"),
        ("empty.jsonl", ""),
        ("empty.json", "{}"),
    ):
        (tmp_path / name).write_text(text)
        counts = "0 rows" if "empty" in name else r"2 rows can be used \(1 missing_item, 1 bad_item\)"
        with pytest.raises(ValueError, match=rf"items\.path: .*{name}: none of {counts}"):
            read(tmp_path / name, {})


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title\n1,A\n")
    with pytest.raises(ValueError, match=r"items\.columns\.item_id: received 'item_id'.*'id', 'title'"):
        read(tmp_path / "items.csv", {})


def test_users_have_any_attribute(tmp_path: Path) -> None:
    (tmp_path / "users.dat").write_bytes("1::F::Zürich\n2::M::\n\n2::M::again\n3\n".encode("latin-1"))
    form = TableFormat("users", {"user_id": 1, "city": 3}, separator="::", header=False, encoding="latin-1")
    table = side_tables.read_users([tmp_path / "users.dat"], form, "int64")
    assert table.frame.rows() == [(1, "Zürich"), (2, "")]
    assert table.left_out == {"unparseable": 1, "duplicate": 1}


def test_attributes_of_users_keep_their_types(tmp_path: Path) -> None:
    since = datetime.date(2020, 2, 29)
    rows = {
        "id": [2, 1],
        "age": [1.5, None],
        "since": [since, None],
        "likes": [["a"], []],
        "at": [{"x": 1}, None],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "users.parquet")
    names = ("age", "since", "likes", "at")
    form = TableFormat("users", {"user_id": "id", **{name: name for name in names}})
    table = side_tables.read_users([tmp_path / "users.parquet"], form, "string")
    assert table.frame.rows() == [("2", 1.5, since, ["a"], {"x": 1}), ("1", None, None, [], None)]


def test_users_in_json(tmp_path: Path) -> None:
    form = TableFormat("users", {"user_id": "id", "likes": "has.likes", "city": "city"})
    (tmp_path / "u.jsonl").write_text(
        '{"id": 1, "has": {"likes": ["a", 2]}, "city": "Zürich"}\n{"id": 2, "has": {"likes": "b"}, "city": {"x": 1}}\n[]\n'
    )
    table = side_tables.read_users([tmp_path / "u.jsonl"], form, "int64")
    assert table.frame.rows() == [(1, ["a", "2"], "Zürich"), (2, ["b"], '{"x": "1"}')]
    assert table.left_out == {"unparseable": 1}
    (tmp_path / "u.json").write_text('{"1": {"has": {"likes": "c"}, "city": "Bern"}, "3": "odd"}')
    assert side_tables.read_users([tmp_path / "u.json"], form, "int64").frame.rows() == [(1, "c", "Bern")]
    with pytest.raises(
        ValueError, match=r"users\.path: columns of several files do not fit together: .*u\.json: "
    ):
        side_tables.read_users([tmp_path / "u.json", tmp_path / "u.jsonl"], form, "int64")


def test_a_constant_that_json_lacks_is_no_value(tmp_path: Path) -> None:
    form = TableFormat("users", {"user_id": "id", "age": "age", "city": "city"})
    path = tmp_path / "u.jsonl"
    path.write_text(
        '{"id": 1, "age": NaN, "city": {"x": Infinity}}\n{"id": 2, "age": 7, "city": [NaN, "Bern"]}\n'
    )
    rows = side_tables.read_users([path], form, "int64").frame.rows()
    assert [row[:2] for row in rows] == [(1, None), (2, "7")]
    assert "Bern" in str(rows[1][2])


def test_articles_with_line_ends_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "shared_articles.csv"
    path.write_text(
        "timestamp,eventType,contentId,title,text\n"
        '1,CONTENT SHARED,-9222795471790223670,"One, ""two""","A\nlong\n\ntext"\n'
        "2,CONTENT REMOVED,-9222795471790223670,later,\n"
    )
    table = read(path, {"item_id": "contentId", "title": "title", "text": "text"})
    assert table.frame.rows() == [(-9222795471790223670, 'One, "two"', "A\nlong\n\ntext")]
    assert (table.rows_in, table.left_out) == (2, {"duplicate": 1})


def test_lists_and_text_of_one_column_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a value is split depends on itself alone, and a column of users on the whole file, not on the block."""
    (tmp_path / "items.jsonl").write_text(
        '{"id": 1, "name": "A|B", "tags": "x|y", "vector": "0.5, 1"}\n'
        '{"id": 2, "name": ["C", "D"], "tags": ["x|y"], "vector": [1, 2]}\n'
    )
    (tmp_path / "users.jsonl").write_text(
        '{"id": 1, "likes": "a"}\n{"id": 2}\n{"id": 3, "likes": ["b", "c"]}\n'
    )
    columns = {ours: theirs for ours, theirs in ALL.items() if ours != "text"}
    users = TableFormat("users", {"user_id": "id", "likes": "likes"})
    for characters in (1, 1 << 20):
        monkeypatch.setattr(object_columns, "BLOCK_CHARACTERS", characters)
        assert read(tmp_path / "items.jsonl", columns).frame.rows() == [
            (1, "A|B", ["x", "y"], [0.5, 1.0]),
            (2, "C D", ["x|y"], [1.0, 2.0]),
        ]
        table = side_tables.read_users([tmp_path / "users.jsonl"], users, "int64")
        assert table.frame.rows() == [(1, ["a"]), (2, None), (3, ["b", "c"])]


def test_a_value_of_too_many_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_FIELDS", 3)
    (tmp_path / "a.csv").write_text("item_id,categories\n1,x|y|z|x|y\n")
    (tmp_path / "b.csv").write_text('item_id,embedding\n1,"1,2,3,4"\n')
    (tmp_path / "c.jsonl").write_text('{"item_id": 1, "categories": ["x", ["x", "x"], "x"]}\n')
    (tmp_path / "d.jsonl").write_text('{"item_id": 1, "embedding": "1 2 3 4"}\n')
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            ValueError,
            match=rf"items\.columns\.\w+: .*{path.name}: 1 has 4 parts or more, expected at most 3",
        ):
            read(path, {})


def test_blocks_are_split_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces are, the table is the same."""
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,categories,embedding\n" + "".join(f"{row},x|{row}|,1 {row}\n" for row in range(9))
    )
    whole = read(path, {}).frame
    assert whole.rows()[8] == (8, ["x", "8"], [1.0, 8.0])
    for parts in (1, 7):
        monkeypatch.setattr(item_content, "PARTS_AT_A_TIME", parts)
        assert read(path, {}).frame.equals(whole)


@pytest.mark.data
def test_real_tables(public_data: Callable[[str], Path]) -> None:
    films = TableFormat(
        "items", {"item_id": 1, "title": 2, "categories": 3}, separator="::", header=False, encoding="latin-1"
    )
    table = side_tables.read_items([public_data("ml-1m") / "movies.dat"], ItemFormat(films), "int64")
    assert (table.rows_in, len(table.frame), table.left_out) == (3883, 3883, {})
    assert table.frame.row(0) == (1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    assert "Misérables, Les (1995)" in table.frame["title"].to_list()
    beauty = read(public_data("beauty") / "item_attributes.json", {})
    assert (len(beauty.frame), beauty.frame.row(0)) == (12_101, (4, ["1", "2", "3"]))


PIECES = [
    b'"',
    b"\n",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b"NaN",
    b"1e99",
    b"null",
    b"\xff",
    b"\\ud800",
    b'{"a": 1}',
    b"::",
    b"",
]
CSV = b'item_id,title,categories,embedding\n1,"a ""b""\nc",x|y,1 2\n2,d,z,\n3,e,,"[3, 4]"\n'
JSONL = b'{"item_id": 1, "title": "a", "categories": ["x"], "embedding": [1, 2]}\n{"item_id": 2, "categories": "z"}\n'
OBJECT = b'{"1": ["x", "y"], "2": [], "3": {"title": "a", "embedding": [1, 2]}}'


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([("items.csv", CSV), ("items.jsonl", JSONL), ("items.json", OBJECT)]),
    st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 3), st.sampled_from(PIECES) | st.binary(max_size=2)),
        max_size=4,
    ),
    st.sampled_from(["int64", "string"]),
)
def test_mutated_tables_lose_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    source: tuple[str, bytes],
    changes: list[tuple[int, int, bytes]],
    id_type: IdType,
) -> None:
    """Whatever the bytes are, every row is in the table or counted, or one message says what is wrong."""
    name, text = source
    for at, length, piece in changes:
        text = text[:at] + piece + text[at + length :]
    path = tmp_path_factory.mktemp("mutated") / name
    path.write_bytes(text)
    try:
        table = read(path, {}, id_type)
    except UnicodeError:
        raise AssertionError("not a message for a user") from None
    except ValueError:
        return
    assert table.rows_in == len(table.frame) + sum(table.left_out.values())
    assert table.frame["item_id"].null_count() == 0
    assert table.frame["item_id"].is_unique().all()
    for column, (kind,) in schema.ITEM_COLUMNS.items():
        assert table.frame.schema.get(column, kind) == kind


def test_of_several_titles_the_most_frequent_stays(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,name\n1,Red mug\n1,MUG RED\n1,Red mug\n2,\n2,Lamp\n3,B\n3,A\n4,Same\n4,Same\n")
    form = ItemFormat(TableFormat("items", {"item_id": "id", "title": "name"}))
    table = side_tables.read_items([path], form, "int64")
    assert table.frame.rows() == [(1, "Red mug"), (2, "Lamp"), (3, "B"), (4, "Same")]
    assert table.notes == {"several_titles": 2}


def test_further_columns_are_text_of_any_form(tmp_path: Path) -> None:
    columns: dict[str, str | int] = {"item_id": "id", "price": "cost", "brand": "maker"}
    csv, lines, parquet = (tmp_path / f"items.{form}" for form in ("csv", "jsonl", "parquet"))
    csv.write_text("id,cost,maker\n1, 2.5 ,A\n2,,\n")
    lines.write_text('{"id": 1, "cost": 2.5, "maker": "A"}\n{"id": 2, "maker": null}\n')
    pl.DataFrame({"id": [1, 2], "cost": [2.5, None], "maker": ["A", ""]}).write_parquet(parquet)
    for path in (csv, lines, parquet):
        frame = read(path, columns).frame
        assert frame.rows() == [(1, "2.5", "A"), (2, None, None)], path.name
        assert frame.columns == ["item_id", "price", "brand"]
    with pytest.raises(ValueError, match=r"items.columns.brand: received 'nobody'"):
        read(csv, columns | {"brand": "nobody"})
    more = tmp_path / "more.csv"
    more.write_text("id,cost\n3,7\n")
    both = side_tables.read_items([csv, more], ItemFormat(TableFormat("items", columns)), "int64").frame
    assert both.rows()[-1] == (3, "7", None)


def test_providers_are_text(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,brand\n1, Acme \n2,7\n3,\n")
    form = ItemFormat(TableFormat("items", {"item_id": "id", "provider": "brand"}))
    assert side_tables.read_items([path], form, "int64").frame.rows() == [(1, "Acme"), (2, "7"), (3, None)]


def test_categories_written_as_lists(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    texts = ["['Action', 'Indie']", '["a","b"]', "[27, 9]", "[]", "x|y", "[not|a list]", "['NA', null]"]
    path.write_text("id\ttags\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(texts)))
    table = TableFormat("items", {"item_id": "id", "categories": "tags"}, separator="\t", missing=["NA"])
    found = side_tables.read_items([path], ItemFormat(table), "int64").frame["categories"].to_list()
    expected = [["Action", "Indie"], ["a", "b"], ["27", "9"], None, ["x", "y"], ["[not", "a list]"], None]
    assert found == expected


@pytest.mark.parametrize(
    ("name", "text", "raw"),
    [
        ("items.csv", "id,name\n1,a\n2\n,b\nx,c\n", ["2", ",b", "x,c"]),
        (
            "items.jsonl",
            '{"id": 1, "name": "a"}\nbad\n{"name": "b"}\n{"id": "x", "name": "c"}\n',
            ["bad", '{"name": "b"}', '{"id": "x", "name": "c"}'],
        ),
    ],
)
def test_refused_rows_of_a_table_are_kept_with_their_reasons(
    tmp_path: Path, name: str, text: str, raw: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    form = ItemFormat(TableFormat("items", {"item_id": "id", "title": "name"}))
    table = side_tables.read_items([tmp_path / name], form, "int64")
    assert table.refused["source_row"].to_list() == [2, 3, 4]
    assert table.refused["reason"].to_list() == ["unparseable", "missing_item", "bad_item"]
    assert table.refused["raw"].to_list() == raw
    table.check_refused(0.5)  # ids of another type are none of the damage
    with pytest.raises(ValueError, match=r"items: 2 of 4 rows were refused, expected at most 40\.0%"):
        table.check_refused(0.4)


def test_a_column_that_some_files_lack_is_null_in_them(tmp_path: Path) -> None:
    for name, text in (("a.csv", "id,name\n1,a\n"), ("b.csv", "id\n2\n"), ("c.jsonl", '{"id": 3}\n')):
        (tmp_path / name).write_text(text)
    form = TableFormat("items", {"item_id": "id", "title": "name"})
    paths = sorted(tmp_path.iterdir())
    table = side_tables.read_items(paths, ItemFormat(form), "int64")
    assert table.frame.rows() == [(1, "a"), (2, None), (3, None)]
    assert [*table.absent_columns["title"]] == [str(path) for path in paths[1:]]
    with pytest.raises(ValueError, match=r"title: received 'name'"):
        side_tables.read_items(paths[1:2], ItemFormat(form), "int64")
    users = TableFormat("users", {"user_id": "id", "name": "name"})
    assert side_tables.read_users(paths, users, "int64").frame.rows() == [(1, "a"), (2, None), (3, None)]


def test_the_fit_of_a_table_is_said_and_warned_of_below_half() -> None:
    log = pl.LazyFrame({"item_id": [1, 1, 2, 3]})
    fit = table_fit.Fit.of(pl.DataFrame({"item_id": [1, 2, 9]}), "item_id", log)
    assert fit.describe() == "items: 2 of 3 rows are in the log, 1 of its 3 items have no row"
    assert list(fit.warnings()) == []
    (warning,) = table_fit.Fit.of(pl.DataFrame({"item_id": [1, 8, 9]}), "item_id", log).warnings()
    assert "items: 1 of 3 rows are in the log, 2 of its 3 items have no row" in warning
