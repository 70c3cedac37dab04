"""JSON that is not one object per line: arrays of objects, and objects over several lines, as a stream of lines.

Each object becomes one line, so that the reader of JSON lines takes it; what is no object becomes a line that is none either.
"""

import json
import re
from collections.abc import Iterator

from features import tables
from features.tables import TextStream

_BETWEEN = re.compile(r"[\s,]*")
_LINE_ENDS = re.compile(r"[\r\n]+")
_DECODER = json.JSONDecoder()
_NEXT = re.compile(r"\n\s*\{")
"""Where an object begins again after one that is damaged."""


class OneObjectPerLine:
    """A JSON text read as lines of one object each, as `Utf8Stream` gives bytes."""

    def __init__(self, stream: TextStream, where: str) -> None:
        self._stream, self._where = stream, where
        self._start = stream.read(tables.BLOCK_BYTES)
        while not self._start.strip() and (more := stream.read(tables.BLOCK_BYTES)):
            self._start = more
        self._lines = self._objects() if _is_document(self._start) else None

    def read(self, size: int) -> bytes:
        """About `size` more bytes; none at the end."""
        if self._lines is None:
            block, self._start = self._start, b""
            return block or self._stream.read(size)
        lines: list[bytes] = []
        num_bytes = 0
        for line in self._lines:
            lines.append(line)
            num_bytes += len(line)
            if num_bytes >= size:
                break
        return b"".join(lines)

    def _objects(self) -> Iterator[bytes]:
        """Each object of the text as a line."""
        text = self._start.decode(errors="surrogateescape").lstrip()
        text = text.removeprefix("[")
        position, is_end = 0, False
        while True:
            found = _BETWEEN.match(text, position)
            assert found is not None
            position = found.end()
            end = _end_of_object(text, position)
            if end is None and not is_end and len(text) - position <= tables.LONGEST_ROW_BYTES:
                more = self._stream.read(tables.BLOCK_BYTES)
                is_end = not more
                text, position = text[position:] + more.decode(errors="surrogateescape"), 0
                continue
            rest = text[position:].strip()
            if position >= len(text) or rest == "]" or not rest:
                return
            if end is None:
                next_one = _NEXT.search(text, position + 1)
                end = next_one.start() if next_one else len(text)
            yield _LINE_ENDS.sub(" ", text[position:end]).encode(errors="surrogateescape") + b"\n"
            position = end


def _is_document(start: bytes) -> bool:
    """Whether a text is an array of objects, or its first object goes on in the next line."""
    start = start.lstrip()
    if start.startswith(b"["):
        return start[1:].lstrip()[:1] in (b"{", b"]")
    line, line_end, rest = start.partition(b"\n")
    if not line_end or not line.startswith(b"{") or rest.startswith((b"{", b"[")):
        return False
    return _end_of_object(line.decode(errors="surrogateescape"), 0) is None


def _end_of_object(text: str, position: int) -> int | None:
    """Where the object that begins at a position ends; None if no whole object begins there."""
    if not text.startswith("{", position):
        return None
    try:
        return _DECODER.raw_decode(text, position)[1]
    except (ValueError, RecursionError):
        return None
