"""The charts of an evaluation and of a run, and their pages: complete, self-contained, drawn once."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.reporting import charts, figures
from tests.evaluation_reports import evaluation_report, staleness
from tests.pipeline.reporting.test_figures import segments
from tests.workdir import Workdir


def specs(page: str) -> list[dict[str, Any]]:
    """The figures of a page, as plotly.js takes them."""
    return [json.loads(spec) for spec in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def folders(root: Path) -> dict[str, Path]:
    """What evaluate's charts are made from, but for the evaluation itself."""
    from tests.pipeline.stages.test_report import features, train

    (root / "speed.json").write_text("{}")
    return {"features": features(root, "timed"), "train": train(root), "index": root}


def test_a_small_evaluation_has_few_charts(tmp_path: Path) -> None:
    pl.DataFrame().write_parquet(tmp_path / "segments.parquet")
    report = evaluation_report({"lookback": {"ndcg@3": 0.1}})
    drawn = charts.of_evaluation(tmp_path, folders(tmp_path), report)
    assert [chart.name for chart in drawn] == ["metrics", "training", "events", "distributions", "gaps"]


def test_ages_are_drawn_where_they_are_measured(tmp_path: Path) -> None:
    pl.DataFrame().write_parquet(tmp_path / "segments.parquet")
    report = evaluation_report({"lookback": {"ndcg@10": 0.5}}, stale=staleness())
    drawn = {chart.name: chart for chart in charts.of_evaluation(tmp_path, folders(tmp_path), report)}
    lines = {trace.name: (trace.x, trace.y) for trace in drawn["stale"].figure.data}
    assert lines == {
        "frozen model, histories up to date": ((0, 7), (0.5, 0.5)),
        "frozen lists of the first night": ((0, 7), (0.5, 0.4)),
        "popularity, counted anew": ((0, 7), (0.25, 0.25)),
    }


def test_the_effect_of_being_shown_again_is_drawn_where_the_ranker_knows_it(tmp_path: Path) -> None:
    assert not list(charts._times_shown(tmp_path))
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker" / "ranker.json").write_text('{"trained": true}')
    assert not list(charts._times_shown(tmp_path))
    (tmp_path / "ranker" / "ranker.json").write_text('{"by_times_shown": [0.3, 0.2, 0.1]}')
    (chart,) = charts._times_shown(tmp_path)
    (line,) = chart.figure.data
    assert (line.x, line.y) == ((0, 1, 2), (0.3, 0.2, 0.1))


def test_no_more_segments_than_one_can_look_at(tmp_path: Path) -> None:
    kinds = {f"user:attribute {number}": ["a"] for number in range(20)}
    segments(kinds, ("lookback",)).write_parquet(tmp_path / "segments.parquet")
    report = evaluation_report({"lookback": {"ndcg@3": 0.1}})
    names = [chart.name for chart in charts.of_evaluation(tmp_path, folders(tmp_path), report)]
    drawn = [name for name in names if name.startswith("by_user:attribute ")]
    assert drawn == [f"by_user:attribute {number}" for number in range(charts.MAX_SEGMENTS)]


def test_what_evaluate_drew_is_not_drawn_again(finished: Workdir) -> None:
    drawn = json.loads((finished.artifact("evaluate") / charts.CHARTS).read_text())
    evaluated, whole = (
        specs((finished.artifact(stage) / "figures.html").read_text(encoding="utf-8"))
        for stage in ("evaluate", "report")
    )
    assert evaluated == [chart["figure"] for chart in drawn]
    assert whole[: len(drawn)] == evaluated
    assert len(whole) == len(drawn) + 2, "popularity, and one user's reasons"
    names = [chart["name"] for chart in drawn]
    assert len(set(names)) == len(names)
    assert {"metrics", "recall", "training", "calibration", "attention", "because", "events"} <= set(names)


def test_the_report_shows_charts_of_the_evaluation(finished: Workdir) -> None:
    drawn = json.loads((finished.artifact("evaluate") / charts.CHARTS).read_text())
    beside = {"recall", "because", "index"}
    shown = specs((finished.artifact("report") / "report.html").read_text(encoding="utf-8"))
    expected = [chart["figure"] for chart in drawn if chart["name"] not in beside]
    assert sorted(map(json.dumps, shown)) == sorted(map(json.dumps, expected))


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_the_chart_of_systems_has_the_measured_values(finished: Workdir, stage: str) -> None:
    report = json.loads((finished.artifact("evaluate") / "metrics.json").read_text())
    page = (finished.artifact(stage) / "figures.html").read_text(encoding="utf-8")
    of_systems = specs(page)[0]["data"]
    k = min(int(name.rpartition("@")[2]) for name in report["metrics"]["lookback"])
    for trace in of_systems[: len(report["metrics"])]:
        (system,), (value,) = trace["y"], trace["x"]
        low, high = report["intervals"][system][f"ndcg@{k}"]
        assert value == report["metrics"][system][f"ndcg@{k}"]
        assert value - trace["error_x"]["arrayminus"][0] == pytest.approx(low)
        assert value + trace["error_x"]["array"][0] == pytest.approx(high)


def test_the_page_holds_everything() -> None:
    chart = figures.popularity(np.array([1]), np.array([1]), ["</script><b>&"]).as_json()
    text = charts.page("<demo>", [chart, chart])
    assert len(text) < 3_000_000
    assert not re.findall(r"(?:src|href)=\"(?!#)", text), "no address but of its own places"
    assert text.count('id="plotly"') == 1
    assert [spec["data"][0]["text"] for spec in specs(text)] == [["&lt;/script&gt;&lt;b&gt;&amp;"]] * 2
    assert "&lt;demo&gt;" in text
    assert charts.page("<demo>", [chart, chart]) == text
