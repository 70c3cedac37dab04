"""The profile against a log that one can count by hand, and against plain Python on random ones."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.histories.jagged import JaggedHistories
from features.profiling import profile
from features.profiling.profile import Histogram, Profile

HOUR = 3_600_000_000
DAY = 24 * HOUR
Event = tuple[int, int, int]
"""time in microseconds, item, type"""


def histories(*users: list[Event]) -> JaggedHistories:
    events = [event for user in users for event in user]
    columns = np.array(events, np.int64).reshape(-1, 3)
    offsets = np.cumsum([0, *map(len, users)]).astype(np.int64)
    nothing = np.full(len(events), np.nan, np.float32)
    return JaggedHistories(
        offsets, columns[:, 1].astype(np.int32), columns[:, 0], columns[:, 2].astype(np.int16), nothing
    )


LOG = histories(
    [(0, 1, 1), (0, 1, 2), (60_000_000, 2, 1), (HOUR, 1, 0)],
    [(2 * DAY, 2, 2)],
    [],
    [(DAY // 2, 3, 2), (2 * DAY, 2, 2)],
)


def test_by_pencil():
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=True)
    assert (found.num_events, found.num_users, found.num_items, found.num_items_with_events) == (7, 3, 5, 3)
    assert found.density == pytest.approx(5 / 9)
    assert list(found.events_by_type.items()) == [("VIEW", 4), ("LIKE", 2), ("", 1)]
    assert found.num_events_of_other_types == 0
    assert found.repeat_share == pytest.approx(2 / 7)
    assert found.immediate_repeat_share == pytest.approx(1 / 7)
    lengths = found.history_length
    assert [lengths.quantiles[name] for name in ("p0", "p50", "p100")] == [1, 2, 4]
    assert lengths.histogram == Histogram([1, 2, 4, 8], [1, 1, 1])


def test_popularity_by_pencil():
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=True).popularity
    assert found.gini == pytest.approx(4 / 21)  # of 1, 3 and 3 events
    assert found.top_shares == {
        name: pytest.approx(3 / 7) for name in ("top_1_percent", "top_10_percent", "top_20_percent")
    }
    assert found.num_items_for_80_percent == 2
    assert found.num_events.histogram == Histogram([1, 2, 4], [1, 2])


def test_times_by_pencil():
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=True).times
    assert found is not None
    assert (found.first, found.last) == ("1970-01-01T00:00:00.000000", "1970-01-03T00:00:00.000000")
    assert found.days.day == ["1970-01-01", "1970-01-03"]
    assert found.days.events == [5, 2]
    assert found.days.events_by_type == {"VIEW": [2, 2], "LIKE": [2, 0], "": [1, 0]}
    assert found.tied_share == 1 / 4
    assert (found.num_sessions, found.events_per_session, found.sessions_per_user) == (5, 7 / 5, 5 / 3)
    assert found.gap_seconds is not None
    gaps = found.gap_seconds.quantiles
    assert gaps["p0"] == 0
    assert gaps["p50"] == pytest.approx(60, rel=0.01)
    assert gaps["p75"] == pytest.approx(3540, rel=0.01)
    assert gaps["p100"] == 1.5 * 86_400
    assert sum(found.gap_seconds.histogram.counts) == 3, "the tie is not among them"
    assert found.gap_seconds.histogram.edges[0] <= 60 < found.gap_seconds.histogram.edges[1]


def test_order_alone_has_no_times():
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=False)
    assert found.times is None
    assert "tied_share" not in found.metrics()
    assert found.metrics()["num_events"] == 7


def test_users_of_one_event_have_no_gaps():
    found = profile.profile(histories([(0, 1, 0)], [(DAY, 1, 0)]), [], num_items=1, timed=True)
    assert found.times is not None
    assert found.times.gap_seconds is None
    assert found.times.tied_share == found.repeat_share == found.popularity.gini == 0
    assert found.events_by_type == {"": 2}


def test_no_events():
    with pytest.raises(ValueError, match="without events"):
        profile.profile(histories([]), [], num_items=1, timed=True)


MOMENTS = st.one_of(st.integers(0, 3 * DAY), st.sampled_from([0, HOUR // 2, HOUR // 2 + 1, DAY, DAY - 1]))
EVENTS = st.tuples(MOMENTS, st.integers(1, 5), st.integers(0, 2))
USERS = st.lists(st.lists(EVENTS, max_size=8).map(sorted), min_size=1, max_size=8).filter(any)


@given(users=USERS, block_events=st.integers(1, 20), shift=st.integers(-5, 5))
def test_against_plain_python_at_any_block_size(users: list[list[Event]], block_events: int, shift: int):
    log = histories(*([(time + shift * HOUR, item, kind) for time, item, kind in user] for user in users))
    found = profile.profile(log, ["a", "b"], num_items=7, timed=True, block_events=block_events)
    assert found == profile.profile(log, ["a", "b"], num_items=7, timed=True)
    gaps = sorted(b - a for user in users for (a, *_), (b, *_) in pairwise(user))
    pairs = {(user, item) for user, events in enumerate(users) for _, item, _ in events}
    assert found.repeat_share == pytest.approx(1 - len(pairs) / found.num_events)
    assert found.immediate_repeat_share * found.num_events == pytest.approx(
        sum(a[1] == b[1] for user in users for a, b in pairwise(user))
    )
    assert found.times is not None
    assert found.times.num_sessions == sum(map(bool, users)) + sum(gap > HOUR / 2 for gap in gaps)
    assert sum(found.times.days.events) == found.num_events
    assert all(
        sum(found.times.days.events_by_type[name]) == count for name, count in found.events_by_type.items()
    )
    if gaps:
        assert found.times.gap_seconds is not None
        exact = np.quantile(gaps, profile.QUANTILES, method="inverted_cdf") / 1e6
        assert list(found.times.gap_seconds.quantiles.values()) == pytest.approx(exact.tolist(), rel=0.01)


def test_gap_quantiles_over_all_magnitudes():
    gaps = np.exp(np.random.default_rng(0).uniform(0, 40, 3000)).astype(np.int64)  # to 7000 years
    events = [(int(time), 1, 0) for time in np.cumsum(np.concatenate([[0], gaps // 3000]))]
    times = profile.profile(histories(events), [], num_items=1, timed=True).times
    assert times is not None
    assert times.gap_seconds is not None
    exact = np.quantile(gaps // 3000, profile.QUANTILES, method="inverted_cdf") / 1e6
    assert list(times.gap_seconds.quantiles.values()) == pytest.approx(exact.tolist(), rel=0.01)


def test_is_small_whatever_the_log(tmp_path: Path):
    types = [f"type {number}" for number in range(1, 101)]
    events = [(year * 365 * DAY, 1, 1 + year % 100) for year in range(1970)]
    found = profile.profile(histories(events), types, num_items=1, timed=True)
    assert len(found.events_by_type) == profile.MAX_TYPES
    assert sum(found.events_by_type.values()) + found.num_events_of_other_types == 1970
    assert found.times is not None
    assert found.times.days.days_per_period == 20, "two thousand years in a century of periods"
    assert sum(found.times.days.events) == 1970
    found.save(tmp_path / "profile.json")
    assert (tmp_path / "profile.json").stat().st_size < 500_000


@pytest.mark.parametrize("timed", [True, False])
def test_saved_is_loaded(tmp_path: Path, *, timed: bool):
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=timed)
    found.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == found


def test_a_profile_of_an_earlier_version_is_loaded(tmp_path: Path):
    """Up to 0.6 the days had two more lists; the next night still compares with such a profile."""
    found = profile.profile(LOG, ["LIKE", "VIEW"], num_items=5, timed=True)
    found.save(tmp_path / "profile.json")
    saved = json.loads((tmp_path / "profile.json").read_text())
    saved["times"]["days"] |= {"new_users": [2, 1], "new_items": [3, 0]}
    (tmp_path / "profile.json").write_text(json.dumps(saved))
    assert Profile.load(tmp_path / "profile.json") == found


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"popularity": 1, "times": 2}'])
def test_damaged_is_named(tmp_path: Path, text: str):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match=r"profile.json: is no profile of a log"):
        Profile.load(tmp_path / "profile.json")
