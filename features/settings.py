"""Settings of the log, the side tables, histories, split and demo log: frozen dataclasses that import nothing heavy.

The command line checks a configuration with them without importing polars or numpy.
"""

import dataclasses
import datetime
import difflib
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from features.conditions import check_where, where_column

FileFormat = Literal["csv", "jsonl", "parquet", "json"]
OneColumn = str | int
"""A column of a source by its name (in JSON and Parquet a dotted path; `[]` after a part: each element of its list), or by its
position from 1."""
Column = OneColumn | list[OneColumn] | dict[Literal["first_of", "join"], list[OneColumn]]
"""A column of a source, or one from several: a list is joined by blanks; first_of: the first that is not missing; join: all of
them, joined by `|`."""
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "value", "event_type", "order")
ITEM_COLUMNS = ("item_id", "title", "categories", "text", "embedding", "provider")
RESERVED = ("source_file", "source_row")
"""Names that further columns of the log cannot have."""
DATABASES = ("postgresql://", "postgres://", "sqlite:///", "duckdb:///")
"""Beginnings of the addresses of databases."""
TIMESTAMP_UNITS = ("s", "ms", "us", "ns", "iso", "position")


def refuse(condition: bool, key: str, received: object, expected: str) -> None:
    """Raise ValueError about a key's value under a condition."""
    if condition:
        raise ValueError(f"{key}: received {received!r}, expected {expected}")


def check_iso(key: str, text: str, otherwise: str = "") -> None:
    """Raise ValueError, naming the key and its other forms, for text that is no ISO date or time."""
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{key}: received {text!r}, expected {otherwise}an ISO date such as 2026-01-31"
        ) from None


def iso_microseconds(iso: str, timezone: str = "UTC") -> int:
    """Microseconds since the epoch of an ISO date or time, in a time zone (an IANA name) where it carries none."""
    moment = datetime.datetime.fromisoformat(iso)
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zoneinfo.ZoneInfo(timezone))
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def further_columns(section: str, names: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Names beside the known ones. Raises ValueError for one that reads like a known one, or is no plain name."""
    further = tuple(name for name in names if name not in known)
    for name in further:
        near = [other for other in known if name in other] or difflib.get_close_matches(name, known, 1, 0.8)
        if near:
            raise ValueError(
                f"unknown key '{section}.columns.{name}', expected {', '.join(known)} or the name of a further column; did you "
                f"mean '{section}.columns.{near[0]}'?"
            )
        is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name) is not None and name not in RESERVED
        refuse(not is_plain, f"{section}.columns", name, "a name of letters, digits, _ and -")
    return further


def check_columns(section: str, columns: Mapping[str, Column], known: Sequence[str], *needed: str) -> None:
    """Raise ValueError for a mapped column that is not among the known ones, and for a missing needed one."""
    for ours in columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, known, 1, 0.6)
            guess = f"; did you mean '{section}.columns.{near[0]}'?" if near else ""
            raise ValueError(
                f"unknown key '{section}.columns.{ours}', expected {', '.join(known)}, each with the name or position of a "
                f"column of the file{guess}"
            )
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(
            f"{section}.columns: received {sorted(columns)}, expected a column for {', '.join(missing)} too"
        )


@dataclass(frozen=True)
class TableFormat:
    """Form of a table: the keys that its readers need, named `section` in messages."""

    section: str
    columns: Mapping[str, Column]
    format: FileFormat | None = None
    separator: str = ","
    header: bool = True
    encoding: str = "utf-8"
    quote: str = "auto"
    escape: str = ""
    missing: Sequence[str] = field(default_factory=lambda: [""])
    decimal: Literal[".", ","] = "."
    skip_lines: int = 0
    comment: str = ""
    ragged: Literal["refuse", "fill"] = "refuse"
    items_separator: str = ""
    clicked_suffix: str = ""
    fill_down: Sequence[str] | Mapping[str, str] = field(default_factory=list)

    def __post_init__(self) -> None:
        refuse(
            not self.separator or bool(set(self.separator) & set('"\r\n')),
            f"{self.section}.separator",
            self.separator,
            "text without quotes or line ends",
        )
        for ours, theirs in self.columns.items():
            for column in columns_of(theirs):
                if isinstance(column, int) and column < 1:
                    raise ValueError(
                        f"{self.section}.columns.{ours}: received position {column}, expected one from 1"
                    )
            refuse(not columns_of(theirs), f"{self.section}.columns.{ours}", theirs, "at least one column")
        self._check_text()
        self._check_filling()

    def _check_text(self) -> None:
        for key, text, expected in (
            ("quote", self.quote, "auto, one character, or empty: nothing is quoted"),
            ("escape", self.escape, "one character, or empty: nothing is escaped"),
        ):
            is_fit = len(text) <= 1 and text not in ("\n", "\r") and not (text and text in self.separator)
            refuse(not is_fit and (key, text) != ("quote", "auto"), f"{self.section}.{key}", text, expected)
        refuse(self.skip_lines < 0, f"{self.section}.skip_lines", self.skip_lines, "0 or more")
        try:
            is_text = "".encode(self.encoding) is not None
        except (LookupError, ValueError):
            is_text = False
        refuse(
            not is_text,
            f"{self.section}.encoding",
            self.encoding,
            "a text encoding of Python such as utf-8, latin-1, cp1252 or utf-16",
        )

    def _check_filling(self) -> None:
        refuse(
            bool(self.clicked_suffix) and not self.items_separator,
            f"{self.section}.clicked_suffix",
            self.clicked_suffix,
            f"{self.section}.items_separator too, which separates the items of a list",
        )
        for ours in self.fill_down:
            refuse(
                ours not in self.columns and not isinstance(self.fill_down, Mapping),
                f"{self.section}.fill_down",
                ours,
                f"one of {', '.join(self.columns)}",
            )
        patterns = self.fill_down if isinstance(self.fill_down, Mapping) else {}
        for ours, pattern in patterns.items():
            try:
                groups = re.compile(pattern).groups
            except re.error:
                groups = 0
            refuse(
                groups != 1,
                f"{self.section}.fill_down.{ours}",
                pattern,
                "a regular expression with one group, the value",
            )

    @property
    def filled_by_pattern(self) -> Mapping[str, str]:
        """Our names of columns that lines between the rows give, and the regular expression of those lines."""
        return self.fill_down if isinstance(self.fill_down, Mapping) else {}

    def describe(self) -> str:
        """The settings in force, for a message."""
        columns = ", ".join(f"{ours} = {theirs!r}" for ours, theirs in self.columns.items())
        form = "" if self.format is None else f"format {self.format}, "
        header = f"header {str(self.header).lower()}"
        others = "".join(
            f", {key} {getattr(self, key)!r}"
            for key, usual in _USUAL.items()
            if getattr(self, key) not in (usual, {})
        )
        return f"{form}separator {self.separator!r}, {header}, encoding {self.encoding}{others}, columns {{ {columns} }}"


_USUAL = {
    "quote": "auto",
    "escape": "",
    "missing": [""],
    "decimal": ".",
    "skip_lines": 0,
    "comment": "",
    "ragged": "refuse",
    "items_separator": "",
    "clicked_suffix": "",
    "fill_down": [],
}
"""Keys that a description names where they have another value."""


def columns_of(column: Column) -> list[OneColumn]:
    """The columns of a source that a column is made of."""
    if isinstance(column, dict):
        return [theirs for columns in column.values() for theirs in columns]
    return column if isinstance(column, list) else [column]


def single(column: Column) -> OneColumn:
    """A column that is one of the source's own, as readers get it."""
    assert isinstance(column, str | int)
    return column


@dataclass(frozen=True)
class TableSettings:
    """Location and form of a table of the log."""

    section: ClassVar[str]

    path: str | list[str] | None = None
    """Location of the table: file, folder, glob or a list of them, local or in an object store (`s3://`, `gs://`, `az://`).
    Relative to the working directory; `{data_dir}` and `{name}` are filled in."""
    format: FileFormat | None = None
    """File format; by default that of the extension. json: one object from item to attributes, or an array of objects."""
    separator: str = ","
    """csv: field separator, of any number of characters."""
    header: bool = True
    """csv: header line with the names of the columns."""
    encoding: str = "utf-8"
    """csv, jsonl: text encoding, any that Python knows; a byte order mark is recognised."""
    quote: str = "auto"
    """csv: character around fields that hold separators; empty: none. auto: `"` for commas and semicolons; for other separators
    `"` where the file quotes its header or whole columns, else none."""
    escape: str = ""
    """csv: character before a quote, separator or line end that is part of a quoted field; two quotes stand for one anyway."""
    missing: list[str] = field(default_factory=lambda: [""])
    """Values that mean that there is none, such as `NA`, `NULL` or `\\N`."""
    decimal: Literal[".", ","] = "."
    """csv, jsonl: decimal mark of values; with `,` points and blanks between digits separate thousands."""
    skip_lines: int = 0
    """csv: lines before the header, or before the first row, that are no rows."""
    comment: str = ""
    """csv: beginning of lines that are no rows; empty: none."""
    ragged: Literal["refuse", "fill"] = "refuse"
    """csv: rows with another number of fields than the header. fill: short ones get missing values, the rest of long ones is
    left out."""
    items_separator: str = ""
    """Separator of several items in one field, each an event (or row) of its own; empty: one item."""
    clicked_suffix: str = ""
    """End of the items of a list that were taken, such as `-1`; it is cut off, and other items of the list are no events."""
    fill_down: list[str] | dict[str, str] = field(default_factory=list)
    """Our names of columns whose value is given once and holds for the rows below it that have none. Or a table from a column to
    a regular expression with one group: lines that match it are no rows, and give the column's value for the rows below."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """Column mapping: our name to the source's name, or to its position from 1. In JSON and Parquet a name may be a dotted path;
    `items[].id` is a row for each element of a list. `["date", "time"]`: joined by a blank; `{ first_of = [...] }`: the first
    that is not missing; `{ join = [...] }`: all of them, joined by `|`. Folders such as `day=2026-01-31/` are columns too. In
    [events] `order` is a number that decides among a user's events of one time, before their place in the log, and any further
    name (`device`) is a column that `ranker.columns` may read."""
    database: str | None = None
    """Database to read instead of `path`: `postgresql://host/name`, `sqlite:///file` or `duckdb:///file`. User and password are
    better kept in PGUSER, PGPASSWORD or ~/.pgpass than here."""
    query: str | None = None
    """Query whose rows `database` gives; `columns` names its columns. Each run keeps new rows as a Parquet file. In [events],
    `WHERE at > :since` asks for new rows alone: `:since` is just before the newest time kept, and exact repeats of rows that are
    kept are left out. Without it everything is read each time."""

    def __post_init__(self) -> None:
        self._check_place()
        assert self.table.section  # its own checks are done

    def _check_place(self) -> None:
        if self.database is None and self.query is None:
            refuse(
                not self.path or (isinstance(self.path, list) and "" in self.path),
                f"{self.section}.path",
                self.path,
                f"a file, folder or glob, or a list of them; or {self.section}.database with {self.section}.query",
            )
            return
        refuse(self.path is not None, f"{self.section}.path", self.path, "none beside database and query")
        expected = f"an address that begins with {', '.join(DATABASES)}"
        refuse(
            not (self.database or "").startswith(DATABASES),
            f"{self.section}.database",
            self.database,
            expected,
        )
        refuse(not self.query, f"{self.section}.query", self.query, "a SELECT that gives the rows")
        is_parquet = self.format in (None, "parquet")
        refuse(not is_parquet, f"{self.section}.format", self.format, "none beside database")

    @property
    def table(self) -> TableFormat:
        """The form of the table, for its readers."""
        keys = (key.name for key in dataclasses.fields(TableFormat) if key.name != "section")
        return TableFormat(self.section, **{key: getattr(self, key) for key in keys})


@dataclass(frozen=True)
class EventSettings(TableSettings):
    """Behaviour log, one row per event: the `[events]` section."""

    section: ClassVar[str] = "events"
    known_columns: ClassVar[tuple[str, ...]] = EVENT_COLUMNS
    has_further_columns: ClassVar[bool] = True
    """Whether columns beside the known ones may be mapped."""

    timestamp_unit: str = "s"
    """Unit of timestamps: s, ms, us, ns, iso, a strftime pattern, or position (only each user's order is known; without a
    column for timestamp the place of the row)."""
    timezone: str = "UTC"
    """Time zone of timestamps, and of dates in the configuration, that carry none, as an IANA name."""
    types: dict[str, float] | None = None
    """Event types that count, with their weights in training; all with weight 1 by default. Others are left out and counted. A
    negative weight makes a dislike: an input and an extra negative, never a target."""
    dislike_below: float | None = None
    """Value below which an event is a dislike of weight -1, in the log's own unit."""
    min_value: float | None = None
    """Minimum value of an event, in the log's own unit. Events below it are left out and counted."""
    id_types: Literal["auto", "int64", "string"] = "auto"
    """Type of user and item ids; auto: int64 if every accepted id of the column is a canonical int64, else string. A later file
    with text among int64 ids stops the run: set string, or int64, which refuses such rows; `--force` decides anew."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Exact repeats of user, item, timestamp and type; drop reads the whole log every time."""
    max_refused_fraction: float = 0.05
    """Share of rows in quarantine above which ingest stops. A hopeless file stops it after a million rows."""
    exclude_users: str | None = None
    """Parquet file with `user_id`: users left out of everything from now on; `prune --excluded` removes artifacts that hold them.
    Rows that cannot be parsed have no user and stay in quarantine."""
    where: list[dict[str, Any]] = field(default_factory=list)
    """Conditions that rows have to fit; others are left out and counted. Each is a table of `column`, the source's name, and any
    of `in`, `not_in` (lists), `min`, `max` and `matches` (a regular expression)."""
    missing_user: Literal["refuse", "leave_out"] = "refuse"
    """Rows without a user, such as guests'; leave_out: counted apart from the refused ones."""
    exclude_items: str | list[str] | None = None
    """Items whose events are left out and counted, such as postage: a list of ids, or a Parquet file with `item_id`."""
    earliest: str = "1990-01-01"
    """Earliest possible time, as an ISO date."""
    max_days_ahead: float = 1.0
    """Latest possible time, in days after now."""

    def __post_init__(self) -> None:
        given = dict.fromkeys(super().table.filled_by_pattern, 1)
        needed = ("user_id", "item_id", *(() if self.timestamp_unit == "position" else ("timestamp",)))
        check_columns(self.section, {**self.columns, **given}, (*self.known_columns, *self.further), *needed)
        check_where(self.where)
        super().__post_init__()
        for key, column in (("types", "event_type"), ("min_value", "value"), ("dislike_below", "value")):
            if getattr(self, key) is not None and column not in self.columns:
                received = "types" if key == "types" else "a value"
                raise ValueError(
                    f"events.{key}: received {received}, but events.columns names no {column}; expected a column for it"
                )
        types = self.types
        is_positive = types is None or any(weight > 0 for weight in types.values())
        refuse(not is_positive, "events.types", types, "at least one type with a weight above 0")
        refuse(
            self.timestamp_unit not in TIMESTAMP_UNITS and "%" not in self.timestamp_unit,
            f"{self.section}.timestamp_unit",
            self.timestamp_unit,
            f"{', '.join(TIMESTAMP_UNITS)} or a strftime pattern such as '%d/%m/%Y %H:%M'",
        )
        fraction, days = self.max_refused_fraction, self.max_days_ahead
        refuse(not 0 <= fraction <= 1, "events.max_refused_fraction", fraction, "a share in [0, 1]")
        refuse(not days >= 0, "events.max_days_ahead", days, "0 or more")
        check_iso("events.earliest", self.earliest)
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{self.section}.timezone: received {self.timezone!r}, expected an IANA name such as Europe/Berlin"
            ) from None

    @property
    def further(self) -> tuple[str, ...]:
        """Mapped columns beside the known ones, such as a device. Raises ValueError for a name that cannot be one."""
        names = (*self.columns, *super().table.filled_by_pattern)
        return further_columns(self.section, names, self.known_columns) if self.has_further_columns else ()

    @property
    def table(self) -> TableFormat:
        """The form of the log, with the columns that its conditions read."""
        conditions = {where_column(each["column"]): each["column"] for each in self.where}
        return dataclasses.replace(super().table, columns={**self.columns, **conditions})


@dataclass(frozen=True)
class ContentSettings:
    """How the text of items becomes vectors."""

    text_dim: int = 64
    """Text embedding dimension, in components; 0: text is not used."""
    text_max_words: int = 50_000
    """Maximum vocabulary of titles and texts, in words, the most frequent first."""
    text_min_items: int = 2
    """Minimum document frequency of a word, in items."""

    def __post_init__(self) -> None:
        for name, least in (("text_dim", 0), ("text_max_words", 1), ("text_min_items", 1)):
            refuse(getattr(self, name) < least, f"items.{name}", getattr(self, name), f"at least {least}")


@dataclass(frozen=True)
class ItemSettings(ContentSettings, TableSettings):
    """Item table and its content: the `[items]` section."""

    section: ClassVar[str] = "items"

    category_separator: str = "|"
    """Separator between the categories of one item."""

    def __post_init__(self) -> None:
        if self.columns:
            known = [ours for ours in self.columns if difflib.get_close_matches(ours, ITEM_COLUMNS, 1, 0.8)]
            check_columns(self.section, dict.fromkeys(known, 1), ITEM_COLUMNS, "item_id")
        TableSettings.__post_init__(self)
        ContentSettings.__post_init__(self)
        refuse(not self.category_separator, "items.category_separator", "", "at least one character")


@dataclass(frozen=True)
class UserSettings(TableSettings):
    """User table, with `user_id` and any attributes: the `[users]` section."""

    section: ClassVar[str] = "users"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse("user_id" not in self.columns, "users.columns", sorted(self.columns), "a column for user_id")


@dataclass(frozen=True)
class HistorySettings:
    """Histories that the model reads: the `[history]` section."""

    max_length: int = 200
    """Maximum history length, in events."""
    min_user_events: int = 1
    """Core filter: minimum per user, in events, repeated with `min_item_events` until stable."""
    min_item_events: int = 1
    """Core filter: minimum per item, in events."""
    session_minutes: float = 0.0
    """Longest pause within a visit, in minutes: events of one user no further apart belong together; 0: of the same time only."""
    repeats: Literal["keep", "drop_consecutive"] = "keep"
    """Events on the same item as the user's previous one; drop_consecutive leaves them out of the history."""

    def __post_init__(self) -> None:
        for key in ("max_length", "min_user_events", "min_item_events"):
            refuse(getattr(self, key) < 1, f"history.{key}", getattr(self, key), "at least 1")
        minutes = self.session_minutes
        refuse(not 0 <= minutes < float("inf"), "history.session_minutes", minutes, "0 or more")


@dataclass(frozen=True)
class SplitSettings:
    """Held-out parts of the log: the `[split]` section."""

    protocol: Literal["temporal", "leave_one_out"] = "temporal"
    """Split protocol. temporal: the last events by time; leave_one_out: each user's last event."""
    test_fraction: float = 0.1
    """temporal: test share of all events, the last by time."""
    test_from: str | None = None
    """temporal: start of the test, as an ISO time, instead of `test_fraction`."""
    validation_fraction: float = 0.1
    """temporal: validation share of all events, those before the test."""
    ties: Literal["auto", "order", "strict"] = "auto"
    """Events of one visit. order: by source file and row; strict: events of the target's own visit are not in its history. auto:
    strict where over a fifth of a user's neighbouring events belong to one visit."""
    cuts: int = 1
    """temporal: rolling cuts of the log, each `test_fraction` earlier than the next; 1: once, at its end."""
    held_back: float = 0.0
    """temporal: share of all events, the last by time, left out: the log as it was some time ago."""

    def __post_init__(self) -> None:
        for key in ("test_fraction", "validation_fraction"):
            refuse(not 0 < getattr(self, key) < 1, f"split.{key}", getattr(self, key), "a share in (0, 1)")
        refuse(not 0 <= self.held_back < 1, "split.held_back", self.held_back, "a share in [0, 1)")
        refuse(self.cuts < 1, "split.cuts", self.cuts, "at least 1")
        if self.test_from is not None:
            check_iso("split.test_from", self.test_from)
        if (self.cuts > 1 or self.held_back) and (self.test_from is not None or self.protocol != "temporal"):
            raise ValueError(
                f"split: received cuts {self.cuts} and held_back {self.held_back} with protocol {self.protocol!r} and test_from "
                f"{self.test_from!r}, expected protocol 'temporal' with test_fraction: cuts are shares of the log by time"
            )
        taken = self.cuts * self.test_fraction + self.validation_fraction + self.held_back
        if self.test_from is None and taken >= 1:
            raise ValueError(
                f"split: received test_fraction {self.test_fraction} x cuts {self.cuts} + validation_fraction "
                f"{self.validation_fraction} + held_back {self.held_back}, expected less than 1 together, so that something is "
                "left to train on"
            )
