"""A seeded log of baskets as csv, with its configuration: weekly visits, staples bought again when they are due, offers.

python tests/benchmarks/tools/make_baskets.py FOLDER [--users 1500] [--items 600] [--days 120] [--seed 0]

A user visits every 4 to 14 days and has 5 to 15 staples, each bought again after its own 5 to 40 days; a staple that is due is in
the basket with probability 0.7. The other lines, 3 on average, are drawn by Zipf popularity, a third of them from the 10 items on
offer in that week. All lines of a basket have its day as their time. Writes FOLDER/baskets.csv and FOLDER/baskets.toml.
"""

import argparse
from datetime import date, timedelta
from pathlib import Path

import numpy as np

FIRST_DAY = date(2026, 1, 1)
OFFERS, OFFER_SHARE, OTHER_LINES, DUE = 10, 1 / 3, 3.0, 0.7
CONFIG = """name = "baskets"

[events]
path = "{path}"
columns = {{ user_id = "user_id", item_id = "item_id", timestamp = "day" }}
timestamp_unit = "%Y-%m-%d"

[model]
dim = 64
positions = "relative"
similarity = "cosine"
time_bias = true

[ranker]
item_vectors = false
hidden = 0
"""


def main() -> None:
    """Write the log and its configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for name, default in (("users", 1500), ("items", 600), ("days", 120), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    popularity = 1 / np.arange(1, arguments.items + 1)
    popularity /= popularity.sum()
    offers = random.integers(arguments.items, size=(arguments.days // 7 + 1, OFFERS))
    lines = []
    for user in range(arguments.users):
        staples = random.choice(arguments.items, random.integers(5, 16), replace=False, p=popularity)
        period, bought = random.uniform(5, 40, len(staples)), random.uniform(-40, 0, len(staples))
        every = random.uniform(4, 14)
        day = random.uniform(0, 3 * every)
        while day < arguments.days:
            due = (day - bought > period) & (random.random(len(staples)) < DUE)
            bought[due] = day
            number = random.poisson(OTHER_LINES)
            others = random.choice(arguments.items, number, p=popularity)
            on_offer = random.random(number) < OFFER_SHARE
            others[on_offer] = random.choice(offers[int(day) // 7], int(on_offer.sum()))
            stamp = FIRST_DAY + timedelta(days=int(day))
            basket = np.unique(np.concatenate([staples[due], others]))
            lines += [f"u{user},i{item},{stamp}\n" for item in basket.tolist()]
            day += every * random.uniform(0.7, 1.3)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "baskets.csv"
    path.write_text("user_id,item_id,day\n" + "".join(lines))
    (arguments.folder / "baskets.toml").write_text(CONFIG.format(path=path))
    print(f"{len(lines):,} lines of {arguments.users:,} users")


if __name__ == "__main__":
    main()
