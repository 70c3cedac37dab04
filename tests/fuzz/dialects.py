"""Logs written in random dialects by Python's csv module, with the number of their records."""

import csv
import io
import random
from dataclasses import dataclass
from typing import Any

FIELDS = [
    "a",
    "b c",
    "é",
    "",
    "x;y",
    "x,y",
    "x|y",
    "x\ty",
    'say "hi"',
    "it's",
    "two\nlines",
    "back\\slash",
    "#5",
    "1,5",
]
SINGLE = (",", ";", "\t", "|", "^", "\x01")
"""Separators that Python's csv writes; longer ones replace one of them."""
LONGER = ("::", "||", ", ")


@dataclass(frozen=True)
class Written:
    """A log and how it is to be read."""

    content: bytes
    keys: dict[str, Any]
    """Keys of [events]."""
    num_rows: int


def write(rng: random.Random, num_rows: int) -> Written:
    """A log in a random dialect; every record of it can be told from the others."""
    separator = rng.choice([*SINGLE, *LONGER])
    quote = rng.choice(['"', '"', "'", ""])
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
    header = rng.random() < 0.7
    comment = rng.choice(["", "", "#", "//"])
    skip_lines = rng.choice([0, 0, 2])
    trailing = rng.random() < 0.2
    line_end = rng.choice(["\n", "\r\n"])
    names = ["u", "i", "t", "v"]
    allowed = [field for field in FIELDS if _may_stand(field, separator, quote, comment)]
    rows = [
        [str(rng.randrange(9)), f"i{rng.randrange(9)}", str(1_600_000_000 + row), rng.choice(allowed)]
        for row in range(num_rows)
    ]
    lines = [_line(row, separator, quote, trailing=trailing) for row in ([names, *rows] if header else rows)]
    if comment:
        lines.insert(rng.randrange(len(lines) + 1), f"{comment} made {separator} by hand")
    text = "".join(f"{line}{line_end}" for line in [*["Report", "of May"][:skip_lines], *lines])
    positions: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3, "event_type": 4}
    named: dict[str, str | int] = dict(zip(positions, names, strict=True))
    keys = {
        "columns": named if header else positions,
        "separator": separator,
        "header": header,
        "quote": quote,
        "comment": comment,
        "skip_lines": skip_lines,
        "encoding": "utf-8" if encoding in ("utf-8-sig", "utf-16") else encoding,
    }
    return Written(text.encode(encoding), keys, num_rows)


def _may_stand(field: str, separator: str, quote: str, comment: str) -> bool:
    if quote:
        return True
    return not any(mark and mark in field for mark in (separator, "\n", comment))


def _line(row: list[str], separator: str, quote: str, *, trailing: bool) -> str:
    row = [*row, ""] if trailing else row
    if not quote:
        return separator.join(row)
    one = separator if len(separator) == 1 else "\x02"
    buffer = io.StringIO(newline="")
    csv.writer(
        buffer, delimiter=one, quotechar=quote, quoting=csv.QUOTE_MINIMAL, lineterminator="\n"
    ).writerow(row)
    text = buffer.getvalue().removesuffix("\n")
    return text if one == separator else _longer(row, separator, quote)


def _longer(row: list[str], separator: str, quote: str) -> str:
    """A row with a separator that csv cannot write: fields with a mark in them are quoted."""
    marks = {*separator, quote, "\n"}
    fields = [
        quote + field.replace(quote, quote * 2) + quote if marks & set(field) else field for field in row
    ]
    return separator.join(fields)
