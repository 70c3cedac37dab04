"""The served model: histories as items or events, rules as parameters, and the requests that it refuses."""

import json
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from pipeline.serving.bundle import Bundle
from pipeline.serving.event_lists import SECOND, EventList
from pipeline.serving.pyfunc import Recommender
from tests.factories import small_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("served")
    small_bundle(folder)
    return Recommender(Bundle.open(folder))


def asked(model: Recommender, history: list[Any], **params: Any) -> list[list[str]]:
    answer: list[list[str]] = model.predict(pd.DataFrame({"history": history}), params)["item_id"].tolist()
    return answer


def test_events_have_the_log_s_times_and_types_in_any_order(model: Recommender) -> None:
    bundle = model._bundle
    events = [
        {"item_id": "i2", "timestamp": 1},
        {"item_id": "new", "timestamp": 1},
        {"item_id": "i1", "timestamp": 0},
    ]
    rows = [
        EventList.of([*events, {"item_id": "i3", "timestamp": 2}]),
        EventList.of(["i4"]),
        EventList.of(None),
    ]
    histories, unknown = bundle.from_events(rows)
    assert unknown == 1
    assert histories.item_index.tolist() == [1, 2, 3, 4]
    assert histories.time.tolist() == [0, 1, 2, bundle.newest]
    assert histories.lengths.tolist() == [3, 1, 0]
    bundle.description["event_types"] = ["view", "like"]
    typed = [
        {"item_id": "i1", "event_type": "like"},
        {"item_id": "i2"},
        {"item_id": "i3", "event_type": "other"},
    ]
    histories, _ = bundle.from_events([EventList.of(typed)])
    bundle.description["event_types"] = []
    assert histories.event_type.tolist() == [2, 0, 0]
    assert histories.time.tolist() == [5 - 2 * SECOND, 5 - SECOND, 5]
    late = EventList.of([{"item_id": "i1", "timestamp": "1970-01-02"}])
    assert late.times == [86_400 * SECOND]
    requested = bundle.from_events([late, EventList.of(["i1"])])[0].request_time
    assert requested is not None
    assert requested.tolist() == [86_400 * SECOND, 5]


def test_a_user_s_events_give_the_user_s_list(model: Recommender) -> None:
    events = [
        [{"item_id": f"i{n}", "timestamp": n - 1} for n in (1, 2, 3)],
        [{"item_id": "i4", "timestamp": 3}],
    ]
    by_user = model.predict(pd.DataFrame({"user_id": [10, 20]}))
    by_history = model.predict(pd.DataFrame({"history": events}))
    assert by_history["item_id"].tolist() == by_user["item_id"].tolist()
    assert by_history["score"].tolist() == by_user["score"].tolist()
    both = pd.DataFrame({"user_id": [10, 99, None], "history": [None, events[1], None]})
    mixed = model.predict(both)["item_id"].tolist()
    assert mixed[:2] == by_user["item_id"].tolist()
    assert mixed[2][:2] == ["i6", "i7"]


@pytest.mark.parametrize(
    "history",
    [
        ("i4", None),
        np.array(["i4", float("nan")], object),
        ["i4", float("nan"), "new"],
        '["i4"]',
        [{"item_id": "i4"}],
    ],
)
def test_a_history_in_any_form_is_the_same(model: Recommender, history: Any) -> None:
    assert asked(model, [history, "[]"]) == asked(model, [["i4"], []])


@pytest.mark.parametrize("k", [1, 4, 8, 1_000_000])
@pytest.mark.parametrize("history", [[], ["i4"], ["i2", "i5"], ["new", "newer"]])
def test_short_histories_and_long_lists(model: Recommender, history: list[str], k: int) -> None:
    (items,) = asked(model, [history], k=k)
    known = {item for item in history if item.startswith("i")}
    assert len(items) == len(set(items)) == min(k, 7 - len(known))
    assert not known & set(items)


def test_rules_are_parameters(model: Recommender) -> None:
    whole = asked(model, [["i4"]])[0]
    windows = {"item_id": [whole[2], whole[3]], "available_until": ["1969-01-01", None]}
    assert asked(model, [["i4"]], deny=[whole[0], "new", None]) == [whole[1:]]
    assert asked(model, [["i4"]], allow=[whole[3], whole[1]]) == [[whole[1], whole[3]]]
    assert asked(model, [["i4"]], availability=windows) == [[*whole[:2], *whole[3:]]]
    assert asked(model, [["i4"]], deny=[f"i{n}" for n in range(1, 8)]) == [[]]
    assert asked(model, [["i4"]], exclude_seen=False, k=7)[0].count("i4") == 1


def test_pins_come_first_where_the_filters_allow_them(model: Recommender) -> None:
    whole = asked(model, [["i4"]])[0]
    frame = pd.DataFrame({"history": [["i4"]]})
    answer = model.predict(
        frame, {"pin": ["i4", whole[4], "new", whole[5], whole[4]], "deny": [whole[5]], "k": 3}
    )
    assert answer["item_id"].tolist() == [[whole[4], *whole[:2]]]
    assert answer["score"][0][0] is None
    assert asked(model, [["i4"]], pin=[whole[4], whole[3]], k=1) == [[whole[4]]]


@pytest.mark.parametrize(
    ("cell", "params", "expected"),
    [
        (["i1"], {"k": 0}, "received k = 0, expected a whole number from 1 to 1,000,000"),
        (["i1"], {"k": -1}, "received k = -1"),
        (["i1"], {"k": 10**9}, "received k = 1000000000"),
        (["i1"], {"k": "x"}, "received k = 'x'"),
        (["i1"], {"k": None}, "received k = None"),
        (["i1"], {"allow": ["new"]}, "params: allow: received 1 ids, of which the model knows none"),
        (["i1"], {"availability": {"item_id": ["i1"]}}, "params: availability: received the columns item_id"),
        ({"item_id": "i1"}, {}, "expected a list of item ids, oldest first, or of events"),
        ([["i1"]], {}, "expected a list of item ids, oldest first, or of events"),
        ([{"item": "i1"}], {}, "received an event of item; expected item_id, timestamp, event_type, value"),
        ([{"item_id": "i1", "timestamp": "soon"}], {}, "received the timestamp 'soon'"),
        ([{"item_id": "i1", "timestamp": 1}, "i2"], {}, "received 1 timestamps for 2 events"),
    ],
)
def test_a_refusal_is_one_line(model: Recommender, cell: Any, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match="received") as caught:
        model.predict(pd.DataFrame({"history": [cell]}), params)
    body = json.loads(caught.value.serialize_as_json())  # type: ignore[attr-defined]
    assert caught.value.get_http_status_code() == 400  # type: ignore[attr-defined]
    assert expected in body["message"]
    assert "\n" not in body["message"]
