"""Members of one JSON object, however its text comes in."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import tables
from features.readers import json_members
from features.readers.json_members import NotAnObject
from features.tables import Utf8Stream


class Slow(io.BytesIO):
    """A stream of a few bytes at a time."""

    def read(self, num_bytes: int | None = -1, /) -> bytes:
        del num_bytes
        return super().read(3)


def members(text: bytes, encoding: str = "utf-8") -> list[tuple[str, Any]]:
    return [(key, value) for key, value, _ in json_members.members(Utf8Stream(Slow(text), encoding))]


VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_same_as_parsed_whole(tree: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(NotAnObject):
            members(text)
        return
    assert members(text) == list(tree.items())


def test_numbers_stay_text_and_the_first_of_equal_keys_counts() -> None:
    text = b' {"a": 9007199254740993, "b":[1e400,NaN], "a":{"c": 1, "d": 2, "c": 3}} \n'
    expected = [("a", "9007199254740993"), ("b", ["1e400", "NaN"]), ("a", {"c": "1", "d": "2"})]
    assert members(text) == expected
    assert list(expected[2][1]) == ["c", "d"]
    assert members(b"{}") == []
    assert members('{"\xe9": 1}'.encode("latin-1"), "latin-1") == [("\xe9", "1")]


WRONG = [
    b"",
    b"[1]",
    b"{",
    b'{"a": 1',
    b'{"a": 1,}',
    b'{"a" 1}',
    b"{1: 2}",
    b'{"a": 1} x',
    b'{"a": 1}}',
    b'{"a": "\xff"}',
]
WRONG += [b'{"a": 1 "b": 2}', b'{"a": tru}', b'{"a": ' + b"[" * 100_000]


@pytest.mark.parametrize("text", WRONG)
def test_anything_else_is_refused(text: bytes) -> None:
    with pytest.raises(NotAnObject):
        members(text)


def test_a_member_is_no_longer_than_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_ROW_BYTES", 20)
    assert len(members(b'{"a": "' + b"x" * 10 + b'"' + b', "b": 1' * 100 + b"}")) == 101
    with pytest.raises(NotAnObject):
        members(b'{"a": "' + b"x" * 100 + b'"}')
