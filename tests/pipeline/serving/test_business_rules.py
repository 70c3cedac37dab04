"""Allow and deny lists, availability windows: what is let through, what is counted, what is refused."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.histories.vocabulary import Vocabulary
from features.settings import iso_microseconds
from models.settings.exploration import Exploration
from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving import business_rules
from pipeline.serving.business_rules import available, rules_of, served_rules

ITEMS = Vocabulary(pl.Series("item_id", [10, 20, 30, 40]), 1)
NEWEST = iso_microseconds("2026-03-01")


def allowed(**settings: Any) -> tuple[list[int], dict[str, int]]:
    """The ids that are let through, and the counts."""
    rules, counts = rules_of(ScoreConfig(**settings), ITEMS, NEWEST, 0, exclude_seen=True)
    if rules.allowed is None:
        return ITEMS.ids.to_list(), counts
    assert not rules.allowed[0]
    return ITEMS.ids.gather(np.flatnonzero(rules.allowed[1:])).to_list(), counts


def test_without_lists_everything_is_let_through() -> None:
    assert allowed() == ([10, 20, 30, 40], {"items_not_allowed": 0})


def test_allow_and_deny_from_the_configuration(tmp_path: Path) -> None:
    assert allowed(allow=["10", "30", "99"]) == ([10, 30], {"allow_unknown": 1, "items_not_allowed": 2})
    assert allowed(deny=[10, "98", "99"]) == ([20, 30, 40], {"deny_unknown": 2, "items_not_allowed": 1})
    assert allowed(allow=["10", "30"], deny=["10"])[0] == [30]
    assert allowed(deny=["nothing", "known"]) == (
        [10, 20, 30, 40],
        {"deny_unknown": 2, "items_not_allowed": 0},
    )
    pl.DataFrame({"item_id": [30.0, None, 77.0]}).write_parquet(tmp_path / "deny.parquet")
    assert allowed(deny=str(tmp_path / "deny.parquet")) == (
        [10, 20, 40],
        {"deny_unknown": 1, "items_not_allowed": 1},
    )


def test_an_allow_list_of_which_nothing_is_known_is_an_error() -> None:
    with pytest.raises(LookbackError, match=r"score\.allow: received 2 ids.*knows none.*10, 20, 30"):
        allowed(allow=["1", "2"])


def test_availability_windows(tmp_path: Path) -> None:
    path = tmp_path / "windows.parquet"
    day = datetime.date
    pl.DataFrame(
        {
            "item_id": [10, 20, 20, 30, 50],
            "available_from": [day(2026, 3, 1), day(2025, 1, 1), None, None, None],
            "available_until": [None, day(2025, 2, 1), day(2026, 3, 2), day(2026, 3, 1), None],
        }
    ).write_parquet(path)
    found, counts = allowed(availability=str(path))
    assert found == [10, 20, 40], (
        "from is in the window, until is not; of two windows one is open; 40 is in none"
    )
    assert counts == {"availability_unknown": 1, "items_not_allowed": 1}
    assert allowed(availability=str(path), at="2026-02-28T23:59:59")[0] == [20, 30, 40]
    assert allowed(availability=str(path), at="2026-03-02T01:00:00+02:00")[0] == [10, 20, 40]
    table = pl.read_parquet(path)
    at = iso_microseconds("2026-02-28T23:30:00Z")  # half past midnight in Berlin
    for zone, is_open in (("UTC", False), ("Europe/Berlin", True)):
        assert available("x", table, ITEMS, at, zone)[0][1] == is_open
    pl.DataFrame(
        {"item_id": [10, 20], "available_from": ["2026-03-01T00:00:01", "2026-02-01T12:00:00"]}
    ).write_parquet(path)
    assert allowed(availability=str(path))[0] == [20, 30, 40]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item": [1]}, "expected a column item_id"),
        ({"item_id": [1]}, "expected available_from or available_until"),
        ({"item_id": [1], "available_from": [["x"]]}, "expected dates or times"),
        ({"item_id": [1], "available_from": ["soon"]}, "expected dates or times"),
        ({"item_id": [1], "available_until": [1772323200]}, "received Int64 in available_until, expected"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    path = tmp_path / "windows.parquet"
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(LookbackError, match=message):
        allowed(availability=str(path))


def test_exploration_is_another_one_on_another_night() -> None:
    settings = ScoreConfig(exploration=0.1)
    first, _ = rules_of(settings, ITEMS, NEWEST, 0, exclude_seen=True)
    second, _ = rules_of(settings, ITEMS, NEWEST + 1, 0, exclude_seen=False)
    assert first.seed != second.seed
    assert (first.exclude_seen, second.exclude_seen) == (True, False), "as resolved, not as configured"


def test_exploration_is_a_share_or_a_table() -> None:
    table = Exploration(0.2, "softmax", 0.5)
    rules, _ = rules_of(ScoreConfig(exploration=table), ITEMS, NEWEST, 0, exclude_seen=True)
    assert rules.exploration == table
    rules, _ = rules_of(ScoreConfig(exploration=0.2), ITEMS, NEWEST, 0, exclude_seen=True)
    assert rules.exploration == Exploration(0.2)


def test_rules_of_the_configuration_are_defaults_of_served_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the types of the bundle's ids and of JSON; a file that is missing, or too long a list, costs a line."""
    pl.DataFrame({"item_id": [10, 20]}).write_parquet(tmp_path / "items.parquet")
    windows = {"item_id": ["30", None, "x"], "available_until": [datetime.date(2026, 3, 1), None, None]}
    pl.DataFrame(windows).write_parquet(tmp_path / "windows.parquet")
    settings = ScoreConfig(
        deny=["10", "99", "x"], availability=str(tmp_path / "windows.parquet"), max_per_category=2
    )
    served = dict(served_rules(settings, tmp_path))
    assert sorted(served.pop("deny")) == [10, 99]
    assert served == {
        "max_per_category": 2,
        "availability": {"item_id": [30], "available_until": ["2026-03-01T00:00:00.000000"]},
    }
    assert served_rules(ScoreConfig(), tmp_path) == {"max_per_category": 0}
    assert capsys.readouterr().err == ""
    assert served_rules(ScoreConfig(allow=str(tmp_path / "none.parquet")), tmp_path) == {}
    monkeypatch.setattr(business_rules, "MAX_SERVED", 1)
    assert served_rules(settings, tmp_path) == {}
    missing, long = capsys.readouterr().err.splitlines()
    assert missing.startswith("rules of the served model: left out, score.allow: ")
    assert "score.deny: 2 ids, expected at most 1 as the default" in long
