"""The demo log is what it says it is: the same bytes, the sizes and shares asked for, and the structure that was planted."""

import csv
import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import simulate
from features.simulate import BAD_KINDS, FIRST_DAY, Simulation
from features.simulation_settings import SimulationSettings

SETTINGS = SimulationSettings(num_users=600, num_items=500, num_events=24_000)
FILES = ("events.csv", "items.csv", "truth.parquet")


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate.simulate(SETTINGS, seed=0)


@pytest.fixture(scope="module")
def demo() -> Simulation:
    return simulate.simulate(SimulationSettings(), seed=0)


@pytest.fixture(scope="module")
def truth(simulation: Simulation) -> pl.DataFrame:
    """The truth with what can be worked out from the items."""
    own = simulation.items.select("item_id", own_topic=pl.col("categories").list.last())
    return simulation.truth.join(own, on="item_id").join(simulation.births, on="item_id").sort("row")


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        simulate.write(simulate.simulate(SETTINGS, seed), tmp_path / name)
        digests.append([hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for file in FILES])
    assert digests[0] == digests[1]
    assert all(one != other for one, other in zip(digests[0], digests[2], strict=True))


def test_sizes_are_those_asked_for(simulation: Simulation) -> None:
    assert len(simulation.events) == len(simulation.truth) == SETTINGS.num_events
    assert simulation.events["user_id"].n_unique() == SETTINGS.num_users
    assert simulation.events["user_id"].value_counts()["count"].to_numpy().min() >= 5
    assert len(simulation.items) == SETTINGS.num_items == simulation.items["item_id"].n_unique()
    assert simulation.items["title"].n_unique() == SETTINGS.num_items
    bought = simulation.events.drop_nulls("value").join(simulation.items, on="item_id")
    assert (bought["value"] == bought["price"]).all()
    assert set(simulation.events["event_type"]) == set(simulate.EVENT_TYPES)


def test_time_runs_over_the_days_asked_for(simulation: Simulation) -> None:
    time = simulation.events["timestamp"]
    assert time.is_sorted()
    assert time.dtype == pl.Datetime("us", "UTC")
    first, last = time.item(0), time.item(-1)
    assert FIRST_DAY <= first < FIRST_DAY + timedelta(days=1)
    assert timedelta(days=SETTINGS.num_days - 1) < last - FIRST_DAY < timedelta(days=SETTINGS.num_days + 1)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_share_of_noise_and_of_bad_rows(fraction: float) -> None:
    settings = replace(SETTINGS, noise_fraction=fraction, bad_row_fraction=fraction)
    made = simulate.simulate(settings, seed=3)
    assert made.truth["is_noise"].mean() == pytest.approx(fraction, abs=0.01)
    rows = len(made.events) + len(made.bad_rows)
    assert len(made.bad_rows) / rows == pytest.approx(fraction, abs=1e-4)
    assert sorted([*made.truth["row"], *made.bad_rows["row"]]) == list(range(1, rows + 1))


def test_the_file_holds_every_event_and_every_bad_row_where_the_truth_says(
    simulation: Simulation, tmp_path: Path
) -> None:
    simulate.write(simulation, tmp_path)
    with (tmp_path / "events.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["user_id", "item_id", "timestamp", "event_type", "value"]
    for event in simulation.truth.head(500).iter_rows(named=True):
        user_id, item_id, timestamp, *_ = rows[event["row"] - 1]
        assert (user_id, int(item_id)) == (event["user_id"], event["item_id"])
        assert timestamp == event["timestamp"].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert set(simulation.bad_rows["kind"]) == set(BAD_KINDS)
    for bad in simulation.bad_rows.iter_rows(named=True):
        assert _is_bad(rows[bad["row"] - 1], bad["kind"]), bad
    assert pl.read_parquet(tmp_path / "truth.parquet").equals(simulation.truth)
    items = pl.read_csv(tmp_path / "items.csv").with_columns(
        pl.col("categories").str.split("|"), pl.col("price").cast(pl.Float32)
    )
    assert items.equals(simulation.items)


def _is_bad(fields: list[str], kind: str) -> bool:
    return {
        "missing_user": len(fields) == 5 and fields[0] == "",
        "missing_item": len(fields) == 5 and fields[1] == "",
        "unparseable_time": len(fields) == 5 and not fields[2][0].isdigit(),
        "impossible_time": len(fields) == 5 and fields[2] > "2100",
        "truncated": len(fields) == 2,
        "extra_fields": len(fields) == 7,
        "junk": len(fields) == 1,
    }[kind]


def test_real_events_are_on_the_intents_topic_and_noise_is_anywhere(truth: pl.DataFrame) -> None:
    on_topic = truth.group_by("is_noise").agg((pl.col("own_topic") == pl.col("topic")).mean().alias("share"))
    share = dict(on_topic.iter_rows())
    assert share[False] == 1.0
    assert share[True] < 0.3  # six topics here


def test_noise_has_the_event_types_of_the_rest(simulation: Simulation) -> None:
    typed = simulation.events.with_columns(simulation.truth["is_noise"])
    views = (
        typed.group_by("is_noise")
        .agg((pl.col("event_type") == "view").mean().alias("share"))
        .sort("is_noise")
    )
    assert views["share"][0] == pytest.approx(views["share"][1], abs=0.04)


def test_intents_are_short_and_return_to_topics_that_the_user_left(truth: pl.DataFrame) -> None:
    intents = truth.group_by("user_id", "intent").agg(
        pl.len(),
        pl.col("topic").first(),
        pl.col("topic").n_unique().alias("topics"),
        pl.col("returns").first(),
    )
    assert intents["topics"].max() == 1
    assert intents["len"].mean() == pytest.approx(simulate.INTENT_EVENTS, rel=0.1)
    intents = intents.sort("user_id", "intent").with_columns(
        seen=pl.int_range(pl.len()).over("user_id", "topic") > 0,
        moved=pl.col("topic") != pl.col("topic").shift().over("user_id"),
    )
    assert (intents["seen"] == intents["returns"]).all()
    assert (
        intents.filter(pl.col("intent") >= 5).select((pl.col("seen") & pl.col("moved")).mean()).item() > 0.4
    )


def test_users_keep_to_two_or_three_tastes(demo: Simulation) -> None:
    tastes = demo.truth.filter("is_taste").group_by("user_id").agg(pl.len(), pl.col("category").n_unique())
    assert set(tastes["category"]) == {1, 2, 3}
    assert tastes.filter(pl.col("len") >= 30).select((pl.col("category") >= 2).mean()).item() > 0.95
    assert demo.truth["is_taste"].to_numpy().mean() > 0.95


def test_items_are_born_and_fade(truth: pl.DataFrame) -> None:
    assert (truth["timestamp"] >= truth["born"]).all()
    shares = []
    for born_before in (True, False):
        is_new = pl.col("born") >= FIRST_DAY
        events = truth.filter(~pl.col("is_noise") & (~is_new if born_before else is_new))
        late = events.select((pl.col("timestamp") > FIRST_DAY + timedelta(days=60)).mean()).item()
        shares.append(late)
    assert shares[0] < shares[1] - 0.1


def test_few_events_of_the_last_days_are_on_items_that_came_out_in_them(demo: Simulation) -> None:
    events = demo.events.join(demo.births, on="item_id").sort("timestamp")
    for share, most in ((0.1, 0.06), (0.2, 0.12)):
        last = events.tail(round(share * len(events)))
        newborn = (last["born"] >= last["timestamp"].item(0)).to_numpy().mean()
        assert 0.01 < newborn < most


def test_popularity_is_zipf_like(demo: Simulation) -> None:
    counts = demo.events["item_id"].value_counts(sort=True)["count"].to_numpy().astype(float)
    assert counts[: len(counts) // 5].sum() > 0.45 * counts.sum()
    slope = np.polyfit(np.log(np.arange(10, 1000)), np.log(counts[10:1000]), 1)[0]
    assert -1.2 < slope < -0.4


def test_a_drift_changes_the_log_from_its_day_on_alone(simulation: Simulation) -> None:
    drifted = simulate.simulate(replace(SETTINGS, drift_day=60), seed=0)
    day = pl.lit(FIRST_DAY + timedelta(days=60))
    (before, after), (usual_before, usual) = (
        (made.truth.filter(pl.col("timestamp") < day), made.truth.filter(pl.col("timestamp") >= day))
        for made in (drifted, simulation)
    )
    assert before.drop("row").equals(usual_before.drop("row"))
    assert before["row"].to_list() == usual_before["row"].to_list()
    assert after["timestamp"].to_list() == usual["timestamp"].to_list()
    assert (after["item_id"] == usual["item_id"]).mean() < 0.3  # type: ignore[operator]
    popular, popular_as_usual = (
        before.group_by("item_id").len("before").join(part.group_by("item_id").len("after"), on="item_id")
        for part in (after, usual)
    )
    assert popular.select(pl.corr("before", "after")).item() < 0.5
    assert popular_as_usual.select(pl.corr("before", "after")).item() > 0.6
    assert drifted.births["born"].max() == FIRST_DAY + timedelta(days=60)
    assert favourite(before).join(favourite(after), on=["user_id", "topic"]).height < 0.8 * (
        favourite(before).join(favourite(usual), on=["user_id", "topic"]).height
    )


def favourite(truth: pl.DataFrame) -> pl.DataFrame:
    """Each user's most frequent topic."""
    counts = truth.group_by("user_id", "topic").len().sort("user_id", "len", "topic")
    return counts.group_by("user_id").last().select("user_id", "topic")


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_users": 0}, {"num_items": 10}, {"num_events": 100}, {"num_days": 1}, {"noise_fraction": 1.0}),
        {"drift_day": 90},
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"simulate.{next(iter(changes))}: received"):
        replace(SETTINGS, **changes)
