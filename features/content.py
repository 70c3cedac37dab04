"""Item content as arrays by item index: categories, text as TF-IDF and truncated SVD, given embeddings.

Categories, words, weights and SVD are fitted on the known items and stored, so that later items get the same features. Words and
categories of no known item are left out and counted: no model could have learned from them.

Words are runs of two or more letters, digits or underscores in title and text, in lower case, without accents; a script without
blanks between words gives one word per run. The weight of a word in an item is (1 + ln count) * idf, where
idf = 1 + ln((1 + n) / (1 + n_word)) over the n known items with text; an item's weights are L2-normalised, projected onto the
leading right singular vectors of the known items' weights (latent semantic analysis), and L2-normalised again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import schema
from features.schema import CATEGORIES, EMBEDDING, ITEM_ID, TEXT, TITLE
from features.settings import ContentSettings

FOLDER = "content"
LONGEST_TEXT = 20_000
"""Maximum length of an item's title and text, in characters; the rest is cut."""

_FORMAT_VERSION = 1
_WORD = r"(?u)\b\w\w+\b"
_POWER_ITERATIONS = 4
_SMALLEST_SINGULAR = 1e-4
"""Minimum singular value, as a share of the largest; smaller directions are noise."""

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Content:
    """Features of items 1..num_items; row 0 is padding: no category, zeros."""

    category_offsets: NDArray[np.int64]
    """[num_items + 2]; item i's categories are `category_index[category_offsets[i]:category_offsets[i + 1]]`"""
    category_index: NDArray[np.int32]
    """[pairs], 1..num_categories, ascending and distinct within an item; 0 stays free for padding"""
    text: Float32
    """[num_items + 1, text_dim], unit vectors; zeros without a known word"""
    embedding: Float32
    """[num_items + 1, embedding_dim], as in the items table; zeros if missing"""
    has_embedding: Bool
    """[num_items + 1]"""
    categories: tuple[str, ...]
    """Name of category index i at position i - 1."""
    notes: dict[str, int]
    """Counts: unknown_categories (pairs of an item and a category of no known item), texts_cut, texts_without_known_word."""

    @property
    def num_items(self) -> int:
        """Number of items, without padding."""
        return len(self.has_embedding) - 1

    def save(self, folder: Path) -> None:
        """Write one .npy file per array and content.json."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        _write_json(folder / "content.json", {"categories": self.categories, "notes": self.notes})

    @classmethod
    def load(cls, folder: Path) -> "Content":
        """Load saved content, arrays memory-mapped."""
        saved = json.loads((folder / "content.json").read_text(encoding="utf-8"))
        arrays = {name: _load_array(folder / f"{name}.npy") for name in _ARRAYS}
        return cls(**arrays, categories=tuple(saved["categories"]), notes=saved["notes"])


_ARRAYS = ("category_offsets", "category_index", "text", "embedding", "has_embedding")


@dataclass(frozen=True)
class ContentEncoder:
    """Vocabulary, categories and projection fitted on the known items' content."""

    settings: ContentSettings
    categories: tuple[str, ...]
    """Sorted categories of the known items; index 1 is the first."""
    words: tuple[str, ...]
    """Sorted vocabulary; empty without known text or a common enough word."""
    idf: NDArray[np.floating]
    """[words]"""
    word_vectors: Float32
    """[words, rank], the leading right singular vectors, rank <= text_dim"""
    text_explained: float
    """Share of the known items' squared weights in the singular vectors, in [0, 1]."""
    text_dim: int
    """`settings.text_dim`, or 0 without known text."""
    embedding_dim: int
    """Width of the embeddings; 0: none."""

    @classmethod
    def fit(cls, table: pl.DataFrame, known: Bool, settings: ContentSettings, seed: int) -> "ContentEncoder":
        """Fit on the rows of `table` where `known` [rows] is true.

        Columns title, categories, text and embedding are of the types of `schema.ITEM_CONTENT`; any may be absent.
        """
        assert len(known) == len(table)
        learned = table.filter(known)
        texts = _texts(learned).drop_nulls()
        text_dim = settings.text_dim if len(texts) else 0
        words, idf, vectors, explained = _fit_text(texts, settings, seed) if text_dim else _NO_WORDS
        return cls(
            settings,
            tuple(_column(learned, CATEGORIES).explode().drop_nulls().unique().sort()),
            words,
            idf,
            vectors,
            explained,
            text_dim,
            int(_column(table, EMBEDDING).list.len().max() or 0),  # type: ignore[arg-type]
        )

    def transform(self, table: pl.DataFrame) -> Content:
        """Features of a table's items: the row at position p is item p + 1, and depends on no other row.

        Raises ValueError for an embedding of another width or with a value that is not a finite number.
        """
        offsets, index, unknown = self._categories_of(table)
        text, text_notes = self._text_of(table)
        notes = {"unknown_categories": unknown, **text_notes}
        notes = {note: number for note, number in notes.items() if number}
        return Content(offsets, index, text, *self._embeddings_of(table), self.categories, notes)

    def save(self, folder: Path) -> None:
        """Write encoder.json, idf.npy and word_vectors.npy."""
        names = ("categories", "words", "text_explained", "text_dim", "embedding_dim")
        facts = {name: getattr(self, name) for name in names}
        _write_json(
            folder / "encoder.json",
            {"format_version": _FORMAT_VERSION, "settings": asdict(self.settings), **facts},
        )
        np.save(folder / "idf.npy", self.idf, allow_pickle=False)
        np.save(folder / "word_vectors.npy", self.word_vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "ContentEncoder":
        """Load a saved encoder, which transforms to the same bits. Raises ValueError for another format version."""
        saved = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        if saved["format_version"] != _FORMAT_VERSION:
            raise ValueError(
                f"{folder}: received content format {saved['format_version']}, expected {_FORMAT_VERSION}; run features again"
            )
        return cls(
            ContentSettings(**saved["settings"]),
            tuple(saved["categories"]),
            tuple(saved["words"]),
            _load_array(folder / "idf.npy"),
            _load_array(folder / "word_vectors.npy"),
            saved["text_explained"],
            saved["text_dim"],
            saved["embedding_dim"],
        )

    def _categories_of(self, table: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
        index = np.arange(1, len(self.categories) + 1, dtype=np.int32)
        names = pl.DataFrame({"name": pl.Series(self.categories, dtype=pl.String), "index": index})
        pairs = (
            pl.DataFrame({"name": _column(table, CATEGORIES)})
            .with_row_index("item", offset=1)
            .explode("name")
            .drop_nulls()
            .unique()
            .join(names, on="name", how="left")
        )
        known = pairs.drop_nulls().sort("item", "index")
        counts = np.bincount(known["item"].to_numpy(), minlength=len(table) + 1)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return offsets, known["index"].to_numpy(), len(pairs) - len(known)

    def _text_of(self, table: pl.DataFrame) -> tuple[Float32, dict[str, int]]:
        vectors = np.zeros((len(table) + 1, self.text_dim), np.float32)
        texts = _texts(table)
        present = texts.drop_nulls()
        if not self.text_dim or not len(present):
            return vectors, {}
        rows = np.flatnonzero(texts.is_not_null().to_numpy()) + 1
        if self.words:
            vectorizer = _vectorizer(vocabulary=self.words)
            vectorizer.idf_ = self.idf
            projected = vectorizer.transform(present.str.head(LONGEST_TEXT)) @ self.word_vectors
            length = np.linalg.norm(projected, axis=1, keepdims=True)
            vectors[rows, : projected.shape[1]] = np.divide(
                projected, length, where=length > 0, out=projected
            )
        return vectors, {
            "texts_cut": int((present.str.len_chars() > LONGEST_TEXT).sum()),
            "texts_without_known_word": int((~vectors[rows].any(axis=1)).sum()),
        }

    def _embeddings_of(self, table: pl.DataFrame) -> tuple[Float32, Bool]:
        column = _column(table, EMBEDDING)
        is_present = column.is_not_null()
        vectors = np.zeros((len(table) + 1, self.embedding_dim), np.float32)
        has_embedding = np.concatenate(([False], is_present.to_numpy()))
        if not is_present.any():
            return vectors, has_embedding
        is_finite = column.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
        bad = (is_present & ((column.list.len() != self.embedding_dim) | ~is_finite)).arg_true()
        if len(bad):
            row = bad[0]
            item = f"item {table[ITEM_ID][row]!r}" if ITEM_ID in table else f"row {row + 1}"
            raise ValueError(
                f"items: embedding of {item}: received {column.list.len()[row]} numbers ({str(column[row].to_list())[:60]} …), "
                f"expected {self.embedding_dim} finite ones, as when the features were made; run features and training again "
                "for embeddings of another kind"
            )
        vectors[has_embedding] = column.drop_nulls().explode().to_numpy().reshape(-1, self.embedding_dim)
        return vectors, has_embedding


def build(
    folder: Path, table: pl.DataFrame, known: Bool, settings: ContentSettings, seed: int = 0
) -> dict[str, Any]:
    """Fit on the known rows, write `folder`/content/ (arrays) with encoder/ in it, and return counts for the report.

    The row of `table` at position p is item p + 1. Without content columns the arrays have width 0.
    """
    return write(folder, ContentEncoder.fit(table, known, settings, seed), table)


def write(folder: Path, encoder: ContentEncoder, table: pl.DataFrame) -> dict[str, Any]:
    """Write `folder`/content/ of a table by a fitted encoder, and return counts for the report."""
    content = encoder.transform(table)
    place = folder / FOLDER
    (place / "encoder").mkdir(parents=True)
    encoder.save(place / "encoder")
    content.save(place)
    facts: dict[str, Any] = {
        "text_dim": encoder.text_dim,
        "words": len(encoder.words),
        "text_explained": round(encoder.text_explained, 4),
        "categories": len(encoder.categories),
        "embedding_dim": encoder.embedding_dim,
        "items_with_categories": int(np.count_nonzero(np.diff(content.category_offsets))),
        "items_with_text": int(_texts(table).is_not_null().sum()),
        "items_with_embedding": int(content.has_embedding.sum()),
        **content.notes,
    }
    if "in_table" in table:
        facts["items_not_in_table"] = int((~table["in_table"]).sum())
    if encoder.text_dim and not encoder.words:
        facts["warning"] = (
            f"no word of two or more characters is in {encoder.settings.text_min_items} known items: text vectors are zeros; "
            "a smaller items.text_min_items lets rarer words count"
        )
    return facts


def aligned(item_ids: pl.Series, items: Path) -> pl.DataFrame:
    """Content and `in_table` (whether the items table has a row) of each of `item_ids`, in order; ids only without a table."""
    ids = pl.DataFrame({ITEM_ID: item_ids})
    if not items.exists():
        return ids
    content = schema.scan(items, schema.ITEMS)
    names = [name for name in schema.ITEM_CONTENT if name in content.collect_schema()]
    table = content.select(pl.col(ITEM_ID).cast(item_ids.dtype), *names, in_table=pl.lit(value=True))
    joined = ids.lazy().join(table, on=ITEM_ID, how="left", maintain_order="left")
    return joined.with_columns(pl.col("in_table").fill_null(value=False)).collect()


# --- text ---


def _column(table: pl.DataFrame, name: str) -> pl.Series:
    """Content column in its schema type; null if absent or an empty list."""
    (kind,) = schema.ITEM_CONTENT[name]
    if name not in table:
        return pl.Series(name, [None], dtype=kind).new_from_index(0, len(table))
    column = table[name].cast(kind)
    return column if not column.dtype.is_nested() else column.set(column.list.len() == 0, None)


def _texts(table: pl.DataFrame) -> pl.Series:
    """[items] title and text, null without either."""
    columns = [_column(table, name) for name in (TITLE, TEXT)]
    text = pl.select(pl.concat_str(columns, separator=" ", ignore_nulls=True)).to_series()
    return text.set(text == "", None)


def _vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        lowercase=True,
        strip_accents="unicode",
        token_pattern=_WORD,
        sublinear_tf=True,
        dtype=np.float32,
        **settings,
    )


_Words = tuple[tuple[str, ...], NDArray[np.floating], Float32, float]


_NO_WORDS: _Words = ((), np.zeros(0, np.float32), np.zeros((0, 0), np.float32), 0.0)


def _fit_text(texts: pl.Series, settings: ContentSettings, seed: int) -> _Words:
    """Words, their idf, the leading right singular vectors of the items' weights, and their share of the squared weights."""
    from sklearn.utils.extmath import randomized_svd, svd_flip

    vectorizer = _vectorizer(max_features=settings.text_max_words, min_df=settings.text_min_items)
    try:
        weights = vectorizer.fit_transform(texts.str.head(LONGEST_TEXT))
    except ValueError:  # with valid settings the only cause is an empty vocabulary
        return _NO_WORDS
    left, singular, right = randomized_svd(
        weights,
        min(settings.text_dim, *weights.shape),
        n_iter=_POWER_ITERATIONS,
        flip_sign=False,
        random_state=seed,
    )
    _, right = svd_flip(left, right, u_based_decision=False)
    kept = singular > _SMALLEST_SINGULAR * singular[0]
    return (
        tuple(vectorizer.get_feature_names_out().tolist()),
        vectorizer.idf_,
        np.ascontiguousarray(right[kept].T, dtype=np.float32),
        min(float(np.square(singular[kept]).sum() / np.square(weights.data).sum()), 1.0),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _load_array(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
