"""Read-out of an experiment: by pencil, no verdict before the planned end, and A/A tests that call a difference in 5 %."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from pipeline.experiment_section import ExperimentConfig
from pipeline.monitoring import experiment, past_nights
from pipeline.monitoring.experiment import Readout, read_out
from pipeline.monitoring.ledger import DAY
from pipeline.monitoring.series import Bootstrap
from pipeline.serving.assignment import Assignment
from tests.benchmarks.bench_experiments import campaign
from tests.pipeline.monitoring import simulated_outcomes
from tests.pipeline.monitoring.simulated_outcomes import FIRST, delivery, outcomes

HALVES = Assignment("salt", {"champion": 0.5, "challenger": 0.5})
BOOTSTRAP = Bootstrap(200, 0)
RUN = simulated_outcomes.experiment("e", HALVES)


def settings(smallest_effect: float = 0.05, assignment: Assignment = HALVES) -> ExperimentConfig:
    return ExperimentConfig(
        name="e",
        arms=dict(assignment.shares),
        salt=assignment.salt,
        start="2024-01-01",
        smallest_effect=smallest_effect,
    )


def readout_of(table: pl.DataFrame, nights: range, smallest_effect: float = 0.05) -> Readout:
    found = read_out(table, [delivery(night, RUN) for night in nights], settings(smallest_effect), BOOTSTRAP)
    assert found is not None
    return found


def rows_of(*rows: tuple[int, int, str, int, Sequence[int], int]) -> pl.DataFrame:
    """Outcomes from (night, user, arm, taken, places, list length)."""
    whole = outcomes(np.random.default_rng(0), 20, range(1), HALVES).head(1)
    return pl.concat(
        whole.with_columns(
            log_time=pl.lit(FIRST + night * DAY).cast(whole.schema["log_time"]),
            user_id=pl.lit(user, pl.Int64),
            arm=pl.lit(arm),
            folder=pl.lit(f"{night:016x}"),
            taken=pl.lit(taken, pl.Int32),
            places=pl.lit(list(places), pl.List(pl.Int32)),
            list_length=pl.lit(length, pl.Int32),
        )
        for night, user, arm, taken, places, length in rows
    )


def test_rates_and_differences_by_pencil() -> None:
    """Champion: 1 took the first item, 2 nothing, 1 again nothing: 1/3. Challenger: 3 took the first twice, 4 had no list: 2/3.

    Every NDCG is 1 or 0, as a user took one item.
    """
    table = rows_of(
        (0, 1, "champion", 1, [1], 10),
        (0, 2, "champion", 1, [], 10),
        (1, 1, "champion", 1, [], 10),
        (0, 3, "challenger", 1, [1], 10),
        (1, 3, "challenger", 1, [1], 10),
        (1, 4, "challenger", 1, [], 0),
    )
    found = readout_of(table, range(2))
    assert (found.nights, found.metric, found.window_days) == (2, "ndcg@10", 1.0)
    assert found.sample_ratio_p is None, "two users of each are too few"
    for row in found.rows:
        value, difference = {"champion": (1 / 3, None), "challenger": (2 / 3, 1 / 3)}[row.arm]
        assert row.value == pytest.approx(value)
        assert row.difference == (None if difference is None else pytest.approx(difference))
        assert (row.users, row.verdict) == (2, None)
    assert [(row.metric, row.arm) for row in found.rows] == [
        (metric, arm) for metric in ("hit_rate@10", "ndcg@10") for arm in HALVES.shares
    ]


def test_the_plan_is_that_of_the_nights_before() -> None:
    random = np.random.default_rng(1)
    before, during = outcomes(random, 1000, range(6)), outcomes(random, 1000, range(6, 9), HALVES)
    found = readout_of(pl.concat([before, during]), range(6, 9), 0.15)
    past = past_nights.of_outcomes(before, "ndcg")
    assert past is not None
    assert found.plan is not None
    assert (found.plan.nights_before, found.plan.users) == (6, past.variance.users)
    assert found.plan.effect == pytest.approx(0.15 * past.variance.mean)
    nights = found.plan.nights
    assert nights is not None
    enough, fewer = (
        past.variance.smallest_effect(found.plan.users, number) for number in (nights, nights - 1)
    )
    assert enough <= found.plan.effect < fewer
    assert found.sentence.startswith(
        f"no verdict before the planned end: 3 of {nights} nights, with which a "
    )


def test_without_nights_before_the_first_two_plan() -> None:
    table = outcomes(np.random.default_rng(2), 800, range(5), HALVES)
    first = readout_of(table.filter(pl.col("folder") == f"{0:016x}"), range(1))
    assert (first.plan, first.sentence) == (
        None,
        "no verdict yet: its nights are planned after two judged ones",
    )
    plans = {
        readout_of(table.filter(pl.col("folder") <= f"{last:016x}"), range(5)).plan for last in (1, 2, 4)
    }
    assert len(plans) == 1, "later nights do not change it"


def test_a_verdict_stands_from_the_planned_end_on() -> None:
    """A gain of a third of the value is shown; nights after the end, with the gain turned round, change nothing."""
    random = np.random.default_rng(3)
    past = outcomes(random, 1500, range(5))
    during = outcomes(random, 1500, range(5, 9), HALVES, gain={"challenger": 0.1})
    effect = 0.25
    plan = readout_of(pl.concat([past, during]), range(5, 9), effect).plan
    assert plan is not None
    assert plan.nights is not None
    assert 1 < plan.nights <= 4
    for nights in range(1, 5):
        part = during.filter(pl.col("folder") < f"{5 + nights:016x}")
        found = readout_of(pl.concat([past, part]), range(5, 5 + nights), effect)
        verdicts = {(row.metric, row.arm): row.verdict for row in found.rows if row.verdict is not None}
        over = nights >= plan.nights
        assert verdicts == ({("ndcg@10", "challenger"): "better"} if over else {})
        assert found.nights == min(nights, plan.nights)
    assert found.sentence == f"after the planned {plan.nights} nights in ndcg@10, challenger: better"
    later = outcomes(random, 1500, range(9, 30), HALVES, gain={"champion": 0.3})
    assert readout_of(pl.concat([past, during, later]), range(5, 30), effect) == found


def test_an_effect_that_no_number_of_nights_shows() -> None:
    table = outcomes(np.random.default_rng(4), 300, range(4))
    during = outcomes(np.random.default_rng(5), 300, range(4, 6), HALVES)
    found = readout_of(pl.concat([table, during]), range(4, 6), 0.001)
    assert found.plan is not None
    assert found.plan.nights is None
    assert "no number of nights shows a difference of 0.0" in found.sentence
    assert "raise experiment.smallest_effect, and see lookback power" in found.sentence


def test_another_sample_ratio_than_asked_for_is_an_alert_and_no_verdict() -> None:
    """A quarter of the challenger's users vanish."""
    random = np.random.default_rng(6)
    table = outcomes(random, 1200, range(6), HALVES)
    whole = readout_of(table, range(6), 0.25)
    assert whole.sample_ratio_p is not None
    assert whole.sample_ratio_p > 0.001
    assert whole.alerts("2024-10-04T00:00:00+00:00") == []
    assert whole.sentence.startswith("after the planned ")
    skewed = table.filter((pl.col("arm") == "champion") | (pl.col("user_id") % 4 > 0))
    found = readout_of(skewed, range(6), 0.25)
    assert {row.verdict for row in found.rows} == {None}
    assert found.sentence == "no verdict: the arms do not have the users asked for"
    (alert,) = found.alerts("2024-10-04T00:00:00+00:00")
    assert (alert.rule, alert.threshold) == ("sample_ratio", 0.001)
    assert alert.value == found.sample_ratio_p
    assert alert.value < 0.001
    assert "the arms of 'e' have active users champion " in alert.message


def test_the_ratio_by_pencil() -> None:
    """60 and 40 where halves are asked for: chi-square 100 / 50 + 100 / 50 = 4, p = .0455."""
    users = pl.DataFrame({"arm": ["champion"] * 60 + ["challenger"] * 40, "user_id": range(100)})
    twice = pl.concat([users, users])
    assert experiment.sample_ratio(twice, HALVES.shares) == pytest.approx(0.0455, abs=5e-5)
    assert experiment.sample_ratio(users.head(9), HALVES.shares) is None


def test_a_model_that_changed_in_the_middle_is_named_and_other_experiments_do_not_count() -> None:
    table = outcomes(np.random.default_rng(7), 200, range(3), HALVES)
    later = simulated_outcomes.experiment("e", HALVES, challenger=5)
    entered = [delivery(0, replace(RUN, name="before")), delivery(1, RUN), delivery(2, later)]
    found = read_out(table, entered, settings(), BOOTSTRAP)
    assert found is not None
    assert found.versions == {"champion": [1], "challenger": [2, 5]}
    assert found.cautions == ["challenger was made by several models: versions 2, 5"]
    assert found.nights == 2
    assert found.plan is not None
    assert found.plan.nights_before == 0, "one night before is not enough"
    assert read_out(table, entered[:1], settings(), BOOTSTRAP) is None


@pytest.mark.slow
def test_a_a_tests_call_a_difference_in_5_percent() -> None:
    """Of 100, within what chance allows at 99.9 %; the sample ratio alerts in none."""
    found = campaign(dict(HALVES.shares), 0.2, tests=100, users=1500, resamples=500)
    low, high = binom.ppf([0.0005, 0.9995], 100, 0.05)
    assert low <= found.differences <= high
    assert found.ratios == 0
