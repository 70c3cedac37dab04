"""The lists that were evaluated at a night are those that scoring makes: of the log at that night, and of the log cut there."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from tests.workdir import Workdir

SETTINGS = (
    *("simulate.num_users=300", "simulate.num_events=9000"),
    *("split.test_fraction=0.25", "split.validation_fraction=0.25"),
    *("evaluate.targets=nightly", "evaluate.horizon_days=3", 'evaluate.baselines=["popularity"]'),
    *("train.refit=false", "evaluate.stale_days=[3, 1000]"),
)
pytestmark = pytest.mark.slow
LOGS = {
    "new items": ("score.exclude_seen=true", "ranker.use=never"),
    "repeats and both stages": ("score.exclude_seen=false", "ranker.use=always"),
    "new items without content": ("ranker.use=always", 'items.columns={item_id="item_id"}'),
}


def evaluated_lists(workdir: Workdir, *settings: str) -> pl.DataFrame:
    """night, user_id, item_ids of every evaluated list with a history."""
    table = pl.read_parquet(workdir.artifact("evaluate", *settings) / "targets.parquet")
    own = table.filter((pl.col("system") == "lookback") & (pl.col("recommended").list.len() > 0))
    return own.select("night", "user_id", "recommended")


def scored_lists(workdir: Workdir, *settings: str) -> pl.DataFrame:
    """user_id, item_ids of the lists of stage score."""
    folder = workdir.artifact("score", *settings) / "recommendations"
    table = pl.read_parquet(sorted(folder.glob("*.parquet"))).sort("user_id", "rank")
    return table.group_by("user_id", maintain_order=True).agg(pl.col("item_id").alias("scored"))


def same(evaluated: pl.DataFrame, scored: pl.DataFrame) -> None:
    both = evaluated.join(scored, on="user_id")
    assert len(both) == len(evaluated) > 5
    differing = both.filter(pl.col("recommended") != pl.col("scored"))
    assert differing.is_empty(), differing


@pytest.mark.parametrize("log", LOGS)
def test_lists_of_a_night_are_those_of_scoring(workdir: Workdir, log: str) -> None:
    chosen = tuple(part for setting in (*SETTINGS, *LOGS[log]) for part in ("--set", setting))
    workdir.run("evaluate", *chosen)
    _check_probability(workdir, chosen)
    _check_ages(workdir, chosen)
    lists = evaluated_lists(workdir, *chosen)
    if log == "new items without content":
        assert _recommends_unlearned(workdir, lists, chosen)
    nights = lists["night"].unique().sort().to_list()
    assert len(nights) >= 3
    for night in (nights[0], nights[-1]):
        at = (*chosen, "--set", f"score.at={night.isoformat()}", "--set", "score.because=false")
        workdir.run("score", *at)
        same(lists.filter(pl.col("night") == night), scored_lists(workdir, *at))
    _same_of_the_log_cut_at(workdir, nights[1], lists, chosen)


def _recommends_unlearned(workdir: Workdir, lists: pl.DataFrame, chosen: tuple[str, ...]) -> bool:
    """Whether lists have items that the encoder was not trained on."""
    ids = pl.read_parquet(workdir.artifact("features", *chosen) / "items.parquet")["item_id"]
    learned = np.load(workdir.artifact("train", *chosen) / "items.npy")[1:] > 0
    unlearned = ids.filter(pl.Series(~learned))
    return bool(lists["recommended"].explode().is_in(unlearned.implode()).any())


def _check_probability(workdir: Workdir, chosen: tuple[str, ...]) -> None:
    """Probabilities of delivered items are measured where lists show any."""
    report = json.loads((workdir.artifact("evaluate", *chosen) / "metrics.json").read_text())
    if not report["ranker"]["used"]:
        assert "probability" not in report
        return
    measured = report["probability"]
    assert 0 < measured["mean_probability"] < 1
    assert 0 <= measured["calibration_error"] < 1
    assert measured["expected_per_hit"] > 0


def _check_ages(workdir: Workdir, chosen: tuple[str, ...]) -> None:
    """The frozen model's values at ages 0 and 3 are those of the first two nights, recomputed from targets.parquet."""
    folder = workdir.artifact("evaluate", *chosen)
    stale = json.loads((folder / "metrics.json").read_text())["stale"]
    assert ([age["days"] for age in stale["ages"]], stale["beyond_test"]) == ([0, 3], [1000])
    table = pl.read_parquet(folder / "targets.parquet").filter(pl.col("system") == "lookback")
    gain = pl.when(pl.col("rank") <= 10).then(1 / (pl.col("rank") + 1).log(2)).otherwise(0)
    of_requests = table.group_by("night", "user_id").agg(gain.sum().alias("gain"), pl.len().alias("items"))
    ideal = pl.Series(np.cumsum(1 / np.log2(np.arange(2, 12))))
    value = pl.col("gain") / pl.lit(ideal).gather(pl.min_horizontal("items", 10) - 1)
    nights = of_requests.group_by("night").agg(value.mean().alias("ndcg"), pl.len()).sort("night")
    for age, (_, value, number) in zip(stale["ages"], nights.iter_rows(), strict=False):
        assert (age["model"]["value"], age["user_nights"]) == (pytest.approx(value), number)
    first, later = stale["ages"]
    assert first["lists"] == first["model"]
    assert 0 < later["lists"]["value"] < 1


def _same_of_the_log_cut_at(
    workdir: Workdir, night: datetime, lists: pl.DataFrame, chosen: tuple[str, ...]
) -> None:
    """Lists by the published bundle from a file that ends before the night."""
    bundle = workdir.artifact("publish", *chosen) / "bundle"
    version = json.loads((bundle / "bundle.json").read_text())["digest"]
    events = pl.read_parquet(sorted((workdir.artifact("ingest", *chosen) / "events").glob("*.parquet")))
    cut = events.filter(pl.col("timestamp") < night)
    assert 0 < len(cut) < len(events)
    cut.select("user_id", "item_id", "event_type", pl.col("timestamp").cast(pl.String)).write_csv(
        workdir.folder / "cut.csv"
    )
    at = (
        *chosen,
        *("--set", "events.path=cut.csv", "--set", "score.model=champion"),
        *("--set", f"score.at={night.isoformat()}", "--set", "score.because=false"),
    )
    summary = workdir.run("score", *at)
    assert summary is not None
    manifest = json.loads((workdir.artifact("score", *at) / "manifest.json").read_text())
    assert manifest["bundle_digest"] == version
    same(lists.filter(pl.col("night") == night), scored_lists(workdir, *at))
