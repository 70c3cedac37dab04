"""Cautions about the ids of a log: words for nothing, spellings of one id, a user who owns much of the log."""

import codecs
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from features.printable import printable
from features.schema import USER_ID

WORDS_FOR_NOTHING = (
    *("na", "n/a", "n.a.", "#n/a", "<na>", "nan", "nil", "none", "null", r"\n", "undefined", "unknown", "missing"),
    *("(not set)", "not set", "(none)", "(null)", "(unknown)", "(not provided)", "(other)", "(empty)", "(blank)"),
    *("-", "--", "?"),
)  # fmt: skip
"""Words that programs write where there is no value, in lower case."""
MAX_USER_SHARE = 0.1
"""Share of the events that one user may own without a caution, if that is also UNUSUAL times the mean of all users."""
UNUSUAL = 3
NUM_FREQUENT = 20
ALL_ROWS = 100_000
"""First rows of a source that are all looked at; of further ones every `_STEP`th."""
_STEP = 16
_MOST_IDS = 1_000_000
"""Ids of a sample above which only the most frequent fifth is kept."""
_SCIENTIFIC = r"^-?\d(?:\.\d+)?[eE]\+\d+$|^-?\d\.\d+[eE]\d+$"
"""Numbers as spreadsheets write long ones; not 12e5, which may be part of a hexadecimal id."""


@dataclass(frozen=True)
class IdFacts:
    """Facts about the ids of one column, from a sample of its rows."""

    num_rows: int = 0
    num_ids: int = 0
    """Different ids; of several sources the most of one."""
    frequent: Counter[str] = field(default_factory=Counter)
    """The most frequent ids and their rows."""
    words: Counter[str] = field(default_factory=Counter)
    """Ids that are words for nothing, and their rows."""
    scientific: Sequence[str] = ()
    """The first id in scientific notation."""
    variants: Sequence[str] = ()
    """The first two ids that differ by blanks or case alone."""

    def __add__(self, other: "IdFacts") -> "IdFacts":
        return IdFacts(
            self.num_rows + other.num_rows,
            max(self.num_ids, other.num_ids),
            Counter(dict((self.frequent + other.frequent).most_common(NUM_FREQUENT))),
            self.words + other.words,
            self.scientific or other.scientific,
            self.variants or other.variants,
        )

    def to_json(self) -> dict[str, object]:
        """As plain numbers and lists."""
        return vars(self) | {"frequent": dict(self.frequent), "words": dict(self.words)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "IdFacts":
        """Load facts saved by `to_json`."""
        return cls(
            **{**content, "frequent": Counter(content["frequent"]), "words": Counter(content["words"])}
        )


class IdSample:
    """Ids of a column and their rows: of all of the first rows, then of some, in bounded memory."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._counts: list[pl.DataFrame] = []

    def add(self, ids: pl.Series) -> None:
        """Take some of the next ids."""
        step = 1 if self._num_rows < ALL_ROWS else _STEP
        self._num_rows += len(ids)
        sampled = ids.gather_every(step).alias("id").to_frame()
        self._counts.append(sampled.with_columns(rows=pl.lit(step, pl.Int64)))
        if sum(map(len, self._counts)) > _MOST_IDS:
            self._counts = [self._counted().top_k(_MOST_IDS // 5, by="rows")]

    def _counted(self) -> pl.DataFrame:
        return pl.concat(self._counts).group_by("id", maintain_order=True).agg(pl.col("rows").sum())

    def facts(self) -> IdFacts:
        """Summary of the sample."""
        if not any(map(len, self._counts)):
            return IdFacts()
        counts = self._counted()
        frequent = counts.top_k(NUM_FREQUENT, by="rows").select(pl.col("id").cast(pl.String), "rows")
        rows = int(counts["rows"].sum())
        if counts["id"].dtype != pl.String:
            return IdFacts(rows, len(counts), Counter(dict(frequent.rows())))
        lower = pl.col("id").str.to_lowercase()
        words = counts.filter(pl.col("id").str.len_bytes() < 16).filter(lower.is_in(WORDS_FOR_NOTHING))
        return IdFacts(
            rows,
            len(counts),
            Counter(dict(frequent.rows())),
            Counter(dict(words.rows())),
            counts["id"].filter(counts["id"].str.contains(_SCIENTIFIC)).head(1).to_list(),
            _variants(counts["id"]),
        )


def _variants(ids: pl.Series) -> list[str]:
    """The first two of different ids that are equal without blanks and case."""
    plain = ids.str.to_lowercase().str.replace_all(r"\s+", "")
    repeated = plain.filter(plain.is_duplicated()).head(1)
    return ids.filter(plain == repeated[0]).head(2).to_list() if len(repeated) else []


def describe(ids: Mapping[str, IdFacts], num_events: int) -> Iterator[str]:
    """Cautions about the ids of a log, a sentence each."""
    for name, facts in ids.items():
        for word, rows in facts.words.most_common(3):
            yield (
                f"{name} {printable(word)!r} has {_about(rows, facts, num_events)} events, and is what some programs write "
                f"where there is no value; if so here, list it in events.missing"
            )
        if facts.scientific:
            yield (
                f"{name} {printable(facts.scientific[0])!r} is in scientific notation: long ids that a spreadsheet has rounded "
                "are no longer told apart; export them as text"
            )
        if facts.variants:
            first, second = map(printable, facts.variants)
            yield f"{name} {first!r} and {second!r} differ by blanks or case alone, and are two ids"
    users = ids.get(USER_ID, IdFacts())
    for user, rows in users.frequent.most_common(1):
        if rows > MAX_USER_SHARE * users.num_rows and rows * users.num_ids > UNUSUAL * users.num_rows:
            yield (
                f"user_id {printable(user)!r} owns {rows / users.num_rows:.0%} of the events: if many people share it (guests, a "
                "test account, a word for nothing), leave it out by events.exclude_users or list it in events.missing"
            )


def describe_controls(table: pl.DataFrame, section: str, encoding: str) -> Iterator[str]:
    """A caution about text that was read as latin-1 and holds characters that only another encoding has."""
    if codecs.lookup(encoding).name != "iso8859-1":
        return
    for name in table.columns:
        if table.schema[name] == pl.String:
            odd = table[name].filter(table[name].str.contains("[\x80-\x9f]"))
            if len(odd):
                yield (
                    f"{section}: {name} {printable(odd[0])!r} has control characters, as text of Windows has that is read as "
                    f'latin-1: is {section}.encoding = "cp1252" right?'
                )
                return


def _about(rows: int, facts: IdFacts, num_events: int) -> str:
    """Number of events, from that in a sample."""
    return f"{rows:,}" if facts.num_rows == num_events else f"about {rows:,}"
