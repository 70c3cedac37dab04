"""`lookback power`: effects that an experiment can show, from the variance of the gate's metric over past nights.

Those are the nights of the delivered lists, judged by the stage monitor, where two or more are; else the test nights of the
evaluation.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.evaluation.metrics import metrics_of_ranks
from models.evaluation.power import LEVEL, POWER, NightlyVariance
from pipeline.artifacts.store import LATEST, linked
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError
from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import EvaluationReport
from pipeline.monitoring import outcome_files, past_nights
from pipeline.monitoring.past_nights import PastNights
from pipeline.monitoring.series import METRICS
from pipeline.orchestration.graph import finished_folder
from pipeline.reporting.text_table import aligned
from pipeline.sections import MODEL

RELATIVE = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Effects, as shares of the metric, for which the users needed are shown."""


def power(
    config: Config,
    *,
    users: int | None = None,
    days: float | None = None,
    effect: float | None = None,
    share: float = 0.5,
    as_json: bool = False,
) -> None:
    """Print the smallest effect on the gate's metric that users and days can show, and the users needed for effects.

    users, days: by default those of the past nights; effect: in the metric's unit; share: of the users in one of the two arms.
    Raises LookbackError without either, ConfigError for days under the distance of the nights.
    """
    past = _past(config)
    variance, every_days = past.variance, past.every_days
    days = variance.nights * every_days if days is None else days
    if days < every_days or not 0 < share < 1:
        raise ConfigError(
            f"power: received --days {days:g} and --share {share:g}, expected at least {every_days:.3g} days, the distance "
            "of the nights, and a share between 0 and 1"
        )
    chosen, nights = variance.users if users is None else users, days / every_days
    shown = variance.smallest_effect(chosen, nights, share)
    effects = [*(effect for effect in (effect,) if effect), *(part * variance.mean for part in RELATIVE)]
    needed = {value: variance.users_needed(value, nights, share) for value in effects if value}
    tree = {
        "metric": past.metric,
        "source": past.source,
        "value": variance.mean,
        "users": chosen,
        "days": days,
        "share": share,
        "smallest_effect": shown,
        "users_needed": [{"effect": value, "users": number} for value, number in needed.items()],
        "variance": {"between_users": variance.between, "within_user": variance.within},
        "nights_per_user_and_night": variance.rate,
    }
    print(json.dumps(tree) if as_json else _text(tree, past))


def _past(config: Config) -> PastNights:
    """Variance over the nights of delivered lists in the newest monitor, else over the test nights of the evaluation.

    The latter also where lists have another length than the gate's metric. Raises LookbackError without either.
    """
    metric = config.evaluate.gate_metric
    monitor = linked(config.folder / "monitor").get(LATEST)
    if monitor is not None:
        with contextlib.suppress(OSError, pl.exceptions.PolarsError):
            judged = pl.read_parquet(monitor / outcome_files.FOLDER)
            name, _, k = metric.partition("@")
            past = past_nights.of_outcomes(judged, name, int(k)) if name in METRICS else None
            if past is not None:
                return past
    folder = finished_folder(config, "evaluate")
    tested = EvaluationReport.load(folder).nights
    if tested is None:
        raise LookbackError(
            "power: no two nights of delivered lists are judged, and the evaluation's targets are not those of nights; expected "
            f"nights, whose variance tells: {config.command('run', 'evaluate', settings=['evaluate.targets=nightly'])}"
        )
    variance = variance_of(folder, metric, tested.number)
    return PastNights(
        metric,
        f"test nights of the evaluation, within {tested.horizon_days:g} days",
        tested.every_days,
        variance,
    )


def variance_of(folder: Path, metric: str, nights: int) -> NightlyVariance:
    """Variance of the model's metric over the user-nights of an evaluation."""
    table = pl.scan_parquet(folder / "targets.parquet").filter(pl.col("system") == MODEL)
    own = table.select("night", "user_id", "rank").collect()
    row = own.select(
        request=pl.struct("night", "user_id").rank("dense") - 1, user=pl.col("user_id").rank("dense") - 1
    )
    request = row["request"].to_numpy().astype(np.int64)
    _, first = np.unique(request, return_index=True)
    k = int(metric.rpartition("@")[2])
    value = metrics_of_ranks(own["rank"].to_numpy(), (k,), request, len(first))[metric]
    return NightlyVariance.of(value, row["user"].to_numpy().astype(np.int64)[first], nights)


def _text(tree: dict[str, Any], past: PastNights) -> str:
    name, shown, variance = display_name(past.metric), tree["smallest_effect"], past.variance
    whole = f" ({shown / variance.mean:.1%})" if variance.mean else ""
    rows = [["effect", "", "users needed"]]
    rows += [
        [
            f"{own['effect']:.5f}",
            f"{own['effect'] / variance.mean:.1%}" if variance.mean else "",
            f"{own['users']:,}",
        ]
        for own in tree["users_needed"]
    ]
    spread = f"{variance.between**0.5:.4f} between users, {variance.within**0.5:.4f} from night to night"
    planned = f"{tree['users']:,} such users for {tree['days']:g} days, {tree['share']:.0%} of them in one of two arms"
    lines = [
        f"{name} {variance.mean:.4f} at {variance.nights} nights, every {past.every_days:.3g} days ({past.source})",
        f"{variance.users:,} users, each with a value at {variance.rate:.0%} of the nights; standard deviation {spread}",
        f"{planned}: effects from {shown:.5f}{whole} show with {POWER:.0%} power at the {LEVEL:.0%} level",
        "",
        aligned(rows),
    ]
    return "\n".join(lines)
