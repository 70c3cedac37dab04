"""Text of a log for a person: escapes, cuts, Markdown."""

import re

from features.printable import markdown, printable, printable_lines

EVIL = "\x1b]0;owned\x07\x9b31mred\u202egnp.exe\u2066\r\n\u2028\ud800"


def test_no_character_steers_a_terminal() -> None:
    shown = printable(EVIL)
    assert shown == r"\x1b]0;owned\x07\x9b31mred\u202egnp.exe\u2066\r\n\u2028\ud800"
    assert printable("déjà vu, 東京 🎬") == "déjà vu, 東京 🎬"
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"


def test_long_texts_are_cut_before_they_are_escaped() -> None:
    assert printable("x" * 3000, 5) == "xxxx…"
    assert printable("\x1b" * 3, 3) == r"\x1b\x1b\x1b"
    assert printable("12345", 5) == "12345"


def test_markdown_shows_what_was_written() -> None:
    evil = "![x](https://evil.example/p.png) <img src=x> [a](b) | `c` **d** www.evil.example a@b.c\n# head"
    text = markdown(evil)
    assert "\n" not in text
    for live in (r"(?<!\\)!?\[", r"(?<!\\)<", r"(?<!\\)\|", r"(?<!\\)[*`#@]", r"https?:", r"www\."):
        assert not re.search(live, text), live
    assert re.sub(r"\\([^\w])", r"\1", text.replace(r"\n", "\n")) == evil
