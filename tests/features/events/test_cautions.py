"""Cautions about ids: what is said, with which example, and when nothing is."""

import json

import polars as pl
import pytest

from features.events import cautions
from features.events.cautions import IdFacts, IdSample
from features.printable import printable


def facts(ids: list[str] | list[int]) -> IdFacts:
    sample = IdSample()
    sample.add(pl.Series(ids[:3]))
    sample.add(pl.Series(ids[3:]))
    return sample.facts()


def said(user: list[str] | list[int], item: list[str] | list[int]) -> list[str]:
    return list(cautions.describe({"user_id": facts(user), "item_id": facts(item)}, len(user)))


PLAIN = [f"u{number}" for number in range(40)]


def test_nothing_is_said_of_plain_ids() -> None:
    assert said(PLAIN, [f"i{number % 7}" for number in range(40)]) == []
    assert said(list(range(40)), [1] * 40) == []
    assert said(["a", "b"], ["x", "y"]) == []  # half of the log each, as every user


@pytest.mark.parametrize("word", ["NA", r"\N", "NULL", "nan", "(not set)", "undefined"])
def test_a_word_for_nothing_is_said_with_its_events(word: str) -> None:
    (caution,) = said(PLAIN, [word, word, *PLAIN[2:]])
    assert caution.startswith(f"item_id {printable(word)!r} has 2 events")


def test_a_user_with_much_of_the_log_is_said() -> None:
    (caution,) = said([*PLAIN[:30], *["u7"] * 10], PLAIN)
    assert "'u7' owns 28% of the events" in caution
    assert len(said([*range(30), *[7] * 10], list(range(40)))) == 1


def test_ids_that_a_spreadsheet_wrote_and_two_spellings_are_said_once_each() -> None:
    items = ["4.5E+15", "4.6E+15", "12e5", "Ab c", "abc", "ABC", *PLAIN[6:]]
    first, second = said(PLAIN, items)
    assert "'4.5E+15' is in scientific notation" in first
    assert "'Ab c' and 'abc' differ by blanks or case alone" in second


def test_facts_of_several_sources_add_up() -> None:
    both = facts(["NA", "b", "b", "c"]) + IdFacts.from_json(
        json.loads(json.dumps(facts(["NA", "d"]).to_json()))
    )
    assert (both.num_rows, both.num_ids, both.words) == (6, 3, {"NA": 2})
    assert both.frequent == {"b": 2, "NA": 2, "c": 1, "d": 1}


def test_of_a_long_log_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cautions, "ALL_ROWS", 100)
    monkeypatch.setattr(cautions, "_MOST_IDS", 500)
    sample = IdSample()
    for start in range(0, 100_000, 1000):
        sample.add(
            pl.Series([f"u{number}" if number % 4 else "guest" for number in range(start, start + 1000)])
        )
    found = sample.facts()
    assert found.num_ids <= 600
    assert found.frequent.most_common(1)[0][0] == "guest"
