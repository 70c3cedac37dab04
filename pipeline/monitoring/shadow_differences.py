"""Differences of the delivered lists from those of shadows, paired by user and night."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.evaluation.comparison import SystemComparison
from pipeline.artifacts.files import read_record, write_json
from pipeline.monitoring.ledger import Delivery
from pipeline.monitoring.outcome_files import Key, OutcomeFiles
from pipeline.monitoring.series import COMPARED, Bootstrap, metrics_of
from pipeline.sections import DELIVERED

FOLDER = "paired"
RECORD = "paired.json"


@dataclass(frozen=True)
class ShadowDifference:
    """Delivered lists minus those of a shadow, over the same active users of the nights with both."""

    shadow: str
    window_days: float
    metric: str
    nights: int
    users: int
    difference: float
    low: float
    high: float
    p_holm: float | None
    """Paired bootstrap, adjusted for the number of shadows (Holm 1979)"""
    verdict: str


@dataclass(frozen=True)
class PairedSums:
    """Sums by user over the nights of one window whose lists, delivered and by all shadows, are compared.

    A night adds to the sums of those before, so it costs the same after a year.
    """

    days: float
    k: int
    """Length of the lists"""
    shadows: tuple[str, ...]
    nights: tuple[int, ...]
    """Nights of the window, microseconds since the epoch"""
    num_compared: int
    """Of them, nights that have the lists of every system"""
    table: pl.DataFrame
    """user_id, nights, and SYSTEM/METRIC: sums over the user's nights"""

    @classmethod
    def load(cls, artifact: Path) -> list["PairedSums"]:
        """Sums of a monitor's artifact."""
        entries: dict[str, Any] = read_record(artifact / RECORD)
        return [
            cls(
                own["days"],
                own["k"],
                tuple(own["shadows"]),
                tuple(own["nights"]),
                own["num_compared"],
                pl.read_parquet(artifact / FOLDER / file),
            )
            for file, own in entries.items()
        ]

    @classmethod
    def save(cls, artifact: Path, windows: Sequence["PairedSums"]) -> None:
        """Write the sums of all windows."""
        entries = {}
        for own in windows:
            file = f"{own.days:g}d.parquet"
            (artifact / FOLDER).mkdir(exist_ok=True)
            own.table.write_parquet(artifact / FOLDER / file)
            entries[file] = {name: value for name, value in vars(own).items() if name != "table"}
        write_json(artifact / RECORD, entries)

    @classmethod
    def of_files(
        cls, files: OutcomeFiles, changed: Collection[Key], before: Sequence["PairedSums"]
    ) -> list["PairedSums"]:
        """Sums of each window whose newest night has shadows, over the nights with lists of its length by all of them.

        changed: nights and windows to read; the others are in `before`, whose sums go on if they are of the same systems and none
        of their nights has changed.
        """
        keys, windows = files.all_keys(), []
        for days in sorted({days for _, days in keys}):
            nights = tuple(night for night, own in keys if own == days)
            newest = files.read((nights[-1], days)).select("k", "system").unique()
            k = int(newest["k"].max())  # type: ignore[arg-type]
            shadows = tuple(sorted({*newest["system"]} - {DELIVERED}))
            if not shadows:
                continue
            going_on = [
                own
                for own in before
                if (own.days, own.k, own.shadows) == (days, k, shadows)
                and not any((night, days) in changed for night in own.nights)
            ]
            total, num_compared, known = None, 0, set[int]()
            for own in going_on:
                total, num_compared, known = own.table, own.num_compared, set(own.nights)
            for night in sorted({*nights} - known):
                sums = _sums(files.read((night, days)), shadows, k)
                if sums is not None:
                    total, num_compared = sums if total is None else _added(total, sums), num_compared + 1
            if total is not None:
                windows.append(cls(days, k, shadows, nights, num_compared, total.sort("user_id")))
        return windows

    @classmethod
    def of_deliveries(
        cls, files: OutcomeFiles, entered: Sequence[Delivery], days: float, shadow: str
    ) -> "PairedSums | None":
        """Sums over the nights of some deliveries, of these and one shadow alone; None where no window of so many days is over.

        Lists of another length than that of the last delivery are left out.
        """
        nights, total = sorted({delivery.log_time for delivery in entered}), None
        folders, num_compared = [delivery.folder for delivery in entered], 0
        for night in nights:
            for outcomes in files.read_if_any((night, float(days))):
                own = outcomes.filter(pl.col("folder").is_in(folders))
                sums = _sums(own, (shadow,), entered[-1].k)
                if sums is not None:
                    total, num_compared = sums if total is None else _added(total, sums), num_compared + 1
        if total is None:
            return None
        return cls(days, entered[-1].k, (shadow,), tuple(nights), num_compared, total.sort("user_id"))

    def differences(self, bootstrap: Bootstrap) -> Iterator[ShadowDifference]:
        """Delivered lists minus those of each shadow; a user's mean weighs as many nights as it is of."""
        weight = self.table["nights"].to_numpy()
        systems = (
            (name, {metric: self.table[f"{name}/{metric}"].to_numpy() / weight for metric in COMPARED})
            for name in (DELIVERED, *self.shadows)
        )
        units, weights = bootstrap.units(np.arange(len(weight))), dict.fromkeys(COMPARED, weight)
        compared = SystemComparison.of(systems, units, bootstrap.resamples, bootstrap.seed, weights)
        for shadow, paired in compared.compared(DELIVERED).items():
            for metric in COMPARED:
                one = paired[metric]
                numbers = (one.difference, one.low, one.high, one.p_bootstrap_holm, one.verdict)
                yield ShadowDifference(
                    shadow, self.days, f"{metric}@{self.k}", self.num_compared, len(weight), *numbers
                )


def _sums(outcomes: pl.DataFrame, shadows: Sequence[str], k: int) -> pl.DataFrame | None:
    """Metrics of one night: user_id, nights, and SYSTEM/METRIC, of users with lists by all systems; None without any."""
    own = outcomes.filter((pl.col("k") == k) & (pl.col("list_length") > 0)).sort("user_id")
    systems = {name: own.filter(pl.col("system") == name) for name in (DELIVERED, *shadows)}
    users = systems[DELIVERED].select("user_id")
    for name in shadows:
        users = users.join(systems[name], on="user_id", how="semi", maintain_order="left")
    if not len(users):
        return None
    columns = {"nights": np.ones(len(users))}
    for name, rows in systems.items():
        values = metrics_of(rows.join(users, on="user_id", how="semi", maintain_order="left"), by_place=False)
        columns |= {f"{name}/{metric}": values[f"{metric}@{k}"] for metric in COMPARED}
    return users.with_columns(pl.Series(name, column) for name, column in columns.items())


def _added(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Sums of two tables by user."""
    return pl.concat([one, other]).group_by("user_id").sum()
