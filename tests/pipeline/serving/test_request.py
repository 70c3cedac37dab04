"""The time of a request: what it knows of the log, and lists that nothing after it moves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.histories.splits import Split
from models import checkpoint
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker
from models.settings.encoder import EncoderSettings
from models.settings.ranker import RankerSettings
from pipeline.artifacts.files import write_json
from pipeline.dataset.dataset import Dataset, rows
from pipeline.errors import LookbackError
from pipeline.modelling.second_stage import DESCRIPTION
from pipeline.sections import ScoreConfig
from pipeline.serving import bundle_ranker
from pipeline.serving.batch import Job, Scorer
from pipeline.serving.bundle import Bundle, seal
from pipeline.serving.request import Request
from tests.factories import jagged, small_bundle

DAY = 86_400_000_000
FIRST, NIGHT, LAST = 100, 112, 120
"""Days since the epoch: the log's first, that of `score.at`, the log's last."""
AT = str(np.datetime64(NIGHT * DAY, "us"))
WRONG = 40_000 * DAY
Event = tuple[str, str, int]
"""User, item, time."""
CALIBRATION = {"score": [-5.0, 5.0], "probability": [0.1, 0.6]}


def events() -> list[Event]:
    """Thirty events a day of twelve users; u9 to u11 begin after the night, and items are liked in turn."""
    random = np.random.default_rng(5)
    found = []
    for day in range(FIRST, LAST):
        for moment in np.sort(random.integers(0, DAY, 30)).tolist():
            user = random.integers(0, 9 if day <= NIGHT else 12)
            item = 1 + (day // 3 + random.integers(0, 3)) % 7
            found.append((f"u{user}", f"i{item}", day * DAY + moment))
    return found


def write_log(folder: Path, log: Sequence[Event]) -> Path:
    """Write what scoring reads of a features folder."""
    folder.mkdir()
    users, items = (sorted({event[place] for event in log}) for place in (0, 1))
    number = {item: index for index, item in enumerate(items, 1)}
    of_user = [[(time, number[item]) for own, item, time in log if own == user] for user in users]
    histories = jagged([sorted(own) for own in of_user])
    histories.save(folder)
    ends, kept = histories.offsets[1:], np.ones(len(users), bool)
    known = np.arange(len(items) + 1) > 0
    Split("leave_one_out", ends, ends, ends, kept, kept, known, None, None).save(folder / "split")
    LogFacts.of(histories).save(folder)
    pl.DataFrame({"user_id": users}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"item_id": items}).write_parquet(folder / "items.parquet")
    (folder / "event_types.json").write_text("[]")
    return folder


def write_ranker(folder: Path) -> None:
    """Add a ranker of large random weights to the bundle of `small_bundle`."""
    torch.manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1)
    ranker = Ranker(RankerSettings(dim=4, hidden=8, max_length=5, candidates=7), vectors, 0)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    (folder / bundle_ranker.FOLDER).mkdir()
    checkpoint.save_ranker(ranker, folder / bundle_ranker.FOLDER)
    write_json(folder / bundle_ranker.FOLDER / DESCRIPTION, {"calibration": CALIBRATION})
    histories = JaggedHistories.load(folder / "histories")
    known = rows(histories, histories.offsets[:-1], histories.offsets[1:])
    statistics = ItemStatistics.of(known, 7, days=bundle_ranker.HORIZON_DAYS)
    bundle_ranker.write_statistics(folder / "deployed", statistics, np.arange(8, dtype=np.int32))


@dataclass(frozen=True)
class Shop:
    """A bundle, tables of users and availability, and a folder for logs."""

    folder: Path

    def scored(self, features: Path, **settings: Any) -> tuple[Scorer, pl.DataFrame]:
        """Score users by name; returns the scorer and its table."""
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        score = ScoreConfig(k=4, because=False, availability=str(self.folder / "windows.parquet"), **settings)
        scorer = Scorer.open(Job(self.folder / "bundle", features, self.folder, out, score, 0))
        scorer.score(0, lambda _: None)
        return scorer, pl.read_parquet(out / "part-00000.parquet")


def made(folder: Path, *, ranker: bool) -> Shop:
    settings = EncoderSettings(dim=4, num_blocks=1, num_heads=1, calendar=True, request_time=True)
    (folder / "bundle").mkdir()
    small_bundle(folder / "bundle", settings=settings)
    if ranker:
        write_ranker(folder / "bundle")
    popularity = {"days": 3.0, "segment": "kind"}
    seal(folder / "bundle", {"name": "small", "event_types": [], "newest": 5, "popularity": popularity})
    names = [*(f"u{number}" for number in range(12)), "silent", "quiet"]
    kinds = ["ab"[place % 2] for place in range(len(names))]
    pl.DataFrame({"user_id": names, "kind": kinds}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"user_id": names}).write_parquet(folder / "asked.parquet")
    pl.DataFrame(
        {"item_id": ["i1", "i2"], "available_until": [NIGHT * DAY - 1, NIGHT * DAY + DAY]},
        schema_overrides={"available_until": pl.Datetime("us")},
    ).write_parquet(folder / "windows.parquet")
    return Shop(folder)


@pytest.fixture(params=[True, False], ids=["ranker", "retrieval"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    return made(tmp_path, ranker=request.param)


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether lists are the same and scores close."""
    exact = ["user_id", "item_id", "rank"]
    if not one.select(exact).equals(other.select(exact)):
        return False
    assert one["score"].to_numpy() == pytest.approx(other["score"].to_numpy(), abs=1e-5)
    return True


def test_a_request_knows_the_events_before_it() -> None:
    histories = jagged([[(1, 1), (5, 2), (5, 3), (8, 1)], [], [(9, 2)], [(2, 1)]])
    now = Request.of(None, 8, timed=True)
    assert now.ends(histories).tolist() == [4, 4, 4, 6], "the event at now is known, the one after it is not"
    at = Request.of("1970-01-01T00:00:00.000005", 8, timed=True)
    assert (at.time, at.is_set) == (5, True)
    assert at.ends(histories).tolist() == [1, 4, 4, 6], "neither of the events at the very time"
    assert at.known(histories).lengths.tolist() == [1, 0, 0, 1]
    late = Request.of("1970-01-01T00:00:00.000005", 8, timed=False)
    assert (late.time, late.before) == (8, 9), "a log of positions is requested at its newest one"
    zone = Request.of("1970-01-01T02:00:00+01:00", 0, timed=True)
    assert zone.time == 3600 * 10**6
    local = Request.of("1970-01-01T02:00:00", 0, timed=True, timezone="Europe/Berlin")
    assert local.time == zone.time, "a time without a zone is in that of the log"
    with pytest.raises(
        LookbackError, match=r"score\.at: received 1970-01-01T00:00:00\.000001, but the log begins at"
    ):
        Request.of("1970-01-01T00:00:00.000001", 8, timed=True).ends(histories)


def test_lists_at_a_time_are_those_of_the_log_cut_there(shop: Shop) -> None:
    whole = write_log(shop.folder / "whole", events())
    cut = write_log(shop.folder / "cut", [event for event in events() if event[2] < NIGHT * DAY])
    for users in ("all", str(shop.folder / "asked.parquet"), str(np.datetime64((NIGHT - 1) * DAY, "us"))):
        scorer, earlier = shop.scored(whole, at=AT, users=users)
        _, plain = shop.scored(cut, at=AT, users=users)
        assert same(earlier, plain), users
        assert earlier["user_id"].n_unique() > 3
    assert scorer.log.request.time == NIGHT * DAY
    later = [event for event in events() if event[2] >= NIGHT * DAY]
    assert scorer.log.num_later_events == len(later)
    _, now = shop.scored(whole, users=str(shop.folder / "asked.parquet"))
    _, earlier = shop.scored(whole, at=AT, users=str(shop.folder / "asked.parquet"))
    assert not same(earlier, now)
    assert "i1" not in earlier["item_id"], "no longer available at the night"
    assert {"i2"} <= set(earlier["item_id"]) - set(now["item_id"]), (
        "available at the night, no longer at the end"
    )


def test_at_a_time_all_that_sees_time_is_of_that_time(tmp_path: Path) -> None:
    """Popular items by plain counts; the ranker's statistics and the encoder's request by their own means."""
    shop = made(tmp_path, ranker=True)
    whole = write_log(shop.folder / "whole", events())
    scorer, table = shop.scored(whole, at=AT, users=str(shop.folder / "asked.parquet"))
    log = pl.DataFrame(events(), ["user_id", "item_id", "time"], orient="row")
    known = log.filter(pl.col("time") < NIGHT * DAY)
    kinds = pl.read_parquet(shop.folder / "users.parquet")
    recent = known.filter(pl.col("time") > (NIGHT - 3) * DAY, pl.col("item_id") != "i1").join(
        kinds, on="user_id"
    )
    for user, kind in (("silent", "a"), ("quiet", "b")):
        own = recent.filter(pl.col("kind") == kind)["item_id"].value_counts().sort("count", descending=True)
        best = own.filter(pl.col("count") == own["count"].max())["item_id"]
        assert table.filter(pl.col("user_id") == user)["item_id"][0] in best.to_list()
    counts = dict(known.group_by("item_id").len().iter_rows())
    assert scorer.bundle.num_events.tolist() == [0, *(counts.get(f"i{number}", 0) for number in range(1, 8))]
    stage = scorer.bundle.second_stage
    assert stage is not None
    statistics = stage.statistics
    newest = known["time"].max()
    assert isinstance(newest, int)
    assert len(statistics.moments) == len(known)
    assert statistics.origin + 10**6 * int(statistics.latest[-1]) <= newest
    rows_at = scorer.histories(scorer.users.index).known
    assert rows_at.request_time is not None
    assert set(rows_at.request_time.tolist()) == {NIGHT * DAY}
    assert rows_at.time.max() < NIGHT * DAY


def test_one_wrong_clock_moves_nothing(shop: Shop) -> None:
    right = write_log(shop.folder / "right", events())
    wrong = write_log(shop.folder / "wrong", [*events(), ("u3", "i7", WRONG), ("u99", "i6", WRONG)])
    before, after = shop.scored(right, exploration=0.3), shop.scored(wrong, exploration=0.3)
    assert after[0].log.request.time == max(time for _, _, time in events())
    assert same(after[1], before[1])
    drawn = pl.col("rank") > before[0].job.settings.k * 0.7 + 0.5
    assert (before[1].filter(~drawn)["propensity"] == 1).all()
    assert before[1].filter(drawn)["propensity"].is_between(0, 1, closed="right").all()
    assert (after[0].log.num_later_events, after[0].users.num_later) == (2, 1)
    assert (before[0].log.num_later_events, before[0].users.num_later) == (0, 0)


def test_auto_follows_the_repeats_of_the_log_that_is_scored(tmp_path: Path) -> None:
    shop = made(tmp_path, ranker=False)
    repeats = write_log(
        tmp_path / "repeats", [(f"u{n % 3}", f"i{1 + n % 2}", FIRST * DAY + n) for n in range(30)]
    )
    singles = write_log(
        tmp_path / "singles", [(f"u{n % 3}", f"i{1 + n // 3}", FIRST * DAY + n) for n in range(18)]
    )
    for features, expected in ((repeats, False), (singles, True)):
        assert shop.scored(features, exclude_seen="auto")[0].rules.exclude_seen is expected
        assert Dataset.open(features).facts.repeated_share == pytest.approx(0 if expected else 0.8)
        assert shop.scored(features, exclude_seen=True)[0].rules.exclude_seen is True
    shown = shop.scored(repeats, exclude_seen=False)[1].filter(pl.col("user_id") == "u0")
    assert {"i1", "i2"} & set(shown["item_id"]), "seen, and recommended"


def test_probability_is_the_calibrated_score(shop: Shop) -> None:
    features = write_log(shop.folder / "log", events())
    scorer, table = shop.scored(features, users=str(shop.folder / "asked.parquet"))
    assert table.columns[3:] == ["score", "because", "probability", "propensity"]
    assert table.schema["probability"] == pl.Float32
    warm = ~table["user_id"].is_in(["silent", "quiet"])
    assert warm.any()
    assert not warm.all()
    assert table.filter(~warm)["probability"].is_null().all(), "popular items have none"
    if scorer.bundle.probability is None:
        assert table["probability"].is_null().all()
        return
    scores, found = (table.filter(warm)[name].to_numpy() for name in ("score", "probability"))
    assert found == pytest.approx(0.1 + 0.05 * (np.clip(scores, -5, 5) + 5), abs=1e-6)


def test_a_bundle_alone_answers_as_of_a_time(tmp_path: Path) -> None:
    """Users 10, 20, 30 had items 1 2 3, 4, 5 6 at the times 0 1 2, 3, 4 5."""
    shop = made(tmp_path, ranker=True)
    bundle = Bundle.open(shop.folder / "bundle")
    request = Request.of("1970-01-01T00:00:00.000003", bundle.newest, timed=True)
    earlier = bundle.as_of(request)
    assert earlier.num_events.tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    assert earlier.second_stage is not None
    assert len(earlier.second_stage.statistics.moments) == 3
    assert earlier.histories_at(request).lengths.tolist() == [3, 0, 0]
    now = Request.of(None, bundle.newest, timed=True)
    assert bundle.as_of(now) is bundle
    assert bundle.known_histories.lengths.tolist() == [3, 1, 2]


def test_users_since_a_date_are_counted_in_the_zone_of_the_log(shop: Shop) -> None:
    events = [("u0", "i3", NIGHT * DAY - 3600 * 10**6), ("u1", "i3", NIGHT * DAY + 3600 * 10**6)]
    features = write_log(shop.folder / "whole", [*events, ("u2", "i1", 0)])
    date = str(np.datetime64(NIGHT, "D"))
    job = Job(shop.folder / "bundle", features, shop.folder, shop.folder, ScoreConfig(users=date), 0)
    assert Scorer.open(job).users.ids.to_list() == ["u1"]
    berlin = Scorer.open(replace(job, timezone="Etc/GMT-2"))  # where the day begins two hours earlier
    assert berlin.users.ids.to_list() == ["u0", "u1"]


def test_items_not_seen_for_long_or_gone_from_the_table_are_left_out_if_asked(shop: Shop) -> None:
    old, new = (f"i{number}" for number in (1, 2))
    features = write_log(
        shop.folder / "whole", [("u0", old, 5 * DAY), ("u1", new, NIGHT * DAY), ("u2", "i3", NIGHT * DAY)]
    )
    job = Job(shop.folder / "bundle", features, shop.folder, shop.folder, ScoreConfig(max_item_age_days=9), 0)
    scorer = Scorer.open(job)
    assert scorer.rule_counts["items_not_seen"] == 1
    allowed = scorer.rules.allowed
    assert allowed is not None
    assert scorer.bundle.items.ids.filter(pl.Series(~allowed[1:])).to_list() == [old]
    own = pl.read_parquet(shop.folder / "bundle" / "items.parquet")
    titles = pl.Series(
        "title", ["Three", "Four", *[None] * (len(own) - 2)]
    )  # with a row when the model was made
    own.with_columns(titles).write_parquet(shop.folder / "bundle" / "items.parquet")
    own.select("item_id").head(1).write_parquet(shop.folder / "items.parquet")
    assert Scorer.open(job).rule_counts["items_vanished"] == 1
    without = Scorer.open(replace(job, settings=ScoreConfig()))
    assert "items_not_seen" not in without.rule_counts
