"""All rules together on simulated nights: rare where nothing changes, in time after a drift (campaign: tests/benchmarks)."""

import pytest

from pipeline.sections import MonitorConfig
from tests.pipeline.monitoring import simulated_nights


@pytest.mark.slow
def test_stable_nights_have_hardly_any_alert() -> None:
    """One in 200: of 100 nights three or more have a chance of 1 %."""
    nights, alarms, by_rule = simulated_nights.false_alarms(600, (0, 1), 49, MonitorConfig())
    assert nights == 100
    assert alarms <= 2, by_rule


@pytest.mark.slow
def test_a_drift_alerts_within_two_nights() -> None:
    for seed in (1, 2, 3):
        night, rules = simulated_nights.nights_to_alert(600, seed, 5, MonitorConfig())
        assert night in (1, 2), seed
        assert rules
