"""Targets of visits and horizons: by pencil, against plain loops, and what may not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.encoder import visit_targets
from models.encoder.batching import BatchPlan
from models.encoder.encoder import Encoder
from models.encoder.visit_targets import Visits
from models.histories import Histories, histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import Predict, TrainSettings
from models.training.objective import Objective

PREDICTIONS: tuple[Predict, ...] = ("next", "visit", "window")


def timed(rows, types=None):
    """Histories of (time, item) per row."""
    histories = histories_from_lists(
        [[item for _, item in row] for row in rows], [[time for time, _ in row] for row in rows]
    )
    return histories if types is None else replace(histories, event_type=np.array(types, np.int16))


def found(plan, epoch=0):
    """(row, inputs up to the state, item, weight) of every target of an epoch, sorted."""
    targets = []
    for rows in plan.epoch(epoch):
        batch = plan.batch(rows, epoch)
        item = torch.cat([window.item_index.flatten() for window in batch.windows]).tolist()
        first = [
            sum(window.item_index.numel() for window in batch.windows[:number])
            + row * window.item_index.shape[1]
            for number, window in enumerate(batch.windows)
            for row in range(len(window.item_index))
        ]
        assert batch.state is None or (batch.state.diff() >= 0).all()
        assert (batch.position.diff() > 0).all()
        for at, target, weight in zip(batch.target_position, batch.target, batch.weight, strict=True):
            start = max(place for place in first if place <= at)
            targets.append((tuple(item[start : at + 1]), int(target), round(float(weight), 5)))
    return sorted(targets)


# visits of at most 5 us of pause: (1 2 2) at 0, 4, 4; (3 1 3) at 20; (4) at 30; (2) at 99
PENCIL = timed([[(0, 1), (4, 2), (4, 2), (20, 3), (20, 1), (20, 3), (30, 4), (99, 2)]])


def test_visits_by_pencil():
    plain = Visits.of(PENCIL, 5)
    every = np.arange(8)
    assert plain.first(every).tolist() == [0, 0, 0, 3, 3, 3, 6, 7]
    assert plain.following(every).tolist() == [3, 3, 3, 6, 6, 6, 7, 8]
    assert Visits.of(PENCIL, 0).first(every).tolist() == [0, 1, 1, 3, 3, 3, 6, 7]
    alone = Visits.of(PENCIL, None)
    assert (alone.first(every).tolist(), alone.following(every).tolist()) == ([*range(8)], [*range(1, 9)])


def test_a_row_begins_and_ends_a_visit():
    rows = timed([[(0, 1), (1, 2)], [(1, 3), (1, 4), (1, 5)]])
    cut = replace(rows, ends=np.array([2, 4]))
    assert Visits.of(cut, 5).first(np.arange(5)).tolist() == [0, 0, 2, 2, 4]


def test_each_prediction_by_pencil():
    first, second, third = (1, 2, 2), (1, 2, 2, 3, 1, 3), (1, 2, 2, 3, 1, 3, 4)
    half, thirds = 0.5, round(1 / 3, 5)
    expected: dict[Predict, list[tuple[tuple[int, ...], int, float]]] = {
        # both 3s of the second visit are one target of twice the weight
        "next": [(first, 1, 1), (first, 3, 2), (second, 4, 1), (third, 2, 1)],
        "visit": [(first, 1, half), (first, 3, half), (second, 4, 1), (third, 2, 1)],
        # 26 us from a night of 5 to 20: up to 30; from one of 21 to 30, or of 74 to 99: the next visit alone
        "window": [(first, 1, thirds), (first, 3, thirds), (first, 4, thirds), (second, 4, 1), (third, 2, 1)],
    }
    for predict, targets in expected.items():
        plan = BatchPlan(PENCIL, 9, 1, None, 0, predict=predict, session=5, horizon=26)
        assert found(plan) == sorted(targets), predict
        assert plan.num_targets == (3 if predict == "window" else 4)
    # 10 us from a night of 11 to 20: 30 is not within
    shorter = BatchPlan(PENCIL, 9, 1, None, 0, predict="window", session=5, horizon=10)
    assert found(shorter) == sorted([(first, 1, half), (first, 3, half), (second, 4, 1), (third, 2, 1)])


def test_each_event_as_a_visit_by_pencil():
    rows = timed([[(0, 1), (1, 2), (1, 2), (5, 1)]])
    expected = [((1,), 2, 1), ((1, 2), 2, 1), ((1, 2, 2), 1, 1)]
    for predict in PREDICTIONS:  # an event 4 us after a night, the end of its horizon, is not within
        assert found(BatchPlan(rows, 9, 1, None, 0, predict=predict, horizon=4)) == expected
    within = found(BatchPlan(rows, 9, 1, None, 0, predict="window", horizon=5))
    assert within == [((1,), 1, 0.5), ((1,), 2, 0.5), ((1, 2), 1, 0.5), ((1, 2), 2, 0.5), ((1, 2, 2), 1, 1)]


def test_a_window_is_asked_for_at_a_night():
    """Request times lie behind the state's event, before the next visit and no further from it than the horizon."""
    rows = timed([[(40 * number + pause, number) for number in range(1, 200) for pause in (0, 2)]])
    plan = BatchPlan(rows, 500, 1, None, 0, predict="window", session=5, horizon=25, with_time=True)
    batch = plan.batch(np.array([0]), 0)
    (window,) = batch.windows
    assert window.time is not None
    assert window.request_time is not None
    asked = window.request_time.view(-1)[batch.position]
    before_next = window.time.view(-1)[batch.position] + 38 - asked
    assert set(before_next.tolist()) == set(range(25))  # one of 25 is missed by all 198 once in 130 draws
    assert torch.bincount(before_next).max() < 20
    again = plan.batch(np.array([0]), 3).windows[0].request_time
    assert again is not None
    assert torch.equal(again, window.request_time)


def test_weights_of_types_by_pencil():
    """An item's weight in a set is the largest of its events', whichever comes first; one of weight 0 is not in the set."""
    rows = timed(
        [[(0, 9), (1, 1), (1, 2), (1, 1), (1, 3), (3, 2), (6, 1)]],
        types=[1, 1, 2, 2, 3, 2, 1],
    )
    weights = np.array([0, 1, 4, 0], np.float32)
    plan = {
        predict: BatchPlan(rows, 9, 1, weights, 0, predict=predict, session=0, horizon=2)
        for predict in PREDICTIONS
    }
    one, two, three = (9,), (9, 1, 2, 1, 3), (9, 1, 2, 1, 3, 2)
    assert found(plan["next"]) == sorted([(one, 1, 5), (one, 2, 4), (two, 2, 4), (three, 1, 1)])
    assert found(plan["visit"]) == sorted([(one, 1, 2), (one, 2, 2), (two, 2, 4), (three, 1, 1)])
    assert found(plan["window"]) == sorted([(one, 1, 2), (one, 2, 2), (two, 2, 4), (three, 1, 1)])


def test_the_last_and_a_random_target_are_predicted_before_their_visit():
    last = BatchPlan(PENCIL, 2, 1, None, 0, targets="last", session=5)
    assert found(last) == [((3, 4), 2, 1)]
    drawn = BatchPlan(PENCIL, 2, 1, None, 0, targets="random", session=5)
    inputs = {1: (2, 2), 3: (2, 2), 4: (1, 3), 2: (3, 4)}
    seen = set()
    for epoch in range(40):
        ((history, item, weight),) = found(drawn, epoch)
        assert (history, weight) == (inputs[item], 1)
        seen.add(item)
    assert seen == set(inputs)


def test_the_request_is_that_of_the_next_visit():
    rows = timed([[(0, 1), (3, 2), (10, 3), (12, 4), (30, 5), (31, 6)]])
    plan = BatchPlan(rows, 9, 1, None, 0, session=5, with_time=True)
    (window,) = plan.batch(np.array([0]), 0).windows
    assert window.request_time is not None
    assert window.item_index.tolist() == [[1, 2, 3, 4]]
    assert window.request_time.tolist() == [[3, 10, 12, 30]]


def test_a_history_of_one_visit_has_no_target():
    rows = timed([[], [(1, 1), (1, 2)], [(1, 1), (2, 2)], [(1, 5)]])
    for predict in PREDICTIONS:
        plan = BatchPlan(rows, 9, 1, None, 0, predict=predict, session=0, horizon=9)
        assert found(plan) == [((1,), 2, 1)]
        assert plan.rows.tolist() == [2]
        assert (
            BatchPlan(rows.select([1, 3]), 9, 1, None, 0, predict=predict, session=0, horizon=9).epoch(0)
            == []
        )


LOGS = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(0, 2)), max_size=12).map(sorted),
    min_size=1,
    max_size=5,
)


def plainly(rows, predict, session, horizon, max_length, type_weights, nights):
    """Every (inputs up to the state, item, weight) by plain loops over whole rows; `nights` by the event before."""
    targets = []
    for first, row in zip(np.cumsum([0, *map(len, rows)]).tolist(), rows, strict=False):
        starts = [at for at in range(len(row)) if not at or row[at][0] - row[at - 1][0] > session]
        kept = max(0, starts[-1] - max_length) if row else 0
        for visit, start in enumerate(starts[1:], 1):
            if start <= kept:
                continue
            until = [*starts, len(row)][visit + 1]
            if predict == "window":
                night, last, following = nights(first + start - 1), row[start - 1][0], row[start][0]
                assert max(last, following - horizon) < night <= following or night == last == following
                until = sum(each[0] < night + horizon for each in row)
            by_item: dict[int, list[float]] = {}
            for _, item, kind in row[start:until]:
                if item and type_weights[kind]:
                    by_item.setdefault(item, []).append(float(type_weights[kind]))
            before = tuple(item for _, item, _ in row[kept:start])
            for item, weights in by_item.items():
                weight = sum(weights) if predict == "next" else max(weights) / len(by_item)
                targets.append((before, item, round(np.float32(weight).item(), 5)))
    return sorted(targets)


@given(
    LOGS, st.sampled_from(PREDICTIONS), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.booleans()
)
def test_targets_are_as_plain_loops_say(rows, predict, session, horizon, max_length, one_window):
    type_weights = np.array([1, 0, 0.25], np.float32)
    histories = timed(
        [[each[:2] for each in row] for row in rows], [kind for row in rows for _, _, kind in row]
    )
    plan = BatchPlan(
        histories, max_length, 2, type_weights, 0, predict=predict, session=session, horizon=horizon, one_window=one_window
    )  # fmt: skip

    def nights(position):
        assert plan.within_horizon is not None
        return int(plan.within_horizon.nights(np.array([position]))[0])

    expected = plainly(rows, predict, session, horizon, max_length, type_weights, nights)
    assert found(plan) == expected
    if predict != "window":
        assert plan.num_targets == len(expected)
    counts = np.bincount([item for _, item, _ in expected], minlength=7)
    np.testing.assert_allclose(plan.item_counts(6), counts)
    for rows_of_step in plan.epoch(3):
        target, weight = plan.targets_of(rows_of_step, 3)
        alone = [plan.batch(np.array([row]), 3) for row in rows_of_step]
        assert torch.equal(target, torch.cat([batch.target for batch in alone]))
        assert torch.equal(weight, torch.cat([batch.weight for batch in alone]))


def test_of_many_targets_a_sample_is_learned(monkeypatch):
    monkeypatch.setattr(visit_targets, "TARGETS_PER_STATE", 4)
    rows = timed([[(time, 1 + time) for time in range(12)], [(time, 20 + time) for time in range(3)]])
    plan = BatchPlan(rows, 20, 2, None, 7, predict="window", session=0, horizon=10)
    seen: dict[int, set[int]] = {}
    for epoch in range(60):
        targets = found(plan, epoch)
        assert targets == found(plan, epoch)
        of_first = [item for history, item, _ in targets if history == (1,)]
        assert len(set(of_first)) == len(of_first) == 4  # of the ten items 2 to 11, one of each stretch
        assert [
            sum(low <= item < high for item in of_first) for low, high in ((2, 4), (4, 7), (7, 9), (9, 12))
        ] == [1] * 4
        assert all(weight == 0.25 for history, _, weight in targets if history == (1,))
        assert [item for history, item, _ in targets if history == (20,)] == [21, 22]
        for item in of_first:
            seen.setdefault(epoch, set()).add(item)
    assert set().union(*seen.values()) == set(range(2, 12))
    assert seen[0] != seen[1] or seen[1] != seen[2]
    # the same ones in a batch of its own, whatever the step
    assert torch.equal(plan.batch(np.array([0]), 5).target, plan.targets_of(np.array([0]), 5)[0])
    counts = plan.item_counts(24)
    assert counts.sum() == pytest.approx(sum(min(4, number) for number in [10, *range(10, 0, -1), 2, 1]))


@pytest.mark.parametrize("chunk_pairs", [1, 7, 2**20])
def test_pairs_in_chunks_are_those_of_the_whole(monkeypatch, chunk_pairs):
    random = np.random.default_rng(0)
    rows = [sorted((int(t), int(i)) for t, i in random.integers(1, 40, (30, 2))) for _ in range(9)]
    monkeypatch.setattr(visit_targets, "TARGETS_PER_STATE", 5)
    plan = BatchPlan(timed(rows), 20, 4, None, 0, predict="window", session=0, horizon=12)
    expected, counts = found(plan, 1), plan.item_counts(40)
    monkeypatch.setattr(visit_targets, "CHUNK_PAIRS", chunk_pairs)
    assert found(plan, 1) == expected
    np.testing.assert_allclose(plan.item_counts(40), counts)


def loss_of(histories: Histories, predict, settings, max_length=20):
    torch.manual_seed(0)
    encoder = Encoder(settings, 9, 0, max_length).eval()
    plan = BatchPlan(
        histories, max_length, 9, None, 0, predict=predict, session=2, horizon=50, with_time=True
    )
    batch = plan.batch(np.arange(len(plan.windows)), 0)
    return (
        encoder.states(batch.windows)[batch.target_position],
        batch,
        Objective(encoder, TrainSettings())(batch, None),
    )


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_target_s_own_visit_and_the_future_change_nothing(predict):
    """States that predict are the same where other items are taken in the last visit, and where more of them are."""
    settings = EncoderSettings(dim=8, num_heads=2, num_blocks=2, dropout=0.0, time_bias=True)
    past = [(0, 1), (1, 2), (10, 3), (12, 4), (20, 5)]
    rows = ([*past, (30, 6), (31, 7)], [*past, (30, 8), (31, 1)], [*past, (30, 9)])
    states, batches, losses = zip(*(loss_of(timed([row]), predict, settings) for row in rows), strict=True)
    for batch in batches:
        assert batch.windows[0].item_index[batch.windows[0].item_index > 0].tolist() == [1, 2, 3, 4, 5]
    distinct = [torch.unique(each, dim=0) for each in states]
    assert torch.equal(distinct[0], distinct[1])
    assert torch.equal(distinct[0], distinct[2])
    assert len({loss.item() for loss in losses}) == 3
