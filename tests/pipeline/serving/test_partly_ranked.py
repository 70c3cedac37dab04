"""A second stage for a share of the users: whose lists it ranks, what the others get, what is refused."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.recommendation.answer import Answer, Because, Outcomes
from pipeline.artifacts.files import write_json
from pipeline.artifacts.store import read_manifest
from pipeline.errors import LookbackError
from pipeline.modelling.history_gain import HistoryGain
from pipeline.serving.assignment import keys_of
from pipeline.serving.partly_ranked import SALT, check_share, predicted_seconds
from tests.workdir import Workdir

LIST = ["user_id", "rank", "item_id"]


def answer(items: Sequence[Sequence[int]], *, outcomes: bool) -> Answer:
    """Lists with scores, reasons and, with outcomes, predictions that tell the rows apart."""
    index = np.array(items, np.int32)
    scores = (index / 10).astype(np.float32)
    because = Because(index[..., None], scores[..., None])
    predicted = Outcomes(scores, scores[..., None], scores) if outcomes else None
    return Answer(index, scores, np.ones_like(scores), index[:, 0] == 9, because, predicted)


def test_answers_of_both_kinds_stand_in_the_order_of_their_rows() -> None:
    ranked = np.array([False, True, False, True])
    merged = Answer.merged(
        ranked, answer([[1, 2], [9, 8]], outcomes=True), answer([[5, 6], [7, 3]], outcomes=False)
    )
    assert merged.item_index.tolist() == [[5, 6], [1, 2], [7, 3], [9, 8]]
    assert merged.score.tolist() == pytest.approx(np.array([[0.5, 0.6], [0.1, 0.2], [0.7, 0.3], [0.9, 0.8]]))
    assert merged.cold.tolist() == [False, False, False, True]
    assert merged.because is not None
    assert merged.because.item_index[..., 0].tolist() == merged.item_index.tolist()
    assert merged.outcomes is not None
    assert merged.outcomes.utility is not None
    assert np.isnan(merged.outcomes.probability[~ranked]).all()
    assert np.array_equal(merged.outcomes.score[ranked], merged.score[ranked])
    assert merged.ranked is ranked


def test_seconds_of_other_shares_follow_from_those_of_the_lists_made() -> None:
    """1,000 users in 10 s, 4 of them for the 100 that were ranked."""
    counts = {"users": 1_000, "ranked_users": 100, "ranked_microseconds": 2_000, "other_microseconds": 3_000}
    seconds = predicted_seconds(counts, 100.0)
    assert seconds == pytest.approx({"all": 4 * 10, "none": 6 * 1_000 / 900})
    assert predicted_seconds(counts | {"ranked_users": 0}, 100.0) == {}


def scored(workdir: Workdir, *settings: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Recommendations and manifest of a scoring with these settings."""
    words = [word for setting in settings for word in ("--set", f"score.{setting}")]
    folder = workdir.folder / workdir.run("score", *words)["folder"]
    return pl.read_parquet(folder / "recommendations" / "*.parquet"), read_manifest(folder)


def test_each_list_is_that_of_both_stages_or_of_retrieval(copied: Workdir) -> None:
    both, _ = scored(copied)
    retrieval, none = scored(copied, "second_stage_share=0")
    mixed, manifest = scored(copied, "second_stage_share=0.3")
    facts = manifest["second_stage"]
    known = both.filter(pl.col("probability").is_not_null())["user_id"].unique()
    assert none["second_stage"]["ranked_users"] == 0
    assert retrieval["probability"].null_count() == len(retrieval)
    assert facts["share"] == 0.3
    assert set(facts["predicted_seconds"]) == {"all", "none"}
    assert min(facts["predicted_seconds"].values()) > 0
    assert none["second_stage"]["predicted_seconds"] == {}
    ranked = mixed.filter(pl.col("probability").is_not_null())["user_id"].unique()
    assert facts["ranked_users"] == len(ranked) == round(0.3 * len(known))
    is_ranked = pl.col("user_id").is_in(ranked.implode())
    assert mixed.filter(is_ranked).select(LIST).equals(both.filter(is_ranked).select(LIST))
    assert mixed.filter(~is_ranked).select(LIST).equals(retrieval.filter(~is_ranked).select(LIST))
    assert not mixed.select(LIST).equals(both.select(LIST))
    gain = HistoryGain.of_description(facts)
    assert gain is not None
    features = copied.artifact("features")
    users, offsets = pl.read_parquet(features / "users.parquet")["user_id"], np.load(features / "offsets.npy")
    chosen = users.filter(pl.Series(gain.chosen(np.diff(offsets), keys_of(users, SALT), 0.3)))
    assert set(chosen) == set(ranked), "by the log alone"
    small, _ = scored(copied, "second_stage_share=0.3", "shard_users=10", "batch_users=4")
    assert small.select(LIST).equals(mixed.select(LIST))
    assert (small["probability"].is_null() == mixed["probability"].is_null()).all()


def test_a_ranker_of_an_earlier_version_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "ranker").mkdir()
    write_json(tmp_path / "ranker" / "ranker.json", {"trained": True})
    bundle: Any = SimpleNamespace(folder=tmp_path, second_stage=object())
    check_share(bundle, 1.0)
    with pytest.raises(
        LookbackError, match=r"received 0\.5, but .* no figures .* rank and publish with --force"
    ):
        check_share(bundle, 0.5)


def test_what_has_no_second_stage_is_refused_and_so_is_a_share_that_is_none(copied: Workdir) -> None:
    for share, bound in (("1.5", "at most 1"), ("-0.1", "at least 0")):
        refused = copied("run", "score", "--set", f"score.second_stage_share={share}")
        assert refused.code == 2
        assert f"score.second_stage_share: received {share}, expected number, {bound}" in refused.err
    settings = ("--set", "score.second_stage_share=0.5", "--set", "publish.system=popularity")
    without = copied("run", "score", *settings)
    assert without.code == 1
    assert (
        "score.second_stage_share: received 0.5, but the published system has no second stage" in without.err
    )
    assert "score.second_stage_share = 1.0" in without.err
