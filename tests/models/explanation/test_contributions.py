"""Weights of past interactions: leaving out by hand, slopes by finite differences, the strongest by pencil."""

import threading
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from models.encoder.attention import HistoryAttention
from models.encoder.attention_bias import full_geometry, last_geometry
from models.encoder.batching import Window
from models.encoder.blocks import join_heads
from models.encoder.encoder import AttentionRecommender, Encoder
from models.explanation.attribution import ForwardTrace
from models.explanation.contributions import (
    Method,
    contributions,
    encode_to_explain,
    kept_scores,
    strongest,
)
from models.histories import Histories, histories_from_lists

NUM_ITEMS = 29


def scores(encoder: Encoder, window: Window) -> Any:
    """[b, items] of rows that end where their windows say, from the whole pass."""
    with torch.no_grad():
        states, columns = encoder(window), window.item_index.shape[1]
        position = torch.arange(len(states)) * columns + window.lengths - 1
        if encoder.target is None:
            found = states.flatten(0, 1)[position] @ encoder.item_vectors().T
        else:
            every = encoder.vectors_of(torch.arange(encoder.num_items + 1))
            found = encoder.target.scores(states, position, every)
        return found.numpy()


def without(histories: Histories, at: int) -> Histories:
    """One row less the event at a place."""
    kept = np.delete(np.arange(len(histories.item_index)), at)
    parts = {name: getattr(histories, name)[kept] for name in ("item_index", "time", "event_type", "value")}
    return replace(histories, **parts, ends=histories.ends - 1)


def score(encoder, row, item):
    return AttentionRecommender(encoder).score_items(histories_from_lists([row]))[0, item]


def test_exact_leaves_each_interaction_out_in_place(variant, random_encoder, random_histories):
    """Those left keep their places; what follows the one before is then asked for later."""
    encoder = random_encoder(**variant)
    histories = random_histories([5], seed=3)
    items = np.array([[7, 8, 0]], np.int32)
    weights = contributions(encoder, histories, items, "exact")
    assert weights.shape == (1, 3, 5)
    whole = scores(encoder, encoder.pad(histories))[0]
    for at in range(5):
        kept = torch.tensor([[place for place in range(5) if place != at]])
        left = scores(encoder, replace(encoder.pad(without(histories, at)), position=kept))[0]
        expected = [whole[7] - left[7], whole[8] - left[8], 0]
        np.testing.assert_allclose(weights[0, :, at], expected, rtol=1e-3, atol=1e-3)


def test_a_history_of_one_is_all_there_is_and_of_none_nothing(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant), random_histories([1, 0, 3])
    items = np.array([[7, 8], [7, 8], [0, 8]], np.int32)
    for method in ("exact", "balanced", "fast"):
        weights = contributions(encoder, histories, items, method)
        assert weights.shape == (3, 2, 3)
        assert not weights[0, :, 1:].any()
        assert not weights[1].any()
        assert not weights[2, 0].any()
        assert weights[2, 1].any()
        expected = AttentionRecommender(encoder).score_items(histories)[0, [7, 8]]
        np.testing.assert_allclose(weights[0, :, 0], expected, rtol=1e-4, atol=1e-4)


def test_the_last_interaction_gets_what_exact_gives(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant), random_histories([7, 4, 1, 6])
    items = np.random.default_rng(0).integers(1, NUM_ITEMS, (4, 5)).astype(np.int32)
    exact = contributions(encoder, histories, items, "exact")
    for method in ("fast", "balanced"):
        found = contributions(encoder, histories, items, method)
        for row, length in enumerate([7, 4, 1, 6]):
            last = found[row, :, length - 1]
            np.testing.assert_allclose(last, exact[row, :, length - 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        *({"score": score} for score in ("dot", "cosine", "general", "additive", "concat")),
        *({"weighting": kind} for kind in ("silu", "gumbel_softmax", "sparsemax", "entmax")),
        {"weighting": "gumbel_softmax", "gumbel_hard": True},
        *({"positions": kind} for kind in ("absolute", "relative", "rotary", "none")),
        *({"block": block, "positions": "relative"} for block in ("hstu", "ligr")),
        {"weighting": "silu", "score": "additive", "positions": "absolute"},
        {"block": "pooling", "num_blocks": 0, "readout": "attention"},
    ],
    ids=str,
)
def test_balanced_is_exact_with_one_layer(settings, random_encoder, random_histories):
    """Nothing but the last position looks at an interaction then."""
    settings = {"num_blocks": 1, **settings} | ({"time_bias": True} if "block" not in settings else {})
    encoder, histories = random_encoder(**settings), random_histories([7, 4, 1, 6])
    items = np.random.default_rng(0).integers(1, NUM_ITEMS, (4, 5)).astype(np.int32)
    balanced, exact = (contributions(encoder, histories, items, method) for method in ("balanced", "exact"))
    np.testing.assert_allclose(balanced, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"block": "hstu", "weighting": "silu"}, {"block": "ligr", "positions": "rotary"}],
    ids=str,
)
def test_balanced_takes_slopes_of_what_the_other_positions_see(settings, random_encoder, random_histories):
    """Two layers, one item: the way that is left beside the direct one is that of finite differences in the first layer."""
    encoder = random_encoder("reference", num_blocks=2, **settings).double()
    window, small = encoder.pad(random_histories([5])), 1e-6
    candidate = encoder.item_vectors()[[7]].unsqueeze(0).detach()
    (first, second), lengths = encoder.attention_layers, window.lengths
    at_last = last_geometry(window, encoder.settings)
    everywhere = full_geometry(window, encoder.settings)
    is_sum = encoder.settings.resolved.weighting == "silu"

    def score_with(column, share):
        """The last position on its own way, at keys and values of the second layer that see a little less of a column."""
        presence = torch.ones(5, 5, dtype=torch.float64)
        presence[:, column] = share
        presence.fill_diagonal_(1)
        states = encoder.embed(window)
        normed = first.attention_norm(states)
        keys, values = first.keys_values(normed)
        weights = first.attention.weights(first.queries(normed), keys, everywhere) * presence
        whole = (presence.tril().sum(-1) / torch.arange(1, 6)).view(1, 1, 5, 1)
        weights = weights / (whole if is_sum else weights.sum(-1, keepdim=True))
        merged = first.merged(states, normed, join_heads(weights @ values))
        keys, values = second.keys_values(second.attention_norm(first.fed_forward(merged, merged)))
        state = second.at(first.last(states, lengths, at_last), keys, values, at_last)
        return (encoder.finished(state) @ candidate.mT).item()

    found = ForwardTrace.of(encoder, window, with_gradients=True).leaving_out(candidate)[0, 0]
    direct = leaving_out_directly(encoder, window, candidate)
    for column in range(4):
        slope = (score_with(column, 1 + small) - score_with(column, 1 - small)) / (2 * small)
        assert (found - direct)[column].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def leaving_out_directly(encoder: Encoder, window: Window, candidate: torch.Tensor) -> torch.Tensor:
    """[l] what the score loses where the last position alone does not see a column, in any layer."""
    layers, lengths = encoder.attention_layers, window.lengths
    at_last, everywhere = last_geometry(window, encoder.settings), full_geometry(window, encoder.settings)
    with torch.no_grad():
        before = [encoder.embed(window)]
        for block in layers:
            before.append(block(before[-1].flatten(0, 1), (everywhere,)).view_as(before[0]))

        def score_without(column: int | None) -> torch.Tensor:
            hidden = torch.arange(window.item_index.shape[1]) == (-1 if column is None else column)
            assert at_last.visible is not None
            seen = replace(
                at_last,
                mask=at_last.visible & ~hidden,
                num_visible=at_last.num_visible - int(column is not None),
            )
            state = before[0][:, lengths - 1]
            for block, states in zip(layers, before, strict=False):
                state = block.at(state, *block.keys_values(block.attention_norm(states)), seen)
            return (encoder.finished(state) @ candidate.mT).squeeze()

        whole = score_without(None)
        return torch.stack([whole - score_without(column) for column in range(len(before[0][0]))])


def test_kept_scores_are_those_of_the_interactions_left_in_place(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant), random_histories([5, 7, 3, 2, 6], seed=3)
    items = np.array([7, 8, 9, 7, 8], np.int32)
    kept = np.random.default_rng(0).random((5, 9)) < 0.6
    kept[3] = False
    found = kept_scores(encoder, histories, items, kept)
    for row, length in enumerate([5, 7, 3, 2, 6]):
        column, alone = np.flatnonzero(kept[row, :length]), histories.select(slice(row, row + 1))
        if not len(column):
            assert found[row] == 0
            continue
        for gone in np.setdiff1d(np.arange(length), column)[::-1]:
            alone = without(alone, alone.starts[0] + gone)
        window = replace(encoder.pad(alone), position=torch.from_numpy(column[None]))
        assert found[row] == pytest.approx(scores(encoder, window)[0, items[row]], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"positions": "absolute"}, 0.7),
        ({"positions": "relative", "time_bias": True, "request_time": True}, 0.7),
        ({"positions": "rotary", "score": "cosine"}, 0.7),
        ({"score": "additive", "weighting": "entmax"}, 0.7),
        ({"block": "hstu"}, 0.7),
        ({"block": "ligr"}, 0.7),
        ({"block": "gru"}, 0.9),
    ],
    ids=str,
)
def test_fast_follows_exact_and_balanced_more_so(settings, least, random_encoder, random_histories):
    """Of the interactions before the last; weights at which layers tell, but not so large that slopes say nothing."""
    encoder, histories = random_encoder(spread=0.2, **settings), random_histories([7] * 20)
    items = np.random.default_rng(0).integers(1, NUM_ITEMS, (20, 1)).astype(np.int32)
    exact, balanced, fast = (
        contributions(encoder, histories, items, method)[..., :-1].ravel()
        for method in ("exact", "balanced", "fast")
    )
    follows = np.corrcoef(fast, exact)[0, 1]
    assert follows > least
    assert np.corrcoef(balanced, exact)[0, 1] >= follows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block": "hstu", "time_bias": True},
        {"block": "ligr", "positions": "rotary"},
        {"score": "additive", "weighting": "entmax"},
        {"block": "pooling", "num_blocks": 0, "readout": "attention"},
    ],
    ids=str,
)
def test_fast_is_the_slope_of_presence_in_attention(settings, random_encoder, random_histories, monkeypatch):
    """Against finite differences: an interaction a little less there for the last position that looks."""
    encoder = random_encoder("reference", **{"num_blocks": 1, **settings}).double()
    histories, items, small = random_histories([5]), np.array([[7]], np.int32), 1e-6
    found = contributions(encoder, histories, items, "fast")[0]
    plain = HistoryAttention.weights

    def last_state(at, share):
        presence = torch.ones(5, dtype=torch.float64)
        presence[at] = share

        def weights(self, queries, keys, places):
            found = plain(self, queries, keys, places)
            there = found * presence if queries.shape[2] == 1 else found
            is_sum = self.settings.weighting == "silu"
            return there * (5 / presence.sum()) if is_sum else there / there.sum(-1, keepdim=True)

        with torch.no_grad(), monkeypatch.context() as patched:
            patched.setattr(HistoryAttention, "weights", weights)
            return encoder.last_states(encoder.pad(histories)) @ encoder.item_vectors()[items[0]].T

    for at in range(4):
        slope = (last_state(at, 1 + small) - last_state(at, 1 - small)) / (2 * small)
        np.testing.assert_allclose(found[:, at], slope[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"block": "conv"}, {"readout": "target"}, {"direction": "bidirectional"}], ids=str
)
def test_all_is_exact_where_no_slope_tells(settings, random_encoder, random_histories):
    encoder, histories, items = (
        random_encoder(**settings),
        random_histories([5, 2]),
        np.array([[7, 8]] * 2, np.int32),
    )
    exact = contributions(encoder, histories, items, "exact")
    for method in ("fast", "balanced"):
        np.testing.assert_array_equal(contributions(encoder, histories, items, method), exact)


def test_fast_is_the_slope_of_letting_hidden_states_pass(random_encoder):
    """Against finite differences: each h_i moved a little towards h_{i-1}, in every block, by a recurrence written out."""
    encoder = random_encoder(block="gru", num_event_types=0).double()
    row, item, small = [3, 9, 4, 9], 7, 1e-6
    vectors = encoder.item_vectors()

    def score_with(skipped, share):
        states = vectors[row]
        for block in encoder.layer_list:
            hidden, added = torch.zeros(1, 1, 12, dtype=torch.double), []
            for place, x in enumerate(block.norm(states)):
                new = block.onward(x.view(1, 1, 12), hidden)[1]
                hidden = new + (share * (hidden - new) if place == skipped else 0)
                added.append(hidden.view(12))
            states = states + torch.stack(added)
        return (encoder.norm(states[-1]) @ vectors[item]).item()

    weights = contributions(encoder, histories_from_lists([row]), np.array([[item]], np.int32), "fast")[0, 0]
    for place in range(3):
        slope = (score_with(place, 0) - score_with(place, small)) / small
        assert weights[place] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_a_gru_forgets_an_interaction_as_if_it_had_never_been(random_encoder):
    encoder, row, items = random_encoder(block="gru"), [3, 9, 4, 9], [7, 8]
    weights = contributions(encoder, histories_from_lists([row]), np.array([items], np.int32), "exact")
    for place, item in enumerate(items):
        shorter = [score(encoder, row[:column] + row[column + 1 :], item) for column in range(4)]
        np.testing.assert_allclose(
            weights[0, place], score(encoder, row, item) - shorter, rtol=1e-4, atol=1e-4
        )


def test_a_row_alone_gets_the_same_weights(variant, random_encoder, random_histories):
    encoder, histories = random_encoder(**variant), random_histories([9, 2, 0, 1])
    items = np.array([[11, 12], [13, 14], [15, 16], [17, 0]], np.int32)
    together = contributions(encoder, histories, items)
    assert together.shape == (4, 2, 7)
    assert not together[2].any()
    assert not together[3, 1].any()
    for row in range(4):
        alone = contributions(encoder, histories.select(slice(row, row + 1)), items[row : row + 1])[0]
        np.testing.assert_allclose(together[row, :, : alone.shape[-1]], alone, rtol=1e-3, atol=1e-4)
        assert not together[row, :, alone.shape[-1] :].any()


def test_a_pass_at_a_time_is_the_same(random_encoder, random_histories, monkeypatch):
    encoder, histories = random_encoder(), random_histories([5, 5, 3, 7])
    items = np.array([[11, 12], [13, 14], [15, 16], [17, 0]], np.int32)
    whole = contributions(encoder, histories, items)
    monkeypatch.setattr("models.explanation.contributions.BATCH_CELLS", 1)
    np.testing.assert_allclose(contributions(encoder, histories, items), whole, rtol=1e-4, atol=1e-5)


def test_an_unknown_method_is_refused(random_encoder):
    slow: Any = "slow"
    with pytest.raises(ValueError, match="'slow'"):
        contributions(random_encoder(), histories_from_lists([[1]]), np.array([[2]], np.int32), slow)


def test_strongest_by_pencil():
    histories = histories_from_lists([[5, 6, 5, 7], [8]])
    weights = np.array([[[1, 2, 3, -1], [0, -1, 0, 0]], [[4, 0, 0, 0], [5, 0, 0, 0]]], np.float32)
    items, found = strongest(weights, histories, 3)
    assert items.tolist() == [[[5, 6, 0], [0, 0, 0]], [[8, 0, 0], [8, 0, 0]]]
    assert found.tolist() == [[[3, 2, 0], [0, 0, 0]], [[4, 0, 0], [5, 0, 0]]]


def test_strongest_looks_at_the_same_window():
    items, _ = strongest(np.array([[[1, 2]]], np.float32), histories_from_lists([[9, 3, 4]]), 2)
    assert items.tolist() == [[[4, 3]]]


def test_strongest_of_nothing():
    items, found = strongest(np.zeros((2, 3, 0), np.float32), histories_from_lists([[], []]), 2)
    assert items.shape == found.shape == (2, 3, 2)
    assert not items.any()


@pytest.mark.parametrize("method", get_args(Method))
def test_rows_encoded_to_be_explained_have_the_bits_of_rows_encoded(
    method, variant, random_encoder, random_histories
):
    """In the order of `parts`, as both are encoded in; of frozen weights, as a loaded model has them."""
    encoder = random_encoder(**{"num_blocks": 3, **variant}).requires_grad_(requires_grad=False)
    histories = random_histories([1, 6, 6, 7])
    vectors, _ = encode_to_explain(encoder, histories, method)
    if not encoder.scores_by_vector:
        assert vectors is None
        return
    assert vectors is not None
    np.testing.assert_array_equal(vectors, AttentionRecommender(encoder).encode(histories))


def test_a_trace_leaves_no_hook_behind_and_records_its_own_thread_alone(random_encoder, random_histories):
    encoder = random_encoder(num_blocks=2).requires_grad_(requires_grad=False)
    window, other = (encoder.pad(random_histories([5, 3], seed=seed)) for seed in (0, 1))
    alone = ForwardTrace.of(encoder, window, with_gradients=True)
    plain, last_states = [], encoder.last_states

    def interrupted(rows: Window) -> torch.Tensor:
        thread = threading.Thread(target=lambda: plain.append(last_states(other)))
        thread.start()
        thread.join()
        states: torch.Tensor = last_states(rows)
        return states

    encoder.last_states = interrupted
    trace = ForwardTrace.of(encoder, window, with_gradients=True)
    assert torch.equal(plain[0], last_states(other))
    for name in ("states", "queries", "keys", "values", "mixed"):
        for one, two in zip(getattr(alone, name), getattr(trace, name), strict=True):
            assert torch.equal(one, two)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
