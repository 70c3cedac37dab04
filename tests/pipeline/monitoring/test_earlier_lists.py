"""Lists that count as shown: of nights before, outside the time of the exposure log, readable; the others are said."""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.commands.prune import prune
from pipeline.monitoring import earlier_lists
from pipeline.orchestration.graph import resolve
from pipeline.serving.shown_items import NotAgain
from tests.pipeline.monitoring.nights import Nights, event_days, some_lists

NAMES = ("a" * 16, "b" * 16, "c" * 16, "d" * 16)
RULE = ("score.max_shown=2", "score.shown_days=3.5")


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Lists a of day 4, b and c of day 5, d of day 6; the log ends with day 7."""
    made = Nights(tmp_path_factory.mktemp("nights"), event_days(8))
    made.show(4)
    for days, names in ((0, NAMES[:1]), (1, NAMES[1:3]), (1, NAMES[3:])):
        made.show(days)
        for name in names:
            made.deliver(some_lists(1), name=name)
    made.show(1)
    return made


@pytest.fixture
def nights(delivered: Nights, tmp_path: Path) -> Nights:
    """A copy."""
    shutil.copytree(delivered.folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    return replace(delivered, folder=tmp_path)


def rule_of(nights: Nights, *overrides: str) -> NotAgain:
    config = nights.config(*RULE, *overrides)
    features = Path(nights.run(*RULE, *overrides, stage="features")["folder"])
    rule = earlier_lists.not_again(config, features)
    assert rule is not None
    return rule


def names(rule: NotAgain) -> list[str]:
    """Lists that count for all users."""
    return [own.folder.parent.name for own in rule.lists if not own.is_logged]


def test_lists_of_nights_before_the_request_count_within_the_days(nights: Nights) -> None:
    assert names(rule_of(nights)) == list(NAMES)
    assert names(rule_of(nights, "score.shown_days=2.5")) == list(NAMES[1:])
    moment = datetime.datetime.fromtimestamp(nights.log_time() / 1e6 - 86_400, datetime.UTC)
    assert names(rule_of(nights, f"score.at={moment.isoformat()}")) == list(NAMES[:3]), (
        "not those of that time"
    )
    off = nights.config("score.max_shown=0")
    assert earlier_lists.not_again(off, nights.folder) is None


def test_lists_of_the_same_night_are_no_input_of_lists_made_anew(nights: Nights) -> None:
    def input_of(*overrides: str) -> str:
        return resolve(nights.config(*RULE, *overrides), ["score"]).nodes["score"].inputs["shown"]

    before = input_of()
    nights.deliver(some_lists(2), name="e" * 16)
    assert input_of() == before
    assert names(rule_of(nights)) == list(NAMES)
    nights.show(1)
    assert input_of() != before
    assert "shown" not in resolve(nights.config(), ["score"]).nodes["score"].inputs


def test_the_exposure_log_alone_says_what_was_shown_in_its_time(nights: Nights) -> None:
    """From its first exposure, at the time of b and c, to its last, a second after that of d."""
    last = nights.log_time() // 1_000_000 - 86_400
    times = [last - 86_400, last + 1]
    pl.DataFrame({"u": [1, 1], "i": [1, 2], "t": times}).write_csv(nights.folder / "shown.csv")
    columns = '{ user_id = "u", item_id = "i", timestamp = "t" }'
    section = (f"exposures.path={nights.folder}/shown.csv", f"exposures.columns={columns}")
    assert names(rule_of(nights, *section)) == [NAMES[0]]
    assert [own.folder.parent.name for own in rule_of(nights, *section).lists] == list(NAMES)
    pl.DataFrame({"u": [1, 1], "i": [1, 2], "t": [last - 86_400, last]}).write_csv(
        nights.folder / "shown.csv"
    )
    assert names(rule_of(nights, *section)) == [NAMES[0], NAMES[3]], "delivered with its last exposure"


def test_lists_that_cannot_be_read_are_named(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(nights.score / NAMES[0])
    part = nights.score / NAMES[1] / "recommendations" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[::-1])
    capsys.readouterr()
    assert names(rule_of(nights)) == list(NAMES[2:])
    said = capsys.readouterr().err
    assert f"({NAMES[0]}) are gone, and do not count as shown" in said
    assert f"({NAMES[1]}) are damaged, and do not count as shown" in said


def test_prune_keeps_the_last_lists_of_the_nights_that_count(nights: Nights) -> None:
    windows = ("monitor.days=[1]",)
    prune(nights.config(*RULE, *windows, "score.shown_days=1.5"), keep=0, dry_run=False)
    left = {path.name for path in nights.score.iterdir() if path.name in NAMES}
    assert NAMES[2] in left, "the newest night is that of d"
    assert NAMES[0] not in left
