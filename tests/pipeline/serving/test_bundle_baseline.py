"""Bundles of published baselines: served as the model's are, counted anew from the log, refused where its ids have changed."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from features.histories.log_facts import LogFacts
from features.histories.splits import Split
from models.baselines.base import Baseline
from models.evaluation.ranks import WithoutDislikes
from models.recommendation.rules import Rules
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.sections import ScoreConfig
from pipeline.serving.bundle import Bundle
from pipeline.serving.bundle_baseline import baseline_of
from pipeline.serving.current_log import with_current_log
from pipeline.serving.pyfunc import load
from pipeline.serving.start_version import lists_any
from tests.factories import Rows, jagged, small_baseline_bundle, small_bundle

MINE = "my_favourite:Mine"
OWN_CLASS = """
from models.baselines.own_items import OwnFrequent
class Mine(OwnFrequent):
    moves = False
"""
SYSTEMS: dict[str, dict[str, float]] = {
    "popularity": {},
    "own_frequent": {"days": 30.0, "session": 0},
    "item_knn": {"shrinkage": 0, "max_neighbours": 10},
    MINE: {"days": 7.0},
}
DAY = 86_400_000_000


@pytest.fixture(autouse=True)
def own_class(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_favourite.py").write_text(OWN_CLASS)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("my_favourite", None)


@pytest.fixture(params=["lookback", *SYSTEMS])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Bundle of each system."""
    if request.param == "lookback":
        small_bundle(tmp_path / "bundle")
    else:
        small_baseline_bundle(tmp_path / "bundle", request.param, SYSTEMS[request.param])
    return tmp_path / "bundle"


def a_log(folder: Path, log: Rows, item_ids: list[str] | list[int]) -> Path:
    """What scoring reads of a features folder: users 10, 20, …, in days."""
    folder.mkdir()
    histories = jagged([[(day * DAY, item) for day, item in row] for row in log])
    histories.save(folder)
    ends, kept = histories.offsets[1:], np.ones(len(log), bool)
    known = np.arange(len(item_ids) + 1) > 0
    Split("leave_one_out", ends, ends, ends, kept, kept, known, None, None).save(folder / "split")
    LogFacts.of(histories).save(folder)
    pl.DataFrame({"user_id": [10 * user for user in range(1, len(log) + 1)]}).write_parquet(
        folder / "users.parquet"
    )
    pl.DataFrame({"item_id": item_ids}).write_parquet(folder / "items.parquet")
    (folder / "event_types.json").write_text("[]")
    return folder


# --- as the model's ---


def test_users_get_the_list_of_their_history_and_others_what_is_popular(folder: Path):
    bundle = Bundle.open(folder)
    assert (bundle.second_stage, bundle.probability) == (None, None)
    (known, unknown), (typed,) = (
        bundle.recommend_users([30, 99], 4),
        bundle.recommend_item_lists([["i5", "i6"]], 4),
    )
    assert known[0] == typed[0]
    assert np.allclose(known[1], typed[1])
    assert not {"i5", "i6"} & set(known[0])
    assert known[1] == sorted(known[1], reverse=True)
    assert unknown[0] == ["i6", "i7", "i1", "i2"]


def test_it_is_served_by_mlflows_interface(folder: Path):
    served = load(str(folder)).predict(pd.DataFrame({"user_id": [30, 99]}), {"k": 3, "exclude_seen": False})
    expected = Bundle.open(folder).recommend_users([30, 99], 3, exclude_seen=False)
    assert served["item_id"].tolist() == [items for items, _ in expected]
    assert served["score"].tolist() == [scores for _, scores in expected]


def test_a_damaged_file_is_named(folder: Path):
    path = next(path for path in sorted((folder / "deployed").rglob("*")) if path.is_file())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DamagedArtifact, match=rf"{path.name}: is missing or damaged"):
        Bundle.open(folder)


def test_it_is_erased_with_an_excluded_user(folder: Path):
    assert lists_any(folder, pl.Series(["20"]))
    assert not lists_any(folder, pl.Series(["21"]))


def test_reasons_are_past_items_of_the_history(folder: Path):
    bundle = Bundle.open(folder)
    answer = bundle.engine.answer(bundle.known_histories, 4, Rules(exclude_seen=False), because="exact")
    assert answer.because is not None
    for row, own in enumerate(({1, 2, 3}, {4}, {5, 6})):
        assert set(answer.because.item_index[row].ravel().tolist()) <= {0, *own}
    if baseline_of(bundle.description) in ("own_frequent", MINE):
        assert (answer.because.item_index[1, 0, 0], answer.item_index[1, 0]) == (4, 4)
    assert answer.because.item_index.any() == (baseline_of(bundle.description) != "popularity")


# --- the baseline alone ---


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_evaluated_one_is_opened_for_the_gate(name: str, tmp_path: Path):
    small_baseline_bundle(tmp_path, name, SYSTEMS[name])
    model = EvaluatedModel.open(tmp_path)
    assert model.recommender.num_items == 7
    assert isinstance(model.recommender, Baseline)
    assert isinstance(model.system(exclude_seen=True), WithoutDislikes)
    assert (model.counted is not None) == (name in ("popularity", "own_frequent"))


def test_counts_and_new_items_follow_the_log_and_its_time(tmp_path: Path):
    small_baseline_bundle(tmp_path / "bundle", "popularity", {})
    bundle = Bundle.open(tmp_path / "bundle")
    features = a_log(
        tmp_path / "log", [[(0, 1), (1, 1), (2, 2)], [(3, 3), (4, 3), (5, 3)]], ["i2", "i7", "x"]
    )
    tonight, log = with_current_log(bundle, features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.items.ids.to_list()[-2:] == ["i7", "x"]
    assert tonight.num_added == 1
    assert tonight.recommend_item_lists([["i1"]], 3)[0] == (["x", "i2", "i7"], [3, 2, 1])
    assert tonight.titles.to_list() == [None] * 8
    assert log.items.tolist() == [0, 2, 7, 8]
    early = ScoreConfig(at="1970-01-03")  # two events on i2 so far
    before, _ = with_current_log(bundle, features, tmp_path, early, timed=True)
    assert before.num_added == 0
    assert before.recommend_item_lists([["i1"]], 1)[0] == (["i2"], [2])
    known = ScoreConfig(new_items=False)
    assert with_current_log(bundle, features, tmp_path, known, timed=True)[0].num_added == 0


def test_items_too_rare_for_the_published_ones_stay_out(tmp_path: Path):
    rare = {"settings": {"history": {"min_item_events": 2}}}
    small_baseline_bundle(tmp_path / "bundle", "popularity", {}, **rare)
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2), (2, 2), (3, 3)]], ["i2", "often", "once"])
    tonight, _ = with_current_log(
        Bundle.open(tmp_path / "bundle"), features, tmp_path, ScoreConfig(), timed=True
    )
    assert tonight.items.ids.to_list()[7:] == ["often"]


def test_learned_baselines_stay_as_published(tmp_path: Path):
    small_baseline_bundle(tmp_path / "bundle", "item_knn", SYSTEMS["item_knn"])
    bundle = Bundle.open(tmp_path / "bundle")
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2)]], ["i2", "x"])
    tonight, log = with_current_log(bundle, features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.recommender is bundle.recommender
    assert log.items.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("name", "ids"), [("popularity", [1, 2]), ("item_knn", [1, 2]), ("item_knn", ["a", "b"])]
)
def test_a_log_whose_ids_have_changed_is_refused(name: str, ids: list[str] | list[int], tmp_path: Path):
    small_baseline_bundle(tmp_path / "bundle", name, SYSTEMS[name])
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2)]], ids)
    expected = rf"{name}, the published baseline, has String item ids such as 'i1'.*its ids have changed; publish again"
    with pytest.raises(LookbackError, match=expected):
        with_current_log(Bundle.open(tmp_path / "bundle"), features, tmp_path, ScoreConfig(), timed=True)


@pytest.mark.parametrize("name", ["lookback", "popularity", "item_knn"])
def test_integer_ids_that_became_text_are_the_same_items(name: str, tmp_path: Path):
    bundle = tmp_path / "bundle"
    small_bundle(bundle) if name == "lookback" else small_baseline_bundle(bundle, name, SYSTEMS[name])
    items = pl.read_parquet(bundle / "items.parquet")
    items.with_columns(pl.Series("item_id", range(1, 8), dtype=pl.Int64)).write_parquet(
        bundle / "items.parquet"
    )
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2)]], ["2", "new"])
    opened = Bundle.open(bundle, verify=False)
    tonight, log = with_current_log(opened, features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.items.ids.to_list()[:7] == list("1234567")
    assert log.items.tolist() == [0, 2, 8 if name == "popularity" else 0]
    assert tonight.recommend_item_lists([["2", 3]], 2)[0][0]


def test_text_ids_that_became_integers_are_the_same_items(tmp_path: Path):
    bundle = tmp_path / "bundle"
    small_baseline_bundle(bundle, "popularity", {})
    items = pl.read_parquet(bundle / "items.parquet")
    names = ["1", "2", "3", "4", "5", "6", "x"]
    items.with_columns(pl.Series("item_id", names)).write_parquet(bundle / "items.parquet")
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2)]], [2, 1003])
    opened = Bundle.open(bundle, verify=False)
    tonight, log = with_current_log(opened, features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.items.ids.to_list() == [*names, "1003"]
    assert log.items.tolist() == [0, 2, 8]
