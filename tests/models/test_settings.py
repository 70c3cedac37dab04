"""Settings that make no sense are refused by name, with what was received and what would do."""

import math
from dataclasses import asdict, fields
from typing import Any, get_args

import pytest

from models.settings.encoder import EncoderSettings, Score
from models.settings.training import SAMPLED_LOSSES, TrainSettings, check_together

REFUSED_MODELS: list[tuple[dict[str, Any], str]] = [
    *(({key: "nonsense"}, f"model.{key}: received 'nonsense', expected '") for key in (
        "block", "score", "weighting", "positions", "feed_forward", "direction", "readout", "similarity",
        "attention",
    )),
    ({"dim": 0, "num_heads": 1}, "model.dim: received 0, expected at least 1"),
    ({"num_blocks": -1}, "model.num_blocks: received -1, expected 0 or more"),
    ({"num_heads": 0}, "model.num_heads: received 0, expected at least 1"),
    ({"dropout": 1.0}, r"model.dropout: received 1.0, expected a share in \[0, 1\)"),
    ({"window": -1}, "model.window: received -1, expected 0 or more"),
    ({"kernel": 0}, "model.kernel: received 0, expected at least 1"),
    ({"temperature": 0.0}, "model.temperature: received 0.0, expected a number above 0"),
    ({"gumbel_start": math.inf}, "model.gumbel_start: received inf, expected a number above 0"),
    ({"gumbel_end": math.nan}, "model.gumbel_end: received nan, expected a number above 0"),
    ({"dim": 7}, r"model.dim: received 7, expected a multiple of num_heads \(2\)"),
    ({"block": "gru", "dim": 7, "readout": "attention"}, "model.dim: received 7, expected a multiple"),
    ({"block": "gru", "score": "dot"}, "model.score: received 'dot', expected 'auto' with block 'gru' and readout 'last'"),
    ({"block": "conv", "weighting": "silu"}, "model.weighting: received 'silu', expected 'auto' with block 'conv'"),
    ({"block": "lstm", "time_bias": True}, "model.time_bias: received True, expected False with block 'lstm': only transformer"),
    ({"block": "pooling", "window": 3}, "model.window: received 3, expected 0 with block 'pooling'"),
    ({"block": "gru", "positions": "absolute"}, "model.positions: received 'absolute', expected 'auto' or 'none' with"),
    ({"positions": "rotary", "score": "additive"}, "model.positions: received 'rotary', expected another with score 'additive'"),
    ({"positions": "rotary", "dim": 6}, "model.positions: received 'rotary', expected another .* dim 6 and 2 heads"),
    ({"block": "hstu", "feed_forward": "gelu"}, "model.feed_forward: received 'gelu', expected 'auto' with block 'hstu'"),
    ({"block": "gru", "feed_forward": "swiglu"}, "model.feed_forward: received 'swiglu', expected 'auto' with block 'gru'"),
    ({"block": "conv", "direction": "bidirectional"}, "model.direction: received 'bidirectional', expected 'causal' with"),
    ({"block": "pooling", "direction": "bidirectional"}, "model.direction: received 'bidirectional', expected 'causal'"),
    *(({"block": block, "direction": "bidirectional"},
       f"model.readout: received 'last', expected 'mean' or 'attention' with block '{block}' and direction 'bidirectional'")
      for block in ("gru", "lstm")),
    ({"request_time": True}, "model.request_time: received True, expected false, or model.time_bias or model.calendar"),
    ({"item_id": False}, "model.item_id: received False, expected true, or model.item_content"),
    ({"learned_temperature": True}, "model.learned_temperature: received True, expected False with similarity 'dot'"),
    ({"temperature": 0.1}, "model.temperature: received 0.1, expected 0.05 with similarity 'dot'"),
    ({"gumbel_hard": True}, "model.gumbel_hard: received True, expected False with weighting 'softmax': gumbel_softmax alone"),
    ({"gumbel_start": 2.0, "weighting": "silu"}, "model.gumbel_start: received 2.0, expected 1.0 with weighting 'silu'"),
    ({"gumbel_end": 0.1}, "model.gumbel_end: received 0.1, expected 0.2 with"),
    ({"kernel": 3}, "model.kernel: received 3, expected 5 with block 'transformer': conv alone"),
    ({"block": "conv", "num_blocks": 0, "kernel": 3}, "model.kernel: received 3, expected 5 with num_blocks 0"),
    *(({"num_blocks": 0, **setting}, f"model.{name}: received {value!r}, expected {expected} with num_blocks 0")
      for setting, expected in (
        ({"score": "dot"}, "'auto'"), ({"weighting": "silu"}, "'auto'"), ({"time_bias": True}, "False"), ({"window": 3}, "0"),
        ({"positions": "absolute"}, "'auto' or 'none'"),
      ) for name, value in setting.items()),
    ({"num_blocks": 0, "request_time": True}, "model.request_time: received True"),
    ({"block": "hstu", "attention": "flex"}, "model.attention: received 'flex', expected 'auto', 'blocked' or 'dense' with"),
    *(({**setting, "attention": "blocked"}, "model.attention: received 'blocked', expected 'auto' with block")
      for setting in ({"block": "gru"}, {"block": "gru", "readout": "target"}, {"score": "concat"}, {"weighting": "entmax"})),
    ({"num_blocks": 0, "request_time": True, "time_bias": True}, "model.time_bias: received True"),
    ({"direction": "bidirectional", "window": 3}, "model.window: received 3, expected 0 with direction 'bidirectional'"),
    *(({"readout": "target", "weighting": name}, f"model.weighting: received '{name}', expected 'softmax' or 'silu' with readout")
      for name in ("sparsemax", "entmax", "gumbel_softmax")),
    ({"num_blocks": 0, "feed_forward": "swiglu"}, "model.feed_forward: received 'swiglu', expected 'auto' with num_blocks 0"),
    ({"num_blocks": 0, "direction": "bidirectional"}, "model.direction: .* expected 'causal' with num_blocks 0"),
    ({"block": "gru", "positions": "rotary"}, "model.positions: received 'rotary', expected 'auto' or 'none' with block 'gru'"),
]  # fmt: skip

REFUSED_TRAININGS: list[tuple[dict[str, Any], str]] = [
    *(({key: "nonsense"}, f"train.{key}: received 'nonsense', expected '") for key in (
        "loss", "negative_sampling", "targets", "schedule", "item_optimizer", "refit_from", "precision", "compile",
    )),
    *(({key: 0}, f"train.{key}: received 0, expected at least 1") for key in (
        "epochs", "patience", "batch_histories", "accumulate", "negatives", "validation_targets",
    )),
    *(({key: -1}, f"train.{key}: received -1, expected 0 or more") for key in (
        "weight_decay", "max_grad_norm", "checkpoint_seconds", "warmup_steps",
    )),
    *(({key: 1.0}, rf"train.{key}: received 1.0, expected in \[0, 1\)") for key in ("beta1", "beta2", "ema_decay")),
    ({"learning_rate": math.nan}, "train.learning_rate: received nan, expected a number above 0"),
    ({"gbce_calibration": 1.5}, r"train.gbce_calibration: received 1.5, expected in \[0, 1\]"),
    ({"loss": "gbce", "negative_sampling": "popularity"}, "train.negative_sampling: received 'popularity', expected 'uniform'"),
    ({"item_optimizer": "rowwise_adagrad"}, "train.item_optimizer: received 'rowwise_adagrad', expected 'adamw' with"),
    ({"negatives": 3000}, "train.negatives: received 3000, expected 256 with loss 'softmax': .*, gbce, bce, bpr alone"),
    ({"negative_sampling": "in_batch"}, "train.negative_sampling: received 'in_batch', expected 'uniform' with loss 'softmax'"),
    ({"loss": "bce", "logq_correction": False}, "train.logq_correction: .* True with loss 'bce': sampled_softmax alone"),
    ({"loss": "bpr", "gbce_calibration": 0.5}, "train.gbce_calibration: received 0.5, expected 0.75 with loss 'bpr': gbce alone"),
]  # fmt: skip

REFUSED_TOGETHER: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"direction": "bidirectional"}, {}, "train.targets: received 'all', expected 'last' or 'random'"),
    ({"direction": "bidirectional"}, {"targets": "last", "predict": "visit"},
     "train.predict: received 'visit', expected 'next' with train.targets 'last'"),
    ({}, {"targets": "random", "predict": "window"},
     "train.predict: received 'window', expected 'next' with train.targets 'random'"),
    ({"readout": "target"}, {"loss": "bce", "predict": "visit"},
     "train.predict: received 'visit', expected 'next' with model.readout"),
    ({"readout": "target"}, {}, f"train.loss: received 'softmax', expected one of {', '.join(SAMPLED_LOSSES)}"),
    ({"readout": "target", "similarity": "cosine"}, {"loss": "bce"}, "model.similarity: received 'cosine', expected 'dot'"),
    ({"item_id": False, "item_content": True}, {"loss": "bce", "item_optimizer": "rowwise_adagrad"},
     "train.item_optimizer: received 'rowwise_adagrad', expected 'auto' or 'adamw' with model.item_id false"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED_MODELS, ids=str)
def test_a_model_that_makes_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderSettings(**settings)


@pytest.mark.parametrize(("settings", "message"), REFUSED_TRAININGS, ids=str)
def test_a_training_that_makes_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


@pytest.mark.parametrize(("model", "train", "message"), REFUSED_TOGETHER)
def test_a_model_that_cannot_be_trained_that_way(model, train, message):
    with pytest.raises(ValueError, match=message):
        check_together(EncoderSettings(**model), TrainSettings(**train))


@pytest.mark.parametrize("targets", ["last", "random"])
def test_a_closed_history_may_be_read_from_both_ends(targets):
    check_together(EncoderSettings(direction="bidirectional"), TrainSettings(targets=targets))


@pytest.mark.parametrize("readout", ["mean", "attention"])
@pytest.mark.parametrize("block", ["gru", "lstm"])
def test_a_recurrence_from_both_ends_is_read_out_over_all_states(block, readout):
    assert EncoderSettings(block=block, direction="bidirectional", readout=readout).readout == readout


@pytest.mark.parametrize("loss", SAMPLED_LOSSES)
def test_target_attention_goes_with_sampled_losses(loss):
    check_together(EncoderSettings(readout="target"), TrainSettings(loss=loss))


@pytest.mark.parametrize(
    "settings",
    [
        {"block": "hstu", "readout": "target"},
        {"block": "hstu", "readout": "target", "score": "scaled_dot", "weighting": "softmax"},
        *({"block": "gru", "readout": "target", "score": score} for score in get_args(Score)),
        {"readout": "target", "weighting": "silu"},
        {"similarity": "cosine", "temperature": 0.1},
        {"block": "conv", "kernel": 3},
        {"weighting": "gumbel_softmax", "gumbel_hard": True, "gumbel_start": 2.0},
        {"num_blocks": 0, "readout": "attention", "score": "dot", "weighting": "entmax"},
        {"num_blocks": 0, "calendar": True, "request_time": True},
        {"block": "gru", "readout": "attention", "attention": "flex"},
        {"block": "hstu", "attention": "blocked"},
    ],
    ids=str,
)
def test_what_something_reads_may_be_set(settings):
    resolved = EncoderSettings(**settings).resolved
    assert EncoderSettings(**asdict(resolved)) == resolved  # as a checkpoint keeps it


@pytest.mark.parametrize(
    ("settings", "score", "weighting", "positions", "feed_forward"),
    [
        ({"num_blocks": 0}, "auto", "auto", "none", "auto"),
        ({"num_blocks": 0, "readout": "attention"}, "scaled_dot", "softmax", "none", "auto"),
        ({}, "scaled_dot", "softmax", "relative", "gelu"),
        ({"block": "hstu"}, "dot", "silu", "relative", "auto"),
        ({"block": "ligr"}, "scaled_dot", "softmax", "relative", "swiglu"),
        ({"block": "gru"}, "auto", "auto", "none", "auto"),
        ({"block": "conv", "readout": "attention"}, "scaled_dot", "softmax", "none", "auto"),
        ({"block": "hstu", "score": "cosine", "positions": "none"}, "cosine", "silu", "none", "auto"),
    ],
)
def test_what_auto_stands_for(settings, score, weighting, positions, feed_forward):
    resolved = EncoderSettings(**settings).resolved
    found = (resolved.score, resolved.weighting, resolved.positions, resolved.feed_forward)
    assert found == (score, weighting, positions, feed_forward)
    assert resolved.resolved == resolved
    assert EncoderSettings(**asdict(resolved)) == resolved  # as a checkpoint keeps it
    assert {field.name for field in fields(resolved)} == set(asdict(resolved))


def test_heads_are_of_no_concern_where_nothing_attends():
    assert EncoderSettings(block="gru", dim=7, num_heads=2).dim == 7


def test_only_bias_by_time_and_calendar_look_at_time():
    assert not EncoderSettings().uses_time
    assert EncoderSettings(time_bias=True).uses_time
    assert EncoderSettings(calendar=True, block="gru").uses_time
