"""Lists of unchanged histories are copied: the same bytes as made anew, and what is damaged or gone is made anew."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest

from models.histories import histories_from_lists
from models.recommendation.rules import Rules
from models.settings.encoder import EncoderSettings
from models.settings.exploration import Exploration
from pipeline.artifacts.store import Artifact
from pipeline.dataset.dataset import Dataset
from pipeline.sections import ScoreConfig
from pipeline.serving import previous_lists
from pipeline.serving.batch import Job, Scorer, Users
from pipeline.serving.bundle import Bundle
from pipeline.serving.current_log import Log
from pipeline.serving.previous_lists import Reuse
from pipeline.serving.request import Request
from tests.factories import Rows, jagged, small_bundle

SETTINGS = ScoreConfig(k=3, shard_users=20, batch_users=7, because_items=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previous") / "bundle"
    small_bundle(folder, settings=EncoderSettings(dim=64, num_blocks=1, num_heads=1))
    return folder


def first_night() -> dict[str, list[tuple[int, int]]]:
    """Users u00 to u44, the first without a known item (8 is unknown to the bundle)."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 5, 45)
    lists = [list(enumerate(random.integers(1, 8, length).tolist())) for length in lengths]
    lists[0], lists[5] = [(0, 8)], [(0, 8), (1, 2)]
    return {f"u{number:02}": row for number, row in enumerate(lists)}


def second_night() -> dict[str, list[tuple[int, int]]]:
    """Of the first, u10 and u30 went on, u20 is gone, and u07a is new, which moves all others behind it."""
    nights = first_night()
    nights["u10"].append((9, 4))
    nights["u30"][0] = (0, 1 + nights["u30"][0][1] % 7)
    del nights["u20"]
    return dict(sorted((nights | {"u07a": [(3, 3)]}).items()))


def scorer_of(
    bundle: Path, nights: dict[str, list[tuple[int, int]]], artifact: Path, previous: Path | None = None
) -> Scorer:
    """Scorer into an artifact, kept lists from another."""
    lists = artifact / "recommendations"
    lists.mkdir(parents=True, exist_ok=True)
    rows: Rows = list(nights.values())
    dataset = Dataset(artifact, jagged(rows), mock.sentinel.split)
    dataset.__dict__["users"] = pl.DataFrame({"user_id": list(nights)})
    items = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0], np.int32)
    log = Log(dataset, items, np.zeros(1, np.int16), Request.of(None, 100, timed=True))
    reuse = Reuse(artifact / previous_lists.FOLDER, previous)
    job = Job(bundle, artifact, artifact, lists, SETTINGS, seed=0, reuse=reuse)
    users = Users(log.users, np.arange(len(nights)), 0)
    none = np.zeros(len(nights), np.int64)
    return Scorer(job, Bundle.open(bundle), log, users, Rules(), {}, none)


def scored(scorer: Scorer) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number in range(scorer.num_shards):
        counts.update(scorer.score(number, lambda _: None))
    return counts


def sealed(scorer: Scorer) -> Path:
    """Artifact of finished lists, as the stage leaves it."""
    folder = scorer.job.features
    for record in scorer.job.folder.glob(".*"):
        record.unlink()
    artifact = Artifact(folder.parent, folder.name)
    folder.rename(artifact.workspace)
    artifact.commit({})
    return artifact.folder


def contents(scorer: Scorer) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(scorer.job.folder.glob("part-*.parquet"))}


@pytest.fixture(scope="module")
def before(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scorer = scorer_of(bundle, first_night(), tmp_path_factory.mktemp("nights") / "score" / "0")
    assert scored(scorer)["reused_lists"] == 0
    return sealed(scorer)


def test_the_next_night_has_the_same_bytes_and_counts_as_made_anew(
    bundle: Path, before: Path, tmp_path: Path
) -> None:
    anew = scorer_of(bundle, second_night(), tmp_path / "anew")
    again = scorer_of(bundle, second_night(), tmp_path / "again", before)
    whole, counts = scored(anew), scored(again)
    assert contents(again) == contents(anew)
    assert counts.pop("reused_lists") == 45 - 1 - 3, "without u00, which is cold, u10, u20 and u30"
    assert +counts == +whole
    assert counts["unknown_items"] == 2
    folders = again.job.features, anew.job.features
    kept, made = (pl.read_parquet(folder / "histories" / "*.parquet") for folder in folders)
    assert kept.equals(made), "the night after that has the same to go by"


def test_a_shard_that_was_finished_before_a_kill_is_kept_and_the_others_reuse(
    bundle: Path, before: Path, tmp_path: Path
) -> None:
    whole = scorer_of(bundle, second_night(), tmp_path / "whole")
    scored(whole)
    scorer_of(bundle, second_night(), tmp_path / "killed", before).score(1, lambda _: None)
    (tmp_path / "killed" / "recommendations" / "part-00000.writing").write_bytes(b"half")
    resumed = scorer_of(bundle, second_night(), tmp_path / "killed", before)
    counts = scored(resumed)
    assert counts["users_before"] == 20
    assert counts["reused_lists"] == 41
    assert contents(resumed) == contents(whole)


@pytest.mark.parametrize("harm", ["flipped", "missing", "cut", "unsealed", "gone"])
def test_damaged_lists_are_made_anew(harm: str, bundle: Path, tmp_path: Path) -> None:
    before = sealed(scored_first(bundle, tmp_path / "score" / "0"))
    part = before / "recommendations" / "part-00001.parquet"
    if harm == "flipped":
        content = bytearray(part.read_bytes())
        content[len(content) // 3] ^= 1
        part.write_bytes(content)
    elif harm == "missing":
        (before / "histories" / "part-00001.parquet").unlink()
    elif harm == "cut":
        part.write_bytes(part.read_bytes()[:100])
    elif harm == "unsealed":
        (before / "manifest.json").write_text("{}")
    scorer = scorer_of(bundle, second_night(), tmp_path / "again", before if harm != "gone" else tmp_path)
    anew = scorer_of(bundle, second_night(), tmp_path / "anew")
    assert scored(scorer)["reused_lists"] == 0
    scored(anew)
    assert contents(scorer) == contents(anew)


def scored_first(bundle: Path, folder: Path) -> Scorer:
    scorer = scorer_of(bundle, first_night(), folder)
    scored(scorer)
    return scorer


def test_lists_removed_while_they_are_copied_are_made_anew(bundle: Path, tmp_path: Path) -> None:
    before = sealed(scored_first(bundle, tmp_path / "score" / "0"))
    scorer, anew = (
        scorer_of(bundle, second_night(), tmp_path / name, folder)
        for name, folder in (("again", before), ("anew", None))
    )
    scorer.score(0, lambda _: None)
    for part in (before / "recommendations").iterdir():
        part.unlink()
    assert scored(scorer)["reused_lists"] > 0, "the first shard's"
    scored(anew)
    assert contents(scorer) == contents(anew)


def test_a_digest_follows_from_the_whole_history_in_its_order() -> None:
    rows = histories_from_lists(
        [[1, 2], [2, 1], [1, 2], [1], [], [1, 2]], [[5, 6], [5, 6], [5, 6], [5], [], [5, 7]]
    )
    same, other, again, shorter, empty, later = previous_lists.digests(rows).tolist()
    assert same == again
    assert empty == 0
    assert len({same, other, shorter, empty, later}) == 5
    typed = replace(rows, event_type=np.ones(len(rows.item_index), np.int16))
    assert previous_lists.digests(typed)[0] != same
    assert previous_lists.digests(rows.select(np.array([3, 0]))).tolist() == [shorter, same]


def test_the_key_follows_from_all_that_a_list_does_but_the_history(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    plain = Rules()
    keys = [
        previous_lists.key(opened, plain, SETTINGS, 1),
        previous_lists.key(opened, plain, SETTINGS, 2),
        previous_lists.key(opened, plain, SETTINGS.model_copy(update={"k": 4}), 1),
        previous_lists.key(opened, plain, SETTINGS.model_copy(update={"because": False}), 1),
        previous_lists.key(opened, Rules(exclude_seen=False), SETTINGS, 1),
        previous_lists.key(opened, Rules(allowed=np.arange(8) != 2), SETTINGS, 1),
        previous_lists.key(opened, Rules(exploration=Exploration(0.1), seed=1), SETTINGS, 1),
        previous_lists.key(opened, Rules(exploration=Exploration(0.1), seed=2), SETTINGS, 1),
    ]
    assert len(set(keys)) == len(keys)
    assert previous_lists.key(opened, Rules(seed=5), SETTINGS, 1) == keys[0], "the seed of no draw"
    users = SETTINGS.model_copy(update={"users": "2026-01-01", "batch_users": 3, "shard_users": 9})
    assert previous_lists.key(opened, plain, users, 1) == keys[0], "which users is no matter"


def test_every_setting_of_a_scoring_is_in_the_key_or_no_matter_to_it() -> None:
    """A new setting that a list follows from belongs into `key` or `obstacle`; add it here when it is there."""
    of_rules = {"exclude_seen", "allow", "deny", "availability", "max_item_age_days", "max_per_category"}
    of_rules |= {"diversity", "popularity_damping", "exploration"}
    of_bundle, of_key = {"model", "new_items"}, {"k", "because", "because_method", "because_items"}
    of_histories = {"at", "max_shown", "shown_days", "exclude", "candidates"}
    of_cold_users = {"segment"}
    of_ranker = {"order", "second_stage_share"}  # with a ranker no list is reused
    of_nobody = {"pin", "budgets"}  # with either no list is reused
    no_matter = {"users", "shadows", "batch_users", "shard_users", "engine", "workers", "precision"}
    every = of_rules | of_bundle | of_key | of_histories | of_cold_users | of_ranker | of_nobody | no_matter
    assert set(ScoreConfig.model_fields) == every


def test_what_keeps_lists_from_being_reused(tmp_path: Path) -> None:
    reasons = {
        "plain": (EncoderSettings(dim=4, num_heads=1, num_blocks=1), None),
        "time": (
            EncoderSettings(dim=4, num_heads=1, num_blocks=1, calendar=True, request_time=True),
            "time of the request",
        ),
        "target": (EncoderSettings(dim=4, num_heads=1, num_blocks=1, readout="target"), "readout target"),
    }
    for name, (settings, reason) in reasons.items():
        small_bundle(tmp_path / name, settings=settings)
        received = previous_lists.obstacle(Bundle.open(tmp_path / name), SETTINGS)
        assert (received is None) if reason is None else (reason in (received or "")), name
