"""Ranker of a bundle on a log with items that the encoder does not know."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from features import content
from features.attributes import Attribute
from features.settings import ContentSettings
from models import checkpoint
from models.encoder.encoder import AttentionRecommender, with_request_time
from models.histories import histories_from_lists
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.two_stage import TwoStage
from models.recommendation.rules import Rules
from models.settings.ranker import RankerSettings
from pipeline.artifacts.files import read_json, write_json
from pipeline.modelling.ranker_columns import RankerColumns
from pipeline.modelling.second_stage import DESCRIPTION
from pipeline.sections import ScoreConfig
from pipeline.serving import bundle_ranker
from pipeline.serving.bundle import DESCRIPTION as DESCRIPTION_OF_BUNDLE
from pipeline.serving.bundle import Bundle, seal
from pipeline.serving.current_log import with_current_log
from tests.factories import small_bundle
from tests.pipeline.serving.test_bundle_baseline import a_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bundle of the model with a ranker of random weights, as trained at nights."""
    folder = tmp_path / "bundle"
    small_bundle(folder)
    ids = pl.DataFrame({"item_id": [f"i{number}" for number in range(1, 8)]})
    content.build(folder, ids, np.ones(7, bool), ContentSettings())
    (folder / bundle_ranker.FOLDER).mkdir()
    torch.manual_seed(1)
    ranker = Ranker(RankerSettings(dim=4, num_heads=1, candidates=3, popular=4), torch.randn(8, 4), 0)
    with torch.no_grad():
        ranker.linear.normal_()
    checkpoint.save_ranker(ranker, folder / bundle_ranker.FOLDER)
    statistics = ItemStatistics.of(histories_from_lists([[1, 2], [3]]), 7)
    bundle_ranker.write_statistics(folder / "deployed", statistics, np.arange(8, dtype=np.int32))
    seal(
        folder,
        {
            "name": "small",
            "event_types": [],
            "horizon_days": 7.0,
            "settings": {"history": {"min_item_events": 1}},
        },
    )
    return folder


def test_new_items_of_the_log_are_ranked_by_their_events(folder: Path, tmp_path: Path) -> None:
    log = [[(0, 1), (1, 1), (2, 2)], [(3, 3), (4, 3), (5, 3)], [(5, 4)]]
    features = a_log(tmp_path / "log", log, ["i2", "i7", "x", "y"])
    tonight, current = with_current_log(Bundle.open(folder), features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.items.ids.to_list()[7:] == ["x", "y"]
    known = with_request_time(current.known, current.request.time)
    assert known.lengths.tolist() == [3, 3, 1], "they count in histories"
    stage, recommender = tonight.second_stage, tonight.recommender
    assert stage is not None
    assert isinstance(recommender, AttentionRecommender)
    expected, _ = TwoStage(recommender, stage, exclude_seen=True).recommend(known, 9)
    answer = tonight.engine.answer(known, 9, Rules())
    assert answer.item_index.tolist() == expected.tolist()
    assert [8 in row for row in answer.item_index.tolist()] == [True, False, True], "the second has taken x"
    assert not answer.cold.any(), "y alone is a history"


def test_probabilities_follow_the_activity_before_the_request(folder: Path, tmp_path: Path) -> None:
    """Now is day 5: on days 3 and 4 there are two events, and two users have begun, so one per user; at day 2 two of one user."""
    points = {"score": [0.0, 1.0], "probability": [0.2, 0.2], "activity": 0.5, "days": 2.0}
    write_json(folder / bundle_ranker.FOLDER / DESCRIPTION, {"calibration": points})
    log = [[(0, 1), (1, 1), (2, 2)], [(3, 3), (4, 3)], [(5, 4)]]
    features = a_log(tmp_path / "log", log, ["i2", "i7", "x", "y"])
    for at, expected in ((None, 0.5 / 1.5), ("1970-01-03", 1 / 2)):
        settings = ScoreConfig(at=at)
        opened = Bundle.open(folder, verify=False)
        tonight, current = with_current_log(opened, features, tmp_path, settings, timed=True)
        probability = tonight.probability_at(current.request.time)
        assert probability is not None
        assert probability(np.array([0.5], np.float32)) == pytest.approx([expected])


def test_items_without_events_before_the_request_are_not_known(folder: Path, tmp_path: Path) -> None:
    features = a_log(tmp_path / "log", [[(0, 1), (1, 1), (2, 2)], [(3, 3)]], ["i2", "i7", "x"])
    early = ScoreConfig(at="1970-01-03")
    before, _ = with_current_log(Bundle.open(folder), features, tmp_path, early, timed=True)
    assert before.num_added == 0
    known = ScoreConfig(new_items=False)
    assert with_current_log(Bundle.open(folder), features, tmp_path, known, timed=True)[0].num_added == 0


def test_a_ranker_of_held_out_events_ranks_known_items_alone(folder: Path, tmp_path: Path) -> None:
    seal(folder, {"name": "small", "event_types": [], "horizon_days": 0.0})
    features = a_log(tmp_path / "log", [[(0, 1), (1, 2)]], ["i2", "x"])
    tonight, _ = with_current_log(Bundle.open(folder), features, tmp_path, ScoreConfig(), timed=True)
    assert tonight.num_added == 0


COLUMNS = RankerColumns((Attribute("users", "country", ("fr", "de")), Attribute("items", "brand", ("x",))))
UNKNOWN, FR, DE = 1, 3, 4


def reading_columns(folder: Path, tmp_path: Path) -> Path:
    """The bundle with a ranker that reads columns; its users are French, German and unknown."""
    old = checkpoint.load_ranker(folder / bundle_ranker.FOLDER)
    ranker = old.reading(COLUMNS.embeddings(len(old.features)))
    with torch.no_grad():
        ranker.last.weight.normal_()
    checkpoint.save_ranker(ranker, folder / bundle_ranker.FOLDER)
    COLUMNS.save(folder / bundle_ranker.FOLDER)
    pl.DataFrame({"user_id": [10, 20], "country": ["fr", "de"]}).write_parquet(tmp_path / "users.parquet")
    ids = pl.Series([f"i{number}" for number in range(1, 8)])
    COLUMNS.tables(tmp_path, pl.Series([10, 20, 30]), ids).save(folder / "deployed")
    seal(folder, read_json(folder / DESCRIPTION_OF_BUNDLE) | {"files": {}})
    return folder


def test_a_bundle_reads_the_columns_of_its_users(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(reading_columns(folder, tmp_path))
    stage = bundle.second_stage
    assert stage is not None
    items, scores = np.array([[1, 2, 3]], np.int32), np.zeros((1, 3), np.float32)

    def values(user: int) -> list[int]:
        return list(stage.lists(bundle.rows_of([user])[0], items, scores).user_values[0].tolist())

    assert [values(user) for user in (10, 20, 30, 99)] == [[FR], [DE], [UNKNOWN], [UNKNOWN]]
    typed_in = bundle.from_ids([["i1", "i2"]])[0]
    assert stage.lists(typed_in, items, scores).user_values.tolist() == [[UNKNOWN]]
    known = stage.lists(bundle.known_histories, items.repeat(3, 0), scores.repeat(3, 0))
    assert known.user_values[:, 0].tolist() == [FR, DE, UNKNOWN]


def test_later_users_and_items_are_read_from_the_tables_of_their_log(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(reading_columns(folder, tmp_path))
    log = [[(0, 1), (1, 1)], [(3, 3)], [(3, 2)], [(5, 4), (6, 4)]]
    features = a_log(tmp_path / "log", log, ["i2", "i7", "x", "y"])
    users = {"user_id": [40, 10, 20], "country": ["de", "de", "it"]}
    pl.DataFrame(users).write_parquet(tmp_path / "users.parquet")
    brands = {"item_id": ["y", "i2"], "brand": ["x", "z"]}
    pl.DataFrame(brands).write_parquet(tmp_path / "items.parquet")
    tonight, log_of_tonight = with_current_log(bundle, features, tmp_path, ScoreConfig(), timed=True)
    stage = tonight.second_stage
    assert stage is not None
    assert stage.columns is not None
    assert stage.columns.users[:, 0].tolist() == [DE, UNKNOWN, UNKNOWN, DE, UNKNOWN], "10, 20, 30, 40, others"
    assert tonight.items.ids.to_list()[7:] == ["x", "y"]
    assert stage.columns.items[:, 0].tolist() == [0, *[UNKNOWN] * 8, 3, UNKNOWN]
    unseen = bundle_ranker.unseen_values(tonight.folder, stage, log_of_tonight.known)
    assert unseen == {"users.country": (2, 4), "items.brand": (8, 9)}, "one brand of nine items is known"
    assert bundle_ranker.unseen_values(tonight.folder, None, log_of_tonight.known) == {}
