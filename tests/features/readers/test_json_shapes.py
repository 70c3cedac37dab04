"""JSON lines by shape against the parser: the same values, the same broken rows."""

import io
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import tables
from features.readers import json_lines, json_shapes
from features.readers.json_shapes import Shape
from features.settings import TableFormat
from features.tables import Utf8Stream

FORM = TableFormat("events", {"user_id": "u.id", "item_id": "i", "timestamp": "t", "value": "u.deep.v"})


def read(content: bytes, form: TableFormat = FORM) -> list[tuple[Any, ...]]:
    """Values, whether broken, and raw text of every row."""
    rows: list[tuple[Any, ...]] = []
    try:
        for chunk in json_lines.read_jsonl(Utf8Stream(io.BytesIO(content), form.encoding), form, "log.jsonl"):
            raw = chunk.raw(np.arange(len(chunk.frame)))
            values = chunk.frame.rows()
            rows += [
                (None if bad else row, text) for row, bad, text in zip(values, chunk.broken, raw, strict=True)
            ]
    except ValueError as error:
        rows.append((str(error),))
    return rows


numbers = st.sampled_from(
    [
        "0",
        "-0",
        "7",
        "17850.0",
        "9007199254740993",
        "1e3",
        "-1.5E-7",
        "1" * 400,
        "01",
        "+1",
        "1.",
        ".5",
        "NaN",
        "-",
    ]
)
strings = st.text(max_size=5).map(json.dumps) | st.sampled_from(
    [
        '"007"',
        '""',
        '"é\u2028"',
        r'"\ud800"',
        r'"a\"b"',
        '"\x01"',
        '"a\tb"',
        r'"\x"',
        '"a',
        '"]}"',
        "\ufffd",
        "'a'",
    ]
)
scalars = numbers | strings | st.sampled_from(["true", "false", "null", "True", ""])
containers = st.sampled_from(
    [
        "[]",
        "[1, 2]",
        "{}",
        '{"a": 1}',
        '["x", null]',
        '[{"a": []}]',
        '{"id": 5}',
        '{"id": 5, "id": 6}',
        "[,]",
        "[1,]",
    ]
)
values = st.one_of(*[scalars] * 5, containers)
keys = st.sampled_from(
    ['"i"', '"t"', '"u.id"', '"x"', '"x"', r'"\u0069"', '"é"', '"a.b*"', '""', "i", '"i" ', ' "t"']
)


skeletons = st.builds(
    "{start}{{{user}{comma}{item}{comma}{other}{end}".format,
    start=st.sampled_from(["", "", "", " ", "\ufeff"]),
    user=st.sampled_from(
        [
            '"u": {"id": %s}',
            '"u": {"id":%s, "deep": {"v": %s}}',
            '"u": { "n": {"v": []}, "id": %s }',
            '"u": {"id": %s, "deep": %s}',
            '"u": %s',
        ]
    ),
    comma=st.sampled_from([",", ", ", " ,\t"]),
    item=st.sampled_from(['"i": %s', '"i": %s, "t" :%s', '"t": %s']),
    other=st.builds("{}: %s".format, keys),
    end=st.sampled_from([*["}"] * 8, "", "}}", ",}", "} ", "}\r", "}\x0b"]),
)


@st.composite
def similar(draw: st.DrawFn) -> list[str]:
    """Lines that differ in a value or two, most of them of the same kind."""
    skeleton = draw(skeletons)
    kinds = [
        draw(st.sampled_from([("7", numbers), ('"x"', strings), ("null", values)]))
        for _ in range(skeleton.count("%s"))
    ]
    lines = [[usual for usual, _ in kinds]]
    for place in draw(st.lists(st.integers(0, len(kinds) - 1), max_size=8)):
        changed = list(lines[0])
        changed[place] = draw(kinds[place][1] | values)
        lines.append(changed)
    return [skeleton % tuple(line) for line in lines]


others = st.sampled_from(["", " ", "\x0b", "[1]", "{}", "null", '"a"', "{", "\x00"]) | st.text(max_size=8)
several = st.lists(similar() | st.lists(others, max_size=2), max_size=3).map(
    lambda parts: [line for part in parts for line in part]
)


@settings(max_examples=300)
@given(
    several,
    st.sampled_from(["utf-8", "latin-1"]),
    st.integers(0, 10_000),
    st.sampled_from([40, 1 << 20]),
)
def test_shapes_agree_with_the_parser(texts: list[str], encoding: Any, place: int, block: int) -> None:
    content = bytearray("\n".join(texts).encode(encoding, "replace"))
    if content and place % 3 == 0:
        content[place % len(content)] = (0xFF, 0xC3, 34, 10, 92)[place % 5]
    form = TableFormat("events", FORM.columns, encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_BYTES", block)
        patch.setattr(json_shapes, "MIN_ROWS", 1 << 30)
        slow = read(bytes(content), form)
        patch.setattr(json_shapes, "MIN_ROWS", 1)
        assert read(bytes(content), form) == slow


NO_SHAPES = {
    "no object": ["[]", "{", "7", "[" * 100_000],
    "nothing wanted": ['{"x": 1}', '{"u": [1]}', '{"u": {}}'],
    "two values": ['{"u": 1, "u": 2}'],
    "odd keys": ['{"u": 1, "a\\"b": 2}', '{"u": 1, "\\ud800": 2}'],
    "too long": [
        json.dumps({"u": 1, "k" * 10_000: 2}),
        json.dumps({"u": 1} | {f"k{n}": n for n in range(99)}),
    ],
}


@pytest.mark.parametrize("why", NO_SHAPES)
def test_what_has_no_shape(why: str) -> None:
    for line in NO_SHAPES[why]:
        assert Shape.of(line, {"user_id": "u", "item_id": "i"}) is None


SAMPLE = '{"u": 5, "c": {"u": [1]}, "i": "x", "n": null}'
LIKE = {
    '{"u":9007199254740993,"c":{},"i":"","n":"\\n"}': ("9007199254740993", ""),
    ' {"u": -1e5, "c": {"x": 1}, "i": "é", "n": 0} \r\n': ("-1e5", "é"),
    '{"u": true, "c": {}, "i": "]}", "n": false}': ("true", "]}"),
}
UNLIKE = [
    SAMPLE.replace(old, new)
    for old, new in [("5", each) for each in ('"5"', "05", "+5", "5.", ".5", "5e", "NaN", "null", "", "٥", "5\x0b", "5 5")]
    + [("x", each) for each in ("\x01", "\t", "\\n", '"', '\\"')]
    + [("null", each) for each in ("nil", "[1]", '"\x01"', '"\\x"', '"')]
    + [(" ", "\x0b"), (" ", "\xa0"), ("}", ""), ("}", "}}"), ('"u"', '"v"'), ("{", "{,"), ('"i"', "i")]
]  # fmt: skip


def test_a_shape_matches_lines_of_its_keys_and_kinds_only() -> None:
    shape = Shape.of(SAMPLE, {"user_id": "u", "item_id": "i", "value": "v"})
    assert shape is not None
    frame, is_match = shape.match(pl.Series([*LIKE, *UNLIKE]))
    assert frame.filter(is_match).rows() == [(*values, None) for values in LIKE.values()]
    assert is_match.sum() == len(LIKE)


def test_few_shapes_are_learned_and_the_rest_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_shapes, "MIN_ROWS", 2)
    content = "\n".join(
        f'{{"u": {{"id": {n}, "deep": {{"v": 1}}}}, "i": 1, "t": 1, "k{n % 40}": {n}}}' for n in range(200)
    ).encode()
    found = read(content)
    assert [values[0] for values, _ in found] == [str(number) for number in range(200)]
