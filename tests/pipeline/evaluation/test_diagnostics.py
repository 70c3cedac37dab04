"""Diagnostics of scorers and encoders whose answers are known beforehand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest
import torch

from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from models.encoder.encoder import AttentionRecommender, Encoder
from models.evaluation.ranks import SystemRanks, rank_targets
from models.histories import Float32, Histories, Int32, histories_from_lists
from models.settings.encoder import EncoderSettings
from models.topk import recommend_in_chunks, row_chunks
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import diagnostics

NUM_ITEMS = 7
SECOND = 1_000_000


class Told:
    """Scores are the logarithms of the probabilities that it was given; a history's first item is the row to answer with."""

    num_items = NUM_ITEMS

    def __init__(self, probability: np.ndarray) -> None:
        self.probability = probability

    def score_items(self, histories: Histories) -> Float32:
        row = histories.item_index[histories.starts]
        with np.errstate(divide="ignore"):
            scores: Float32 = np.log(np.pad(self.probability[row], ((0, 0), (1, 0)))).astype(np.float32)
        return scores

    def recommend(self, histories: Histories, k: int, exclude_seen: bool = True) -> tuple[Int32, Float32]:
        return recommend_in_chunks(self.score_items, self.num_items, histories, k, exclude_seen)


def drawn(num_targets: int, sharpness: float) -> tuple[Told, Histories, Int32]:
    """Targets drawn from the very probabilities that a scorer claims, and it claims them to the power `sharpness`."""
    random = np.random.default_rng(0)
    rows = random.dirichlet(np.full(NUM_ITEMS, 0.5), size=NUM_ITEMS + 1)
    first = random.integers(1, NUM_ITEMS + 1, num_targets)
    target = 1 + (rows[first].cumsum(1) < random.random((num_targets, 1))).sum(1).clip(max=NUM_ITEMS - 1)
    claimed = rows**sharpness / (rows**sharpness).sum(1, keepdims=True)
    return Told(claimed), histories_from_lists([[int(each)] for each in first]), target.astype(np.int32)


def test_who_says_what_happens_is_calibrated():
    found = diagnostics.calibration(*drawn(20_000, 1), 3, exclude_seen=False)
    assert found["top_1"]["error"] < 0.02
    assert found["list"]["error"] < 0.02
    assert sum(each["targets"] for each in found["top_1"]["bins"]) == found["targets"] == 20_000
    assert found["log_loss_of_chance"] == pytest.approx(np.log(NUM_ITEMS))
    assert found["log_loss"] < found["log_loss_of_chance"]


def test_who_is_too_sure_is_not():
    honest, boaster = (
        diagnostics.calibration(*drawn(5_000, power), 3, exclude_seen=False) for power in (1, 4)
    )
    assert boaster["top_1"]["error"] > 0.15
    assert all(each["observed"] < each["mean_predicted"] for each in boaster["top_1"]["bins"][-3:])
    assert boaster["log_loss"] > honest["log_loss"]


def test_probabilities_by_pencil(monkeypatch: pytest.MonkeyPatch):
    told = Told(np.array([[0] * 7, [0.1, 0.2, 0.4, 0.3, 0, 0, 0], [0.6, 0.1, 0.1, 0.1, 0.1, 0, 0]]))
    histories, target = histories_from_lists([[1], [2], [2, 1]]), np.array([4, 2, 1], np.int32)
    monkeypatch.setattr(diagnostics, "row_chunks", lambda rows, items: row_chunks(rows, items, cells=8))
    found = diagnostics.predicted(told, histories, target, 2, exclude_seen=False)
    np.testing.assert_allclose(found["top_1"], [0.4, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found["list"], [0.7, 0.7, 0.7], rtol=1e-6)
    assert found["top_1_hit"].tolist() == [0, 0, 1]
    assert found["list_hit"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(np.exp(found["log_probability"]), [0.3, 0.1, 0.6], rtol=1e-6)
    assert found["candidates"].tolist() == [4, 5, 5]
    masked = diagnostics.predicted(told, histories, np.array([4, 3, 3], np.int32), 2, exclude_seen=True)
    np.testing.assert_allclose(masked["top_1"], [0.4 / 0.9, 0.6 / 0.9, 0.1 / 0.3], rtol=1e-6)
    assert masked["candidates"].tolist() == [3, 4, 3]


def test_reliability_by_pencil():
    table = diagnostics.reliability(np.array([0.9, 0.1, 0.2, 0.6]), np.array([1.0, 0, 1, 0]), bins=2)
    assert table.rows() == [(pytest.approx(0.15), 0.5, 2), (0.75, 0.5, 2)]
    assert diagnostics.calibration_error(table) == pytest.approx((0.35 + 0.25) / 2)
    few = diagnostics.reliability(np.array([0.5, 0.5, 0.25]), np.array([1.0, 0, 0]))
    assert few["targets"].to_list() == [1, 1, 1], "no more bins than targets"


def encoder(block: str = "transformer") -> Encoder:
    torch.manual_seed(0)
    settings = EncoderSettings(block=block, dim=6, num_blocks=1, num_heads=2)  # type: ignore[arg-type]
    return Encoder(settings, NUM_ITEMS, 2, max_length=60).eval()


def test_attention_by_class_by_pencil():
    windows = histories_from_lists([[1, 2], [3, 4, 5, 6]])
    weights = np.array([[0.25, 0.75, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    code = np.array([0, 1, 0, 0, 0, 1])
    table = diagnostics.attention_by(weights, windows, code, ["old", "new", "never"])
    assert table["value"].to_list() == ["old", "new"]
    np.testing.assert_allclose(table["attention"], [(0.25 + 0.6) / 2, (0.75 + 0.4) / 2], rtol=1e-6)
    np.testing.assert_allclose(table["interactions"], [(0.5 + 0.75) / 2, (0.5 + 0.25) / 2])
    np.testing.assert_allclose(table["lift"], table["attention"] / table["interactions"])
    assert table["num_interactions"].to_list() == [4, 2]


def test_even_attention_lifts_nothing():
    model = encoder()
    with torch.no_grad():
        model.attention_layers[0].project.weight[:6] = 0  # queries alike: every key weighs the same
        model.attention_layers[0].project.bias[:6] = 0
    rows = histories_from_lists([list(range(1, 8)) * length for length in (1, 4, 9)])
    found = diagnostics.attention(model, rows, None, [])
    assert found["targets"] == 3
    assert [row["value"] for row in found["rows"]] == ["1", "2", "3-5", "6-10", "11-20", "21-50", "51+"]
    assert [row["num_interactions"] for row in found["rows"]] == [3, 3, 9, 12, 20, 38, 10]
    np.testing.assert_allclose([row["lift"] for row in found["rows"]], 1, rtol=1e-5)


def test_attention_by_age_and_type():
    minute = 60 * SECOND
    histories = histories_from_lists([[1, 2, 3], [4]], [[0, 50 * minute, 99 * minute], [0]])
    histories.event_type[:] = [1, 2, 1, 1]
    found = diagnostics.attention(encoder(), histories, np.array([100 * minute, 5]), ["like", "view"])
    assert found["targets"] == 1, "one interaction alone can look nowhere else"
    told = {(row["kind"], row["value"]): row["num_interactions"] for row in found["rows"]}
    assert told == {
        ("position", "1"): 1,
        ("position", "2"): 1,
        ("position", "3-5"): 1,
        ("age", "under an hour"): 2,  # 50 minutes and exactly one
        ("age", "under a day"): 1,
        ("event_type", "like"): 2,
        ("event_type", "view"): 1,
    }
    for kind in ("position", "age", "event_type"):
        assert sum(row["attention"] for row in found["rows"] if row["kind"] == kind) == pytest.approx(1)


def test_a_recurrent_model_pays_no_attention():
    found = diagnostics.attention(encoder("gru"), histories_from_lists([[1, 2]]), None, [])
    assert found == {"not_applicable": "blocks of type gru pay no attention to single interactions"}


def test_repeats_by_pencil():
    histories = histories_from_lists([[1, 2], [3], []])
    lists = np.array([[2, 3, 1], [4, 0, 0], [0, 0, 0]], np.int32)
    found = diagnostics.repeats(histories, lists, np.array([2, 4, 1], np.int32))
    assert found == {"targets": 3, "recommended": 2 / 4, "wanted": pytest.approx(1 / 3)}


def a_dataset(folder: Path, histories: JaggedHistories, event_types: list[str]) -> Dataset:
    """The histories with the tables in a folder; no diagnostic looks at the split."""
    (folder / "event_types.json").write_text(json.dumps(event_types))
    return Dataset(folder, histories, mock.sentinel.split)


def served(rank: Sequence[float], user: list[int], folder: Path) -> Any:
    """The best and worst of users with a target at each rank; items 1..7 are features' items 2..8, titled but for the last."""
    num = len(rank)
    pl.DataFrame({"user_index": range(9), "user_id": [f"u{each}" for each in range(9)]}).write_parquet(
        folder / "users.parquet"
    )
    titles = [f"film {each}" for each in range(1, 8)]
    items = pl.DataFrame({"item_index": range(1, 9), "item_id": range(11, 19), "title": [*titles, None]})
    items.write_parquet(folder / "items.parquet")
    mapping = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7], np.int32)
    histories = histories_from_lists([[1, 2, 3, 4, 5, 6]] * num)
    item = np.full(num, 7, np.int32)
    targets = RankedTargets.one_each(
        histories, item, np.array(user), np.arange(num), np.zeros(num, np.int8), {}
    )
    lists = np.tile(np.array([1, 2, 3], np.int32), (num, 1))
    ranked = SystemRanks(np.array(rank), np.array(rank), lists)
    names = diagnostics._Names.of(a_dataset(folder, mock.sentinel.histories, []), ItemNumbering(mapping))
    return diagnostics.best_and_worst(targets, ranked, np.arange(num), 3, names)


def test_best_and_worst_users_in_order(tmp_path: Path):
    rank = [1, 2, 1, 3, 3, 3, 9, 9, 9, 5, 6, 7, 1, 1]
    user = [4, 4, 4, 0, 0, 0, 2, 2, 2, 1, 1, 1, 7, 7]
    found = served(rank, user, tmp_path)
    assert found["min_targets"] == 3, "user 7 has two targets"
    assert [row["user_id"] for row in found["best"]] == ["u4", "u0"]
    assert [row["user_id"] for row in found["worst"]] == ["u2", "u1"], "equal NDCG: by the reciprocal rank"
    best, worst = found["best"][0], found["worst"][1]
    assert best["ndcg"] == pytest.approx((2 + 1 / np.log2(3)) / 3)
    assert (best["targets"], best["rank"], best["history_length"]) == (3, 1, 6)
    assert best["history"] == ["film 7", "film 6", "film 5", "film 4", "film 3"]
    assert (best["target"], best["recommended"]) == ("item 18", "film 2"), "its id where it has no title"
    assert (worst["rank"], worst["ndcg"]) == (7, 0)


def test_users_of_single_targets(tmp_path: Path):
    found = served([2.0, 1.5, 8.0], [3, 5, 6], tmp_path)
    assert found["min_targets"] == 1
    assert [row["user_id"] for row in found["best"]] == ["u5", "u3"]
    assert [row["user_id"] for row in found["worst"]] == ["u6"]


@pytest.fixture
def log() -> JaggedHistories:
    random = np.random.default_rng(0)
    lengths = np.array([9, 4, 6, 2, 0, 8])
    num = int(lengths.sum())
    return JaggedHistories(
        np.concatenate(([0], np.cumsum(lengths))),
        random.integers(1, NUM_ITEMS + 1, num).astype(np.int32),
        np.arange(num) * SECOND * 3_600,
        random.integers(1, 3, num).astype(np.int16),
        np.zeros(num, np.float32),
    )


@pytest.mark.parametrize("timed", [True, False])
def test_all_of_a_model(tmp_path: Path, log: JaggedHistories, timed: bool):
    served([1.0], [0], tmp_path)  # writes the tables
    user = log.users()
    position = np.arange(len(user))
    before = Histories(
        log.item_index, log.time, log.event_type, log.offsets[user], position, request_time=log.time[position]
    )
    item = np.where(position == 3, 0, log.item_index).astype(np.int32)
    cold = np.where(before.lengths == 0, 1, np.where(item == 0, 2, 0)).astype(np.int8)
    targets = RankedTargets.one_each(before, item, user, position, cold, {"already_seen": 4})
    model = AttentionRecommender(encoder())
    ranked = rank_targets(model, before, item, 3, exclude_seen=False)
    found = [
        diagnostics.build(
            model,
            targets,
            ranked,
            a_dataset(tmp_path, log, ["like", "view"]),
            ItemNumbering(np.array([0, 0, 1, 2, 3, 4, 5, 6, 7], np.int32)),
            exclude_seen=False,
            timed=timed,
            seed=0,
        )
        for _ in range(2)
    ]
    assert json.loads(json.dumps(found[0], allow_nan=False)) == found[1]
    told = found[0]
    assert (told["k"], told["targets"]) == (3, len(position) - 5 - 1)
    kinds = ["position", "age", "event_type"] if timed else ["position", "event_type"]
    assert list(dict.fromkeys(row["kind"] for row in told["attention"]["rows"])) == kinds
    assert told["because"]["rows"] == told["targets"]
    assert {"fast", "balanced", "exact", "attention"} < set(told["because"]["methods"])
    assert told["repeats"]["left_out"] == 4
    assert told["calibration"]["targets"] == told["targets"]
    assert {row["user_id"] for row in told["users"]["best"]} <= {f"u{each}" for each in (0, 1, 2, 5)}


def test_nothing_to_diagnose(tmp_path: Path, log: JaggedHistories):
    nothing = np.zeros(0, np.int64)
    empty = Histories(log.item_index, log.time, log.event_type, nothing, nothing, request_time=nothing)
    targets = RankedTargets.one_each(
        empty, nothing.astype(np.int32), nothing, nothing, nothing.astype(np.int8), {}
    )
    ranked = SystemRanks(np.zeros(0), np.zeros(0), np.zeros((0, 3), np.int32))
    found = diagnostics.build(
        AttentionRecommender(encoder()),
        targets,
        ranked,
        a_dataset(tmp_path, log, []),
        ItemNumbering(np.zeros(9, np.int32)),
        exclude_seen=True,
        timed=True,
        seed=0,
    )
    assert found == {"k": 3, "targets": 0}


def test_a_sample_has_no_row_twice():
    random = np.random.default_rng(0)
    rows = np.arange(100, 200)
    some = diagnostics._sampled(rows, 30, random)
    assert len(set(some.tolist())) == 30
    assert (np.diff(some) > 0).all()
    assert set(some.tolist()) <= set(rows.tolist())
    assert diagnostics._sampled(rows, 100, random).tolist() == rows.tolist()


def test_explanations_of_as_many_rows_as_there_are_cells_for(monkeypatch: pytest.MonkeyPatch):
    """Rows of 2, 3 and 1 interactions: leaving each out passes over 4, 9 and 1 positions."""
    histories = histories_from_lists([[1, 2], [3, 4, 5], [6]])
    lists = np.array([[7, 6]] * 3, np.int32)
    for cells, rows in ((3, 0), (12, 1), (13, 2), (100, 3)):
        monkeypatch.setattr(diagnostics, "BECAUSE_CELLS", cells)
        assert diagnostics.because(encoder(), histories, lists, seed=0)["rows"] == rows
