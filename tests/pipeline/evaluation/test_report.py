"""The evaluation report: values, paired differences, and metrics.json as it was and as it is read back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.evaluation.bootstrap import NO_DIFFERENCE, Difference
from pipeline.artifacts.files import write_json
from pipeline.errors import DamagedArtifact
from pipeline.evaluation.report import (
    FILE,
    ColdTargets,
    Cut,
    Estimate,
    EvaluationReport,
    Leaks,
    LearningPoint,
    Rolling,
    SecondStageGain,
    Tuning,
)
from tests.evaluation_reports import difference, evaluation_report, off_policy

METRICS = {
    "lookback": {"ndcg@10": 0.5, "ndcg@200": 0.625, "coverage@10": 0.25},
    "popularity": {"ndcg@10": 0.25, "ndcg@200": 0.375, "coverage@10": 0.125},
    "ease": {"ndcg@10": 0.46875, "ndcg@200": 0.5},
}
REPORT = evaluation_report(METRICS)
FULL = replace(
    REPORT,
    test_from=None,
    differences={
        "popularity": {"ndcg@10": difference(0.25, p_value=0.01, p_holm=0.02, p_bootstrap_holm=0.03)}
    },
    cold_targets={
        "no_history": ColdTargets(1, True, {"lookback": {"ndcg@10": 0.125}}),
        "unknown_item": ColdTargets(
            2, False, {"lookback": {"ndcg@10": 0.0}}, {"lookback": {"ndcg@10": 0.25}}
        ),
    },
    leaks=Leaks(["order of every history"], {"targets_before_training_end": 0.5}),
    tuning={"popularity": Tuning({}, [{}]), "ease": Tuning({"l2": 500.0}, [{"l2": 500.0, "ndcg@10": 0.25}])},
    not_applicable={"als": "no time"},
    ranker=SecondStageGain(
        True,
        "auto",
        "two stages are better than retrieval alone",
        {"retrieval": {"ndcg@10": 0.25}, "two_stage": {"ndcg@10": 0.5}},
        {"retrieval": {"ndcg@10": [0.125, 0.375]}, "two_stage": {"ndcg@10": [0.375, 0.625]}},
        {"ndcg@10": Difference(0.25, 0.125, 0.375, 1.0, "better")},
    ),
    learning_curve=[LearningPoint(0.5, 7, {"ndcg@10": 0.25}, {"ndcg@10": [0.125, 0.375]})],
    rolling=Rolling(
        (Cut(None, 3, 5, METRICS, {}), Cut("2026-01-02T00:00:00+00:00", 3, 5, METRICS, {})), METRICS, METRICS
    ),
    **off_policy(),
)


def test_values_and_differences() -> None:
    assert REPORT.value("lookback", "ndcg@10") == Estimate(0.5, 0.45, 0.55)
    assert str(REPORT.value("lookback", "ndcg@10")) == "0.5000 [0.4500, 0.5500]"
    paired = REPORT.paired("popularity", "ndcg@10")
    assert (paired.difference, paired.low, paired.high, paired.verdict) == (0.25, 0.2, 0.3, "better")
    assert REPORT.paired("ease", "ndcg@10").verdict == NO_DIFFERENCE
    without = replace(REPORT, intervals={"lookback": {}})
    assert without.value("lookback", "ndcg@10") == Estimate(0.5, None, None)
    assert str(without.value("lookback", "ndcg@10")) == "0.5000"
    with pytest.raises(KeyError):
        REPORT.value("ease", "coverage@10")
    with pytest.raises(KeyError):
        REPORT.paired("lookback", "ndcg@10")


def test_systems_metrics_and_the_order_of_baselines() -> None:
    assert REPORT.systems == ("lookback", "popularity", "ease")
    assert REPORT.baselines == ("popularity", "ease")
    assert REPORT.metric_names == ("ndcg@10", "ndcg@200", "coverage@10")
    assert REPORT.list_lengths == (10, 200)
    assert REPORT.best_baselines("ndcg@10") == ["ease", "popularity"]
    assert REPORT.best_baselines("coverage@10") == ["popularity"], "it is undefined for the other"


def test_a_report_without_some_baselines_is_as_if_they_had_not_been_evaluated() -> None:
    less = FULL.with_baselines(lambda name: name != "ease")
    assert less.systems == ("lookback", "popularity")
    assert not {"ease"} & {*less.intervals, *less.differences, *less.tuning}
    assert less.paired("popularity", "ndcg@10") == FULL.paired("popularity", "ndcg@10")
    assert FULL.with_baselines(lambda _: True) == FULL


@pytest.mark.parametrize("report", [REPORT, FULL], ids=["plain", "full"])
def test_a_saved_report_reads_back_the_same(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    for path in (tmp_path, tmp_path / FILE):
        assert EvaluationReport.load(path) == report
    EvaluationReport.load(tmp_path).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_the_file_s_keys(tmp_path: Path) -> None:
    """metrics.json is read by users' scripts: names of keys, what is null and what is left out."""
    REPORT.save(tmp_path)
    plain: dict[str, Any] = json.loads((tmp_path / FILE).read_text())
    assert plain["metrics"] == METRICS
    assert plain["ranker"] == {"used": False, "setting": "never", "reason": "ranker.use is never"}
    assert list(plain["apart"]) == ["no_history", "unknown_item"]
    assert plain["apart"]["no_history"] == {"targets": 0, "included": False, "metrics": {}}
    assert set(plain["paired"]["ease"]["ndcg@10"]) == {"difference", "low", "high", "share", "verdict"}
    assert not {"rolling", "learning_curve", "differences", "cold_targets", "tuning"} & set(plain)
    FULL.save(tmp_path)
    full: dict[str, Any] = json.loads((tmp_path / FILE).read_text())
    assert set(full) == set(plain) | {"rolling", "learning_curve", "off_policy", "off_policy_lists"}
    assert full["off_policy"]["lookback"]["dm"] == {
        "value": 0.5,
        "low": 0.375,
        "high": 0.625,
        "effective_sample": 1234.0,
    }
    assert list(full["off_policy"]["popularity"]["snips_list"]) == ["refused"]
    assert full["test_from"] is None
    assert full["rolling"]["cuts"][0]["test_from"] is None
    assert full["baselines"]["ease"] == {"settings": {"l2": 500.0}, "grid": [{"l2": 500.0, "ndcg@10": 0.25}]}
    paired = full["paired"]["popularity"]["ndcg@10"]
    assert {name: paired[name] for name in ("p_value", "p_holm", "p_bootstrap_holm")} == {
        "p_value": 0.01,
        "p_holm": 0.02,
        "p_bootstrap_holm": 0.03,
    }


def test_a_file_of_another_version(tmp_path: Path) -> None:
    """Keys that came later are no error; the verdict of earlier versions is read as today's."""
    REPORT.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content["paired"]["ease"]["ndcg@10"]["verdict"] = "can't tell"
    content["paired"]["ease"]["ndcg@10"]["effect_size"] = 0.25
    write_json(tmp_path / FILE, content | {"slices": [1, 2]})
    assert EvaluationReport.load(tmp_path) == REPORT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[1]", "dictionary"),
        ("{}", "protocol: Field required"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_a_damaged_file_is_named_with_the_next_step(
    text: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedArtifact) as raised:
        EvaluationReport.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "lookback run evaluate --force" in message
    assert "\n" not in message


def test_a_value_of_another_type_is_named(tmp_path: Path) -> None:
    REPORT.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content["metrics"]["ease"]["ndcg@10"] = "high"
    write_json(tmp_path / FILE, content)
    with pytest.raises(DamagedArtifact, match=r"metrics\.ease\.ndcg@10: "):
        EvaluationReport.load(tmp_path)
