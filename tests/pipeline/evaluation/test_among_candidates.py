"""Metrics among users' own candidates: the same as ranking each user's shortlist in plain Python."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models import checkpoint
from models.encoder.encoder import AttentionRecommender
from models.histories import histories_from_lists
from pipeline.artifacts.files import read_json
from pipeline.evaluation.report import EvaluationReport
from pipeline.evaluation.tracked_metrics import beside_the_model
from pipeline.orchestration.context import Context
from pipeline.reporting import text_table
from pipeline.stages import evaluate
from pipeline.tracking.record import RunRecord
from tests.pipeline.stages.test_evaluate import FEW, NUM_ITEMS, NUM_USERS, judge, log, made_below


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("among")
    return judge(made_below(folder), folder / "evaluate")


def shortlists() -> dict[int, list[int]]:
    """Every other user has nine items, of most users the next one among them."""
    random, histories = np.random.default_rng(0), log()
    lists = {}
    for user in range(0, NUM_USERS - 1, 2):
        items = random.permutation(NUM_ITEMS)[:9] + 1
        target = int(histories.item_index[histories.offsets[user + 1] - 1])
        lists[user] = sorted({*items.tolist(), *([target] if user % 6 else [])})
    return lists


def place(scores: np.ndarray[tuple[int], np.dtype[np.float32]], target: int, own: list[int]) -> float:
    """1 + the greater ones + half of the equal ones."""
    of_own = scores[own]
    return float(1 + (of_own > scores[target]).sum() + ((of_own == scores[target]).sum() - 1) / 2)


def test_ranks_are_those_of_each_user_s_shortlist(evaluated: Context, tmp_path: Path) -> None:
    lists, histories = shortlists(), log()
    pairs = [(f"u{user}", (item - 1) * 10) for user, items in lists.items() for item in items]
    pairs += [("nobody", 10), ("u0", 77_777)]
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    table.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "candidates.parquet")
    (tmp_path / "evaluate").mkdir()
    context = replace(
        evaluated,
        folder=tmp_path / "evaluate",
        candidates=tmp_path / "candidates.parquet",
        track=RunRecord(),
        manifest={},
    )
    evaluate.build(context)
    report = EvaluationReport.load(context.folder)
    found = report.among_candidates
    assert found is not None
    model = AttentionRecommender(checkpoint.load_model(evaluated.inputs["train"]))
    numbers = np.load(evaluated.inputs["train"] / "items.npy")
    counts = np.zeros(NUM_ITEMS + 1, np.float32)
    rows = [
        histories.item_index[start:end].tolist()
        for start, end in zip(histories.offsets, histories.offsets[1:], strict=False)
    ]
    for row in rows:
        np.add.at(counts, row[:-2], 1)  # without validation and test
    places: dict[str, list[float]] = {"lookback": [], "popularity": []}
    for user, own in lists.items():
        *history, target = rows[user]
        if target not in own:
            continue
        open_items = [item for item in own if item == target or item not in history]
        scores = model.score_items(histories_from_lists([[int(numbers[item]) for item in history]]))[0][
            numbers
        ]
        scores[numbers == 0] = -np.inf
        places["lookback"].append(place(scores, target, open_items))
        places["popularity"].append(place(np.where(numbers > 0, counts, -np.inf), target, open_items))
    assert found.targets == found.users == len(places["lookback"]) > 10
    assert found.outside == len(lists) - found.targets
    assert set(found.metrics) == {"lookback", *FEW}
    for system, ranks in places.items():
        assert found.metrics[system]["mrr@10"] == pytest.approx(
            np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]), abs=1e-6
        )
        assert found.metrics[system]["hit_rate@3"] == pytest.approx(np.mean([rank <= 3 for rank in ranks]))
        low, high = found.intervals[system]["ndcg@3"]
        assert low <= found.metrics[system]["ndcg@3"] <= high
    assert all(name.startswith(("ndcg@", "mrr@", "hit_rate@")) for name in found.metrics["lookback"])
    assert beside_the_model(report)["among_candidates/mrr@3"] == found.metrics["lookback"]["mrr@3"]
    assert f"among the user's candidates: {found.targets} items taken" in text_table.as_text(report)


def test_without_candidates_nothing_is_added(evaluated: Context) -> None:
    assert "among_candidates" not in read_json(evaluated.folder / "metrics.json")
