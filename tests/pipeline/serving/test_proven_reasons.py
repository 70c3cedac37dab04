"""Proven reasons of a batch: the same bytes whatever the shards and copied lists, counts of the manifest, and refusals."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.settings.encoder import EncoderSettings
from pipeline.config import load_config
from pipeline.errors import ConfigError, LookbackError
from pipeline.sections import ScoreConfig
from pipeline.serving import proven_reasons
from pipeline.serving.batch import Scorer
from pipeline.serving.bundle import Bundle
from tests.factories import small_baseline_bundle, small_bundle
from tests.pipeline.serving.test_previous_lists import (
    contents,
    first_night,
    scored,
    scorer_of,
    sealed,
    second_night,
)

CONFIG = Path(__file__).parents[3] / "pipeline" / "configs" / "demo.toml"
SETTINGS = ScoreConfig(k=3, shard_users=20, batch_users=7, because_items=2, because_method="proven")
Nights = dict[str, list[tuple[int, int]]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proven") / "bundle"
    small_bundle(folder, settings=EncoderSettings(dim=64, num_blocks=1, num_heads=1))
    return folder


def proving(
    bundle: Path, nights: Nights, artifact: Path, previous: Path | None = None, **settings: int
) -> Scorer:
    scorer = scorer_of(bundle, nights, artifact, previous)
    return replace(scorer, job=replace(scorer.job, settings=SETTINGS.model_copy(update=settings)))


def lists_of(scorer: Scorer) -> pl.DataFrame:
    return pl.read_parquet(sorted(scorer.job.folder.glob("part-*.parquet")))


def counted(table: pl.DataFrame) -> Counter[str]:
    """Counts of the rows one by one."""
    sizes = (len(because) if proven else "none" for because, proven in table["because", "proven"].iter_rows())
    return Counter(f"proven by {size}" for size in sizes)


def test_lists_are_the_same_whatever_the_shards_and_counts_are_those_of_the_rows(
    bundle: Path, tmp_path: Path
) -> None:
    few = proving(bundle, first_night(), tmp_path / "few")
    counts = scored(few)
    many = proving(bundle, first_night(), tmp_path / "many", shard_users=11, batch_users=3)
    scored(many)
    table = lists_of(few)
    assert table.equals(lists_of(many))
    expected = counted(table)
    assert expected == Counter(
        {name: number for name, number in counts.items() if "proven" in name and number}
    )
    assert {"proven by 1", "proven by none"} <= set(expected)
    shares = proven_reasons.shares(counts)
    assert list(shares) == ["1", "2", "3", "none"]
    assert shares["none"] == pytest.approx(expected["proven by none"] / len(table), abs=1e-6)
    cold = table.filter(pl.col("user_id") == "u00")
    assert len(cold) == 3
    assert not cold["proven"].any()
    plain = scorer_of(bundle, first_night(), tmp_path / "plain")
    scored(plain)
    without_proof = lists_of(plain)
    assert "proven" not in without_proof.columns
    unproven = table.filter(~pl.col("proven")).drop("proven")
    assert unproven.equals(without_proof.filter(~table["proven"])), "the reasons that there are anyway"


def test_the_next_night_copies_all_but_short_histories(bundle: Path, tmp_path: Path) -> None:
    """A trial that leaves no event reads what is popular, which other users change."""
    before = proving(bundle, first_night(), tmp_path / "nights" / "score" / "0")
    scored(before)
    earlier = sealed(before)
    anew, again = (
        proving(bundle, second_night(), tmp_path / name, previous)
        for name, previous in (("anew", None), ("again", earlier))
    )
    whole, counts = scored(anew), scored(again)
    assert contents(again) == contents(anew)
    kept = [user for user, row in first_night().items() if len(row) > 3 and user not in ("u10", "u20", "u30")]
    assert counts.pop("reused_lists") == len(kept) > 3
    assert +counts == +whole, "those of copied lists too"


def test_a_baseline_that_reads_no_history_is_refused(tmp_path: Path) -> None:
    small_baseline_bundle(tmp_path / "popular", "popularity", {})
    popular = Bundle.open(tmp_path / "popular")
    with pytest.raises(LookbackError, match="received 'proven', but popularity is published") as refused:
        proven_reasons.check(popular, SETTINGS)
    assert "because_method = 'balanced'" in str(refused.value)
    proven_reasons.check(popular, SETTINGS.model_copy(update={"because": False}))
    small_baseline_bundle(tmp_path / "neighbours", "item_knn", {"max_neighbours": 5, "shrinkage": 0.0})
    proven_reasons.check(Bundle.open(tmp_path / "neighbours"), SETTINGS)


@pytest.mark.parametrize("setting", ["exploration=0.2", "pin=pins.parquet"])
def test_lists_that_follow_from_more_than_histories_are_refused(setting: str) -> None:
    proven = "score.because_method=proven"
    with pytest.raises(ConfigError, match=f"received 'proven' with score.{setting.partition('=')[0]}"):
        load_config(CONFIG, [proven, f"score.{setting}"])
    assert load_config(CONFIG, [proven, f"score.{setting}", "score.because=false"]).score.because is False


def test_events_of_a_proof_in_words() -> None:
    assert proven_reasons.named(["A"]) == "A"
    assert proven_reasons.named(["A", "B"]) == "A and B"
    assert proven_reasons.named(["A", "B", "C"]) == "A, B and C"
    assert proven_reasons.named(["A", "B", "A"]) == "A (2 events) and B"


def test_shares_without_recommendations() -> None:
    assert proven_reasons.shares({}) == {"1": None, "2": None, "3": None, "none": None}
    assert np.isclose(
        sum(filter(None, proven_reasons.shares({"proven by 1": 2, "proven by none": 1}).values())), 1
    )
