"""Printed recommendations."""

from pipeline.commands.recommend import Recommendations, _text


def test_titles_and_ids_are_short_lines_of_plain_text() -> None:
    because = [{"item_id": "b\x9b2J", "title": None, "weight": 0.5}]
    row = {
        "rank": 1,
        "item_id": "a\u202e",
        "title": "\x1b[31mred\n" + "x" * 3000,
        "score": 0.5,
        "because": because,
    }
    lines = _text(Recommendations("u", 1, 0, [row], None)).split("\n")
    assert len(lines) == 3
    assert lines[1].startswith(r"  1  a\u202e  \x1b[31mred\nxxx")
    assert r"because of b\x9b2J (+0.50)" in lines[2]
    assert all(line.isprintable() and len(line) < 150 for line in lines)


def test_a_proven_reason_is_a_sentence_and_another_says_that_it_is_none() -> None:
    because = [
        {"item_id": "a", "title": "Film A", "weight": 0.5},
        {"item_id": "b", "title": None, "weight": 0.25},
    ]
    row = {"rank": 1, "item_id": "c", "title": None, "score": 0.5, "because": because, "proven": True}
    other = row | {"rank": 2, "proven": False}
    lines = _text(Recommendations("u", 2, 0, [row, other, other | {"because": []}], None)).split("\n")
    assert lines[2].strip() == "not recommended without Film A and b"
    assert lines[4].strip() == "no short reason; because of Film A (+0.50); b (+0.25)"
    assert len(lines) == 6
