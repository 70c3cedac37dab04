"""Figures of trainings and evaluations of every shape; the same numbers give the same bytes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from models.evaluation.comparison import Judgement
from models.evaluation.metrics import metrics_of_ranks
from pipeline.evaluation.report import Cut, LearningPoint, Rolling
from pipeline.reporting import figures, style
from tests.evaluation_reports import evaluation_report

SYSTEMS = (
    *("lookback", "popularity", "recent_popularity", "co_visitation", "item_knn", "ease", "als", "gru"),
)
HOSTILE = "a $ in_a <b> & 電影\n\x07"


def judgement(systems: tuple[str, ...] = SYSTEMS) -> Judgement:
    """The later system ranks every target one place lower."""
    user = np.repeat(np.arange(5), 3)
    rank = np.arange(1.0, 16.0)
    each = ((name, metrics_of_ranks(rank + place, (3, 10))) for place, name in enumerate(systems))
    return Judgement.of(each, user, 20, 0)


def segments(kinds: dict[str, list[str]], systems: tuple[str, ...] = SYSTEMS) -> pl.DataFrame:
    rows = [
        {"system": system, "segment": kind, "value": value, "targets": 10 + place, "users": 3}
        | {"ndcg@3": 0.2 - 0.01 * row, "ndcg@3_low": 0.1, "ndcg@3_high": 0.3}
        for kind, values in kinds.items()
        for row, system in enumerate(systems)
        for place, value in enumerate(values)
    ]
    return pl.DataFrame(rows)


def diagnosed(bins: int = 10) -> dict[str, Any]:
    part = {
        "error": 0.1,
        "bins": [
            {"mean_predicted": row / 20, "observed": row / 25, "targets": 30 + row} for row in range(bins)
        ],
    }
    rows = [
        {
            "kind": kind,
            "value": value,
            "attention": 0.6,
            "interactions": 0.3,
            "lift": 2.0,
            "num_interactions": 7,
        }
        for kind, values in {"position": ["1", "2"], "event_type": ["view", HOSTILE]}.items()
        for value in values
    ]
    area = {"area": 0.5, "low": 0.4, "high": 0.6}
    agreed = {"spearman": {"mean": 0.9, "low": 0.8, "high": 1.0}, "deletion": area, "insertion": area}
    without = {"spearman": {"mean": None, "low": None, "high": None}, "deletion": area, "insertion": area}
    return {
        "calibration": {"top_1": part, "list": part},
        "attention": {"rows": rows},
        "because": {"rows": 5, "methods": {"balanced": agreed, "item_cosine": without}},
    }


def point(share: float) -> LearningPoint:
    values = {"ndcg@3": share / 10, "hit_rate@3": share / 5}
    ends = {name: [value * 0.9, value * 1.1] for name, value in values.items()}
    return LearningPoint(share, round(100 * share), values, ends)


METRICS = {"lookback": {"ndcg@3": 0.1, "hit_rate@3": 0.2}}
CUTS = tuple(
    Cut(f"2026-0{month}-01T00:00:00+00:00", 3, 5, {"lookback": {"ndcg@3": 0.1 * month}}, {})
    for month in (1, 2, 3)
)
REPORT = evaluation_report(
    METRICS,
    rolling=Rolling(CUTS, METRICS, METRICS),
    learning_curve=[point(1.0), point(0.1), replace(point(0.3), intervals={})],
)
KINDS = {
    "history_length": ["1-4", "5-19"],
    "item_category": [f"kind {number}" for number in range(15)] + [HOSTILE],
    "user:sex & age": ["F"],
}


def words(path: Path) -> list[str]:
    """The texts of an SVG, which must be well-formed XML."""
    root = ElementTree.parse(path).getroot()
    return ["".join(each.itertext()).strip() for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_evaluation_with_everything(tmp_path: Path):
    (tmp_path / "diagnostics.json").write_text(json.dumps(diagnosed()))
    for file, figure in figures.of_evaluation(judgement(), segments(KINDS), REPORT, tmp_path).items():
        figures.save(figure, tmp_path / file)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [path.stem for path in drawn] == [
        *("attention", "because", "by_history_length", "by_item_category", "by_user_sex_age", "calibration"),
        *("learning_curve", "metrics", "rolling"),
    ]
    for path in drawn:
        assert path.stat().st_size < 150_000
        assert words(path)
    told = words(tmp_path / "by_item_category.svg")
    assert {"co-visitation", "ItemKNN", "EASE", "GRU", "recent popularity"} <= set(told), "a legend"
    assert "a $ in_a <b> & 電影   (25)" in told, "names from the log as they are"
    assert "kind 14 (24)" in told
    assert "kind 3 (13)" not in told, "no more than twelve values, those with most targets"
    assert "100 %" in words(tmp_path / "learning_curve.svg")
    assert "2026-02-01" in words(tmp_path / "rolling.svg")
    assert words(tmp_path / "attention.svg").count("× 2.00") == 4
    assert {"balanced", "item cosine", "area of deletion"} <= set(words(tmp_path / "because.svg"))


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path):
    for name in ("one.svg", "two.svg"):
        figures.save(figures.systems_side_by_side(judgement(), ("ndcg@3",)), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_an_evaluation_with_nothing_but_metrics(tmp_path: Path):
    found = figures.of_evaluation(
        judgement(("lookback",)), pl.DataFrame(), evaluation_report(METRICS), tmp_path
    )
    assert list(found) == ["metrics.svg"]


def test_no_more_figures_of_segments_than_one_can_look_at(tmp_path: Path):
    kinds = {f"user:attribute {number}": ["a"] for number in range(20)}
    found = figures.of_evaluation(
        judgement(("lookback",)), segments(kinds, ("lookback",)), evaluation_report(METRICS), tmp_path
    )
    assert len(found) == 1 + figures.MAX_SEGMENTS


def test_the_best_system_is_on_top():
    (axes, *_) = figures.systems_side_by_side(judgement(), ("ndcg@3", "mrr@3")).axes
    assert [label.get_text() for label in axes.get_yticklabels()][::-1][:3] == [
        *("lookback", "popularity", "recent popularity"),
    ]


def test_no_two_systems_look_alike():
    styles = [style.line_style(row) for row in range(len(SYSTEMS))]
    for trait in ("color", "marker"):
        assert len({style[trait] for style in styles}) == len(SYSTEMS)


def test_intervals_by_wilson():
    # Wilson's interval of 0 of 10 is 0 to z^2 / (n + z^2)
    low, high = figures._wilson(np.array([0.0, 1.0]), np.array([10, 10]))
    np.testing.assert_allclose(low, [0, 10 / (10 + 1.96**2)], atol=1e-12)
    np.testing.assert_allclose(high, [1.96**2 / (10 + 1.96**2), 1], atol=1e-12)


@pytest.mark.parametrize("num_metrics", [0, 1, 2, 3, 5, 9])
def test_a_training_of_any_number_of_metrics(num_metrics: int):
    validated = {f"validation_metric{number}@10": [0.1, 0.2] for number in range(num_metrics)}
    table = pl.DataFrame({"epoch": [1, 2], "loss": [3.0, None], "validation_seconds": [1.0, 1.0]} | validated)
    figure = figures.training(table, 2)
    assert len(figure.axes) == 1 + min(num_metrics, 5)
    assert figure.axes[0].get_ylabel() == "training loss (nats)"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("user_ndcg@10", "user NDCG@10"),
        ("pessimistic_user_hit_rate@10", "pessimistic user hit rate@10"),
        ("map@5", "MAP@5"),
        ("mapped", "mapped"),
        ("item_knn", "ItemKNN"),
    ],
)
def test_names_as_one_writes_them(name: str, said: str):
    assert style.spoken(name) == said
