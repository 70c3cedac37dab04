"""Items shown too often are left out: compared with a count in plain Python, and as lists that stay full."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest

from features.histories.exposures import JaggedExposures
from features.histories.vocabulary import Vocabulary
from models.histories import Histories, histories_from_lists
from models.recommendation.rules import Rules
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_items import DAY
from pipeline.serving import batch, previous_lists, ray_batch
from pipeline.serving.bundle import Bundle
from pipeline.serving.request import Request
from pipeline.serving.shown_items import NotAgain, Shown, ShownList
from tests.factories import jagged, small_bundle
from tests.pipeline.serving.test_previous_lists import first_night, scored, scorer_of

HOUR = DAY // 24
NOW = 100 * DAY
Listed = dict[str, list[str]]
"""User to items."""


def write_lists(folder: Path, lists: Listed, rows: int = 7) -> Path:
    """Lists in two files with row groups of some rows."""
    folder.mkdir(parents=True)
    places = [(user, item) for user, items in sorted(lists.items()) for item in items]
    table = pl.DataFrame(places, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        part.write_parquet(folder / f"part-{number:05}.parquet", row_group_size=rows)
    return folder


def exposures_of(rows: Sequence[Sequence[tuple[int, int, int]]]) -> JaggedExposures:
    """Exposures of each user as (time, item, delay of the reaction or -1)."""
    flat = np.array([shown for row in rows for shown in row], np.int64).reshape(-1, 3)
    none = np.zeros(len(flat))
    return JaggedExposures(
        np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        flat[:, 1].astype(np.int32),
        flat[:, 0].copy(),
        none.astype(np.int32),
        none.astype(np.float32),
        none.astype(np.int64),
        none.astype(np.int16),
        flat[:, 2].copy(),
    )


def dataset_of(exposures: JaggedExposures | None, num_items: int) -> Dataset:
    """Dataset without events."""
    split = mock.Mock(kept_item=np.ones(num_items + 1, bool))
    dataset = Dataset(Path(), jagged([]), split)
    dataset.__dict__["exposures"] = exposures
    return dataset


def counted(
    user: str,
    index: int,
    shown: Shown,
    lists: Sequence[tuple[ShownList, Listed]],
    events: list[tuple[int, int]],
) -> set[int]:
    """Items that a user is not to be shown again, one exposure after the other. events: (time, item)."""
    times: Counter[int] = Counter()
    since, before = shown.request.before - shown.rule.days * DAY, shown.request.before
    log = shown.dataset.exposures
    assert log is not None
    for place in range(log.offsets[index], log.offsets[index + 1]) if index >= 0 else ():
        time, delay = int(log.time[place]), int(log.reaction_delay[place])
        if since <= time < before and not (delay >= 0 and time + delay < before):
            times[int(shown.of_log[log.item_index[place]])] += 1
    own = [(at, listed[user]) for at, listed in lists if user in listed and (index < 0 or not at.is_logged)]
    of_night = {at.time: (at, items) for at, items in own}
    nights = [of_night[time] for time in sorted(of_night)]
    for (at, items), following in zip(nights, [*(at.before for at, _ in nights[1:]), before], strict=True):
        for name in items:
            item = int(name[1:])
            if not any(own == item and at.before <= time < following for time, own in events):
                times[item] += 1
    return {item for item, number in times.items() if item and number >= shown.rule.max_shown}


@pytest.mark.parametrize("max_shown", [1, 2, 3])
def test_what_is_left_out_is_what_counting_one_by_one_leaves_out(max_shown: int, tmp_path: Path) -> None:
    random = np.random.default_rng(max_shown)
    ids = [f"u{number:02}" for number in range(40)]
    index = np.array([number if number < 30 else -1 for number in range(40)])
    moments = [NOW - 5 * DAY, NOW - 4 * DAY, NOW - 4 * DAY, NOW - 2 * DAY, NOW - DAY]
    drawn = [
        {
            user: [f"i{item}" for item in random.permutation(9)[:4] + 1]
            for user in ids
            if random.random() < 0.8
        }
        for _ in moments
    ]
    folders = [write_lists(tmp_path / f"lists-{number}", own) for number, own in enumerate(drawn)]
    lists = [
        ShownList(folder, time, time + 1, is_logged=time == NOW - 2 * DAY)
        for folder, time in zip(folders, moments, strict=True)
    ]
    rows = [
        sorted(
            (
                int(NOW - random.integers(0, 10 * DAY)),
                int(random.integers(0, 10)),
                int(random.choice([-1, -1, HOUR])),
            )
            for _ in range(12)
        )
        for _ in range(30)
    ]
    events = [
        sorted((int(NOW - random.integers(0, 6 * DAY)), int(random.integers(1, 10))) for _ in range(5))
        for _ in ids
    ]
    known = histories_from_lists(
        [[item for _, item in own] for own in events], [[time for time, _ in own] for own in events]
    )
    items = Vocabulary(pl.Series([f"i{item}" for item in range(1, 10)]), 1)
    of_log = np.array([0, 3, 1, 2, 0, 5, 4, 9, 8, 7], np.int32)
    request = Request.of(None, NOW, timed=True)
    rule = NotAgain(max_shown, 6.0, tuple(lists))
    shown = Shown(rule, dataset_of(exposures_of(rows), 9), request, items, of_log)
    left_out = shown.left_out(pl.Series(ids), index, known)
    expected = [
        counted(user, int(place), shown, list(zip(lists, drawn, strict=True)), own)
        for user, place, own in zip(ids, index, events, strict=True)
    ]
    received = [
        left_out.item_index[first:last].tolist()
        for first, last in zip(left_out.starts, left_out.ends, strict=True)
    ]
    assert received == [sorted(own) for own in expected]
    assert 10 < sum(map(len, expected)) < 9 * 40 - 10
    for first in range(0, 40, 8):  # in blocks
        own = slice(first, first + 8)
        part = shown.left_out(pl.Series(ids[own]), index[own], known.select(own))
        assert part.item_index.tolist() == [item for items in received[own] for item in items]


def test_a_reaction_is_an_event_while_the_list_stood_and_no_dislike(tmp_path: Path) -> None:
    """Item 1 of a list two days ago, stood for a day: events before, at its time, and after the next list."""
    first = write_lists(tmp_path / "first", {user: ["i1"] for user in "abcd"})
    second = write_lists(tmp_path / "second", {user: ["i2"] for user in "abcd"})
    lists = (
        ShownList(first, NOW - 2 * DAY, NOW - 2 * DAY + 1),
        ShownList(second, NOW - DAY, NOW - DAY + 1),
    )
    times = [NOW - 2 * DAY, NOW - 2 * DAY + 1, NOW - DAY, NOW - DAY + 1]
    known = histories_from_lists([[1]] * 4, [[time] for time in times])
    items = Vocabulary(pl.Series(["i1", "i2"]), 1)
    shown = Shown(
        NotAgain(1, 14.0, lists),
        dataset_of(None, 2),
        Request.of(None, NOW, timed=True),
        items,
        np.zeros(3, np.int32),
    )
    ids, index = pl.Series(list("abcd")), np.arange(4)

    def left_out(histories: Histories) -> list[list[int]]:
        sets = shown.left_out(ids, index, histories)
        return [sets.item_index[own].tolist() for own in map(slice, sets.starts, sets.ends)]

    assert left_out(known) == [[1, 2], [2], [2], [1, 2]]
    disliked = replace(known, event_type=np.ones(4, np.int16), dislikes=np.array([0, 1], np.float32))
    assert left_out(disliked) == [[1, 2]] * 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown") / "bundle"
    small_bundle(folder)
    return folder


def shown_scorer(
    bundle: Path, folder: Path, rule: NotAgain | None, rules: Rules, **settings: int
) -> batch.Scorer:
    """Scorer of the first night of `test_previous_lists`, at a time after lists of a day before."""
    scorer = scorer_of(bundle, first_night(), folder)
    job = scorer.job
    own = job.settings.model_copy(update=settings)
    scorer.log.dataset.__dict__["exposures"] = None
    log = replace(scorer.log, request=Request.of(None, NOW, timed=True))
    return replace(scorer, job=replace(job, settings=own, not_again=rule), log=log, rules=rules)


def listed(scorer: batch.Scorer) -> Listed:
    table = pl.read_parquet(scorer.job.folder / "*.parquet")
    return dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


@pytest.fixture(scope="module")
def rule(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> NotAgain:
    """Of the first three of the bundle's own lists, shown twice, and of other three, shown once."""
    folder = tmp_path_factory.mktemp("lists")
    scorer = shown_scorer(bundle, folder / "0", None, Rules(exclude_seen=False))
    scored(scorer)
    own = listed(scorer)
    del own["u03"]
    once = write_lists(folder / "once", {user: ["i1", "i2", "i3"] for user in own})
    paths = [scorer.job.folder, once, write_lists(folder / "twice", own)]
    lists = (
        ShownList(path, NOW - day * DAY, NOW - day * DAY + 1)
        for path, day in zip(paths, (3, 2, 1), strict=True)
    )
    return NotAgain(2, 14.0, tuple(lists))


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_stay_full_without_what_was_shown_too_often(
    exclude_seen: bool, bundle: Path, rule: NotAgain, tmp_path: Path
) -> None:
    rules = Rules(exclude_seen=exclude_seen)
    whole = shown_scorer(bundle, tmp_path / "whole", None, rules, k=7)
    scorer = shown_scorer(bundle, tmp_path / "left", rule, rules)
    scored(whole)
    counts = scored(scorer)
    received, everything = listed(scorer), listed(whole)
    left_out = scorer.log.shown(rule, Bundle.open(bundle)).left_out(
        scorer.users.ids, scorer.users.index, scorer.histories(scorer.users.index).known
    )
    sets = {
        user: {f"i{item}" for item in left_out.item_index[first:last]}
        for user, first, last in zip(scorer.users.ids, left_out.starts, left_out.ends, strict=True)
    }
    assert {user: len(own) for user, own in sets.items() if len(own) < 3} == {"u03": 0}, "who was in no list"
    for user, items in everything.items():
        assert received.get(user, []) == [item for item in items if item not in sets[user]][:3], user
    assert counts["shown_items_left_out"] == sum(map(len, sets.values()))
    assert counts["users_with_shown_items"] == 44


def test_shards_batches_kills_and_kept_lists_change_no_byte(
    bundle: Path, rule: NotAgain, tmp_path: Path
) -> None:
    plain = shown_scorer(bundle, tmp_path / "plain", rule, Rules(), shard_users=50, batch_users=50)
    counts = scored(plain)
    (table,) = (pl.read_parquet(path) for path in plain.job.folder.glob("*.parquet"))
    (tmp_path / "small" / "recommendations").mkdir(parents=True)
    (tmp_path / "small" / "recommendations" / "part-00000.writing").write_bytes(b"half")
    small = shown_scorer(bundle, tmp_path / "small", rule, Rules())
    small.score(1, lambda _: None)
    again = scored(small)
    assert pl.read_parquet(small.job.folder / "*.parquet").equals(table)
    before = again.pop("users_before")
    assert (before, +again) == (20, +counts)


def test_kept_lists_are_those_of_users_who_must_not_be_shown_the_same(
    bundle: Path, rule: NotAgain, tmp_path: Path
) -> None:
    """The digest follows from the set of items left out, not from its order, nor from an empty one."""
    known = histories_from_lists([[1, 2], [1, 2], []])
    scorer = shown_scorer(bundle, tmp_path / "night", rule, Rules())
    histories = scorer.histories(np.arange(45)).known
    assert histories.left_out is not None
    plain = previous_lists.digests(replace(histories, left_out=None))
    shown = previous_lists.digests(histories)
    changes = (histories.left_out.lengths > 0) & (histories.lengths > 0)
    assert ((plain != shown) == changes).all()
    assert changes.sum() == 43, "all but u00, who is cold, and u03, who was in no list"
    assert previous_lists.digests(known)[2] == 0


def test_item_ids_of_earlier_lists_may_have_been_numbers(tmp_path: Path) -> None:
    text = write_lists(tmp_path / "text", {"a": ["1", "2"], "b": ["1"]})
    (tmp_path / "numbers").mkdir()
    numbers = pl.DataFrame({"user_id": ["a", "a"], "item_id": [2, 3]})
    numbers.write_parquet(tmp_path / "numbers" / "part-00000.parquet")
    lists = tuple(
        ShownList(folder, NOW - day * DAY, NOW - day * DAY + 1)
        for day, folder in ((2, tmp_path / "numbers"), (1, text))
    )
    items = Vocabulary(pl.Series(["1", "2", "3"]), 1)
    request = Request.of(None, NOW, timed=True)
    shown = Shown(NotAgain(2, 14.0, lists), dataset_of(None, 3), request, items, np.zeros(4, np.int32))
    left_out = shown.left_out(pl.Series(["a", "b"]), np.array([0, 1]), histories_from_lists([[], []]))
    assert (left_out.item_index.tolist(), left_out.lengths.tolist()) == ([2], [1, 0])


def test_a_worker_of_ray_knows_the_rule(bundle: Path, rule: NotAgain, tmp_path: Path) -> None:
    job = shown_scorer(bundle, tmp_path, rule, Rules()).job
    plain = ray_batch._PlainJob.of(job, None)
    assert ray_batch._not_again(plain.not_again) == rule
    assert ray_batch._not_again(ray_batch._PlainJob.of(replace(job, not_again=None), None).not_again) is None
