"""Settings of the demo log: refused where they make no sense."""

from typing import Any

import pytest

from features.simulation_settings import SimulationSettings


def test_shelves_that_make_no_sense() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shelves": -1}, "shelves"),
        ({"shelves": 101}, "shelves"),
        ({"shelves": 1, "exposures": True}, "shelves"),
        ({"shelves": 1, "num_items": 10_001}, "num_items"),
    ]
    for changes, key in cases:
        with pytest.raises(ValueError, match=rf"simulate\.{key}: received "):
            SimulationSettings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_users": 9},
        {"num_items": 49},
        {"num_events": 24_999},
        {"num_days": 1},
        {"noise_fraction": 1.0},
        {"bad_row_fraction": -0.1},
    ],
)
def test_simulation_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(ValueError, match=f"simulate.{key}: received {changes[key]}"):
        SimulationSettings(**changes)
