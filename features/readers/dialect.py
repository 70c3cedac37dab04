"""What the beginning of a delimited text says about the rest: separator, quotes, names, number of fields.

A field is quoted where it begins with a quote, and ends with the next one that is not doubled or escaped, if a separator or the
end of the line follows; otherwise its quotes are characters like any other.
"""

import collections
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from features import tables
from features.settings import TableFormat, single
from features.tables import TextStream

LINES_PER_ROW = 100
"""Maximum lines of a row; a quote not closed by then, or within the longest row's bytes, is a stray one."""
FIRST_BYTES = 1 << 20
_FIRST_LINES = 1000
_QUOTED_BY_DEFAULT = (",", ";")
_SEPARATOR_LINE = re.compile(rb'"?sep=([^\r\n"])"?\r?\n', re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d[\d.,:/TZ +-]*")


class Unclosed(Exception):
    """A quoted field does not end within the text."""


@dataclass(frozen=True)
class Quoting:
    """How the fields of a row are told apart."""

    separator: str
    quote: str
    """Empty: nothing is quoted."""
    escape: str = ""

    @functools.cached_property
    def _closing(self) -> re.Pattern[str]:
        quote, escape = re.escape(self.quote), re.escape(self.escape)
        inner = f"[^{quote}{escape}]"
        others = f"{quote}{quote}" + (f"|{escape}." if escape else "")
        return re.compile(f"{inner}*+(?:(?:{others}){inner}*+)*+{quote}", re.DOTALL)

    def split(self, text: str) -> list[str] | None:
        """Unquoted fields of one row; None for too many, or an unquoted field with a line end. Raises Unclosed."""
        fields: list[str] = []
        position = 0
        while len(fields) < tables.MAX_FIELDS:
            field, end = self._field(text, position)
            if field is None:
                return None
            fields.append(field)
            if end == len(text):
                return fields
            position = end + len(self.separator)
        return None

    def _field(self, text: str, position: int) -> tuple[str | None, int]:
        """The field at a position, and where it ends."""
        if self.quote and text.startswith(self.quote, position):
            closing = self._closing.match(text, position + 1)
            if closing is None:
                raise Unclosed
            end = closing.end()
            if end == len(text) or text.startswith(self.separator, end):
                return self._without_quotes(text[position + 1 : end - 1]), end
        end = text.find(self.separator, position)
        field = text[position:] if end < 0 else text[position:end]
        return None if "\n" in field else field, len(text) if end < 0 else end

    def _without_quotes(self, field: str) -> str:
        if self.escape and self.escape in field:
            parts = f"{re.escape(self.escape)}(.)|{self.quote}{self.quote}"
            return re.sub(parts, lambda found: found[1] or self.quote, field, flags=re.DOTALL)
        return field.replace(self.quote * 2, self.quote)

    def count(self, text: str) -> int:
        """Number of fields of a line; 0 where it is no whole row."""
        try:
            return len(self.split(text) or ())
        except Unclosed:
            return 0


@dataclass(frozen=True)
class Dialect:
    """Form of the rows of a delimited text."""

    quoting: Quoting
    comment: bytes
    """Beginning of lines that are no rows; empty: none."""
    header: bytes
    """The header's line, which may come again; empty without one."""
    is_filled: bool
    """Whether rows with another number of fields are filled up, or cut."""
    num_fields: int
    positions: dict[str, int]
    """Our name of a mapped column to its field's position from 0."""
    numbers: tuple[int, ...]
    """Positions of the mapped fields that are numbers or times in all of the first lines."""
    encoding: str
    has_rest: bool = False
    """Whether the last field is the rest of the line, a list of items with the same separator."""
    given: tuple[tuple[str, str], ...] = ()
    """Our name and regular expression of columns whose value stands in lines between the rows."""

    @property
    def separator(self) -> bytes:
        """Field separator, in UTF-8."""
        return self.quoting.separator.encode()

    def why(self, line: str) -> str:
        """What is wrong with the text of a row that is no whole one."""
        try:
            fields = self.quoting.split(line)
        except Unclosed:
            return "a quote that is not closed"
        if fields is None:
            return f"more than {tables.MAX_FIELDS:,} fields"
        if len(fields) == self.num_fields:
            return f"bytes that are no {self.encoding}, or a quote that would swallow the rows below"
        expected = f"the header has {self.num_fields}" if self.header else f"most rows have {self.num_fields}"
        return f"{len(fields)} field{'s' * (len(fields) != 1)}, {expected}"

    def is_whole_row(self, line: str) -> bool:
        """Whether a line is, for all that the first lines show, a row of its own.

        A field that is a lone quote is none: it ends a field that began in a line above.
        """
        try:
            fields = self.quoting.split(line)
        except Unclosed:
            return False
        if fields is None or len(fields) != self.num_fields or (self.num_fields < 3 and not self.numbers):
            return False
        quote = self.quoting.quote
        if quote and quote in fields and quote * 4 not in line:
            return False
        return all(_NUMBER.fullmatch(fields[position].strip()) for position in self.numbers)


def find(stream: TextStream, form: TableFormat, where: str) -> tuple[Dialect | None, bytes]:
    """The dialect of a text and what follows its header, as far as it was read; no dialect for a text without a row.

    Raises ValueError for a missing mapped column, naming the columns of the file.
    """
    quoting, names, header, start = _header(stream, form, where)
    lines = _first_lines(start, form, header)
    if not lines and (names is None or names == [""]):
        return None, start
    counts = collections.Counter(quoting.count(line) for line in lines)
    counts.pop(0, None)
    usual = counts.most_common(1)[0][0] if counts else 0
    if names is None:
        names = _numbered(usual, form)
    elif usual == len(names) + 1 and all(line.endswith(quoting.separator) for line in lines):
        names = [*names, ""]  # every row, but not the header, ends with a separator
    elif names[-1] == "" and usual == len(names) - 1:
        names = names[:-1]
    positions = {}
    for ours in form.columns:
        theirs = single(form.columns[ours])
        name = tables.column_at(form, ours, names, where, [line[:200] for line in lines[:3]])
        positions[ours] = theirs - 1 if isinstance(theirs, int) else names.index(name)
    has_rest = form.items_separator == form.separator
    if has_rest:
        names = names[: max(positions.values()) + 1]
    rows = [fields for line in lines if len(fields := _whole(line, quoting)) == len(names)]
    dialect = Dialect(
        quoting,
        form.comment.encode(),
        header,
        form.ragged == "fill",
        len(names),
        positions,
        tuple(position for position in positions.values() if _are_numbers(rows, position)),
        form.encoding,
        has_rest,
        tuple(form.filled_by_pattern.items()),
    )
    return dialect, start


def names(stream: TextStream, form: TableFormat, where: str) -> list[str]:
    """Column names in the header; empty without one."""
    return _header(stream, form, where)[1] or []


def _header(
    stream: TextStream, form: TableFormat, where: str
) -> tuple[Quoting, list[str] | None, bytes, bytes]:
    """The quoting, the names in the header (None without one), its line, and the text after it."""
    start, separator = _start(stream, form, where)
    quoting = Quoting(separator, _quote(start, separator, form), form.escape)
    if not form.header:
        return quoting, None, b"", start
    found, end = _names(start, quoting, form, where)
    return quoting, [name.strip() for name in found], start[:end].rstrip(b"\r\n"), start[end:]


def _start(stream: TextStream, form: TableFormat, where: str) -> tuple[bytes, str]:
    """The beginning of the text, from its first row or header on, at least one whole row; and its separator.

    Its last line may be cut, except at the end of the stream.
    """
    start = b""
    while more := stream.read(FIRST_BYTES):
        start += more
        if len(start) >= FIRST_BYTES and _skip(start, form)[0].count(b"\n") > form.header:
            return _skip(start, form)
        tables.check_row_length(len(start) - FIRST_BYTES, where)
    is_ended = start.endswith((b"\n", b"\r")) or not start
    return _skip(start if is_ended else start + b"\n", form)


def _skip(start: bytes, form: TableFormat) -> tuple[bytes, str]:
    """The text without a line that names the separator, and what comes before the first row."""
    separator = form.separator.replace("\\t", "\t")
    if named := _SEPARATOR_LINE.match(start):
        start, separator = start[named.end() :], named[1].decode(errors="replace")
    for _ in range(form.skip_lines):
        start = start.partition(b"\n")[2]
    start = start.lstrip(b"\r\n")
    while form.comment and start.startswith(form.comment.encode()):
        start = start.partition(b"\n")[2].lstrip(b"\r\n")
    return start, separator


def normal(block: bytes) -> bytes:
    """Whole lines, each ended by one line feed."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    return block if not block or block.endswith(b"\n") else block + b"\n"


def _names(start: bytes, quoting: Quoting, form: TableFormat, where: str) -> tuple[list[str], int]:
    """Names in the first row, and where it ends."""
    end = 0
    for _ in range(LINES_PER_ROW):
        end = start.find(b"\n", end) + 1 or len(start)
        text = start[:end].decode(errors="replace").rstrip("\r\n")
        try:
            found = quoting.split(text)
        except Unclosed:
            if end < len(start):
                continue
            found = None
        break
    else:
        found = None
    if found is not None:
        return found, end
    end = start.find(b"\n") + 1 or len(start)
    text = start[:end].decode(errors="replace").rstrip("\r\n")
    if (num_fields := text.count(quoting.separator) + 1) > tables.MAX_FIELDS:
        raise tables.too_many_fields(num_fields, form, where)
    return text.split(quoting.separator), end


def _first_lines(start: bytes, form: TableFormat, header: bytes) -> list[str]:
    """The first whole lines that may be rows."""
    lines = [line.rstrip(b"\r") for line in start.split(b"\n", _FIRST_LINES)[:-1]]
    comment = form.comment.encode()
    texts = [
        line.decode(errors="replace")
        for line in lines
        if line and line != header and not (comment and line.startswith(comment))
    ]
    patterns = [re.compile(pattern) for pattern in form.filled_by_pattern.values()]
    return [text for text in texts if not any(pattern.search(text) for pattern in patterns)]


def _numbered(num_fields: int, form: TableFormat) -> list[str]:
    """Without a header: "1", "2", … for as many fields as most of the first lines have."""
    for ours, theirs in form.columns.items():
        if isinstance(theirs, str):
            raise ValueError(
                f"{form.section}.columns.{ours}: received the name {theirs!r}, expected a position from 1, "
                f"as there is no header ({form.section}.header = false)"
            )
    return [str(position + 1) for position in range(num_fields)]


def _whole(line: str, quoting: Quoting) -> list[str]:
    """The fields of a line; none where it is no whole row."""
    try:
        return quoting.split(line) or []
    except Unclosed:
        return []


def _are_numbers(rows: Sequence[Sequence[str]], position: int) -> bool:
    values = [row[position].strip() for row in rows]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _quote(start: bytes, separator: str, form: TableFormat) -> str:
    """The quote in force: the configured one, or where that is left open the one that the text shows."""
    if form.quote != "auto":
        return form.quote
    return '"' if separator in _QUOTED_BY_DEFAULT or _shows_quotes(start, separator, form) else ""


def _shows_quotes(start: bytes, separator: str, form: TableFormat) -> bool:
    """Whether in the first lines quotes must stand around fields.

    So it is where the header or all values of a column stand in quotes, or where a row has the usual number of fields only with
    them, or where a field in quotes holds doubled ones.
    """
    lines = _first_lines(start, form, b"")
    if not any(f'{separator}"' in line or line.startswith('"') for line in lines):
        return False
    rows = [_with_quotes(line, separator) for line in lines]
    if form.header and any(map(_is_quoted, rows[0])):
        return True
    usual = collections.Counter(map(len, rows)).most_common(1)[0][0]
    rows, lines = (rows[1:], lines[1:]) if form.header else (rows, lines)
    whole = [(row, line) for row, line in zip(rows, lines, strict=True) if len(row) == usual]
    if any(line.count(separator) != usual - 1 or _holds_doubled(row) for row, line in whole):
        return True
    columns = zip(*(row for row, _ in whole), strict=True)
    values = [[field for field in column if field] for column in columns]
    return any(len(column) > 1 and all(map(_is_quoted, column)) for column in values)


def _with_quotes(line: str, separator: str) -> list[str]:
    """The fields of a line as they are written, if `"` were the quote."""
    mark = re.escape(separator)
    return re.findall(f'(?:^|{mark})("(?:[^"]|"")*"(?={mark}|$)|(?:(?!{mark}).)*)', line)


def _holds_doubled(row: Sequence[str]) -> bool:
    return any(_is_quoted(field) and '""' in field[1:-1] for field in row)


def _is_quoted(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'
