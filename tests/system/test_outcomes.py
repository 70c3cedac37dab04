"""Several outcomes through every stage: learned, left out, measured, delivered in the order of their utility."""

import json
from typing import Any

import polars as pl
import pytest

from tests.workdir import Workdir

COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "value")
SETTINGS = [
    word
    for setting in (
        f"events.columns={{{', '.join(f'{name} = {json.dumps(name)}' for name in COLUMNS)}}}",
        "split.validation_fraction=0.4",
        'outcomes.types=["view", "like", "purchase"]',
        'utility={view = 0.1, like = 1.0, purchase = "value"}',
        "score.order=utility",
        "score.exclude_seen=false",
        "ranker.use=always",
        "ranker.candidates=60",
        "train.refit=false",
        'evaluate.baselines=["popularity"]',
    )
    for word in ("--set", setting)
]


@pytest.mark.slow
def test_outcomes_are_learned_measured_and_delivered(copied: Workdir) -> None:
    copied.run("report", *SETTINGS)
    ranker: Any = json.loads((copied.artifact("rank", *SETTINGS) / "ranker.json").read_text())
    learned, left_out = ranker["outcomes"]["learned"], ranker["outcomes"]["left_out"]
    assert {*learned, *left_out} == {"view", "like", "purchase"}
    assert learned
    assert min(learned.values()) >= 200 > max(left_out.values(), default=0)
    evaluate = copied.artifact("evaluate", *SETTINGS)
    metrics = json.loads((evaluate / "metrics.json").read_text())
    assert set(metrics["outcomes"]) == set(learned)
    for quality in metrics["outcomes"].values():
        assert quality["log_loss"] < 1.1 * quality["base_log_loss"]
    assert set(metrics["orders"]["metrics"]["utility"]) == {"ndcg@10", "utility@10"}
    assert {"utility@10"} <= set(metrics["metrics"]["lookback"]) & set(metrics["metrics"]["popularity"])
    score = copied.artifact("score", *SETTINGS)
    lists = pl.read_parquet(score / "recommendations" / "*.parquet").drop_nulls("expected_value")
    columns = [f"p_{name}" for name in ("view", "like", "purchase") if name in learned]
    assert lists.columns[-len(learned) - 1 :] == [*columns, "expected_value"]
    for name in columns:
        assert lists[name].is_between(0, 1).all()
    assert lists["score"].equals(lists["expected_value"].alias("score"))
    for _, own in lists.group_by("user_id"):
        assert own.sort("rank")["expected_value"].is_sorted(descending=True)
    manifest = json.loads((score / "manifest.json").read_text())
    assert manifest["outcomes_not_predicted"] == list(left_out)
    page = (copied.artifact("report", *SETTINGS) / "report.html").read_text()
    assert "<h3>Outcomes</h3>" in page
    user = str(lists["user_id"][0])
    told = copied("recommend", "--user", user, "--json", *SETTINGS).json["recommendations"][0]
    assert told["expected_value"] == pytest.approx(told["score"], rel=1e-4)
