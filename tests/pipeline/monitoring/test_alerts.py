"""Each rule fires on its planted fault and on nothing near it."""

import datetime
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from models.histories import Int64
from pipeline.monitoring import alerts
from pipeline.monitoring.ledger import DAY, ArmSource, DeliveredExperiment, Delivery, Promise
from pipeline.monitoring.population import DayShift
from pipeline.monitoring.promise import band
from pipeline.monitoring.series import COLUMNS
from pipeline.sections import MonitorConfig

SETTINGS = MonitorConfig()
FIRST = 20_000 * DAY
"""A midnight."""


def delivery(night: int, **facts: object) -> Delivery:
    made = datetime.datetime(2026, 3, 1, 2, tzinfo=datetime.UTC) + datetime.timedelta(days=night)
    time = FIRST + night * DAY
    whole = Delivery(
        folder=f"{night:016x}",
        delivered_utc=made.isoformat(),
        log_time=time,
        before=time + 1,
        timed=True,
        features="f",
        model_version=1,
        bundle_digest="d",
        settings_digest="s",
        k=10,
        exclude_seen=True,
        users=1000,
        cold_users=100,
        short_lists=0,
        overlap=0.8,
    )
    return replace(whole, **facts)  # type: ignore[arg-type]


def rules(nights: list[Delivery]) -> list[str]:
    return [alert.rule for alert in alerts.of_lists(nights, SETTINGS)]


def test_shares_are_compared_with_the_median_of_earlier_nights() -> None:
    nights = [delivery(night, cold_users=cold) for night, cold in enumerate((90, 100, 400, 110))]
    assert rules([*nights, delivery(4, cold_users=204)]) == []
    (alert,) = alerts.of_lists([*nights, delivery(4, cold_users=206)], SETTINGS)
    assert (alert.rule, alert.value) == ("cold_users", 0.206)
    assert alert.threshold == pytest.approx(0.105 + 0.1)
    assert alert.night == "2024-10-08T00:00:00+00:00"
    assert rules([*nights, delivery(4, short_lists=51)]) == ["short_lists"]
    assert rules([delivery(0), delivery(1, cold_users=900)]) == [], "one earlier night is no norm"


def test_lists_that_do_not_change_alert_on_the_second_night() -> None:
    assert rules([delivery(0), delivery(1), delivery(2, overlap=1.0)]) == []
    assert rules([delivery(0), delivery(1, overlap=0.9995), delivery(2, overlap=1.0)]) == ["unchanged_lists"]
    assert rules([delivery(0), delivery(1, overlap=None), delivery(2, overlap=1.0)]) == []


def test_the_band_is_that_of_one_further_night() -> None:
    """Nights 0.1, 0.2, 0.3: mean 0.2, s = 0.1; t of 2 degrees of freedom at 0.975 is 4.303; 0.1 * sqrt(4 / 3) = 0.1155."""
    limits = band(Promise("ndcg@10", (0.1, 0.2, 0.3)), 0.95)
    assert limits == pytest.approx((0.2 - 4.3027 * 0.11547, 0.2 + 4.3027 * 0.11547), abs=1e-4)
    assert band(Promise("ndcg@10", (0.1,)), 0.95) is None


def realised(*values: float) -> pl.DataFrame:
    rows = [
        {
            "log_time": FIRST + night * DAY,
            "window_days": 1.0,
            "system": "delivered",
            "metric": "ndcg@10",
            "value": value,
        }
        for night, value in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=COLUMNS)


def test_reality_below_the_promise_two_nights_in_a_row() -> None:
    promise = {"1": Promise("ndcg@10", (0.19, 0.2, 0.2, 0.21))}
    low, _ = band(promise["1"], SETTINGS.promise_level) or (0.0, 0.0)
    nights = [delivery(night, promise=promise) for night in range(3)]

    def below(*values: float) -> list[alerts.Alert]:
        return list(alerts.of_reality(realised(*values), nights, SETTINGS))

    assert below(0.2, 0.2, low - 0.01) == []
    assert below(low - 0.01, low - 0.01, 0.2) == []
    assert below(0.2, low + 0.001, low - 0.01) == []
    (alert,) = below(0.2, low - 0.01, low - 0.02)
    assert (alert.rule, alert.threshold) == ("below_promise_1d", low)
    assert alert.value == pytest.approx(low - 0.02)
    assert list(alerts.of_reality(realised(0.2, 0.0, 0.0), [delivery(0)], SETTINGS)) == [], "nothing promised"


def test_with_an_experiment_the_promise_is_held_against_the_arm_it_is_about() -> None:
    """The challenger's users take nothing; where no arm has the promised system, nothing was promised."""
    promise = {"1": Promise("ndcg@10", (0.19, 0.2, 0.2, 0.21))}
    arms = (ArmSource("a", 0.5, 1, "d", 9), ArmSource("b", 0.5, 2, "e", 9))
    rows = [realised(value, value).with_columns(arm=pl.lit(arm)) for arm, value in (("a", 0.2), ("b", 0.0))]
    table = pl.concat([realised(0.1, 0.1), *rows])

    def below(*arms: ArmSource) -> list[alerts.Alert]:
        run = DeliveredExperiment("e", "s", arms)
        nights = [delivery(night, promise=promise, experiment=run) for night in range(2)]
        return list(alerts.of_reality(table, nights, SETTINGS))

    assert below(*arms) == []
    assert [alert.value for alert in below(replace(arms[0], name="b"), replace(arms[1], name="a"))] == [0.0]
    assert below(arms[1]) == []


def events(*days: tuple[int, int, int]) -> tuple[Int64, Int64]:
    """(days ago, type, number) to times and types."""
    time = np.concatenate([np.full(number, FIRST - ago * DAY - 1) for ago, _, number in days])
    kind = np.concatenate([np.full(number, code) for _, code, number in days])
    return time.astype(np.int64), kind.astype(np.int64)


def test_a_type_that_vanished() -> None:
    always = [(ago, 1, 50) for ago in range(8)]
    gone = [(ago, 2, 20) for ago in range(1, 8)]
    (alert,) = alerts.of_types(["view", "like"], *events(*always, *gone), FIRST, SETTINGS)
    assert alert.rule == "vanished_type"
    assert "'like' in the last day, 20 a day" in alert.message
    rare = [(ago, 2, 9) for ago in range(1, 8)]
    assert not list(alerts.of_types(["view", "like"], *events(*always, *rare), FIRST, SETTINGS))
    assert not list(alerts.of_types(["view", "like"], *events(*always, *gone[1:]), FIRST, SETTINGS)), (
        "not daily"
    )
    assert not list(alerts.of_types(["view", "like"], *events(*always, *gone, (0, 2, 1)), FIRST, SETTINGS))


def test_a_log_that_stands_still() -> None:
    clock = datetime.datetime(2026, 3, 2, 2, tzinfo=datetime.UTC)
    (alert,) = alerts.of_growth([delivery(0)], FIRST, clock, SETTINGS)
    assert (alert.rule, alert.value) == ("idle_log", 24.0)
    assert not list(alerts.of_growth([delivery(0)], FIRST + 1, clock, SETTINGS)), "it grew"
    early = clock - datetime.timedelta(hours=5)
    assert not list(alerts.of_growth([delivery(0)], FIRST, early, SETTINGS))


def test_two_days_of_another_population() -> None:
    """The usual days differ by 0.02 at most, so the limit is the median plus the rise; where they differ more, their interval."""
    usual = [DayShift(0.1 + 0.01 * (day % 3), 0.02, 0.03) for day in range(7)]
    new = DayShift(0.5, 0.13, 0.05)

    def present(*shifts: DayShift | None) -> list[str]:
        return [alert.rule for alert in alerts.of_population(shifts, FIRST, SETTINGS)]

    assert present(new, new, *usual) == ["population_drift", "unknown_items"]
    assert present(new, usual[0], *usual) == present(usual[0], new, *usual) == []
    assert present(replace(new, items=0.45, unknown_items=0.11), new, *usual) == []
    assert present(replace(usual[0], unknown_users=0.9), replace(usual[0], unknown_users=0.2), *usual) == [
        "unknown_users"
    ]
    assert present(new, None, *usual) == present(new, new, *usual[1:], None) == [], "too few days to compare"
    (alert, _) = alerts.of_population([new, new, *usual], FIRST, SETTINGS)
    assert alert.threshold == pytest.approx(0.11 + SETTINGS.population_drift)
    assert "0.50 is the stability index of items, above 0.46 two days in a row by the 7 days" in alert.message
    wide = [DayShift(0.2 * (day % 3), 0.02, 0.03) for day in range(7)]
    assert present(replace(new, items=0.87), replace(new, items=0.89), *wide) == ["unknown_items"]
    (alert, _) = alerts.of_population([replace(new, items=0.89)] * 2 + wide, FIRST, SETTINGS)
    mean, deviation, quantile = 1.2 / 7, 0.17995, 3.7074  # of 6 degrees of freedom at 0.995
    assert alert.threshold == pytest.approx(mean + quantile * deviation * (8 / 7) ** 0.5, abs=1e-4)
