"""Training on what an older system showed: does weighting by inverse looks lead to what users would truly take?

    python tests/benchmarks/bench_exposure_weighting.py [--users 2000] [--seeds 3]

Every event is a reaction to a list of five, drawn with known propensities, with position and selection bias and without.
The same small encoder learns from each log without weights, with those of `train.exposure_weighting = "ips"`, and with the
inverse of each exposure's own propensity and look. Each user's ten best items are judged by the simulation's true rates.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from features import simulate, simulated_exposures
from features.simulation_settings import SimulationSettings
from models.encoder.encoder import AttentionRecommender
from models.evaluation.metrics import Float64
from models.histories import Float32, Histories
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.exposure_weights import (
    PlaceLooks,
    effective_share,
    inverse_looks,
    looks_at_items,
    without_chance,
)
from models.training.loop import fit

NUM_ITEMS, LISTS_PER_USER, DAY = 500, 30, 88
STEEP, LEVEL = [1.0, 0.5, 0.3, 0.2, 0.1], [1.0] * 5


@dataclass(frozen=True)
class Bias:
    """Of the older system and its users."""

    popularity: float
    known: float
    looks: list[float]


BIASES = {
    "popular items, steep looks": Bias(2.0, 0.5, STEEP),
    "the users' tastes, steep looks": Bias(0.8, 1.5, STEEP),
    "steep looks alone": Bias(0.0, 0.0, STEEP),
    "none": Bias(0.0, 0.0, LEVEL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    chosen = parser.parse_args()
    print("| log | looks found | weights | true rate of ten items | paired difference | effective share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, bias in BIASES.items():
        found = [measure(bias, chosen.users, chosen.epochs, seed) for seed in range(chosen.seeds)]
        looks = ", ".join(f"{look:.2f}" for look in np.mean([own.looks for own in found], axis=0))
        for kind in found[0].rates:
            rates = np.concatenate([own.rates[kind] for own in found])
            difference = rates - np.concatenate([own.rates["off"] for own in found])
            half = 1.96 * difference.std() / np.sqrt(len(difference))
            share = np.mean([own.shares[kind] for own in found])
            print(
                f"| {name} | {looks} | {kind} | {rates.mean():.4f} | {difference.mean():+.4f} ± {half:.4f} | {share:.2f} |",
                flush=True,
            )


@dataclass(frozen=True)
class Measured:
    """True rates [users] of each kind of weights, and the effective share of its targets."""

    looks: np.ndarray
    rates: Mapping[str, np.ndarray]
    shares: Mapping[str, float]


def readers_of(bias: Bias, num_users: int, seed: int) -> simulated_exposures.Readers:
    """Users of a simulated log who are shown lists with a bias, which stays set for further draws."""
    simulated_exposures.POPULARITY, simulated_exposures.KNOWN = bias.popularity, bias.known
    simulated_exposures.LOOKS = np.array(bias.looks)
    settings = SimulationSettings(
        num_users=num_users, num_items=NUM_ITEMS, num_events=10 * num_users, exposures=True
    )
    simulation = simulate.simulate(settings, seed)
    assert simulation.exposures is not None
    return simulation.exposures.readers


def measure(bias: Bias, num_users: int, epochs: int, seed: int) -> Measured:
    """Simulate a log, learn from it with each kind of weights, and judge the lists."""
    readers = readers_of(bias, num_users, seed)
    user = np.repeat(np.arange(num_users), LISTS_PER_USER)
    phase = np.zeros(len(user), np.int64)
    rng = np.random.default_rng((seed, 1))
    lists = simulated_exposures.draw(readers, user, np.full(len(user), DAY), phase, rng)
    places = lists.item.shape[1]
    place = np.tile(np.arange(places), len(user))
    looks = PlaceLooks.fit(
        np.repeat(user, places), lists.item.ravel() + 1, place, lists.is_taken.ravel()
    ).by_place
    row, at = np.nonzero(lists.is_taken)
    item = (lists.item[row, at] + 1).astype(np.int32)
    of_each: Float64 = looks[at] * lists.propensity[row, at]
    looked = without_chance(looks_at_items(lists.item.ravel() + 1, looks[place], NUM_ITEMS))
    ends = np.cumsum(np.bincount(user[row], minlength=num_users))
    starts = np.concatenate(([0], ends[:-1]))
    time = (row * places + at).astype(np.int64) * 1_000_000
    histories = Histories(item, time, np.ones(len(item), np.int16), starts, ends)
    kinds: dict[str, Float32 | None] = {
        "off": None,
        "ips": inverse_looks(item.astype(np.int64), looked),
        "each exposure's own": inverse_looks(np.arange(len(item)), of_each),
    }
    truth = readers.rate(np.arange(num_users), np.zeros(num_users, np.int64))
    rates = {kind: _true_rates(histories, weight, truth, epochs, seed) for kind, weight in kinds.items()}
    shares = {kind: 1.0 if weight is None else effective_share(weight) for kind, weight in kinds.items()}
    return Measured(looks, rates, shares)


def _true_rates(
    histories: Histories, weight: Float32 | None, truth: np.ndarray, epochs: int, seed: int
) -> np.ndarray:
    """[users] mean true rate of the ten best items."""
    result = fit(
        histories=replace(histories, weight=weight),
        encoder=EncoderSettings(dim=32, num_blocks=1, num_heads=1, dropout=0.1, similarity="cosine"),
        train=TrainSettings(epochs=epochs, batch_histories=32, learning_rate=0.003),
        num_items=NUM_ITEMS,
        num_event_types=1,
        max_length=50,
        seed=seed,
        max_steps=epochs * max(1, round(len(histories) / 32)),
    )
    items, _ = AttentionRecommender(result.model).recommend(histories, 10, exclude_seen=False)
    return np.asarray(np.take_along_axis(truth, items.astype(np.int64) - 1, 1).mean(axis=1))


if __name__ == "__main__":
    main()
