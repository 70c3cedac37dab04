"""Shelves of the simulated older system: propensities by pencil, drawn as often, in the order of its neighbours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import simulate, simulated_shelves
from features.simulate import Simulation
from features.simulated_shelves import DEPTH, PLACES, SHOWN_DAYS, SHRINKAGE, UserEvents
from features.simulation_settings import SimulationSettings

SETTINGS = SimulationSettings(num_users=300, num_items=60, num_events=12_000, num_days=30)
DAY = 86_400


def test_places_are_drawn_as_often_as_their_propensities_say() -> None:
    available = np.full(40_000, 4)
    rank, propensity = simulated_shelves.draw_ranks(available, 3, np.random.default_rng(0))
    assert (np.sort(rank, axis=1)[:, 1:] > np.sort(rank, axis=1)[:, :-1]).all()
    share = 1 / (DEPTH + np.arange(4))
    assert propensity[:, 0] == pytest.approx((share / share.sum())[rank[:, 0]])
    left = share.sum() - share[rank[:, 0]]
    assert propensity[:, 1] == pytest.approx(share[rank[:, 1]] / left)
    assert propensity[:, 2] == pytest.approx(share[rank[:, 2]] / (left - share[rank[:, 1]]))
    for place in range(3):
        drawn = np.bincount(rank[:, place], minlength=4) / len(rank)
        weighted = np.bincount(rank[:, place], 1 / propensity[:, place], minlength=4) / len(rank)
        above = (rank[:, :place, None] == np.arange(4)).any(axis=1).mean(axis=0)
        assert weighted == pytest.approx(1 - above, abs=0.03)  # each list that can still show it counts once
        assert (drawn > 0.1).all()


def test_only_available_items_are_drawn() -> None:
    rank, propensity = simulated_shelves.draw_ranks(np.array([3, 5] * 500), 3, np.random.default_rng(0))
    assert rank[::2].max() == 2
    assert rank[1::2].max() == 4
    assert propensity[::2, 2] == pytest.approx(1)


def test_cosines_by_hand() -> None:
    """Items 0 and 1 share two of their users, 3 and 2; item 2 has one, of its own."""
    user, item = np.array([0, 1, 2, 0, 1, 3]), np.array([0, 0, 0, 1, 1, 2])
    found = simulated_shelves._cosines(user, item, 4, 3)
    near = 2 / (np.sqrt(3 * 2) + SHRINKAGE)
    assert found == pytest.approx(np.array([[0, near, 0], [near, 0, 0], [0, 0, 0]]))


def test_neighbours_of_the_users_items_stand_first() -> None:
    """User 0 has item 0, whose neighbour in the log is item 1, and comes back on day 20; item 9 is not out."""
    pairs = [(0, 0), *[(user, item) for user in range(1, 40) for item in (0, 1)]]
    pairs += [(user, item) for user in range(40, 60) for item in range(2, 10)] + [(0, 5)]
    pairs.sort(key=lambda pair: pair[0])
    user, item = np.array(pairs).T
    time = np.where((user == 0) & (item == 5), 20.5 * DAY, 0.0)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(user))))
    born = np.where(np.arange(10) == 9, 25.0 * DAY, 0.0)
    shelves = simulated_shelves.draw(
        UserEvents(offsets, item, time), born, 30, 4_000, np.random.default_rng(0)
    )
    assert set(shelves.user) == {0}
    assert set(shelves.time) == {20 * DAY + 3 * 3_600}
    first = np.bincount(shelves.item[:, 0], minlength=10) / len(shelves.item)
    assert first[0] == first[9] == 0
    share = 1 / (DEPTH + np.arange(8))
    assert first[1] == pytest.approx(share[0] / share.sum(), abs=0.02)
    assert shelves.propensity[shelves.item[:, 0] == 1, 0] == pytest.approx(share[0] / share.sum())


def test_users_with_few_items_left_are_shown_none() -> None:
    """User 0 has all items but three, user 1 all but two."""
    user, item = np.array([*[0] * 8, *[1] * 9]), np.array([*range(7), 0, *range(8), 0])
    time = np.where(np.append(user[1:] != user[:-1], True), 20.5 * DAY, 0.0)
    events = UserEvents(np.array([0, 8, 17]), item, time)
    shelves = simulated_shelves.draw(events, np.zeros(10), 30, 2, np.random.default_rng(0))
    assert shelves.user.tolist() == [0, 0]
    assert np.sort(shelves.item, axis=1).tolist() == [[7, 8, 9]] * 2


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate.simulate(replace(SETTINGS, shelves=2), seed=0)


def test_shelves_change_no_event(simulation: Simulation, tmp_path: Path) -> None:
    plain = simulate.simulate(SETTINGS, seed=0)
    assert plain.shown is None
    simulate.write(plain, tmp_path / "plain")
    simulate.write(simulation, tmp_path / "shown")
    for name in ("events.csv", "items.csv", "truth.parquet"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "shown" / name).read_bytes()
    assert not (tmp_path / "plain" / "exposures.csv").exists()
    shown = pl.read_csv(tmp_path / "shown" / "exposures.csv")
    assert simulation.shelves is not None
    assert shown["propensity"].to_list() == simulation.shelves["propensity"].to_list()


def test_visitors_of_the_last_days_are_shown_new_items_the_night_before(simulation: Simulation) -> None:
    shown = simulation.shelves
    assert shown is not None
    day = pl.col("timestamp").dt.date().alias("day")
    lists = shown.group_by("user_id", day).agg(pl.len(), pl.col("list_id").n_unique().alias("lists"))
    assert set(lists["len"]) == {2 * PLACES}
    assert set(lists["lists"]) == {2}
    visits = simulation.events.select("user_id", day).unique()
    recent = visits.filter(pl.col("day") >= simulate.FIRST_DAY.date() + pl.duration(days=30 - SHOWN_DAYS))
    assert lists.select("user_id", "day").sort("user_id", "day").equals(recent.sort("user_id", "day"))
    earlier = shown.join(simulation.events, on=["user_id", "item_id"], suffix="_taken").filter(
        pl.col("timestamp_taken") < pl.col("timestamp")
    )
    assert earlier.is_empty()
    births = shown.join(simulation.births, on="item_id")
    assert (births["born"] <= births["timestamp"]).all()


def test_weighted_reactions_estimate_what_any_list_would_have_had() -> None:
    """Of a policy that draws uniformly: the mean of weight times reaction at the first place lies within its error of the
    truth, the share of a visitor's new items that it takes until the day's end."""
    settings = SimulationSettings(num_users=400, num_items=60, num_events=8_000, num_days=30, shelves=40)
    simulation = simulate.simulate(settings, seed=1)
    assert simulation.shelves is not None
    first = simulation.shelves.filter(pl.col("rank") == 1)
    visits = first.select("user_id", "timestamp").unique()
    pairs = visits.join(simulation.births, how="cross").filter(pl.col("born") <= pl.col("timestamp"))
    taken = simulation.events.select("user_id", "item_id", at="timestamp")
    seen = visits.join(taken, on="user_id").filter(pl.col("at") < pl.col("timestamp"))
    keys = ["user_id", "timestamp", "item_id"]
    pairs = pairs.join(seen, on=keys, how="anti")
    until = pl.col("timestamp") + pl.duration(hours=21)
    reacted = visits.join(taken, on="user_id").filter(pl.col("at").is_between("timestamp", until))
    pairs = pairs.join(reacted.select(keys).unique().with_columns(reward=1.0), on=keys, how="left")
    visitors = pairs.group_by("user_id", "timestamp").agg(
        pl.len(), truth=pl.col("reward").fill_null(0).mean()
    )
    shown = first.join(pairs.select(*keys, "reward"), on=keys, how="left").join(
        visitors, on=["user_id", "timestamp"]
    )
    weight = 1 / (shown["len"] * shown["propensity"])
    weighted = (weight * shown["reward"].fill_null(0)).to_numpy()
    error = 4 / np.sqrt(len(shown))
    assert weight.mean() == pytest.approx(1, abs=error * weight.to_numpy().std())
    truth = shown["truth"].to_numpy().mean()
    assert weighted.mean() == pytest.approx(truth, abs=error * weighted.std())
    assert 0 < truth < weighted.std()
