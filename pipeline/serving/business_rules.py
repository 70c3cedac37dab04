"""Business rules of the configuration: allow and deny lists, availability, re-ranking."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from features.settings import iso_microseconds
from models.recommendation.rules import Rules
from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig

ITEM, FROM, UNTIL = "item_id", "available_from", "available_until"


def rules_of(
    settings: ScoreConfig, items: Vocabulary, request_time: int, seed: int, *, exclude_seen: bool
) -> tuple[Rules, dict[str, int]]:
    """Rules of `[score]` over a vocabulary, with counts of unknown ids in its lists and of excluded items.

    request_time: microseconds since the epoch. exclude_seen: `score.exclude_seen`, resolved.
    Raises LookbackError for an unreadable file, and for an allow list without a known item.
    """
    allowed, counts = np.ones(len(items) + 1, bool), {}
    allowed[0] = False
    if settings.allow is not None:
        index, counts["allow_unknown"] = _known("score.allow", settings.allow, items)
        if not len(index):
            raise LookbackError(
                f"score.allow: received {counts['allow_unknown']:,} ids, of which the model knows none; expected ids such as "
                + ", ".join(map(str, items.ids.head(3)))
            )
        allowed &= _mask(index, items)
    if settings.deny is not None:
        index, counts["deny_unknown"] = _known("score.deny", settings.deny, items)
        allowed &= ~_mask(index, items)
    if settings.availability is not None:
        # in a log without times the request is at a position, whatever `score.at` is
        at = request_time if settings.at is None else iso_microseconds(settings.at)
        available, counts["availability_unknown"] = _available(Path(settings.availability), items, at)
        allowed &= available
    counts["items_not_allowed"] = int(len(items) - allowed.sum())
    rules = Rules(
        exclude_seen,
        allowed if counts["items_not_allowed"] else None,
        settings.max_per_category,
        settings.diversity,
        settings.popularity_damping,
        settings.exploration,
        seed + (request_time if settings.exploration else 0),  # a later log draws others
    )
    return rules, counts


def read_ids(key: str, path: Path, column: str) -> pl.Series:
    """Read the distinct ids of a column of a Parquet file; `key`: its configuration key, for messages."""
    return _read(key, path, (column,))[column].drop_nulls().unique()


def _read(key: str, path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LookbackError(f"{key}: {path}: cannot be read as Parquet: {error}") from None
    for column in columns:
        if column not in table.columns:
            raise LookbackError(
                f"{key}: {path} has the columns {', '.join(table.columns)}; expected a column {column}"
            )
    return table


def _known(key: str, listed: str | list[str], items: Vocabulary) -> tuple[NDArray[np.int32], int]:
    """Known items of a list, and the number of unknown ids."""
    ids = (
        read_ids(key, Path(listed), ITEM)
        if isinstance(listed, str)
        else pl.Series(ITEM, listed, dtype=pl.String).unique()
    )
    index, num_unknown = items.encode_known(ids)
    return index[index > 0], num_unknown


def _mask(index: NDArray[np.int32], items: Vocabulary) -> NDArray[np.bool_]:
    mask = np.zeros(len(items) + 1, bool)
    mask[index] = True
    return mask


def _available(path: Path, items: Vocabulary, at: int) -> tuple[NDArray[np.bool_], int]:
    """[n + 1] mask of items available at a time (in one of their windows, or without any), and the number of unknown ids."""
    key = "score.availability"
    table = _read(key, path, (ITEM,))
    if FROM not in table.columns and UNTIL not in table.columns:
        raise LookbackError(
            f"{key}: {path} has the columns {', '.join(table.columns)}; expected {FROM} or {UNTIL} too"
        )
    is_open = pl.lit(value=True)
    for name in (FROM, UNTIL):
        if name in table.columns:
            limit = _microseconds(key, path, table[name])
            inside = limit <= at if name == FROM else limit > at
            is_open = is_open & pl.lit(inside.fill_null(value=True))
    windows = table.select(ITEM, is_open=is_open).drop_nulls(ITEM).group_by(ITEM).agg(pl.col("is_open").any())
    index, num_unknown = items.encode_known(windows[ITEM])
    available = np.ones(len(items) + 1, bool)
    available[index] = windows["is_open"].to_numpy()
    return available, num_unknown


def _microseconds(key: str, path: Path, column: pl.Series) -> pl.Series:
    """Convert dates, times or ISO texts, UTC where they have no zone, to microseconds since the epoch."""
    try:
        if column.dtype == pl.String:
            times = [None if text is None else iso_microseconds(text) for text in column]
            return pl.Series(column.name, times, dtype=pl.Int64)
        if column.dtype in (pl.Date, pl.Datetime, pl.Null):  # the unit of a number is unknown
            return column.cast(pl.Datetime("us")).dt.timestamp("us")
    except (pl.exceptions.PolarsError, ValueError):
        pass
    raise LookbackError(
        f"{key}: {path}: received {column.dtype} in {column.name}, expected dates or times (or ISO texts)"
    )
