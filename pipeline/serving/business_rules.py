"""Business rules of the configuration: allow and deny lists, availability, re-ranking."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.events import ids
from features.histories.vocabulary import Vocabulary
from features.schema import IdType
from features.settings import iso_microseconds
from models.recommendation.rules import Rules
from models.settings.exploration import Exploration
from pipeline.errors import LookbackError, optional

if TYPE_CHECKING:
    from pipeline.sections import ScoreConfig
    from pipeline.serving.bundle import Bundle

MAX_SERVED = 10_000
"""Maximum ids of a list that is the default of served requests, since it stands in the model's signature."""
ITEM, FROM, UNTIL = "item_id", "available_from", "available_until"


def rules_of(
    settings: "ScoreConfig",
    items: Vocabulary,
    request_time: int,
    seed: int,
    *,
    exclude_seen: bool,
    timezone: str = "UTC",
    gone: Mapping[str, NDArray[np.bool_]] | None = None,
) -> tuple[Rules, dict[str, int]]:
    """Rules of `[score]` over a vocabulary, with counts of unknown ids in its lists and of excluded items.

    request_time: microseconds since the epoch. exclude_seen: `score.exclude_seen`, resolved. timezone: of times that name none.
    gone: name to [n + 1] masks of items left out (`gone_items`), counted by the name.
    Raises LookbackError for an unreadable file, and for an allow list without a known item.
    """
    allowed, counts = np.ones(len(items) + 1, bool), {}
    allowed[0] = False
    if settings.allow is not None:
        mask, counts["allow_unknown"] = allowlist(
            "score.allow", _listed("score.allow", settings.allow), items
        )
        allowed &= mask
    if settings.deny is not None:
        mask, counts["deny_unknown"] = listed_items(_listed("score.deny", settings.deny), items)
        allowed &= ~mask
    if settings.availability is not None:
        # in a log without times the request is at a position, whatever `score.at` is
        at = request_time if settings.at is None else iso_microseconds(settings.at, timezone)
        key, path = "score.availability", Path(settings.availability)
        table = _read(key, path, (ITEM,))
        mask, counts["availability_unknown"] = available(f"{key}: {path}", table, items, at, timezone)
        allowed &= mask
    for name, mask in (gone or {}).items():
        counts[name] = int(mask.sum())
        allowed &= ~mask
    counts["items_not_allowed"] = int(len(items) - allowed.sum())
    drawn = settings.exploration
    exploration = Exploration(drawn) if isinstance(drawn, float) else drawn
    rules = Rules(
        exclude_seen,
        allowed if counts["items_not_allowed"] else None,
        settings.max_per_category,
        settings.diversity,
        settings.popularity_damping,
        exploration,
        seed + (request_time if exploration.share else 0),  # a later log draws others
    )
    return rules, counts


def gone_items(
    bundle: "Bundle", last_seen: NDArray[np.int64], request_time: int, max_age_days: float, table: Path
) -> dict[str, NDArray[np.bool_]]:
    """Masks [n + 1] of items that are too old (`items_not_seen`), and of those without a row any more (`items_vanished`).

    last_seen: [n + 1] time of each item's last event, 0: none, which is no age. table: the items table, if there is one.
    """
    is_old = (last_seen > 0) & (last_seen < request_time - max_age_days * 86_400_000_000)
    gone = {"items_not_seen": is_old}
    if table.exists():
        rows = pl.read_parquet(table, columns=[ITEM])[ITEM].cast(pl.String)
        had_row = bundle.titles.is_not_null()
        has_row = bundle.items.ids.cast(pl.String).is_in(rows.implode())
        gone["items_vanished"] = np.concatenate(([False], (had_row & ~has_row).to_numpy()))
    return gone


def served_rules(settings: "ScoreConfig", bundle: Path, timezone: str = "UTC") -> Mapping[str, Any]:
    """Parameters that requests to a served bundle have where they don't name them (`Parameters`): the lists of `[score]`.

    Empty, with one line on stderr, where a file is unusable or a list has more than MAX_SERVED ids; another line says that
    `score.max_shown`, the rules of single users and budgets are none of them.
    """
    rules: dict[str, Any] = {}
    if named := [
        f"score.{key}" for key in ("exclude", "candidates", "pin") if getattr(settings, key) is not None
    ]:
        text = f"{', '.join(named)}: a served model knows no rules of users: requests name the items in deny, allow and pin"
        print(text, file=sys.stderr, flush=True)
    if settings.budgets is not None:
        text = "score.budgets: a served model answers one request at a time: its lists keep no budgets"
        print(text, file=sys.stderr, flush=True)
    if settings.max_shown:
        text = (
            "score.max_shown: a served model knows no exposures: requests name the items to leave out in deny"
        )
        print(text, file=sys.stderr, flush=True)
    with optional("rules of the served model"):
        rules |= _served_rules(settings, bundle, timezone)
    return rules


def _served_rules(settings: "ScoreConfig", bundle: Path, timezone: str) -> Mapping[str, Any]:
    is_text = pl.read_parquet_schema(bundle / "items.parquet")[ITEM] == pl.String
    kind: IdType = "string" if is_text else "int64"
    rules: dict[str, Any] = {"max_per_category": settings.max_per_category}
    for name in ("allow", "deny"):
        listed = getattr(settings, name)
        if listed is not None:
            table = _listed(f"score.{name}", listed).to_frame()
            rules[name] = _served(f"score.{name}", table, kind, timezone)[ITEM]
    if settings.availability is not None:
        where, path = "score.availability", Path(settings.availability)
        rules["availability"] = _served(f"{where}: {path}", _read(where, path, (ITEM,)), kind, timezone)
    return rules


def _served(where: str, table: pl.DataFrame, kind: IdType, timezone: str) -> dict[str, list[Any]]:
    """Columns of a list with ids of a type and ISO times. Raises LookbackError for more than MAX_SERVED rows."""
    table = table.with_columns(ids.typed(ids.plain(table[ITEM]), kind)).drop_nulls(ITEM)
    if len(table) > MAX_SERVED:
        raise LookbackError(
            f"{where}: {len(table):,} ids, expected at most {MAX_SERVED:,} as the default of served requests, which can name more"
        )
    times = {
        name: _microseconds(where, table[name], timezone)
        .cast(pl.Datetime("us"))
        .dt.to_string("%Y-%m-%dT%H:%M:%S%.6f")
        .to_list()
        for name in (FROM, UNTIL)
        if name in table.columns
    }
    return {ITEM: table[ITEM].to_list()} | times


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


def _listed(key: str, listed: str | list[str]) -> pl.Series:
    """Distinct ids of a setting: in a file, or as they are."""
    if isinstance(listed, str):
        return read_ids(key, Path(listed), ITEM)
    return pl.Series(ITEM, listed, dtype=pl.String).unique()


def listed_items(listed: pl.Series, items: Vocabulary) -> tuple[NDArray[np.bool_], int]:
    """[n + 1] mask of the items in a list, and the number of unknown ids."""
    index, num_unknown = items.encode_known(listed)
    mask = np.zeros(len(items) + 1, bool)
    mask[index[index > 0]] = True
    return mask, num_unknown


def allowlist(where: str, listed: pl.Series, items: Vocabulary) -> tuple[NDArray[np.bool_], int]:
    """`listed_items`; raises LookbackError, which begins with `where`, if there are none."""
    mask, num_unknown = listed_items(listed, items)
    if not mask.any():
        raise LookbackError(
            f"{where}: received {num_unknown:,} ids, of which the model knows none; expected ids such as "
            + ", ".join(map(str, items.ids.head(3)))
        )
    return mask, num_unknown


def available(
    where: str, table: pl.DataFrame, items: Vocabulary, at: int, timezone: str = "UTC"
) -> tuple[NDArray[np.bool_], int]:
    """[n + 1] mask of items available at a time (in one of their windows, or without any), and the number of unknown ids.

    table: item_id, available_from, available_until. Raises LookbackError, which begins with `where`.
    """
    if FROM not in table.columns and UNTIL not in table.columns:
        raise LookbackError(
            f"{where}: received the columns {', '.join(table.columns)}, expected {FROM} or {UNTIL} too"
        )
    is_open = pl.lit(value=True)
    for name in (FROM, UNTIL):
        if name in table.columns:
            limit = _microseconds(where, table[name], timezone)
            inside = limit <= at if name == FROM else limit > at
            is_open = is_open & pl.lit(inside.fill_null(value=True))
    windows = table.select(ITEM, is_open=is_open).drop_nulls(ITEM).group_by(ITEM).agg(pl.col("is_open").any())
    index, num_unknown = items.encode_known(windows[ITEM])
    mask = np.ones(len(items) + 1, bool)
    mask[index] = windows["is_open"].to_numpy()
    return mask, num_unknown


def _microseconds(where: str, column: pl.Series, timezone: str) -> pl.Series:
    """Convert dates, times or ISO texts, in `timezone` where they have no zone, to microseconds since the epoch."""
    try:
        if column.dtype == pl.String:
            times = [None if text is None else iso_microseconds(text, timezone) for text in column]
            return pl.Series(column.name, times, dtype=pl.Int64)
        if column.dtype in (pl.Date, pl.Datetime, pl.Null):  # the unit of a number is unknown
            if getattr(column.dtype, "time_zone", None) is None:
                column = column.cast(pl.Datetime("us")).dt.replace_time_zone(
                    timezone, ambiguous="earliest", non_existent="null"
                )
            return column.dt.timestamp("us")
    except (pl.exceptions.PolarsError, ValueError):
        pass
    raise LookbackError(
        f"{where}: received {column.dtype} in {column.name}, expected dates or times (or ISO texts)"
    )
