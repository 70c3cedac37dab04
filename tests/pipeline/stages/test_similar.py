"""Stage similar on the finished tiny pipeline: filters, measurement on the test, life among the other stages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.artifacts.store import read_manifest
from pipeline.config import load_config
from pipeline.dataset.dataset import Dataset
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.evaluation.next_items import Pairs
from pipeline.orchestration.graph import resolve
from tests.workdir import Workdir

K = 20
BY_CHAMPION = ("--set", "score.model=champion")


def similar(workdir: Workdir, *settings: str) -> tuple[pl.DataFrame, dict[str, Any], Path]:
    """Table, manifest and folder of the stage."""
    folder = workdir.folder / workdir.run("similar", *settings)["folder"]
    return pl.read_parquet(folder / "similar.parquet"), read_manifest(folder), folder


def test_lists_hold_the_filters_and_are_measured_on_the_test(copied: Workdir) -> None:
    table, manifest, folder = similar(copied)
    items = pl.read_parquet(copied.artifact("publish") / "bundle" / "items.parquet")["item_id"]
    assert table.columns == ["item_id", "similar_item_id", "rank", "score", "kind"]
    assert set(table["kind"]) == {"model", "vectors", "co_visitation"}
    assert set(table["item_id"]) == set(items)
    assert not (table["item_id"] == table["similar_item_id"]).any()
    lists = table.group_by("kind", "item_id").agg(pl.col("rank").sort(), pl.col("score").sort_by("rank"))
    for ranks, scores in lists.select("rank", "score").iter_rows():
        assert ranks == list(range(1, len(ranks) + 1))
        assert scores == sorted(scores, reverse=True)
    measured = manifest["next_items"]
    assert set(measured["metrics"]) == {"model", "vectors", "co_visitation"}
    for metrics in measured["metrics"].values():
        assert set(metrics) == {f"ndcg@{K}", f"hit_rate@{K}"}
        assert all(0 <= ends["low"] <= ends["value"] <= ends["high"] <= 1 for ends in metrics.values())
    popular = pl.read_parquet(folder / "popular.parquet")
    assert popular.columns == ["segment", "item_id", "rank", "score"]
    assert popular["rank"].to_list() == list(range(1, K + 1)), "this log has no users' table, so no segments"
    denied = items[0]
    filtered, _, other = similar(copied, "--set", f"score.deny=[{denied}]")
    assert other != folder
    assert denied in set(filtered["item_id"]), "what is sold out has a list"
    assert denied not in set(filtered["similar_item_id"])
    assert denied not in set(pl.read_parquet(other / "popular.parquet")["item_id"])
    assert similar(copied, "--set", "score.k=3")[2] == folder, "rules of users' lists change nothing"


def test_the_same_bytes_again_and_with_the_champion_nothing_is_trained(copied: Workdir) -> None:
    _, manifest, folder = similar(copied)
    before = {name: digest for name, (_, digest) in manifest["files"].items() if name.endswith(".parquet")}
    again = read_manifest(copied.folder / copied.run("similar", "--force")["folder"])
    assert {name: again["files"][name][1] for name in before} == before
    assert copied.artifact("similar").samefile(folder)
    summary = copied.run("similar", *BY_CHAMPION)
    assert [stage["stage"] for stage in summary["stages"]] == ["ingest", "features", "similar"]
    by_version = read_manifest(copied.folder / summary["folder"])
    assert by_version["model_version"] == 1
    assert by_version["bundle_digest"] == manifest["bundle_digest"]
    assert {name: by_version["files"][name][1] for name in before} == before
    assert by_version["next_items"] == manifest["next_items"]
    assert copied("prune", "--keep", "1").code == 0
    assert folder.exists() or copied.artifact("similar", *BY_CHAMPION).exists()
    assert "similar" not in {stage["stage"] for stage in copied.run("all")["stages"]}


def test_pairs_are_the_successive_events_of_the_test(
    finished: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by hand from the events themselves."""
    monkeypatch.chdir(finished.folder)
    config = load_config(finished.config)
    dataset = Dataset.open(resolve(config, ["features"]).nodes["features"].artifact.folder)
    model = EvaluatedModel.open(finished.artifact("publish") / "bundle")
    known = set(model.items.ids)
    ids, events, test_from = dataset.items["item_id"].to_list(), dataset.all_rows(), dataset.split.test_from
    expected, left_out = [], dict.fromkeys(("first_event", "same_item", "learned", "unknown_item"), 0)
    for user, (start, end) in enumerate(zip(events.starts, events.ends, strict=True)):
        assert test_from is not None
        for place in range(start, end):
            if events.time[place] < test_from:
                continue
            item = ids[events.item_index[place] - 1]
            before = ids[events.item_index[place - 1] - 1] if place > start else None
            if before is None:
                left_out["first_event"] += 1
            elif before == item:
                left_out["same_item"] += 1
            elif before not in known or item not in known:
                left_out["unknown_item"] += 1
            else:
                expected.append((user, before, item))
    pairs = Pairs.of(config, dataset, model)
    found = [
        *zip(pairs.user, model.items.decode(pairs.item), model.items.decode(pairs.following), strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert pairs.left_out == left_out
    lists = np.array([[2, 3], [1, 3], [0, 0]], np.int32), np.zeros((3, 2), np.float32)
    users, items = np.array([0, 0, 1]), np.array([1, 2, 3], np.int32)
    by_hand = Pairs(users, items, np.array([3, 1, 2], np.int32), {})
    metrics = by_hand.metrics(lists, items)
    assert metrics["hit_rate@2"].tolist() == [1, 1, 0]
    assert metrics["ndcg@2"] == pytest.approx([1 / np.log2(3), 1, 0])


def test_events_that_the_weights_may_have_learned_from_make_no_pairs(
    finished: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle trained on another features artifact is measured on later events alone."""
    monkeypatch.chdir(finished.folder)
    config = load_config(finished.config)
    dataset = Dataset.open(resolve(config, ["features"]).nodes["features"].artifact.folder)
    model = EvaluatedModel.open(finished.artifact("publish") / "bundle")
    times = np.asarray(dataset.histories.time)
    assert dataset.split.test_from is not None
    later = int(np.quantile(times[times >= dataset.split.test_from], 0.5))
    model = replace(model, features="another")
    own = len(Pairs.of(config, dataset, model).user)
    pairs = Pairs.of(config, dataset, replace(model, trained_until=later))
    assert 0 < len(pairs.user) < own
    assert pairs.left_out["learned"] > 0


def test_a_length_below_one_is_refused(finished: Workdir) -> None:
    result = finished("run", "similar", "--set", "similar.k=0")
    assert result.code == 2
    assert "similar.k: received 0, expected integer, at least 1" in result.err
