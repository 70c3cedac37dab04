"""The page of figures: what is drawn is what was measured, and nothing of it needs a network."""

import json
import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.reporting import charts, interactive
from pipeline.reporting.interactive import Chart
from tests.evaluation_reports import evaluation_report
from tests.workdir import Workdir


def test_recall_at_k_by_pencil() -> None:
    ranks = pl.DataFrame(
        {"system": ["lookback"] * 4 + ["ease"] * 4, "rank": [1.0, 2.0, 10.5, 300.0] + [5.0] * 4}
    )
    figure = interactive.recall_at_k(ranks).figure
    lookback, ease = figure.data
    at = dict(zip(lookback.x, lookback.y, strict=True))
    assert (at[1], at[2], at[200]) == (0.25, 0.5, 0.75)
    assert at[next(k for k in lookback.x if k >= 11)] == 0.75
    assert dict(zip(ease.x, ease.y, strict=True))[4] == 0
    assert ease.y[-1] == 1
    assert (lookback.name, ease.name) == ("lookback", "EASE")


def test_a_system_looks_the_same_everywhere() -> None:
    rows = [
        {
            "system": name,
            "segment": kind,
            "value": value,
            "targets": 5,
            "ndcg@3": 0.1,
            "ndcg@3_low": 0.0,
            "ndcg@3_high": 0.2,
        }
        for name in ("lookback", "popularity", "als")
        for kind in ("history_length", "item_category")
        for value in ("1-4", "5+")
    ]
    report = evaluation_report({name: {"ndcg@3": 0.1} for name in ("als", "lookback", "popularity")})
    colours = [
        {trace.name: trace.marker.color for trace in chart.figure.data}
        for chart in (
            interactive.systems(report, ["ndcg@3"]),
            interactive.segment(pl.DataFrame(rows), "history_length", "ndcg@3"),
            interactive.segment(pl.DataFrame(rows), "item_category", "ndcg@3"),
        )
    ]
    assert colours[0] == colours[1] == colours[2]
    assert len(set(colours[0].values())) == 3


def test_what_is_recommended_against_what_is_popular() -> None:
    chart = interactive.popularity(np.array([9, 0, 3]), np.array([4, 0, 0]), ["a", "b", "c"])
    items, line = chart.figure.data
    assert dict(zip(items.text, zip(items.x, items.y, strict=True), strict=True)) == {
        "a": (10, 5),
        "b": (1, 1),
        "c": (4, 1),
    }
    # 4 + 3 lists and ones over 12 + 3 events and ones: 7 / 15 of a list per event
    assert line.y == pytest.approx((7 / 15, 70 / 15))
    assert "67% of the items are in no list" in chart.says


@pytest.mark.parametrize(
    ("recall", "speed", "expected"),
    [
        ({"type": "exact"}, {"queries_per_second": 5.0}, []),
        ({"type": "exact", "recall@10": 1.0}, {}, []),
        ({"type": "exact", "recall@10": 1.0}, {"queries_per_second": 5.0}, [("exact", 5.0, 1.0)]),
        (
            {"type": "ivf", "recall@10": 0.9, "parameters": {"nprobe": 4}},
            {"queries_per_second": 50.0, "exact_queries_per_second": 5.0},
            [("ivf", 50.0, 0.9), ("exact", 5.0, 1.0)],
        ),
    ],
)
def test_the_index_stands_beside_exact_search(
    recall: dict[str, Any], speed: dict[str, float], expected: list[tuple[str, float, float]]
) -> None:
    points = interactive.index_points(recall, speed)
    assert [(each["type"], each["queries_per_second"], each["recall@10"]) for each in points] == expected
    if points:
        assert len(interactive.index_trade(points).figure.data) == len(expected)


def test_reasons_are_read_by_row_and_column() -> None:
    weights = np.array([[1.0, -2.0, 0.5], [0.0, 0.25, 3.0]], np.float32)
    chart = interactive.reasons(weights, ["old", "middle", "new"], ["first", "second"], "ann")
    (heat,) = chart.figure.data
    assert heat.x == ("1. first", "2. second")
    assert heat.y == ("old (3)", "middle (2)", "new (1)")
    assert np.array(heat.z).tolist() == weights.T.tolist()
    assert (heat.zmin, heat.zmax) == (-3, 3)


def test_what_evaluate_drew_is_not_drawn_again(finished: Workdir) -> None:
    drawn = json.loads((finished.artifact("evaluate") / charts.CHARTS).read_text())
    pages = [
        (finished.artifact(stage) / "figures.html").read_text(encoding="utf-8")
        for stage in ("evaluate", "report")
    ]
    specs = [
        re.findall(r'<script type="application/json" id="spec-\d+">(.*?)</script>', page) for page in pages
    ]
    assert [json.loads(spec) for spec in specs[0]] == [json.loads(spec) for _, _, spec in drawn]
    assert specs[1][: len(drawn)] == specs[0]
    assert len(specs[1]) == len(drawn) + 2, "popularity, and one user's reasons"


def test_the_page_holds_everything() -> None:
    chart: Chart = interactive.popularity(np.array([1]), np.array([1]), ["</script><b>&"])
    text = interactive.page("<demo>", [chart, chart])
    assert len(text) < 3_000_000
    assert not re.findall(r"(?:src|href)=\"(?!#)", text), "no address but of its own places"
    specs = re.findall(r'<script type="application/json" id="spec-\d">(.*?)</script>', text)
    assert [json.loads(spec)["data"][0]["text"] for spec in specs] == [["</script><b>&"]] * 2
    assert "&lt;demo&gt;" in text
