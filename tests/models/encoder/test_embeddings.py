"""What an event says and what an item is, by calendar, formula and a few steps of training."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import torch

from models.encoder.batching import BatchPlan, Window
from models.encoder.embeddings import EventVectors, ItemContent, ItemEmbedding, blank_content
from models.encoder.encoder import Encoder
from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.negatives import NegativeSampler
from models.training.objective import Objective


def window(items, **parts) -> Window:
    item_index = torch.tensor(items, dtype=torch.int32)
    lengths = torch.full((len(items),), item_index.shape[1])
    return Window(item_index, parts.pop("event_type", torch.zeros_like(item_index)), lengths, **parts)


def moments(*times: datetime) -> torch.Tensor:
    return torch.tensor([[round(time.timestamp() * 1_000_000) for time in times]])


def random_events(num_event_types=0, **settings) -> EventVectors:
    torch.manual_seed(0)
    return EventVectors(EncoderSettings(dim=6, **settings), num_event_types)


TIMES = (
    (datetime(2026, 11, 21, 13, 45, tzinfo=UTC), 5, 13),  # a Saturday
    (datetime(1970, 1, 1, tzinfo=UTC), 3, 0),  # a Thursday
    (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 2, 23),
    (datetime(1969, 12, 28, 5, tzinfo=UTC), 6, 5),
    (datetime(1900, 1, 1, 12, tzinfo=UTC), 0, 12),
)


def test_days_and_hours_before_and_after_1970():
    events = random_events(calendar=True)
    assert events.hours is not None
    assert events.days is not None
    found = events(window([[1] * 5], time=moments(*(time for time, _, _ in TIMES))))
    assert found is not None
    for column, (time, day, hour) in enumerate(TIMES):
        assert (time.weekday(), time.hour) == (day, hour)
        torch.testing.assert_close(found[0, column], events.hours.weight[hour] + events.days.weight[day])


def test_the_calendar_of_what_is_asked_has_vectors_of_its_own():
    events = random_events(calendar=True, request_time=True)
    assert events.hours is not None
    assert events.days is not None
    assert events.asked_hours is not None
    assert events.asked_days is not None
    time, asked = moments(TIMES[0][0]), moments(TIMES[3][0])
    found = events(window([[1]], time=time, request_time=asked))
    assert found is not None
    expected = (
        events.hours.weight[13]
        + events.days.weight[5]
        + events.asked_hours.weight[5]
        + events.asked_days.weight[6]
    )
    torch.testing.assert_close(found[0, 0], expected)


def test_values_by_pencil():
    events = random_events(value=True)
    assert events.value is not None
    value = torch.tensor([[0.0, np.e - 1, 1 - np.e, np.nan]])
    found = events(window([[1] * 4], value=value))
    assert found is not None
    signed, missing = events.value.weight.T
    expected = torch.stack([0 * signed, signed, -signed, missing])
    torch.testing.assert_close(found[0], expected)
    nothing = events(window([[1] * 4]))  # no event of the log has a value
    torch.testing.assert_close(nothing, missing.expand(1, 4, 6))


def test_types_are_left_out_on_demand_or_where_there_are_none():
    event_type = torch.tensor([[0, 2]], dtype=torch.int32)
    events = random_events(2)
    assert events.types is not None
    found = events(window([[1, 1]], event_type=event_type))
    torch.testing.assert_close(found, events.types.weight[[0, 2]].unsqueeze(0))
    assert random_events(0)(window([[1, 1]])) is None
    assert random_events(2, event_type=False)(window([[1, 1]], event_type=event_type)) is None


def test_parts_add_up():
    settings = {"value": True, "calendar": True}
    events = random_events(2, **settings)
    rows = window([[1, 2]], event_type=torch.tensor([[1, 2]], dtype=torch.int32),
                  value=torch.tensor([[3.0, np.nan]]), time=moments(TIMES[0][0], TIMES[1][0]))  # fmt: skip
    total = events(rows)
    parts = []
    for kept in (("types",), ("value",), ("hours", "days")):
        alone = random_events(2, **settings)
        for name in ("types", "value", "hours", "days"):
            setattr(alone, name, getattr(events, name) if name in kept else None)
        parts.append(alone(rows))
    torch.testing.assert_close(total, sum(parts[1:], parts[0]))


@pytest.mark.parametrize("item_id", [True, False])
def test_an_item_is_its_own_vector_and_its_content_s(item_id, random_content):
    torch.manual_seed(0)
    content = random_content(13)
    items = ItemEmbedding(EncoderSettings(dim=6, item_content=True, item_id=item_id), 13, content)
    items.forget_untrained()
    assert items.project is not None
    assert items.categories is not None
    state = {name: weight.detach().numpy() for name, weight in items.named_parameters()}
    found = items.all().detach().numpy()
    assert found.shape == (14, 6)
    for item in range(14):
        kinds = [kind for kind in content.categories[item] if kind]
        expected = state["project.weight"] @ content.dense[item]
        if kinds:
            expected = expected + state["categories.weight"][kinds].mean(0)
        if item_id:
            expected = expected + state["ids.weight"][item]
        np.testing.assert_allclose(found[item], expected, rtol=1e-5, atol=1e-6)
    some = torch.tensor([[3, 0], [13, 7]])
    torch.testing.assert_close(items(some), items.all()[some])
    assert not found[0].any()


def test_content_of_one_kind_alone():
    dense, categories = np.ones((4, 2), np.float32), np.array([[0], [1], [2], [0]], np.int32)
    trained = np.ones(4, np.bool_)
    settings = EncoderSettings(dim=6, item_content=True, item_id=False)
    only_dense = ItemEmbedding(settings, 3, ItemContent(dense, np.zeros((4, 0), np.int32), 0, trained))
    assert only_dense.categories is None
    assert torch.equal(only_dense.all()[1], only_dense.all()[3])
    only_categories = ItemEmbedding(
        settings, 3, ItemContent(np.zeros((4, 0), np.float32), categories, 2, trained)
    )
    assert only_categories.project is None
    assert only_categories.categories is not None
    assert torch.equal(only_categories.all()[2], only_categories.categories.weight[2])
    assert not only_categories.all()[3].any()


def test_blank_content_has_the_shape_of_what_it_stands_for(random_content):
    settings = EncoderSettings(dim=6, item_content=True)
    items = ItemEmbedding(settings, 13, random_content(13))
    assert items.content_shape == (14, 5, 3, 4, 12)  # without padding and item 7
    blank = ItemEmbedding(settings, 13, blank_content(*items.content_shape))
    blank.load_state_dict(items.state_dict())
    assert torch.equal(blank.all(), items.all())
    assert ItemEmbedding(EncoderSettings(dim=6), 13, None).content_shape is None


def trained(loss="softmax", **settings) -> Encoder:
    """A few steps, with weight decay, on histories of items 1..6 and 8..13."""
    random = np.random.default_rng(0)
    known = np.array([*range(1, 7), *range(8, 14)])
    histories = histories_from_lists([random.choice(known, 6).tolist() for _ in range(17)])
    torch.manual_seed(0)
    content = settings.pop("content", None)
    encoder = Encoder(EncoderSettings(dim=6, **settings), 13, 0, 8, content=content)
    few: dict[str, Any] = {} if loss == "softmax" else {"negatives": 11}
    train = TrainSettings(loss=loss, weight_decay=0.1, **few)
    objective = Objective(encoder.train(), train)
    candidates = encoder.candidates()
    drawn_from = np.arange(1, 14) if candidates is None else candidates.numpy()
    counts = np.bincount(histories.item_index, minlength=14)
    sampler = None if loss == "softmax" else NegativeSampler(train, counts, drawn_from, 0)
    optimizer = torch.optim.AdamW(encoder.parameters(), 0.05, weight_decay=0.1)
    plan = BatchPlan(replace(histories), 8, 6, None, seed=0)
    for step, rows in enumerate(plan.epoch(0)):
        batch = plan.batch(rows, 0)
        optimizer.zero_grad()
        objective(batch, None if sampler is None else sampler.draw(0, step, batch.target)).backward()
        optimizer.step()
    return encoder.eval()


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
def test_an_item_never_trained_has_its_content_s_vector_exactly(loss, random_content):
    content = random_content(13)
    encoder = trained(loss, item_content=True, content=content)
    assert encoder.items.ids is not None
    assert encoder.items.project is not None
    assert encoder.items.categories is not None
    own = encoder.items.ids.weight
    assert not own[[0, 7]].any()
    assert own[encoder.candidates()].abs().sum(1).min() > 0
    kinds = [kind for kind in content.categories[7] if kind]
    by_content = encoder.items.project(torch.from_numpy(content.dense[7:8]))[0]
    by_content = by_content + encoder.items.categories.weight[kinds].mean(0)
    torch.testing.assert_close(encoder.item_vectors()[7], by_content)
    assert encoder.item_vectors()[7].any()


def test_what_a_loss_may_choose_from(random_content):
    encoder = Encoder(EncoderSettings(dim=6, item_content=True), 15, 0, 8, content=random_content(15))
    candidates = encoder.candidates()
    assert candidates is not None
    assert candidates.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15]
    assert Encoder(EncoderSettings(dim=6), 15, 0, 8).candidates() is None


def test_padding_stays_no_item():
    for settings in ({}, {"block": "gru"}, {"block": "conv"}):
        ids = trained(**settings).items.ids
        assert ids is not None
        assert not ids.weight[0].any()
