"""Off-policy estimates against the truth: coverage of their intervals over seeds, and public logs of two policies.

python tests/benchmarks/bench_off_policy.py [--seeds 2000] [--lists 2000] [--clip 5] [--spread 0.6] [--from-conditional]
python tests/benchmarks/bench_off_policy.py --open-bandit FOLDER    (obp/dataset/obd of the unpacked package obp 0.4.1)

Simulated: lists of three of six items, drawn by Plackett and Luce with a temperature; a user looks at place 1, 2, 3 with
probability 1, .7, .5 and takes what it looks at with the item's rate, so a place's reward depends on item and place alone, and
the other policy's true reward is the sum over all 120 lists. The prediction of the direct method is wrong by a fifth.
`--spread` makes the logging policy prefer items, `--from-conditional` takes its marginals from its other probabilities.
Open Bandit: each row shows one item; rows of the Thompson log judge the random policy, whose own log has the truth.
Prints tables.
"""

import argparse
import csv
import sys
import time
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from models.evaluation.off_policy import Estimate, LoggedLists, estimates  # noqa: E402
from models.evaluation.place_marginals import place_marginals  # noqa: E402

RATE = np.array([0.30, 0.25, 0.20, 0.15, 0.10, 0.05])
LOOKS = np.array([1.0, 0.7, 0.5])
PLACES = np.arange(len(LOOKS))


class Policy:
    """Lists drawn item by item in proportion to exp(worth)."""

    def __init__(self, worth: np.ndarray) -> None:
        share = np.exp(worth)
        self.lists = np.array(list(permutations(range(len(worth)), len(LOOKS))))
        above = np.cumsum(np.pad(share[self.lists], ((0, 0), (1, 0)))[:, :-1], axis=1)
        self.conditional = share[self.lists] / (share.sum() - above)
        self.chance = self.conditional.prod(axis=1)
        self.marginal = np.zeros((len(LOOKS), len(worth)))
        for place in PLACES:
            self.marginal[place] = np.bincount(self.lists[:, place], self.chance, len(worth))
        self.of_lists = self.marginal[PLACES, self.lists]
        rows, places = (index.ravel() for index in np.indices(self.lists.shape))
        self.from_conditional = place_marginals(self.conditional, rows, places).reshape(self.lists.shape)


def simulated(
    logging: Policy, evaluated: Policy, num_lists: int, rng: np.random.Generator, *, from_conditional: bool
) -> LoggedLists:
    """Lists of a policy with their rewards, to judge another."""
    drawn = rng.choice(len(logging.lists), num_lists, p=logging.chance)
    shown = logging.lists[drawn]
    rate = LOOKS[:, None] * RATE
    guess = 1.2 * rate
    return LoggedLists(
        reward=(rng.random(shown.shape) < rate[PLACES, shown]).astype(np.float64),
        logging=logging.conditional[drawn],
        evaluated=evaluated.conditional[drawn],
        logging_marginal=(logging.from_conditional if from_conditional else logging.of_lists)[drawn],
        evaluated_marginal=evaluated.marginal[PLACES, shown],
        predicted=guess[PLACES, shown],
        expected=np.tile((evaluated.marginal * guess).sum(axis=1), (num_lists, 1)),
        user=np.arange(num_lists),
    )


def coverage(arguments: argparse.Namespace) -> None:
    """Print coverage, bias and error of each estimator over seeds."""
    seeds, num_lists, clip = arguments.seeds, arguments.lists, arguments.clip
    resamples = arguments.resamples
    logging = Policy(np.linspace(arguments.spread, -arguments.spread, len(RATE)))
    evaluated = Policy(np.linspace(1.2, -1.2, len(RATE)))
    truth = float((evaluated.marginal * LOOKS[:, None] * RATE).sum())
    found: dict[str, list[Estimate]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        lists = simulated(logging, evaluated, num_lists, rng, from_conditional=arguments.from_conditional)
        for name, estimate in estimates(lists, clip=clip, num_resamples=resamples, seed=seed).items():
            if isinstance(estimate, Estimate):
                found.setdefault(name, []).append(estimate)
    print(f"truth {truth:.4f}, {num_lists} lists, clip {clip}, {seeds} seeds, {resamples} resamples")
    print(
        "| estimator | covered | bias | RMSE | effective sample | refused |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, own in found.items():
        value = np.array([estimate.value for estimate in own])
        inside = np.mean([estimate.low <= truth <= estimate.high for estimate in own])
        error = np.sqrt(np.mean((value - truth) ** 2))
        size = np.mean([estimate.effective_sample for estimate in own])
        print(
            f"| {name} | {inside:.1%} | {value.mean() - truth:+.4f} | {error:.4f} | {size:.0f} | {seeds - len(own)} |"
        )


def open_bandit(folder: Path) -> None:
    """Print the estimates of the random policy from the Thompson log, beside its own log."""
    for campaign in ("men", "women"):
        rows = {policy: _rows(folder / policy / campaign / f"{campaign}.csv") for policy in ("bts", "random")}
        clicked, propensity, item = rows["bts"]
        own = rows["random"][0]
        spread = 1.96 * own.std() / np.sqrt(len(own))
        print(
            f"{campaign}: own log of the random policy {own.mean():.4f} ± {spread:.4f}, {len(clicked)} rows"
        )
        num_items = int(max(item.max(), rows["random"][2].max())) + 1
        ones, uniform = np.ones_like(clicked), np.full_like(clicked, 1 / num_items)
        logging, evaluated = propensity[:, None], uniform[:, None]
        guess = (ones * clicked.mean())[:, None]
        lists = LoggedLists(
            clicked[:, None],
            logging,
            evaluated,
            logging,
            evaluated,
            guess,
            guess,
            np.arange(len(clicked)),
        )
        for name, estimate in estimates(lists).items():
            if name.endswith("place"):
                print(f"  {name}: {estimate}")


def _rows(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """click, propensity and item of every row."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return tuple(
        np.array([float(row[name]) for row in rows]) for name in ("click", "propensity_score", "item_id")
    )  # type: ignore[return-value]


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--lists", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--clip", type=float, default=None)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--from-conditional", action="store_true")
    parser.add_argument("--open-bandit", type=Path)
    arguments = parser.parse_args()
    if arguments.open_bandit is not None:
        open_bandit(arguments.open_bandit)
        return
    started = time.monotonic()
    coverage(arguments)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
