"""Read-outs of simulated experiments: how many A/A tests call a difference, and how many A/B tests find the planned one.

python tests/benchmarks/bench_experiments.py [--tests 400] [--users 3000] [--resamples 1000]

Each test draws users with chances of their own to be active and to take a listed item, five nights before the experiment and
the planned nights of it, and reads them out as the stage monitor does. Prints a table, then one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import polars as pl
from scipy.stats import binom

from models.evaluation.bootstrap import NO_DIFFERENCE
from pipeline.experiment_section import ExperimentConfig
from pipeline.monitoring.experiment import RATIO_LEVEL, Readout, read_out
from pipeline.monitoring.series import Bootstrap
from pipeline.serving.assignment import Assignment
from tests.pipeline.monitoring.simulated_outcomes import delivery, experiment, outcomes

BEFORE, NIGHTS = 5, 25
"""Nights before the experiment, and all of them."""
MEAN_CHANCE = 2 / 7
"""Of a listed item, over users of `simulated_outcomes.outcomes`."""
ARMS = {
    "half and half": {"champion": 0.5, "challenger": 0.5},
    "90 % and 10 %": {"champion": 0.9, "challenger": 0.1},
    "three arms": {"champion": 0.4, "challenger": 0.3, "popularity": 0.3},
}
EFFECTS = {"half and half": 0.15, "90 % and 10 %": 0.25, "three arms": 0.18}
"""Planned differences, as shares of the metric: a few nights show them."""


class Called(NamedTuple):
    """Tests in which the read-out calls a difference of any arm, and those whose sample ratio alerts."""

    differences: int
    ratios: int
    nights: float
    """Planned ones, mean over tests"""


def campaign(
    shares: dict[str, float],
    effect: float,
    *,
    gain: float = 0.0,
    tests: int,
    users: int,
    resamples: int,
    seed: int = 0,
) -> Called:
    """Read out so many tests at their planned end; gain: true difference of the second arm, as a share of the metric."""
    random = np.random.default_rng(seed)
    found = [_one(random, shares, effect, gain, test, users, resamples) for test in range(tests)]
    verdicts = [[row.verdict for row in one.rows if row.verdict is not None] for one in found]
    ratios = [one.sample_ratio_p for one in found]
    planned = [one.nights for one in found]
    return Called(
        sum(any(verdict != NO_DIFFERENCE for verdict in own) for own in verdicts),
        sum(p is not None and p < RATIO_LEVEL for p in ratios),
        float(np.mean(planned)),
    )


def _one(
    random: np.random.Generator,
    shares: dict[str, float],
    effect: float,
    gain: float,
    test: int,
    users: int,
    resamples: int,
) -> Readout:
    """Experiment with a salt of its own, read out after as many nights as are planned."""
    assignment = Assignment(f"salt {test}", shares)
    settings = ExperimentConfig(
        name="e", arms=shares, salt=assignment.salt, start="2024-01-01", smallest_effect=effect
    )
    run, bootstrap = experiment("e", assignment), Bootstrap(resamples, test)
    by_arm = {list(shares)[1]: gain * MEAN_CHANCE}
    whole = outcomes(random, users, range(NIGHTS), assignment, gain=by_arm, arms_from=BEFORE)
    entered = [delivery(night, run if night >= BEFORE else None) for night in range(NIGHTS)]
    found = read_out(whole, entered, settings, bootstrap)
    assert found is not None
    assert found.plan is not None
    assert found.nights == found.plan.nights, "the planned nights are over"
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tests", type=int, default=400)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--resamples", type=int, default=1000)
    chosen = parser.parse_args()
    rows = []
    for name, shares in ARMS.items():
        for gain in (0.0, EFFECTS[name]):
            started = time.perf_counter()
            one = campaign(shares, EFFECTS[name], gain=gain, **vars(chosen))
            seconds = time.perf_counter() - started
            low, high = binom.interval(0.95, chosen.tests, 0.05 if not gain else 0.8)
            rows.append(
                {"arms": name, "gain": gain, **one._asdict(), "low": low, "high": high, "seconds": seconds}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(pl.DataFrame(rows))
    print(json.dumps(vars(chosen) | {"rows": rows}))


if __name__ == "__main__":
    main()
