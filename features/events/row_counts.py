"""Reasons against rows of a log, their counts, and the messages about them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from features.events.cautions import IdFacts
from features.events.event_format import EventFormat
from features.printable import LONGEST, printable

REFUSED = (
    "unparseable",  # wrong number of fields, an open quote, not a JSON object, undecodable bytes
    "missing_user",
    "missing_item",
    "missing_time",
    "impossible_time",  # not a timestamp, before the earliest or after the latest
    "bad_user",  # longer than ids.LONGEST_BYTES, or with id_types = "int64" not a canonical int64
    "bad_item",
    "bad_rank",  # of an exposure: not a whole number from 1
    "bad_propensity",  # of an exposure: not a number above 0 and at most 1
    "bad_list",  # of an exposure: longer than ids.LONGEST_BYTES
)
LEFT_OUT = (
    *("excluded_user", "where", "excluded_item"),
    *("type_not_listed", "value_below_minimum", "duplicate"),
)
ORDER = ("unparseable", *LEFT_OUT[:3], *REFUSED[1:], *LEFT_OUT[3:5])
"""A row with several reasons gets the first of these."""
VALUES_LEFT_OUT = (
    "bad_value",  # not a finite number
    "bad_type",  # longer than ids.LONGEST_BYTES
    "bad_order",  # not a finite number
)
"""Reasons for which an event loses a value, and stays; of a further column `fields.TOO_LONG` and its name."""

NUM_EXAMPLES = 3
NUM_TYPES = 20
"""Event types that a message names."""
_COUNTERS = ("refused", "left_out", "unlisted", "values_left_out")


@dataclass
class Counts:
    """Outcome of the rows of one or more sources."""

    rows_in: int = 0
    rows_out: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first refused rows: source_path, source_row, raw, reason, detail."""
    first_ahead: int | None = None
    """Earliest time refused as later than the format's latest, in microseconds since the epoch."""
    unlisted: Counter[str] = field(default_factory=Counter)
    """Rows left out by event type not in `types`, for NUM_TYPES of the types; rows without a type under the empty text."""
    values_left_out: Counter[str] = field(default_factory=Counter)
    """Events that lost a value, by reason."""
    value_examples: dict[str, str] = field(default_factory=dict)
    """The first text that was lost, by reason."""
    absent_columns: dict[str, str] = field(default_factory=dict)
    """Optional mapped columns that a source lacks, and the message about it."""
    ids: dict[str, IdFacts] = field(default_factory=dict)
    """Id column to facts about its spelling."""

    def check(self) -> None:
        """Assert that every row is counted exactly once."""
        assert self.rows_in == self.rows_out + self.refused.total() + self.left_out.total(), self

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            self.refused + other.refused,
            self.left_out + other.left_out,
            (self.examples + other.examples)[:NUM_EXAMPLES],
            earliest(self.first_ahead, other.first_ahead),
            most_common(self.unlisted + other.unlisted),
            self.values_left_out + other.values_left_out,
            other.value_examples | self.value_examples,
            other.absent_columns | self.absent_columns,
            {
                name: self.ids.get(name, IdFacts()) + other.ids.get(name, IdFacts())
                for name in {**self.ids, **other.ids}
            },
        )

    def to_json(self) -> dict[str, object]:
        """As plain numbers and lists; `Counts.from_json` reads it."""
        ids = {name: facts.to_json() for name, facts in self.ids.items()}
        return vars(self) | {name: dict(getattr(self, name)) for name in _COUNTERS} | {"ids": ids}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Counts":
        """Load counts saved by `to_json`."""
        counters: dict[str, Counter[str]] = {name: Counter(content.get(name)) for name in _COUNTERS}
        ids = {name: IdFacts.from_json(facts) for name, facts in content.get("ids", {}).items()}
        return cls(**{**content, **counters, "ids": ids})

    def reasons(self) -> dict[str, int]:
        """Reason to number of rows that are not events."""
        return dict(sorted((self.refused + self.left_out).items()))


def earliest(*times: int | None) -> int | None:
    """The first of some times."""
    return min((time for time in times if time is not None), default=None)


def most_common(types: Counter[str]) -> Counter[str]:
    """The NUM_TYPES most frequent types."""
    return Counter(dict(types.most_common(NUM_TYPES)))


def describe_types(counts: Counts, listed: Iterable[str] | None) -> str:
    """The event types left out, most frequent first, beside those listed; a missing type is empty text."""
    rows = ", ".join(f"{kind!r} ({number:,})" for kind, number in counts.unlisted.most_common())
    return f"events.types lists {', '.join(map(repr, listed or ()))}; rows left out: {rows}"


def describe_reasons(counts: Counts) -> str:
    """Rows that are no events by reason, the most frequent first, with the first refused ones as examples."""
    reasons = (counts.refused + counts.left_out).most_common()
    by_reason = ", ".join(f"{reason} {number:,}" for reason, number in reasons)
    return f"{by_reason}." + "".join(map(_describe_example, counts.examples))


def _describe_example(row: Mapping[str, Any]) -> str:
    reason = ": ".join(filter(None, (row["reason"], row.get("detail"))))
    return (
        f"\n  {printable(row['source_path'])} row {row['source_row']} ({printable(reason, LONGEST)}): "
        f"{printable(row['raw'], LONGEST)}"
    )


def check_refused(
    counts: Counts, form: EventFormat, max_refused_fraction: float, *, read_to_end: bool = True
) -> None:
    """Raise ValueError, with counts, examples and settings, for no rows, no events, or too many refused rows."""
    section = form.settings.section
    if counts.rows_in == 0:
        raise ValueError(
            f"{section}.path: the log is empty: no row in any file. Settings in force: {form.describe()}"
        )
    refused = counts.refused.total()
    if refused <= max_refused_fraction * counts.rows_in and counts.rows_out:
        return
    total = f"{counts.rows_in:,}" if read_to_end else f"the first {counts.rows_in:,}"
    problem = (
        f"{refused:,} of {total} rows were refused, expected at most {max_refused_fraction:.1%} "
        "(events.max_refused_fraction)"
        if refused > max_refused_fraction * counts.rows_in
        else f"none of {counts.rows_in:,} rows is an {section.removesuffix('s')} that counts"
    )
    types = f"\n{describe_types(counts, form.settings.types)}" if counts.unlisted else ""
    raise ValueError(
        f"{section}: {problem}: {describe_reasons(counts)}{types}\nSettings in force: {form.describe()}. "
        "Correct the settings that these rows do not fit, or raise events.max_refused_fraction"
    )
