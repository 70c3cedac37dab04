"""Exposed lists beside those of a system, by pencil; old lists without draws are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.histories.numbering import ItemNumbering
from models.evaluation.predicted_reactions import PredictedReactions
from models.evaluation.ranks import SystemRanks
from pipeline.dataset.exposed_lists import ExposedLists
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation import off_policy, ranking
from pipeline.evaluation.report import OffPolicyRefused, OffPolicyValue
from pipeline.sections import MODEL
from tests.evaluation_reports import evaluation_report
from tests.pipeline.dataset.test_exposed_lists import config, dataset_in

COMMON = ItemNumbering(np.array([0, 0, 1, 2, 3], np.int32))
"""Item 1 is unknown to every system; 2, 3, 4 are 1, 2, 3."""
EXPOSED = ExposedLists(
    user=np.array([3, 3, 8]),
    time=np.arange(3),
    item=np.array([[2, 3], [1, 2], [4, 0]], np.int32),
    is_shown=np.array([[True, True], [True, True], [True, False]]),
    propensity=np.array([[0.25, 1 / 3], [0.25, 1 / 3], [0.5, 0]]),
    is_taken=np.array([[True, False], [False, True], [True, False]]),
    left_out={},
)
LISTS = np.array([[1, 3], [0, 1], [3, 1]], np.int32)


def test_a_system_agrees_where_its_item_was_shown() -> None:
    """The unknown item 1 is not the padding of a short list; the last list has one place."""
    predicted = PredictedReactions(np.array([0.5, 0.25]), np.array([0, 1, 1, 1, 1.5]))
    lists = off_policy.logged_lists(EXPOSED, LISTS, COMMON, predicted)
    assert lists.evaluated.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert lists.logging == pytest.approx(np.array([[0.25, 1 / 3], [0.25, 1 / 3], [0.5, 1]]))
    # four equal candidates: 1/4 at place 2 too, computed where the lists agree
    assert lists.logging_marginal == pytest.approx(
        np.array([[0.25, 1 / 3], [0.25, 0.25], [0.5, 1]]), rel=1e-4
    )
    assert lists.reward.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert lists.predicted.tolist() == [[0.5, 0.25], [0.5, 0.25], [0.75, 0]]
    assert lists.expected.tolist() == [[0.5, 0.375], [0, 0.25], [0.75, 0]]
    assert lists.user.tolist() == [0, 0, 1]
    assert lists.weights("list")[:, 0].tolist() == [0, 0, 2]
    assert lists.weights("place") == pytest.approx(np.array([[4, 0], [0, 4], [2, 1]]), rel=1e-4)


def estimates(
    monkeypatch: pytest.MonkeyPatch, folder: Path, exposed: ExposedLists, lists: np.ndarray, **settings: Any
) -> dict[str, Any]:
    """Estimates of the model, which shows these lists; nothing was exposed before the test."""
    monkeypatch.setattr(ExposedLists, "of", lambda *_: exposed)
    monkeypatch.setattr(ExposedLists, "requests", lambda *_: None)
    monkeypatch.setattr(off_policy, "predicted_reactions", lambda *_: None)
    (folder / "exposures").mkdir(exist_ok=True)
    COMMON.save(folder / "exposures" / "items.npy")
    none = np.zeros(0)

    def rank(_requests: RankedTargets, common: ItemNumbering) -> dict[str, SystemRanks]:
        assert common.new.tolist() == COMMON.new.tolist()
        return {MODEL: SystemRanks(none, none, lists)}

    chosen = config(evaluate={"k": [2], "gate": False, **settings})
    report = evaluation_report({MODEL: {"ndcg@2": 0.5}})
    found = off_policy.with_estimates(report, chosen, dataset_in(folder), folder, rank)
    assert found.off_policy is not None
    assert found.off_policy_lists is not None
    assert (found.off_policy_lists.lists, found.off_policy_lists.clip) == (len(exposed), None)
    return dict(found.off_policy[MODEL])


def repeated(exposed: ExposedLists, times: int) -> ExposedLists:
    """Each list so often, at times of its own."""
    names = ("user", "item", "is_shown", "propensity", "is_taken")
    arrays: Any = {name: np.repeat(getattr(exposed, name), times, axis=0) for name in names}
    return replace(exposed, time=np.arange(times * len(exposed)), **arrays)


def test_lists_that_were_not_drawn_judge_no_other_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every propensity is 1: the same lists have their own reactions, others are refused however many there are."""
    sure = replace(repeated(EXPOSED, 100), propensity=repeated(EXPOSED, 100).is_shown.astype(float))
    same = np.repeat(np.array([[1, 2], [1, 2], [3, 1]], np.int32), 100, axis=0)
    sure.item[100:200] = [2, 3]
    found = estimates(monkeypatch, tmp_path, sure, same)
    for weighting in ("list", "cascade", "place"):
        assert isinstance(found[f"ips_{weighting}"], OffPolicyValue)
        assert found[f"ips_{weighting}"].value == pytest.approx(1)
        assert found[f"dr_{weighting}"] == OffPolicyRefused(off_policy.NO_PREDICTION)
    assert found["dm"] == OffPolicyRefused(off_policy.NO_PREDICTION)
    other = same.copy()
    other[:, 0] = np.where(np.arange(300) % 2, other[:, 0], 2)
    found = estimates(monkeypatch, tmp_path, sure, other)
    for weighting in ("list", "cascade", "place"):
        assert "no common support: the mean weight is" in found[f"snips_{weighting}"].refused


def test_too_few_lists_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sure = replace(EXPOSED, propensity=EXPOSED.is_shown.astype(float))
    same = COMMON.new[sure.item]
    same[1, 0] = 1
    sure.item[1, 0] = 2
    found = estimates(monkeypatch, tmp_path, sure, same)
    assert found["ips_place"].refused == "an effective sample of 3 lists; at least 100 are needed"
    found = estimates(monkeypatch, tmp_path, sure, same, min_effective_sample=3.0)
    assert found["ips_place"].value == pytest.approx(1)


def test_requests_without_targets_have_lists(tmp_path: Path) -> None:
    """Popularity lists items 2, 3 for every request."""
    from models.baselines.popularity import Popularity

    dataset = dataset_in(tmp_path)
    exposed = ExposedLists.of(config(), dataset)
    assert exposed is not None
    every = ItemNumbering(np.arange(4, dtype=np.int32))
    part = ranking.Part(dataset.all_rows(), every, exposed.requests(dataset, every), every)
    ranks = ranking.rank_all(
        Popularity(np.array([-np.inf, 1, 3, 2], np.float32)), part, config(), exclude_seen=False
    )
    assert ranks.lists.tolist() == [[2, 3]] * 4
    assert len(ranks.rank) == 0


def test_without_a_list_that_counts_the_reasons_alone_are_kept(tmp_path: Path) -> None:
    dataset = dataset_in(tmp_path)
    file = tmp_path / "exposures" / "propensity.npy"
    np.save(file, np.full_like(np.load(file), np.nan))
    report = evaluation_report({MODEL: {"ndcg@2": 0.5}})
    found = off_policy.with_estimates(report, config(), dataset, tmp_path, lambda *_: {})
    assert found.off_policy is None
    assert found.off_policy_lists is not None
    assert (found.off_policy_lists.lists, found.off_policy_lists.reactions) == (0, 0.0)
    assert found.off_policy_lists.left_out["without_propensity"] == 6
