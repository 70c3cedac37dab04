"""Figures of logs, trainings and evaluations of every shape: the traces hold what was measured."""

from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from features.profiling import profile
from features.profiling.profile import Days, Profile
from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import Cut, LearningPoint
from pipeline.reporting import figures, style

SYSTEMS = (
    *("lookback", "als", "co_visitation", "ease", "gru", "item_knn", "popularity", "recent_popularity"),
)
HOSTILE = "a $ in_a <b> & 電影\n\x07"
DAY = 86_400_000_000
FAR = 9_000 * 365 * DAY


def segments(kinds: dict[str, list[str]], systems: tuple[str, ...] = SYSTEMS) -> pl.DataFrame:
    rows = [
        {"system": system, "segment": kind, "value": value, "targets": 10 + place, "users": 3}
        | {"ndcg@3": 0.2 - 0.01 * row, "ndcg@3_low": 0.1, "ndcg@3_high": 0.3}
        for kind, values in kinds.items()
        for row, system in enumerate(systems)
        for place, value in enumerate(values)
    ]
    return pl.DataFrame(rows)


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


# --- evaluation ---


def test_systems_have_their_values_and_intervals_the_best_on_top() -> None:
    values = {"lookback": {"ndcg@3": 0.2, "mrr@3": 0.1}, "ease": {"ndcg@3": 0.3, "mrr@3": 0.05}}
    intervals = {"lookback": {"ndcg@3": [0.15, 0.3], "mrr@3": [0.1, 0.1]}, "ease": {"ndcg@3": [0.2, 0.4]}}
    figure = figures.systems(values, intervals, ["ndcg@3", "mrr@3"]).figure
    drawn = [(trace.y[0], trace.x[0], trace.xaxis) for trace in figure.data]
    assert drawn == [
        ("ease", 0.3, "x"),
        ("lookback", 0.2, "x"),
        ("ease", 0.05, "x2"),
        ("lookback", 0.1, "x2"),
    ]
    bars = figure.data[1].error_x
    assert (bars.array[0], bars.arrayminus[0]) == pytest.approx((0.1, 0.05))
    assert figure.data[2].error_x.array == (0,), "no interval was measured"
    assert figure.layout.yaxis.ticktext == ("EASE", "<b>lookback</b>")
    assert figure.layout.yaxis.range == (1.6, -0.6), "the first row is the upper one"
    assert [title.text for title in figure.layout.annotations] == ["NDCG@3", "MRR@3"]


def test_recall_at_k_by_pencil() -> None:
    ranks = pl.DataFrame(
        {"system": ["lookback"] * 4 + ["ease"] * 4, "rank": [1.0, 2.0, 10.5, 300.0] + [5.0] * 4}
    )
    lookback, ease = figures.recall_at_k(ranks).figure.data
    at = dict(zip(lookback.x, lookback.y, strict=True))
    assert (at[1], at[2], at[200]) == (0.25, 0.5, 0.75)
    assert at[next(k for k in lookback.x if k >= 11)] == 0.75
    assert dict(zip(ease.x, ease.y, strict=True))[4] == 0
    assert ease.y[-1] == 1
    assert (lookback.name, ease.name) == ("lookback", "EASE")


def test_recall_at_k_of_nights_is_a_mean_over_user_nights() -> None:
    ranks = pl.DataFrame(
        {
            "system": ["lookback"] * 4,
            "rank": [1.0, 4.0, 2.0, 2.0],
            "night": [1, 1, 1, 2],
            "user_id": ["ann", "ann", "bob", "ann"],
        }
    )
    chart = figures.recall_at_k(ranks)
    (lookback,) = chart.figure.data
    at = dict(zip(lookback.x, lookback.y, strict=True))
    assert at[1] == pytest.approx(0.5 / 3), "one of two items in one of three user-nights"
    assert (at[2], at[4]) == (pytest.approx(2.5 / 3), pytest.approx(1))
    assert "mean over user-nights" in chart.caption


def test_values_in_order_are_lines_with_intervals() -> None:
    chart = figures.segment(segments({"history_length": ["1-4", "5-19"]}), "history_length", "ndcg@3")
    model, ease = (traces(chart.figure)[name] for name in ("lookback", "EASE"))
    assert (chart.name, chart.title) == ("by_history_length", "By history length")
    assert (model.mode, model.x, model.y) == ("lines+markers", ("1-4", "5-19"), (0.2, 0.2))
    assert ease.y == pytest.approx((0.17, 0.17))
    assert (ease.error_y.array, ease.error_y.arrayminus) == (
        pytest.approx((0.13, 0.13)),
        pytest.approx((0.07, 0.07)),
    )
    assert chart.figure.layout.xaxis.ticktext == ("1-4<br>10 targets", "5-19<br>11 targets")
    assert chart.figure.layout.xaxis.title.text == "events in the history"
    assert chart.figure.layout.yaxis.title.text == "NDCG@3"


def test_other_values_are_rows_those_with_most_targets() -> None:
    values = [f"kind {number}" for number in range(15)] + [HOSTILE]
    chart = figures.segment(segments({"user:sex & age": values}), "user:sex & age", "ndcg@3")
    drawn = traces(chart.figure)
    assert list(drawn) == [
        *("lookback", "ALS", "co-visitation", "EASE", "GRU", "ItemKNN", "popularity", "recent popularity"),
    ]
    for trace in drawn.values():
        assert trace.y == tuple(values[4:]), "no more than twelve, those with most targets"
        assert (trace.mode, trace.orientation) == ("markers", "h")
    assert drawn["GRU"].x == pytest.approx((0.16,) * 12)
    assert drawn["GRU"].error_x.array == pytest.approx((0.14,) * 12)
    axis = chart.figure.layout.yaxis
    assert axis.tickvals == axis.categoryarray == tuple(values[4:])
    assert axis.ticktext[0] == "kind 4 (14)"
    assert axis.ticktext[-1] == r"a $ in_a &lt;b&gt; &amp; 電影\n\x07 (25)", "shown as it is, not obeyed"
    assert axis.range == (11.5, -0.5), "the first value is the upper one"


def test_an_undefined_interval_is_no_bar() -> None:
    table = segments({"recency": ["under a day"]}, ("lookback",)).with_columns(
        pl.lit(float("nan")).alias("ndcg@3_low"), pl.lit(None, pl.Float64).alias("ndcg@3_high")
    )
    (trace,) = figures.segment(table, "recency", "ndcg@3").figure.data
    assert (trace.error_y.array, trace.error_y.arrayminus) == ((0,), (0,))


def test_a_system_looks_the_same_everywhere() -> None:
    kinds = {kind: ["1-4", "5+"] for kind in ("history_length", "item_category")}
    names = ("lookback", "als", "popularity")
    values = {name: {"ndcg@3": 0.1} for name in names}
    colours = [
        {trace.name: trace.marker.color for trace in chart.figure.data}
        for chart in (
            figures.systems(values, {name: {} for name in names}, ["ndcg@3"]),
            figures.segment(segments(kinds, names), "history_length", "ndcg@3"),
            figures.segment(segments(kinds, names), "item_category", "ndcg@3"),
        )
    ]
    assert colours[0] == colours[1] == colours[2]
    assert len(set(colours[0].values())) == 3


def test_no_two_systems_look_alike() -> None:
    markers = [style.system_style(row, name)["marker"] for row, name in enumerate(SYSTEMS)]
    for trait in ("color", "symbol"):
        assert len({marker[trait] for marker in markers}) == len(SYSTEMS)


def test_rolling_cuts() -> None:
    cuts = [
        Cut(f"2026-0{month}-01T00:00:00+00:00", 3, 5, {"lookback": {"ndcg@3": 0.1 * month}}, {})
        for month in (1, 2, 3)
    ]
    model, ease = figures.rolling_cuts(cuts, ["lookback", "ease"], "ndcg@3").figure.data
    assert model.x == ("2026-01-01", "2026-02-01", "2026-03-01")
    assert model.y == pytest.approx((0.1, 0.2, 0.3))
    assert ease.y == (None, None, None)


def test_learning_curve_in_the_order_of_the_shares() -> None:
    def point(fraction: float) -> LearningPoint:
        values = {"ndcg@3": fraction / 10, "hit_rate@3": fraction / 5}
        ends = {name: [value * 0.5, value * 2] for name, value in values.items()}
        return LearningPoint(fraction, 3, values, ends)

    points = [point(1.0), point(0.1), replace(point(0.3), intervals={})]
    figure = figures.learning_curve(points, ("ndcg@3", "hit_rate@3", "mrr@3")).figure
    ndcg, hits = figure.data
    assert ndcg.x == ("10 %", "30 %", "100 %")
    assert ndcg.y == pytest.approx((0.01, 0.03, 0.1))
    assert hits.y == pytest.approx((0.02, 0.06, 0.2))
    assert ndcg.error_y.array == pytest.approx((0.01, 0, 0.1))
    assert ndcg.error_y.arrayminus == pytest.approx((0.005, 0, 0.05))
    assert [title.text for title in figure.layout.annotations] == ["NDCG@3", "hit rate@3"]


@pytest.mark.parametrize("num_metrics", [0, 1, 2, 3, 5, 9])
def test_a_training_of_any_number_of_metrics(num_metrics: int) -> None:
    validated = {f"validation_metric{number}@10": [0.1, 0.2] for number in range(num_metrics)}
    table = pl.DataFrame({"epoch": [1, 2], "loss": [3.0, None], "validation_seconds": [1.0, 1.0]} | validated)
    figure = figures.training(table, 2).figure
    assert [trace.y for trace in figure.data] == [(3.0, None)] + [(0.1, 0.2)] * num_metrics
    assert len({(trace.xaxis, trace.yaxis) for trace in figure.data}) == 1 + num_metrics
    titles = [title.text for title in figure.layout.annotations]
    assert titles == ["training loss (nats)"] + [
        f"validation metric{place}@10" for place in range(num_metrics)
    ]
    assert [line.x0 for line in figure.layout.shapes] == [2] * (1 + num_metrics), "the best epoch"


# --- calibration, attention, explanations, index ---


def test_intervals_by_wilson() -> None:
    # Wilson's interval of 0 of 10 is 0 to z^2 / (n + z^2)
    low, high = style.wilson(np.array([0.0, 1.0]), np.array([10, 10]))
    np.testing.assert_allclose(low, [0, 10 / (10 + 1.96**2)], atol=1e-12)
    np.testing.assert_allclose(high, [1.96**2 / (10 + 1.96**2), 1], atol=1e-12)


def test_calibration_has_intervals() -> None:
    bins = [{"mean_predicted": 0.25, "observed": 0.0, "targets": 10}]
    part = {"error": 0.1234, "bins": bins}
    figure = figures.calibration({"top_1": part, "list": part}, 3).figure
    diagonal, bars, _, of_list = figure.data
    assert diagonal.x == diagonal.y
    assert (bars.x, bars.y, bars.text) == ((0.25,), (0,), ("10 targets",))
    assert bars.error_y.array[0] == pytest.approx(1.96**2 / (10 + 1.96**2))
    assert of_list.xaxis == "x2"
    assert [title.text for title in figure.layout.annotations] == [
        "the first recommendation: error 0.123",
        "any of the first 3: error 0.123",
    ]


def test_attention_beside_the_share_of_the_history() -> None:
    rows = [
        {"kind": kind, "value": value, "attention": 0.6, "interactions": share, "lift": 2.0}
        for kind, values in {"position": ["1", "2"], "event_type": ["view", HOSTILE]}.items()
        for share, value in zip((0.3, 0.4), values, strict=True)
    ]
    figure = figures.attention(rows).figure
    assert [(trace.name, trace.y) for trace in figure.data] == [
        ("share of attention", (0.6, 0.6)),
        ("share of the history", (0.3, 0.4)),
        ("share of attention", (0.6, 0.6)),
        ("share of the history", (0.4, 0.3)),
    ]
    assert figure.data[0].text == ("× 2.00", "× 2.00")
    assert figure.data[2].x == (HOSTILE, "view"), "the most frequent type first"
    assert figure.layout.xaxis2.ticktext == (r"a $ in_a &lt;b&gt; &amp; 電影\n\x07", "view")
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_faithfulness_of_explanations() -> None:
    area = {"area": 0.5, "low": 0.4, "high": 0.7}
    agreed = {"spearman": {"mean": 0.9, "low": 0.8, "high": 1.0}, "deletion": area, "insertion": area}
    without = agreed | {"spearman": {"mean": None, "low": None, "high": None}}
    figure = figures.because({"balanced": agreed, "item_cosine": without}).figure
    first, undefined, deletion, *_ = figure.data
    assert (first.y, first.x, first.error_x.array) == (("balanced",), (0.9,), pytest.approx((0.1,)))
    assert (undefined.x, undefined.error_x.array) == ((None,), (0,))
    assert (deletion.x, deletion.error_x.arrayminus) == ((0.5,), pytest.approx((0.1,)))
    assert figure.layout.yaxis.ticktext == ("balanced", "item cosine")


@pytest.mark.parametrize(
    ("recall", "speed", "expected"),
    [
        ({"type": "exact"}, {"queries_per_second": 5.0}, None),
        ({"type": "exact", "recall@10": 1.0}, {}, None),
        ({"type": "exact", "recall@10": 1.0}, {"queries_per_second": 5.0}, [("exact, recall@10", 5.0, 1.0)]),
        (
            {"type": "ivf", "recall@10": 0.9, "parameters": {"nprobe": 4}},
            {"queries_per_second": 50.0, "exact_queries_per_second": 5.0},
            [("ivf, recall@10", 50.0, 0.9), ("exact, recall@10", 5.0, 1.0)],
        ),
    ],
)
def test_the_index_stands_beside_exact_search(
    recall: dict[str, Any], speed: dict[str, float], expected: list[tuple[str, float, float]] | None
) -> None:
    chart = figures.index_trade(recall, speed)
    drawn = [(trace.name, trace.x[0], trace.y[0]) for trace in chart.figure.data] if chart else None
    assert drawn == expected
    if recall["type"] == "ivf":
        assert chart is not None
        assert chart.figure.data[0].hovertemplate.startswith("nprobe 4<br>")


def test_reasons_are_read_by_row_and_column() -> None:
    weights = np.array([[1.0, -2.0, 0.5], [0.0, 0.25, 3.0]], np.float32)
    chart = figures.reasons(weights, ["old", "middle", "new"], ["first", "second"], "ann")
    (heat,) = chart.figure.data
    assert heat.x == ("1. first", "2. second")
    assert heat.y == ("old (3)", "middle (2)", "new (1)")
    assert np.array(heat.z).tolist() == weights.T.tolist()
    assert (heat.zmin, heat.zmax) == (-3, 3)


def test_what_is_recommended_against_what_is_popular() -> None:
    chart = figures.popularity(np.array([9, 0, 3]), np.array([4, 0, 0]), ["a", "b", "c"])
    items, line = chart.figure.data
    assert dict(zip(items.text, zip(items.x, items.y, strict=True), strict=True)) == {
        "a": (10, 5),
        "b": (1, 1),
        "c": (4, 1),
    }
    # 4 + 3 lists and ones over 12 + 3 events and ones: 7 / 15 of a list per event
    assert line.y == pytest.approx((7 / 15, 70 / 15))
    assert "67% of the items are in no list" in chart.caption


# --- the log ---


def log(*times: int, num_users: int = 1) -> Profile:
    """Profile of users who all have events of type "a" on item 1 at these times."""
    flat = np.tile(np.array(times, np.int64), num_users)
    offsets = np.arange(num_users + 1, dtype=np.int64) * len(times)
    one, nothing = np.ones(len(flat)), np.full(len(flat), np.nan, np.float32)
    histories = JaggedHistories(offsets, one.astype(np.int32), flat, one.astype(np.int16), nothing)
    return profile.profile(histories, ["a"], 1, timed=True)


@pytest.mark.parametrize(
    ("times", "names"),
    [
        ((0,), ["events", "distributions"]),
        ((0, 0), ["events", "distributions"]),
        ((0, 1), ["events", "distributions", "gaps"]),
        ((-1900 * 365 * DAY, FAR - 1000 * 365 * DAY), ["events", "distributions", "gaps"]),
        ((0, FAR), ["distributions", "gaps"]),
        ((-FAR, 0), ["distributions", "gaps"]),
        (tuple(DAY * day * day for day in range(100)), ["events", "distributions", "gaps"]),
    ],
)
def test_a_log_of_any_shape_can_be_drawn(times: tuple[int, ...], names: list[str]) -> None:
    charts = {
        chart.name: chart
        for chart in figures.log(log(*times, num_users=3), {"validation": times[-1], "test": None})
    }
    assert list(charts) == names
    users, items = charts["distributions"].figure.data
    assert (sum(users.y), sum(items.y)) == (3, 1)
    assert users.x[0] <= len(times) < users.x[-1] + users.width[-1]
    if "gaps" in names:
        (pairs,) = charts["gaps"].figure.data
        assert sum(pairs.y) == 3 * np.count_nonzero(np.diff(times))
    if "events" in names:
        (events,) = charts["events"].figure.data
        days = np.array(events.width) / 86_400_000
        assert float(np.dot(events.y, days)) == pytest.approx(3 * len(times)), "events a day times days"
        assert len(events.y) <= figures.MAX_BARS
        (boundary,) = charts["events"].figure.layout.shapes
        assert np.datetime64(boundary.x0, "us").astype(int) == times[-1]
        assert [note.text for note in charts["events"].figure.layout.annotations] == ["validation"]


def test_days_are_averaged_where_there_are_many() -> None:
    times = log(*(DAY * day for day in range(2 * figures.MAX_BARS))).times
    assert times is not None
    (bars,) = figures.events_over_time(times.days, {}).figure.data
    assert bars.y == (1,) * figures.MAX_BARS
    assert (bars.x[0], bars.x[1]) == ("1970-01-01", "1970-01-03")
    assert set(bars.width) == {2 * 86_400_000}


def test_rare_types_are_drawn_together() -> None:
    by_type = {f"type {number}": [10 - number, 1] for number in range(9)}
    days = Days(1, ["2026-01-01", "2026-01-02"], [100, 9], by_type)
    figure = figures.events_over_time(days, {}).figure
    drawn = {trace.name: trace.y for trace in figure.data}
    assert list(drawn) == ["type 0", "type 1", "type 2", "type 3", "type 4", "other types"]
    assert np.sum([*drawn.values()], axis=0).tolist() == days.events
    assert figure.layout.barmode == "stack"


def test_a_histogram_s_bars_reach_from_edge_to_edge() -> None:
    bars = style.histogram_bars(profile.Histogram([1.0, 2.0, 8.0], [3, 4]), "events")
    assert (bars["x"], bars["width"], bars["y"]) == ([1.0, 2.0], [1.0, 6.0], [3, 4])
    assert bars["offset"] == 0
    assert bars["customdata"] == ["1 to 2", "2 to 8"]


# --- names ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user_ndcg@10", "user NDCG@10"),
        ("pessimistic_user_hit_rate@10", "pessimistic user hit rate@10"),
        ("map@5", "MAP@5"),
        ("mapped", "mapped"),
        ("item_knn", "ItemKNN"),
    ],
)
def test_names_in_their_usual_spelling(name: str, expected: str) -> None:
    assert display_name(name) == expected


def test_long_labels_are_cut() -> None:
    assert style.label("x" * 50) == "x" * (style.MAX_LABEL - 1) + "…"
