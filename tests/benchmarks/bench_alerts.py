"""How often do alerts come on stable nights, and how soon after a drift?

python tests/benchmarks/bench_alerts.py [--nights N] [--fortnights N] [--users N]… [--seed N] [--set key=value]…

Simulated logs (`simulated_nights.py`): lists by counts, judged by the monitor's functions, alerts by its rules with the
settings of `[monitor]`. 1. Stable nights, N for each number of users: nights with an alert, by rule. 2. Fortnights with a
drift before the fifth night: nights up to the first alert on population or promise. Prints tables.
"""

import argparse
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.sections import MonitorConfig
from tests.pipeline.monitoring import simulated_nights

LIVE_NIGHTS = 50
"""Nights with alerts of one simulated log."""
DRIFT_NIGHT = 5


def stable(users: int, nights: int, seed: int, rules: MonitorConfig) -> str:
    """Row of the table of stable nights."""
    seeds = range(seed, seed - (-nights // LIVE_NIGHTS))
    number, alarms, by_rule = simulated_nights.false_alarms(users, seeds, LIVE_NIGHTS - 1, rules)
    named = ", ".join(f"{rule} {count}" for rule, count in by_rule.most_common()) or "–"
    return f"| {users:,} | {number:,} | {alarms} | {alarms / number:.2%} | {named} |"


def drifted(users: int, fortnights: int, seed: int, rules: MonitorConfig) -> str:
    """Row of the table of fortnights with a drift."""
    took, by_rule = Counter[int](), Counter[str]()
    for number in range(seed, seed + fortnights):
        night, own = simulated_nights.nights_to_alert(users, number, DRIFT_NIGHT, rules)
        took[night] += 1
        by_rule.update(own)
    named = ", ".join(f"{rule} {count}" for rule, count in by_rule.most_common())
    later = sum(count for night, count in took.items() if night > 2)
    return f"| {users:,} | {fortnights} | {took[1]} | {took[2]} | {later} | {took[0]} | {named} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--fortnights", type=int, default=5)
    parser.add_argument("--users", type=int, action="append")
    parser.add_argument("--seed", type=int, default=0, help="of the first log")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    rules = MonitorConfig(**tomllib.loads("\n".join(arguments.set)))
    started = time.monotonic()
    print("| users | stable nights | with an alert | share | by rule |\n| --- | --- | --- | --- | --- |")
    for users in arguments.users or [300]:
        print(stable(users, arguments.nights, arguments.seed, rules), flush=True)
    print(
        "\n| users | fortnights | alert in the first night | in the second | later | none | rules of the first alert |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for users in arguments.users or [300]:
        print(drifted(users, arguments.fortnights, arguments.seed, rules), flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
