"""Figures of nights: what was realised stands at its night, within its window, beside its band and its model's age."""

import datetime
from typing import Any

import plotly.graph_objects as go
import polars as pl
import pytest

from pipeline.monitoring.series import COLUMNS
from pipeline.reporting import night_figures

FIRST = datetime.datetime(2026, 3, 1, 23, 59, 58, 700_000, tzinfo=datetime.UTC)
SECOND = FIRST + datetime.timedelta(days=1)
NIGHTS = {moment: moment.isoformat(timespec="seconds") for moment in (FIRST, SECOND)}


def table(rows: list[tuple[datetime.datetime, float, str, float]], **more: Any) -> pl.DataFrame:
    """Rows of nights.parquet from (night, window, system, NDCG@3); the interval is 0.1 below and 0.2 above."""
    facts = {"arm": None, "segment": None, "metric": "ndcg@3", "users": 9} | more
    named = [
        {"log_time": night, "window_days": days, "system": system, "value": value}
        | {"low": value - 0.1, "high": value + 0.2}
        for night, days, system, value in rows
    ]
    return pl.DataFrame([row | facts for row in named], schema=COLUMNS)


ROWS = [
    *((FIRST, 1.0, "delivered", 0.5), (FIRST, 1.0, "popularity", 0.25), (FIRST, 7.0, "delivered", 0.4)),
    *((SECOND, 1.0, "delivered", 0.6), (SECOND, 1.0, "popularity", 0.125)),
]
PROMISED = [
    {"night": NIGHTS[night], "window_days": 1.0, "metric": "ndcg@3", "low": low, "high": 0.75}
    for night, low in ((FIRST, 0.4), (SECOND, -0.1))
]


def traces(figure: go.Figure) -> list[tuple[Any, ...]]:
    return [(trace.name, trace.xaxis, trace.x, trace.y) for trace in figure.data]


def test_no_figure_without_a_judged_night() -> None:
    assert not [*night_figures.of_nights(pl.DataFrame(schema=COLUMNS), PROMISED, [], [])]
    named = ({"metric": "hit_rate@3"}, {"segment": "new users"}, {"arm": "challenger"})
    others = pl.concat([table(ROWS, **facts) for facts in named])
    assert not [*night_figures.of_nights(others, PROMISED, [], [])]


def test_nights_stand_beside_their_band_in_the_panel_of_their_window() -> None:
    (chart,) = night_figures.of_nights(table(ROWS), PROMISED, [], [])
    x = ("2026-03-01 23:59", "2026-03-02 23:59")
    band, delivered = [("x", x, y) for y in ((0.4, 0), (0.75, 0.75))], ("delivered", "x", x, (0.5, 0.6))
    drawn = traces(chart.figure)
    assert [trace[1:] for trace in drawn[:2]] == band, "from 0 on"
    assert drawn[2:] == [
        ("popularity", "x", x, (0.25, 0.125)),
        delivered,
        ("delivered", "x2", x[:1], (0.4,)),
    ]
    assert chart.figure.data[1].fill == "tonexty"
    assert chart.figure.data[3].error_y.array == pytest.approx((0.2, 0.2))
    assert [title.text for title in chart.figure.layout.annotations] == [
        "NDCG@3 within 1 day",
        "NDCG@3 within 7 days",
    ]
    assert chart.title == "Realised NDCG@3 by night"


def test_differences_are_those_of_the_monitor() -> None:
    pair = {"nights": 2, "users": 9, "p_holm": 0.01, "verdict": "better"}
    rows = [
        {"shadow": shadow, "window_days": days, "metric": metric, "difference": 0.1, "low": 0.05, "high": 0.3}
        | pair
        for days in (1.0, 7.0)
        for shadow in ("popularity", "previous")
        for metric in ("hit_rate@3", "ndcg@3")
    ]
    _, chart = night_figures.of_nights(table(ROWS), [], rows, [])
    assert [trace[1:] for trace in traces(chart.figure)] == [
        (axis, (0.1,), (shadow,)) for axis in ("x", "x2") for shadow in ("popularity", "previous")
    ]
    bars = chart.figure.data[0].error_x
    assert (bars.arrayminus[0], bars.array[0]) == pytest.approx((0.05, 0.2))


def test_ages_are_those_of_the_model_that_made_the_lists() -> None:
    models = [{"night": NIGHTS[FIRST], "model_version": 1, "age_days": 2.5}]
    models += [{"night": NIGHTS[SECOND], "model_version": 2, "age_days": 0.5}]
    _, chart = night_figures.of_nights(table(ROWS), [], [], models)
    assert traces(chart.figure) == [
        ("version 2", "x", (0.5,), (0.6,)),
        ("earlier versions", "x", (2.5,), (0.5,)),
        ("version 1", "x2", (2.5,), (0.4,)),
    ]
    elsewhere = [models[0] | {"night": "2025-01-01T00:00:00+00:00"}]
    assert len([*night_figures.of_nights(table(ROWS), [], [], elsewhere)]) == 1, "no age is known"
