"""Codes of event types, and dislikes by weight and by value."""

import numpy as np
import polars as pl
import pytest

from features import schema
from features.histories.event_types import EventTypes


def log(*events: tuple[str | None, float | None]) -> pl.DataFrame:
    """Events of (type, value)."""
    types, values = zip(*events, strict=True)
    return pl.DataFrame(
        {schema.EVENT_TYPE: types, schema.VALUE: values},
        schema={schema.EVENT_TYPE: pl.String, schema.VALUE: pl.Float32},
    )


def test_types_without_dislikes_are_the_logs_own() -> None:
    events = log(("view", 1.0), (None, 5.0), ("buy", None))
    types = EventTypes.of(events.lazy(), {"view": 1.0, "skip": -1.0})
    assert (types.names, types.dislikes) == (["buy", "view"], None)
    assert types.codes(events).to_list() == [2, 0, 1]
    assert types.codes(events).dtype == pl.Int16


def test_a_negative_weight_makes_a_dislike() -> None:
    types = EventTypes.of(log(("like", None), ("hide", None)).lazy(), {"like": 1.0, "hide": -0.5})
    assert types.names == ["hide", "like"]
    assert types.dislikes is not None
    assert types.dislikes.tolist() == [0, 0.5, 0]


@pytest.mark.parametrize(
    ("events", "names", "codes", "dislikes"),
    [
        # ratings without a type: 2 and 1.5 are below 2.5, a missing value is no dislike
        ([(None, 3.0), (None, 2.0), (None, None), (None, 1.5)], ["dislike"], [0, 1, 0, 1], [0, 1]),
        # types have a dislike of their own; one that is a dislike already stays as it is
        (
            [("rate", 1.0), ("skip", 1.0), ("rate", 4.0), ("view", 3.0), (None, 2.0)],
            ["rate", "skip", "view", "dislike", "rate disliked"],
            [5, 2, 1, 3, 4],
            [0, 0, 2, 0, 1, 1],
        ),
    ],
)
def test_events_below_the_threshold_have_a_type_of_their_own(
    events: list[tuple[str | None, float | None]], names: list[str], codes: list[int], dislikes: list[float]
) -> None:
    table = log(*events)
    types = EventTypes.of(table.lazy(), {"rate": 1.0, "skip": -2.0, "view": 1.0}, 2.5)
    assert types.names == names
    assert types.codes(table).to_list() == codes
    assert np.asarray(types.dislikes).tolist() == dislikes


def test_counts_tell_a_threshold_that_does_nothing() -> None:
    types = EventTypes.of(log((None, 3.0), (None, 4.0)).lazy(), None, 2.5)
    assert (types.num_events, types.num_below, types.dislikes) == (2, 0, None)
    types = EventTypes.of(log((None, 3.0), (None, 4.0)).lazy(), None, 5.0)
    assert (types.num_events, types.num_below) == (2, 2)
