"""Item content as arrays: what is learned from known items alone, what becomes of all items."""

import dataclasses
import string
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import content, schema
from features.content import Content, ContentEncoder
from features.settings import ContentSettings

EVERY_WORD = ContentSettings(text_min_items=1)
SHELF = [
    "red racing car with four wheels",
    "blue racing car, four doors",
    "cars and wheels: a red racing story",
    "green tea from the mountain",
    "black tea, mountain harvest",
    "tea pot",
]


def items(**columns: list[Any]) -> pl.DataFrame:
    kinds = {name: kind for name, (kind,) in schema.ITEM_CONTENT.items() if name in columns}
    return pl.DataFrame(columns, schema_overrides=kinds)


def fit(
    table: pl.DataFrame, known: list[bool] | None = None, how: ContentSettings = EVERY_WORD
) -> ContentEncoder:
    return ContentEncoder.fit(table, np.array(known or [True] * len(table), dtype=bool), how, seed=0)


def assert_same(one: Content, other: Content) -> None:
    for each in dataclasses.fields(Content):
        assert np.array_equal(getattr(one, each.name), getattr(other, each.name)), each.name


def test_categories_by_pencil() -> None:
    table = items(categories=[["b", "a", "b"], None, ["z"], ["a", "z", "y"]])
    encoder = fit(table, [True, True, False, False])
    assert encoder.categories == ("a", "b")
    found = encoder.transform(table)
    assert found.category_offsets.tolist() == [0, 0, 2, 2, 2, 3]  # padding and items 2 and 3 have none
    assert found.category_index.tolist() == [1, 2, 1]
    assert found.notes == {"unknown_categories": 3}  # z, z and y
    assert fit(table).categories == ("a", "b", "y", "z")


def test_tf_idf_by_pencil() -> None:
    """Two items with one word in common; as many directions as items, so the projection keeps their angle."""
    table = items(title=["tea tea pot", "tea cup"])
    encoder = fit(table)
    assert encoder.words == ("cup", "pot", "tea")
    rare = 1 + np.log(3 / 2)
    assert encoder.idf == pytest.approx([rare, rare, 1])
    one, two = np.array([rare, 1 + np.log(2)]), np.array([rare, 1])
    cosine = one[1] * two[1] / np.linalg.norm(one) / np.linalg.norm(two)
    found = encoder.transform(table)
    assert found.text.shape == (3, 64)
    assert found.text[1] @ found.text[2] == pytest.approx(cosine, abs=1e-6)
    assert np.linalg.norm(found.text, axis=1) == pytest.approx([0, 1, 1])
    assert not found.text[:, 2:].any()  # two items give two directions
    assert encoder.text_explained == pytest.approx(1)


def test_similar_texts_are_nearer_than_unlike_ones() -> None:
    encoder = fit(items(text=SHELF), how=ContentSettings(text_dim=2))
    text = encoder.transform(items(text=SHELF)).text[1:]
    cosine = text @ text.T
    cars, tea = slice(0, 3), slice(3, 6)
    assert min(cosine[cars, cars].min(), cosine[tea, tea].min()) > cosine[cars, tea].max() + 0.5
    new = encoder.transform(items(title=["A Racing CAR"])).text[1]
    assert set((new @ text.T).argsort()[-3:].tolist()) == {0, 1, 2}


def test_words_are_the_same_whatever_their_case_and_accents() -> None:
    encoder = fit(items(title=["Été à Paris", "thé"]))
    assert encoder.words == ("ete", "paris", "the")
    found = encoder.transform(
        items(title=["ÉTÉ paris", "ete PARIS", None, "  ", "Straße"], text=["", None, None, None, None])
    )
    assert np.array_equal(found.text[1], found.text[2])
    assert not found.text[3:].any()
    assert found.notes == {"texts_without_known_word": 2}


def test_title_and_text_are_one_text() -> None:
    encoder = fit(items(title=["tea", None, "car"], text=["pot", "tea pot", None]))
    found = encoder.transform(items(title=["tea", None, "tea pot"], text=["pot", "pot tea", None]))
    assert np.array_equal(found.text[1], found.text[2])
    assert np.array_equal(found.text[1], found.text[3])


def test_given_embeddings_pass_through() -> None:
    vectors = [[0.1, -2.0, 3e30], None, [0.0, 0.0, 0.0]]
    table = items(item_id=["a", "b", "c"], embedding=vectors)
    encoder = fit(table, [False, True, False])
    found = encoder.transform(table)
    assert found.embedding.dtype == np.float32
    assert np.array_equal(found.embedding[[1, 3]], np.array([vectors[0], vectors[2]], np.float32))
    assert not found.embedding[[0, 2]].any()
    assert found.has_embedding.tolist() == [False, True, False, True]
    with pytest.raises(
        ValueError, match=r"embedding of item 'd': received 2 numbers .*, expected 3 finite ones"
    ):
        encoder.transform(items(item_id=["c", "d"], embedding=[[1, 2, 3], [1, 2]]))
    with pytest.raises(
        ValueError, match=r"embedding of row 1: received 3 numbers .*, expected 3 finite ones"
    ):
        encoder.transform(items(embedding=[[1, float("nan"), 3]]))


@pytest.mark.parametrize(
    ("titles", "known", "how"),
    [
        (["a b", "c 1", "?!"], [True] * 3, EVERY_WORD),
        (["tea", "pot", "cup"], [True] * 3, ContentSettings()),
        (["tea", "tea", "tea"], [True, False, False], ContentSettings()),
    ],
    ids=["no words", "no word twice", "one known item"],
)
def test_where_no_word_is_left_texts_are_zeros_and_it_is_said(
    tmp_path: Path, titles: list[str], known: list[bool], how: ContentSettings
) -> None:
    facts = content.build(tmp_path, items(title=titles), np.array(known), how)
    found = Content.load(tmp_path / "content")
    assert found.text.shape == (4, 64)
    assert not found.text.any()
    assert facts["words"] == 0
    assert facts["texts_without_known_word"] == 3
    assert f"in {how.text_min_items} known items" in facts["warning"]


def test_without_content_arrays_are_of_width_0(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": [1, 2]})
    facts = content.build(tmp_path, table, np.array([True, False]), ContentSettings())
    found = Content.load(tmp_path / "content")
    assert (found.num_items, found.text.shape, found.embedding.shape) == (2, (3, 0), (3, 0))
    assert found.category_offsets.tolist() == [0, 0, 0, 0]
    assert not any(facts.values())
    for table in (items(title=["tea", "tea"]), items(title=[None, "tea"])):
        known = np.array([True, False])
        off = ContentEncoder.fit(table, known, ContentSettings(text_dim=0), seed=0)
        assert off.transform(table).text.shape == (3, 0)
    assert fit(items(title=[None, "tea"]), [True, False]).text_dim == 0  # no known item has text
    assert fit(table.head(0), how=ContentSettings()).transform(table.head(0)).num_items == 0


def test_one_item_with_one_word() -> None:
    assert fit(items(title=["tea"])).transform(items(title=["tea", "cup"])).text[:, 0].tolist() == [0, 1, 0]


def test_long_texts_are_cut_and_counted() -> None:
    long = "tea " * (content.LONGEST_TEXT // 4) + "unseen"
    encoder = fit(items(text=[long, "tea"]))
    assert encoder.words == ("tea",)
    assert encoder.transform(items(text=[long, "tea"])).notes == {"texts_cut": 1}


def test_saved_and_loaded_it_transforms_to_the_same_bits(tmp_path: Path) -> None:
    table = items(
        title=SHELF, categories=[["x"], ["y", "x"], None, [], ["y"], ["x"]], embedding=[[1.5, 2], *[None] * 5]
    )
    known = np.array([True, True, True, True, False, False])
    facts = content.build(tmp_path, table, known, EVERY_WORD)
    saved, encoder = Content.load(tmp_path / "content"), ContentEncoder.load(tmp_path / "content" / "encoder")
    fitted = ContentEncoder.fit(table, known, EVERY_WORD, seed=0)
    assert_same(saved, fitted.transform(table))
    assert_same(saved, encoder.transform(table))
    assert facts | {"text_explained": 1.0} == {
        "text_dim": 64,
        "words": len(fitted.words),
        "text_explained": 1.0,
        "categories": 2,
        "embedding_dim": 2,
        "items_with_categories": 4,
        "items_with_text": 6,
        "items_with_embedding": 1,
    }
    assert content.write(tmp_path / "again", encoder, table) == facts
    for path in sorted((tmp_path / "content").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path)).read_bytes()
    (tmp_path / "content" / "encoder" / "encoder.json").write_text('{"format_version": 0}')
    with pytest.raises(ValueError, match="received content format 0, expected 1"):
        ContentEncoder.load(tmp_path / "content" / "encoder")


def test_content_follows_the_order_of_ids(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [7, 9, 3], "title": ["A", "B", "C"], "other": [1, 2, 3]}).write_parquet(
        tmp_path / "i.parquet"
    )
    ids = pl.Series([3, 5, 7])
    assert content.aligned(ids, tmp_path / "i.parquet").rows() == [
        (3, "C", True),
        (5, None, False),
        (7, "A", True),
    ]
    assert content.aligned(ids, tmp_path / "none.parquet").rows() == [(3,), (5,), (7,)]


@pytest.mark.parametrize("wrong", [{"text_dim": -1}, {"text_max_words": 0}, {"text_min_items": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"items\.{name}: received {wrong[name]}, expected at least"):
        ContentSettings(**wrong)


TEXTS = st.none() | st.lists(
    st.sampled_from(["tea", "pot", "cup", "car", "red", "Ünï", "x"]), max_size=5
).map(" ".join)
CATEGORIES = st.none() | st.lists(st.sampled_from(string.ascii_lowercase[:5]), max_size=4)
ROWS = st.lists(
    st.tuples(st.booleans(), TEXTS, TEXTS, CATEGORIES, TEXTS, CATEGORIES), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(1, 2))
def test_items_that_are_not_known_teach_nothing(
    rows: list[tuple[bool, Any, Any, Any, Any, Any]], text_dim: int, min_items: int
) -> None:
    """Other text and categories of unknown items change neither what is learned nor any other item's features."""
    how = ContentSettings(text_dim=text_dim, text_min_items=min_items)
    known = np.array([row[0] for row in rows])
    table = items(
        title=[row[1] for row in rows], text=[row[2] for row in rows], categories=[row[3] for row in rows]
    )
    changed = items(
        title=[row[1] if row[0] else row[4] for row in rows],
        text=[row[2] for row in rows],
        categories=[row[3] if row[0] else row[5] for row in rows],
    )
    one, other = (ContentEncoder.fit(each, known, how, seed=0) for each in (table, changed))
    for each in dataclasses.fields(ContentEncoder):
        assert np.array_equal(getattr(one, each.name), getattr(other, each.name)), each.name
    before, after = one.transform(table), other.transform(changed)
    assert np.array_equal(before.text[1:][known], after.text[1:][known])
    for row, is_known in enumerate(known, 1):
        alone = one.transform(table[row - 1 : row])
        assert np.array_equal(alone.text[1], before.text[row])
        assert np.array_equal(alone.category_index, categories_of(before, row))
        if is_known:
            assert np.array_equal(categories_of(before, row), categories_of(after, row))


def categories_of(found: Content, item: int) -> np.ndarray:
    return found.category_index[found.category_offsets[item] : found.category_offsets[item + 1]]
