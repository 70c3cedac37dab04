"""Rules for single users: files read as row by row, lists as filtered and pinned by hand, whatever the shards or kills."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.histories.vocabulary import Vocabulary
from models.recommendation.pins import REASONS
from models.recommendation.rules import Rules
from models.settings.encoder import EncoderSettings
from pipeline.errors import LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving import batch, previous_lists, ray_batch, user_files, user_rules
from pipeline.serving.user_rules import UserRules
from tests.factories import small_bundle
from tests.models.recommendation.test_pins import by_hand
from tests.pipeline.serving.test_previous_lists import first_night, scored, scorer_of, sealed

Pair = tuple[str | None, str]
ITEMS = [f"i{number}" for number in range(1, 8)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules") / "bundle"
    small_bundle(folder, settings=EncoderSettings(dim=64, num_blocks=1, num_heads=1))
    return folder


def drawn(seed: int, number: int) -> list[Pair]:
    """Random pairs, some of unknown users and items, some twice."""
    random = np.random.default_rng(seed)
    users = [f"u{user:02}" for user in range(50)]  # five are unknown
    items = [f"i{item}" for item in range(1, 10)]  # two are unknown
    return [(str(random.choice(users)), str(random.choice(items))) for _ in range(number)]


def ranked(seed: int) -> list[tuple[str | None, str, int]]:
    """Pins of most users, at most one per rank, and two for all."""
    random = np.random.default_rng(seed)
    pins: list[tuple[str | None, str, int]] = [(None, "i7", 2), (None, "i2", 3)]
    for user in range(0, 48, 2):
        ranks = random.permutation(3)[: random.integers(0, 3)] + 1
        pins += [(f"u{user:02}", f"i{random.integers(1, 10)}", int(rank)) for rank in ranks]
    return pins


def frame(rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    names = ["user_id", "item_id", "rank"][: len(rows[0])]
    return pl.DataFrame(rows, schema=names, orient="row")


def settings_of(folder: Path, shuffled: int | None = None, **rows: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Files of rows, in another order where `shuffled` is a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, own in rows.items():
        table = frame(own)
        table = table if shuffled is None else table.sample(fraction=1, shuffle=True, seed=shuffled)
        table.write_parquet(folder / f"{key}.parquet", row_group_size=11)
    return {key: str(folder / f"{key}.parquet") for key in rows}


def ruled(
    bundle: Path,
    folder: Path,
    files: dict[str, str],
    rules: Rules,
    previous: Path | None = None,
    **other: int,
) -> batch.Scorer:
    """Scorer of the first night of `test_previous_lists` with rules for single users."""
    scorer = replace(scorer_of(bundle, first_night(), folder, previous), rules=rules)
    settings = scorer.job.settings.model_copy(update={**files, **other})
    prepared = user_rules.prepare(settings, scorer.users.ids, folder / user_rules.FOLDER)
    return replace(scorer, job=replace(scorer.job, settings=settings, user_rules=prepared))


def listed(scorer: batch.Scorer) -> dict[str, list[str]]:
    table = pl.read_parquet(scorer.job.folder / "*.parquet")
    return dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def test_a_file_is_read_as_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of a few rows, of which users' rows are in several."""
    monkeypatch.setattr(user_files, "_BATCH_ROWS", 7)
    pairs: list[Pair] = [*drawn(0, 200), (None, "i1")]
    files = settings_of(tmp_path / "files", exclude=pairs)
    users = [f"u{user:02}" for user in range(45)]
    prepared = user_rules.prepare(ScoreConfig(**files), pl.Series(users), tmp_path / "rules")
    assert prepared is not None
    rules = UserRules.open(prepared, Vocabulary(pl.Series(ITEMS), 1))
    assert rules.exclude is not None
    for own in (np.arange(45), np.array([7, 3, 44])):
        sets = rules.exclude.sets(own)
        for place, user in enumerate(own.tolist()):
            items = sets.item_index[sets.starts[place] : sets.ends[place]].tolist()
            known = {int(item[1:]) for name, item in pairs if name == users[user] and item in ITEMS}
            assert items == sorted(known)
    of_known = [item for name, item in pairs if name in users]
    assert rules.counts == {
        "exclude_rows": sum(item in ITEMS for item in of_known),
        "exclude_unknown_users": len(pairs) - len(of_known),
        "exclude_unknown_items": sum(item not in ITEMS for item in of_known),
    }


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_are_those_made_by_hand(exclude_seen: bool, bundle: Path, tmp_path: Path) -> None:
    exclude, candidates, pins = drawn(1, 120), drawn(2, 150), ranked(3)
    candidates = [(user, item) for user, item in candidates if user is not None and user < "u40"]
    files = settings_of(tmp_path / "files", exclude=exclude, candidates=candidates, pin=pins)
    rules = Rules(exclude_seen=exclude_seen, allowed=np.arange(8) % 7 != 1)  # without i1
    whole, scorer = (
        ruled(bundle, tmp_path / "whole", {}, rules, k=7),
        ruled(bundle, tmp_path / "own", files, rules),
    )
    scored(whole)
    counts = scored(scorer)
    everything, received = listed(whole), listed(scorer)
    num_placed, of_scored = 0, sum(name is not None and name < "u45" for name, _, _ in pins)
    for user, history in first_night().items():
        limited = {item for name, item in candidates if name == user}
        may = set(everything.get(user, [])) - {item for name, item in exclude if name == user}
        may &= limited or may
        assert not exclude_seen or not may & {f"i{item}" for _, item in history if user != "u00"}
        own = {rank: item for name, item, rank in pins if name == user and item in may}
        kept: dict[int, int] = {}
        for rank, item in [*sorted(own.items()), (2, "i7"), (3, "i2")]:
            if item in may and rank not in kept and int(item[1:]) not in kept.values():
                kept[rank] = int(item[1:])
        ordered = [int(item[1:]) for item in everything.get(user, []) if item in may][:3]
        expected = [f"i{item}" for item in by_hand(ordered, kept, 3) if item]
        assert received.get(user, []) == expected, user
        num_placed += len(kept)
    assert counts["pins_placed"] == num_placed
    dropped = sum(counts[f"pins_{reason}"] for reason in REASONS)
    assert num_placed + dropped == 45 * 2 + of_scored
    table = pl.read_parquet(scorer.job.folder / "*.parquet")
    assert table["score"].is_nan().sum() == 0
    without = table.filter(pl.col("score").is_null())
    assert 0 < len(without) < num_placed, "pins that the lists had keep their scores"
    assert without["because"].list.len().max() == 0


def test_shards_batches_kills_and_the_order_of_rows_change_no_byte(bundle: Path, tmp_path: Path) -> None:
    rows: dict[str, Sequence[Sequence[Any]]] = {
        "exclude": drawn(4, 120),
        "candidates": drawn(5, 150),
        "pin": ranked(6),
    }
    files = [settings_of(tmp_path / f"files-{seed}", seed, **rows) for seed in (1, 2)]
    plain = ruled(bundle, tmp_path / "plain", files[0], Rules(), shard_users=50, batch_users=50)
    counts = scored(plain)
    (table,) = (pl.read_parquet(path) for path in plain.job.folder.glob("*.parquet"))
    (tmp_path / "small" / "recommendations").mkdir(parents=True)
    (tmp_path / "small" / "recommendations" / "part-00000.writing").write_bytes(b"half")
    small = ruled(bundle, tmp_path / "small", files[1], Rules())
    small.score(1, lambda _: None)
    again = scored(ruled(bundle, tmp_path / "small", files[1], Rules()))
    assert pl.read_parquet(small.job.folder / "*.parquet").equals(table)
    before = again.pop("users_before")
    assert (before, +again) == (20, +counts)


def test_lists_are_kept_where_the_user_s_rules_are_the_same(bundle: Path, tmp_path: Path) -> None:
    """A user more on the exclusions, one with another candidate, one with candidates as others have none any more."""
    exclude = [(f"u{user:02}", f"i{1 + user % 7}") for user in range(10)]
    candidates = [(f"u{user:02}", item) for user in range(20, 30) for item in ("i1", "i2", "i4")]
    first = settings_of(tmp_path / "first", exclude=exclude, candidates=candidates)
    (tmp_path / "score").mkdir()
    night = ruled(bundle, tmp_path / "score" / "0", first, Rules())
    scored(night)
    before = sealed(night)
    exclude, candidates = [*exclude, ("u11", "i1")], [*candidates[3:], ("u22", "i5"), ("u31", "i3")]
    second = settings_of(tmp_path / "second", exclude=exclude, candidates=candidates)
    again = ruled(bundle, tmp_path / "again", second, Rules(), before)
    counts = scored(again)
    assert counts["reused_lists"] == 45 - 1 - 4, "without u00, who is cold, u11, u20, u22 and u31"
    anew = ruled(bundle, tmp_path / "anew", second, Rules())
    scored(anew)
    assert pl.read_parquet(again.job.folder / "*.parquet").equals(
        pl.read_parquet(anew.job.folder / "*.parquet")
    )
    pinned = ScoreConfig(pin=str(tmp_path / "pin.parquet"))
    assert previous_lists.obstacle(again.bundle, pinned) == "lists with pins are made anew"


def test_a_worker_of_ray_opens_the_same_rules(bundle: Path, tmp_path: Path) -> None:
    files = settings_of(tmp_path / "files", exclude=drawn(7, 30))
    job = ruled(bundle, tmp_path / "night", files, Rules()).job
    assert Path(ray_batch._PlainJob.of(job, None).user_rules) == job.user_rules
    assert ray_batch._PlainJob.of(replace(job, user_rules=None), None).user_rules == ""


def test_rules_of_one_user_are_those_of_all_at_once(tmp_path: Path) -> None:
    files = settings_of(tmp_path / "files", exclude=drawn(8, 60), candidates=drawn(9, 60), pin=ranked(10))
    items, users = Vocabulary(pl.Series(ITEMS), 1), [f"u{user:02}" for user in range(45)]
    prepared = user_rules.prepare(ScoreConfig(**files), pl.Series(users), tmp_path / "rules")
    assert prepared is not None
    rules = UserRules.open(prepared, items)
    for number in (0, 10, 44):
        alone = user_rules.of_user(ScoreConfig(**files), users[number], items)
        for key in ("exclude", "candidates"):
            one, whole = (
                getattr(alone, key).sets(np.zeros(1, np.int64)),
                getattr(rules, key).sets(np.array([number])),
            )
            assert one.item_index.tolist() == whole.item_index.tolist()
        assert rules.pin is not None
        assert alone.pin is not None
        assert (
            alone.pin.pins(np.zeros(1, np.int64)).rank.tolist()
            == rules.pin.pins(np.array([number])).rank.tolist()
        )


@pytest.mark.parametrize(
    ("key", "table", "message"),
    [
        ("exclude", pl.DataFrame({"user": ["a"], "item_id": ["i1"]}), "expected a column user_id"),
        ("candidates", pl.DataFrame({"user_id": ["a"]}), "expected a column item_id"),
        ("pin", pl.DataFrame({"user_id": ["a"], "item_id": ["i1"]}), "expected a column rank"),
        ("exclude", pl.DataFrame({"user_id": [["a"]], "item_id": ["i1"]}), "column user_id: ids are List"),
        ("exclude", pl.DataFrame({"user_id": ["a"], "item_id": [["i1"]]}), "column item_id: ids are List"),
        ("pin", frame([("a", "i1", 0)]), "received rank 0, expected whole numbers from 1 to 10"),
        ("pin", frame([("a", "i1", 11)]), "received rank 11"),
        ("pin", frame([("a", "i1", 1.5)]), "received rank 1.5"),
        ("pin", frame([("a", "i1", None)]), "received rank None"),
        ("pin", frame([("a", "i1", "x")]), "received rank 'x'"),
        ("pin", frame([("a", "i1", 2), ("a", "i2", 2)]), "received two items at rank 2 for user 'a'"),
        ("pin", frame([(None, "i1", 2), (None, "i2", 2)]), "two items at rank 2 for all users"),
    ],
)
def test_bad_files_get_one_message(key: str, table: pl.DataFrame, message: str, tmp_path: Path) -> None:
    table.write_parquet(tmp_path / "file.parquet")
    settings = ScoreConfig(**{key: str(tmp_path / "file.parquet")})
    with pytest.raises(LookbackError, match=message) as raised:
        user_rules.prepare(settings, pl.Series(["a", "b"]), tmp_path / "rules")
    assert str(raised.value).startswith(f"score.{key}: {tmp_path / 'file.parquet'}")


def test_a_file_that_is_none_and_candidates_of_nobody_get_one_message(tmp_path: Path) -> None:
    (tmp_path / "none.parquet").write_bytes(b"none")
    with pytest.raises(LookbackError, match="cannot be read as Parquet"):
        user_rules.prepare(
            ScoreConfig(exclude=str(tmp_path / "none.parquet")), pl.Series(["a"]), tmp_path / "0"
        )
    files = settings_of(tmp_path, candidates=[("a", "x"), ("z", "i1")])
    prepared = user_rules.prepare(ScoreConfig(**files), pl.Series(["a"]), tmp_path / "rules")
    assert prepared is not None
    with pytest.raises(
        LookbackError, match=r"no user has a known candidate \(1 rows of users without a list, 1 of unknown"
    ):
        _ = UserRules.open(prepared, Vocabulary(pl.Series(ITEMS), 1)).counts
    files = settings_of(tmp_path, exclude=[("z", "i1")])
    rules = UserRules.open(
        user_rules.prepare(ScoreConfig(**files), pl.Series(["a"]), tmp_path / "rules") or tmp_path,
        Vocabulary(pl.Series(ITEMS), 1),
    )
    assert rules.counts == {"exclude_rows": 0, "exclude_unknown_users": 1, "exclude_unknown_items": 0}


def test_counts_stand_in_the_summary_line() -> None:
    counts = {"exclude_rows": 4, "exclude_unknown_users": 1, "exclude_unknown_items": 0}
    assert user_rules.sentence(counts) == ", 4 rows of score.exclude (besides 1 of users without a list)"
    names = user_rules.pin_counts(ScoreConfig(pin="pin.parquet"))
    pins = dict.fromkeys(names, 0) | {"pins_placed": 9, "pins_seen": 2}
    counts = {"pin_rows": 12, "pin_unknown_users": 0, "pin_unknown_items": 0} | pins
    assert user_rules.sentence(counts) == ", 9 pins, dropped: 2 seen"
    assert user_rules.sentence({}) == ""
