"""Lists of the simulated older system: propensities by pencil, drawn as often, taken as often as the rates say."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import simulate, simulated_exposures
from features.simulate import Simulation
from features.simulated_exposures import (
    EVENTS_PER_LIST,
    KNOWN,
    LOOKS,
    OFTEN,
    POPULARITY,
    SELDOM,
    Exposures,
    Readers,
)
from features.simulation_settings import SimulationSettings

SETTINGS = SimulationSettings(num_users=300, num_items=50, num_events=12_000, exposures=True)
READERS = Readers(
    appeal=np.array([[2.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2),
    born=np.array([0.0, 0, 0, 0, 0, 1e9]),
    topic=np.array([0, 1, 1, 1, 1, 1]),
    item_style=np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0], [1, 0], [1, 0]]),
    is_taste=np.array([[[False, True]], [[True, False]]]),
    user_style=np.array([[1.0, 0]]),
)


def test_rates_and_worths_by_hand() -> None:
    user, phase, time = np.array([0, 0]), np.array([0, 1]), np.zeros(2)
    rate = READERS.rate(user, phase)
    assert rate[0, :4].tolist() == pytest.approx([SELDOM, SELDOM + OFTEN, SELDOM + OFTEN / 2, SELDOM])
    assert rate[1, :2].tolist() == pytest.approx([SELDOM + OFTEN, SELDOM])
    worth = READERS.worth(user, phase, time)
    assert worth[0].tolist() == [2 * POPULARITY, *[KNOWN] * 4, -np.inf]
    assert worth[1].tolist() == [2 * POPULARITY + KNOWN, 0, 0, 0, 0, -np.inf]


def test_lists_are_drawn_as_often_as_their_propensities_say_and_taken_as_often_as_looked_at() -> None:
    many, rng = np.zeros(20_000, np.int64), np.random.default_rng(0)
    lists = simulated_exposures.draw(READERS, many, many, many, rng)
    assert (np.sort(lists.item, axis=1) == np.arange(5)).all()
    share = np.exp([2 * POPULARITY, *[KNOWN] * 4])
    first = lists.propensity[:, 0]
    assert first == pytest.approx((share / share.sum())[lists.item[:, 0]])
    assert lists.propensity[:, 4] == pytest.approx(1)
    second = share[lists.item[:, 1]] / (share.sum() - share[lists.item[:, 0]])
    assert lists.propensity[:, 1] == pytest.approx(second)
    assert (lists.item[:, 0] == 0).mean() == pytest.approx(share[0] / share.sum(), abs=0.01)
    assert (1 / lists.propensity[lists.item[:, 1] == 2, 1]).sum() / len(many) == pytest.approx(
        (lists.item[:, 0] != 2).mean(), abs=0.05
    )
    taken = lists.is_taken[lists.item[:, 2] == 1, 2].mean()
    assert taken == pytest.approx(LOOKS[2] * (SELDOM + OFTEN), abs=0.02)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate.simulate(SETTINGS, seed=0)


@pytest.fixture(scope="module")
def exposures(simulation: Simulation) -> Exposures:
    assert simulation.exposures is not None
    return simulation.exposures


def test_the_log_is_the_same_up_to_the_reactions(
    simulation: Simulation, exposures: Exposures, tmp_path: Path
) -> None:
    plain = simulate.simulate(SimulationSettings(num_users=300, num_items=50, num_events=12_000), seed=0)
    assert plain.exposures is None
    assert simulation.events.equals(plain.events)
    simulate.write(simulation, tmp_path)
    with_reactions = (tmp_path / "events.csv").read_text()
    shown = pl.read_csv(tmp_path / "exposures.csv")
    assert shown.select("item_id", "rank", "propensity", "list_id").equals(
        exposures.shown.select("item_id", "rank", "propensity", "list_id")
    )
    assert shown["timestamp"][0] == exposures.shown["timestamp"][0].strftime("%Y-%m-%dT%H:%M:%SZ")
    simulate.write(plain, tmp_path)
    assert not (tmp_path / "exposures.csv").exists()
    text = (tmp_path / "events.csv").read_text()
    assert with_reactions.startswith(text)
    assert with_reactions.removeprefix(text).count("\n") == len(exposures.reactions)


def test_no_other_event_is_taken_for_a_reaction(simulation: Simulation, exposures: Exposures) -> None:
    shown = exposures.shown
    assert shown["list_id"].n_unique() == len(exposures.lists.user) == 12_000 // EVENTS_PER_LIST
    assert shown.group_by("user_id", "timestamp").len()["len"].to_list() == [5] * (len(shown) // 5)
    hour = pl.duration(hours=1)
    followed = shown.join(simulation.events, on=["user_id", "item_id"], suffix="_taken").filter(
        pl.col("timestamp_taken").is_between(pl.col("timestamp"), pl.col("timestamp") + hour)
    )
    assert followed.is_empty()
    taken = shown.join(exposures.reactions, on=["user_id", "item_id"], suffix="_taken").filter(
        pl.col("timestamp_taken").is_between(pl.col("timestamp"), pl.col("timestamp") + hour)
    )
    assert len(taken) == len(exposures.reactions) > 500
    assert exposures.lists.is_taken.sum() == len(exposures.reactions)


def test_users_have_events_on_the_mornings_of_their_lists(
    simulation: Simulation, exposures: Exposures
) -> None:
    day = pl.col("timestamp").dt.date().alias("day")
    mornings = exposures.shown.select("user_id", day).unique()
    assert mornings.join(
        simulation.events.select("user_id", day), on=["user_id", "day"], how="anti"
    ).is_empty()
