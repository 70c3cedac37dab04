"""Members of one JSON object, parsed one at a time: an object of any size takes the memory of its largest member."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from features import tables
from features.tables import TextStream

_BLOCK_BYTES = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_KEY = re.compile(r'[ \t\r\n]*("[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*")[ \t\r\n]*:[ \t\r\n]*')
_MARK = re.compile(r"[ \t\r\n]*([,}])")


class NotAnObject(ValueError):
    """A text is not one JSON object, or a member of it is longer than the longest row."""


def members(stream: TextStream) -> Iterator[tuple[str, Any, int]]:
    """Key, value and number of characters of each member, in order, repeated keys too.

    Numbers and NaN stay text; within a value the first of equal keys counts.
    Raises NotAnObject.
    """
    text = _Text(stream)
    text.take("{")
    mark = text.take("}") if text.peek() == "}" else ","
    while mark == ",":
        key, value, length, mark = text.member()
        yield key, value, length
    if text.peek():
        raise NotAnObject


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        made.setdefault(key, value)
    return made


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_first_wins)


class _Text:
    """Text of a stream, of which only the member being parsed is held."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        self._at = self._after_blanks(self._at)
        while self._at == len(self._text) and self._read_on():
            self._at = self._after_blanks(self._at)
        return self._text[self._at : self._at + 1]

    def take(self, marks: str) -> str:
        """Pass over the next character, which is one of `marks`."""
        mark = self.peek()
        if not mark or mark not in marks:
            raise NotAnObject
        self._at += 1
        return mark

    def member(self) -> tuple[str, Any, int, str]:
        """Key, value, number of characters of the member that begins here, and the mark after it."""
        while True:
            try:
                key, value, mark = self._parsed()
            except RecursionError:
                raise NotAnObject from None
            except ValueError:  # wrong, or not yet whole
                if len(self._text) - self._at > tables.LONGEST_ROW_BYTES or not self._read_on():
                    raise NotAnObject from None
            else:
                length, self._at = mark.end() - self._at, mark.end()
                return key, value, length, mark[1]

    def _parsed(self) -> tuple[str, Any, re.Match[str]]:
        """The member that begins here, and the mark after it; ValueError where there is none."""
        name = _KEY.match(self._text, self._at)
        if name is None:
            raise ValueError
        key = json.loads(name[1]) if "\\" in name[1] else name[1][1:-1]
        value, end = _DECODER.raw_decode(self._text, name.end())
        mark = _MARK.match(self._text, end)
        if mark is None:
            raise ValueError
        return key, value, mark

    def _after_blanks(self, at: int) -> int:
        blanks = _BLANKS.match(self._text, at)
        assert blanks is not None
        return blanks.end()

    def _read_on(self) -> bool:
        """Read as much again as is held; False at the end."""
        block = self._stream.read(max(_BLOCK_BYTES, len(self._text) - self._at))
        self._text = self._text[self._at :] + self._decoded(block, final=not block)
        self._at = 0
        return bool(block)

    def _decoded(self, block: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(block, final)
        except UnicodeError:
            raise NotAnObject from None
