"""What every variant of the encoder keeps to, and the recommender on top of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from models.encoder.batching import Batch, BatchPlan, Window
from models.encoder.encoder import AttentionRecommender, Encoder, with_request_time
from models.histories import Histories, histories_from_lists
from models.settings.encoder import INNER_PRODUCTS, EncoderSettings

NUM_ITEMS, LENGTH = 29, 7
LENGTHS = [1, 7, 4, 3, 6]
ORDERED = [{}, {"positions": "relative"}, {"positions": "rotary"}, {"block": "hstu"}, {"block": "ligr"}]
ORDERED += [{"block": block} for block in ("gru", "lstm", "conv", "pooling")]


def double(window):
    return replace(window, value=None if window.value is None else window.value.double())


def batch_of(window, position, target):
    return Batch((window,), position, target, torch.ones(len(target)))


def with_other_tail(window, columns):
    """Everything behind the first columns drawn anew; lengths and what is asked for as they were."""
    other = torch.randint(1, NUM_ITEMS + 1, window.item_index.shape)
    changes: dict[str, Tensor] = {"item_index": other, "event_type": other % 3}
    if window.value is not None:
        changes["value"] = other.to(window.value.dtype)
    if window.time is not None:
        changes["time"] = other.long() * 10**10
    behind = torch.arange(window.item_index.shape[1]) >= columns
    kept = {name: torch.where(behind, new, getattr(window, name)) for name, new in changes.items()}
    return replace(window, **kept)


def test_the_future_changes_nothing_where_it_is_not_meant_to(variant, random_encoder, random_histories):
    encoder = random_encoder(**variant)
    window = encoder.pad(random_histories([LENGTH] * 3))
    before, after = encoder(window), encoder(with_other_tail(window, 4))
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    if encoder.settings.direction == "causal":
        torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    else:
        assert (before[:, 0] - after[:, 0]).abs().amax(-1).min() > 1e-3


def test_padding_changes_nothing_whatever_is_in_it(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant).double(), random_histories(LENGTHS)
    together = encoder.pad(histories)
    behind = torch.arange(LENGTH) >= together.lengths.unsqueeze(1)
    dirt = with_other_tail(together, 0)
    names = [
        name for name in ("item_index", "event_type", "value", "time") if getattr(together, name) is not None
    ]
    dirty = replace(
        together,
        **{name: torch.where(behind, getattr(dirt, name), getattr(together, name)) for name in names},
    )
    for row, length in enumerate(LENGTHS):
        alone = encoder(double(encoder.pad(histories.select(slice(row, row + 1)))))[0]
        for window in (together, dirty):
            torch.testing.assert_close(encoder(double(window))[row, :length], alone)


def test_packed_windows_give_each_row_what_it_has_alone(variant, random_encoder, random_histories):
    """In training too, where states are put behind them; windows of several numbers of rows and columns."""
    encoder, histories = random_encoder(**{**variant, "dropout": 0.0}).double(), random_histories(LENGTHS)
    packed = [[1, 4], [3], [0, 2], [4, 0, 1], [3, 1, 2]]
    windows = tuple(double(encoder.pad(histories.select(np.array(rows)))) for rows in packed)
    order = [row for rows in packed for row in rows]
    cells = [max(LENGTHS[row] for row in rows) for rows in packed for _ in rows]
    assert sum(cells) == 67  # 68 where they come in few different numbers
    expected = [encoder(double(encoder.pad(histories.select(np.array([row])))))[0] for row in order]
    for training in (False, True):
        if training and encoder.settings.weighting == "gumbel_softmax":
            continue  # noise
        states = encoder.train(training).states(windows)
        assert states.shape == (67, 12)
        for found, row in zip(states.split(cells), expected, strict=True):
            torch.testing.assert_close(found[: len(row)], row)


def test_a_batch_s_targets_score_alike_however_it_is_packed(random_encoder, random_histories):
    """Target attention sees each target's own window; elsewhere the position names the state."""
    histories, every = random_histories([9, 2, 23, 5, 3, 14, 2, 6]), torch.arange(NUM_ITEMS + 1)
    for readout in ("last", "target"):
        encoder = random_encoder(readout=readout, max_length=24).double()
        found = []
        for one_window in (False, True):
            plan = BatchPlan(histories, 24, 8, None, 0, one_window=one_window)
            batch = plan.batch(np.arange(8), 0)
            states = encoder.states(batch.windows)
            if readout == "target":
                own, scores = encoder.target_scores(states, batch, every)
                torch.testing.assert_close(own, scores.gather(1, batch.target.unsqueeze(1)).squeeze(1))
            else:
                scores = states[batch.position] @ encoder.item_vectors().T
            assert (len(batch.windows) == 1) == one_window
            found.append(dict(zip(targets_in(batch, histories), scores, strict=True)))
        assert found[0].keys() == found[1].keys()
        for key, scores in found[0].items():
            torch.testing.assert_close(scores, found[1][key])


def targets_in(batch, histories):
    """(items up to each target's position, target): a name for each target."""
    rows = [row for window in batch.windows for row in window.item_index]
    first = np.cumsum([0, *map(len, rows)])
    names = []
    for position, target in zip(batch.position.tolist(), batch.target.tolist(), strict=True):
        row = int(np.searchsorted(first, position, side="right")) - 1
        names.append((*rows[row][: position - first[row] + 1].tolist(), target))
    assert len(set(names)) == int((histories.lengths - 1).sum())
    return names


def test_last_states_are_those_of_the_whole_pass(variant, random_encoder, random_histories):
    encoder = random_encoder(**variant).double()
    window = double(encoder.pad(random_histories(LENGTHS)))
    expected = encoder(window)[torch.arange(len(LENGTHS)), window.lengths - 1]
    torch.testing.assert_close(encoder.last_states(window), expected)


def test_fast_forms_give_the_reference_s_states(variant, random_encoder, random_histories):
    reference = random_encoder("reference", **variant).double()
    window = double(reference.pad(random_histories(LENGTHS)))
    expected, last = reference(window), reference.last_states(window)
    for implementation in ("auto", "dense"):
        fast = random_encoder(implementation, **variant).double()
        torch.testing.assert_close(fast(window), expected)
        torch.testing.assert_close(fast.last_states(window), last)


def test_gradients_are_finite_differences(variant, random_encoder, random_histories):
    """In float64, of all weights together along a random direction; straight-through ones are none, by design."""
    if variant.get("gumbel_hard"):
        variant = {**variant, "gumbel_hard": False}
    encoder = random_encoder(spread=0.3, **{**variant, "dim": 6}).double()
    window = double(encoder.pad(random_histories([3, 5])))
    scores, weights = Scores(encoder, window), dict(encoder.named_parameters())
    sizes = [weight.numel() for weight in weights.values()]

    def scored(flat: Tensor) -> Any:
        parts = zip(weights.items(), flat.split(sizes), strict=True)
        changed = {f"encoder.{name}": part.view_as(weight) for (name, weight), part in parts}
        return functional_call(scores, changed, ())

    flat = torch.cat([weight.detach().flatten() for weight in weights.values()]).requires_grad_()
    assert torch.autograd.gradcheck(scored, (flat,), fast_mode=True, atol=1e-9, rtol=1e-5)


class Scores(torch.nn.Module):
    """What a few positions of a window give every item."""

    def __init__(self, encoder: Encoder, window: Window) -> None:
        super().__init__()
        self.encoder, self.window = encoder, window
        self.position, self.target = torch.tensor([0, 2, 5, 8]), torch.tensor([3, 5, 7, 11])

    def forward(self) -> Tensor:
        states = self.encoder(self.window)
        if self.encoder.target is None:
            return torch.mm(states.flatten(0, 1)[self.position], self.encoder.item_vectors()[1:].T)
        every = torch.arange(1, NUM_ITEMS + 1)
        batch = batch_of(self.window, self.position, self.target)
        own, others = self.encoder.target_scores(states.flatten(0, 1), batch, every)
        return torch.cat([own.unsqueeze(1), others], 1)


def test_every_weight_has_a_gradient_that_the_next_item_gives(variant, random_encoder, random_histories):
    """No part of the model is left out of training."""
    encoder = random_encoder(**variant).train()
    window = encoder.pad(random_histories([LENGTH] * 11, seed=1))
    states, target = encoder(window), torch.arange(2, 13)
    position = torch.arange(11) * LENGTH + LENGTH - 1
    if encoder.target is None:
        scores = states.flatten(0, 1)[position] @ encoder.vectors_of(torch.arange(30)).T
    else:
        batch = batch_of(window, position, target)
        scores = encoder.target_scores(states.flatten(0, 1), batch, torch.arange(30))[1]
    torch.nn.functional.cross_entropy(scores, target).backward()
    idle = [
        name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert idle == []


def test_a_batch_equals_its_rows_alone(variant, random_encoder, random_histories):
    histories = random_histories([4, 0, 12, 1, 7, 8, 2])
    recommender = AttentionRecommender(random_encoder(**variant))
    alone = recommender.encode(histories, 1)
    for row in (0, 1, 2):
        one = recommender.encode(histories.select(slice(row, row + 1)))
        np.testing.assert_allclose(one[0], alone[row], rtol=1e-3, atol=1e-4)
    for batch_tokens in (23, 2**13):
        together = recommender.encode(histories, batch_tokens)
        np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    assert not alone[1].any()


def test_only_the_window_is_looked_at(variant, random_encoder, random_histories):
    histories = random_histories([15])
    recommender = AttentionRecommender(random_encoder(**variant))
    long, cut = (recommender.score_items(rows) for rows in (histories, histories.last(LENGTH)))
    np.testing.assert_array_equal(long, cut)


def test_scores_are_what_training_minimises(variant, random_encoder, random_histories):
    """The recommender's score of each item is that of the state, or of target attention, behind the last event."""
    encoder, histories = random_encoder(**variant), random_histories([4, 7, 2])
    window, every = encoder.pad(histories), torch.arange(NUM_ITEMS + 1)
    with torch.no_grad():
        states, position = encoder(window), torch.arange(3) * LENGTH + window.lengths - 1
        if encoder.target is None:
            expected = states.flatten(0, 1)[position] @ encoder.vectors_of(every).T
        else:
            batch = batch_of(window, position, torch.tensor([1, 2, 3]))
            expected = encoder.target_scores(states.flatten(0, 1), batch, every)[1]
    scores = AttentionRecommender(encoder).score_items(histories)
    assert np.isneginf(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=1e-3, atol=1e-3)


def test_no_history_no_row_one_event_and_one_item(variant, random_encoder, random_histories):
    recommender = AttentionRecommender(random_encoder(num_items=1, **variant))
    histories = random_histories([0, 1, 9], num_items=1)
    scores = recommender.score_items(histories)
    assert np.isfinite(scores[:, 1]).all()
    assert scores[0, 1] == 0
    assert recommender.recommend(histories, 2)[0].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert recommender.recommend(histories, 2, exclude_seen=False)[0].tolist() == [[1, 0]] * 3
    none = histories.select(slice(0, 0))
    assert recommender.encode(none).shape == (0, 12)
    assert recommender.recommend(none, 2)[0].shape == (0, 2)
    assert recommender.encode(histories.select(slice(0, 1))).tolist() == [[0.0] * 12]


@pytest.mark.parametrize("settings", ORDERED)
def test_item_order_and_event_types_matter(settings, random_encoder):
    encoder = random_encoder(**settings)

    def state(items, types):
        rows = replace(histories_from_lists([items]), event_type=np.array(types, np.int16))
        return encoder.last_states(encoder.pad(rows))

    plain = state([3, 5, 7, 2], [1, 1, 1, 1])
    assert not torch.allclose(plain, state([5, 3, 7, 2], [1, 1, 1, 1]))
    assert not torch.allclose(plain, state([3, 5, 7, 2], [2, 1, 1, 1]))


def test_attention_alone_knows_no_order(random_encoder):
    encoder = random_encoder(positions="none", num_blocks=1).double()
    first, second = (encoder.pad(histories_from_lists([items])) for items in ([3, 5, 7, 2], [7, 3, 5, 2]))
    torch.testing.assert_close(encoder.last_states(first), encoder.last_states(second))


def test_relative_kinds_know_no_place(random_encoder, random_histories):
    """Rotary and relative positions give the same last state wherever in the window a row stands; absolute ones do not."""
    histories = random_histories([4])
    turned = [({"positions": "rotary", "score": score}, True) for score in INNER_PRODUCTS]
    for settings, same in (*turned, ({"positions": "relative"}, True), ({"positions": "absolute"}, False)):
        encoder = random_encoder(**settings).double()
        window = encoder.pad(histories)
        moved = replace(window, position=torch.arange(3, 7).unsqueeze(0))
        close = torch.allclose(encoder.last_states(window), encoder.last_states(moved), rtol=1e-4, atol=1e-5)
        assert close == same


def test_cosine_states_and_vectors_by_their_lengths(random_encoder, random_histories):
    encoder = random_encoder(similarity="cosine", temperature=0.25)
    states = encoder(encoder.pad(random_histories([LENGTH])))
    torch.testing.assert_close(states.norm(dim=-1), torch.full((1, LENGTH), 4.0))
    torch.testing.assert_close(encoder.item_vectors()[1:].norm(dim=-1), torch.ones(NUM_ITEMS))
    learned = random_encoder(similarity="cosine", temperature=0.25, learned_temperature=True)
    states = learned(learned.pad(random_histories([LENGTH])))
    torch.testing.assert_close(states.norm(dim=-1), torch.full((1, LENGTH), 4.0))
    with torch.no_grad():
        learned.log_temperature += np.log(2)
    doubled = learned(learned.pad(random_histories([LENGTH])))
    torch.testing.assert_close(doubled, states / 2)


def test_vectors_of_some_items_are_rows_of_all(random_encoder):
    some = torch.tensor([[3, 0], [29, 7]])
    for settings in (
        {},
        {"similarity": "cosine"},
        {"item_content": True},
        {"item_content": True, "item_id": False},
    ):
        encoder = random_encoder(**settings)
        torch.testing.assert_close(encoder.vectors_of(some), encoder.item_vectors()[some])


def test_the_temperature_falls_geometrically(random_encoder):
    encoder = random_encoder(weighting="gumbel_softmax", gumbel_start=0.8, gumbel_end=0.2)
    for progress, expected in ((0.0, 0.8), (0.5, 0.4), (1.0, 0.2)):
        encoder.anneal(progress)
        found = [layer.attention.temperature.item() for layer in encoder.attention_layers]
        assert found == pytest.approx([expected] * 2)
    random_encoder().anneal(0.5)  # others have none


def test_gumbel_noise_is_for_training_only(random_encoder, random_histories):
    encoder = random_encoder(weighting="gumbel_softmax", dropout=0.0)
    window = encoder.pad(random_histories(LENGTHS))
    assert torch.equal(encoder(window), encoder(window))
    encoder.train()
    assert not torch.allclose(encoder(window), encoder(window))


def test_the_whole_history_is_excluded_not_only_the_window(random_encoder):
    recommender = AttentionRecommender(random_encoder())
    histories = histories_from_lists([[*range(1, NUM_ITEMS)]])
    items, scores = recommender.recommend(histories, 3)
    assert items.tolist() == [[NUM_ITEMS, 0, 0]]
    assert np.isneginf(scores[0, 1:]).all()
    assert 0 not in recommender.recommend(histories, 3, exclude_seen=False)[0]


def test_a_model_that_sees_the_request_asks_for_its_time(random_encoder, random_histories):
    histories: Histories = replace(random_histories([3, 2]), request_time=None)
    recommender = AttentionRecommender(random_encoder(time_bias=True, request_time=True))
    with pytest.raises(ValueError, match="received no request_time, expected the time at which each row"):
        recommender.encode(histories)
    now, later = (
        recommender.encode(with_request_time(histories, moment))
        for moment in (int(histories.time.max()) + 1, 10**14)
    )
    assert not np.allclose(now, later)


def test_content_is_given_where_it_is_asked_for(random_content):
    with pytest.raises(ValueError, match=r"model.item_content: received True and no content"):
        Encoder(EncoderSettings(item_content=True), NUM_ITEMS, 0, LENGTH)
    with pytest.raises(ValueError, match=r"model.item_content: received False and some content"):
        Encoder(EncoderSettings(), NUM_ITEMS, 0, LENGTH, content=random_content(NUM_ITEMS))
