import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import load_training, save_training
from models.encoder.batching import BatchPlan
from models.encoder.encoder import AttentionRecommender
from models.histories import Histories, histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import SAMPLED_LOSSES, Loss, TrainSettings
from models.training import loop
from models.training.loop import fit
from models.training.negatives import NegativeSampler
from models.training.result import EpochRecord, Initial
from models.training.validation import Validation, validate

ROOT = Path(__file__).parents[3]
NUM_ITEMS = 23
SETTINGS: dict[str, Any] = {
    "encoder": EncoderSettings(dim=16, num_blocks=1, num_heads=2, dropout=0.1),
    "train": TrainSettings(epochs=3, batch_histories=16, learning_rate=0.01, precision="fp32", compile="off"),
    "num_items": NUM_ITEMS,
    "num_event_types": 0,
    "max_length": 8,
}


def planted(rows=150, seed=0):
    """The next item is always 5 times the present one, modulo 23."""
    random = np.random.default_rng(seed)
    sequences = []
    for start, length in zip(random.integers(1, NUM_ITEMS, rows), random.integers(3, 9, rows), strict=True):
        row = [int(start)]
        while len(row) < length:
            row.append(row[-1] * 5 % NUM_ITEMS)
        sequences.append(row)
    return histories_from_lists(sequences)


def held_out(rows=40):
    histories = planted(rows, seed=1)
    target = histories.item_index[histories.ends - 1]
    shorter = Histories(
        histories.item_index, histories.time, histories.event_type, histories.starts, histories.ends - 1
    )
    return Validation(shorter, target, exclude_seen=False)


def train(**changes):
    settings = {**SETTINGS, **changes}
    return fit(planted(), **settings)


def train_on(histories, **changes):
    return fit(histories, **{**SETTINGS, **changes})


def same_bits(one, other):
    weights = [result.model.state_dict() for result in (one, other)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def initial_of(trained):
    return Initial(trained, np.arange(NUM_ITEMS + 1, dtype=np.int32))


def with_train(**changes):
    return dataclasses.replace(SETTINGS["train"], **changes)


COMPILED = """
import dataclasses, functools, os, torch
from models.encoder.batching import BatchPlan
from models.histories import histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import loop
from models.training.loop import fit
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # needs no C++ compiler
os.environ["CXX"] = "true"  # so none has to be there
rows = histories_from_lists([[row % 9 + 1] * (2 + row % 13) for row in range(120)])
train = TrainSettings(epochs=2, batch_histories=16, precision="fp32", compile="off")
losses = []
# what is compiled sees one window at a time, here what is not compiled too
loop.BatchPlan = lambda *given, **named: BatchPlan(*given, **(named | {"one_window": True}))
for settings in (train, dataclasses.replace(train, compile="on")):
    encoder = EncoderSettings(dim=8, num_blocks=1, dropout=0.0)
    result = fit(rows, encoder=encoder, train=settings, num_items=9, num_event_types=0, max_length=16)
    assert result.resolved["compile"] == settings.compile
    loop.BatchPlan = BatchPlan
    losses.append([record.loss for record in result.history])
torch.testing.assert_close(*map(torch.tensor, losses))
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


@pytest.mark.slow
def test_one_compiled_graph_serves_all_shapes():
    # in a process of its own: what checks shapes at every call cannot be traced
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_planted_pattern_is_learned(precision):
    result = train(train=with_train(epochs=12, precision=precision), validation=held_out())
    items, _ = AttentionRecommender(result.model).recommend(
        histories_from_lists([[2], [3, 15]]), 1, exclude_seen=False
    )
    assert items.tolist() == [[10], [6]]
    best = result.history[result.best_epoch - 1]
    assert best.validation["validation_ndcg@10"] > 0.95
    assert best.loss < result.history[0].loss
    assert result.resolved["precision"] == precision


def test_the_same_seed_gives_the_same_bits():
    first = train(validation=held_out())
    assert same_bits(first, train(validation=held_out()))
    assert not same_bits(first, train(seed=1, validation=held_out()))


def test_training_leaves_torch_s_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(max_steps=1)
    assert torch.equal(torch.rand(3), expected)


KINDS: dict[str, Any] = {
    "plain": {},
    "average and schedule": {
        "train": {"ema_decay": 0.9, "warmup_steps": 5, "schedule": "cosine", "accumulate": 2}
    },
    "sampled": {"train": {"loss": "bce", "negatives": 5, "item_optimizer": "rowwise_adagrad"}},
    "in the batch": {"train": {"loss": "sampled_softmax", "negatives": 7, "negative_sampling": "in_batch"}},
    "visit": {"train": {"predict": "visit"}, "session": 0},
    "window": {"train": {"predict": "window"}, "session": 0, "horizon": 3},
    "window, sampled": {
        "train": {
            "predict": "window",
            "loss": "sampled_softmax",
            "negatives": 5,
            "negative_sampling": "in_batch",
        },
        "session": 0,
        "horizon": 3,
    },
    "gumbel": {"encoder": {"weighting": "gumbel_softmax"}, "train": {"targets": "random"}},
}


@pytest.mark.parametrize(
    ("kind", "at"),
    [("plain", at) for at in (0, 1, 4, 12, 20)] + [(kind, 13) for kind in KINDS if kind != "plain"],
)
def test_resumed_at_any_step_equals_undisturbed(tmp_path, kind, at):
    settings = {
        "encoder": dataclasses.replace(SETTINGS["encoder"], **KINDS[kind].get("encoder", {})),
        "train": with_train(checkpoint_seconds=0, **KINDS[kind].get("train", {})),
        "validation": held_out(),
        **{key: KINDS[kind][key] for key in ("session", "horizon") if key in KINDS[kind]},
    }
    states: list[dict[str, Any]] = []
    in_pairs = dataclasses.replace(planted(), time=planted().time // 2)
    undisturbed = train_on(in_pairs, **settings, on_checkpoint=states.append)
    save_training(states[at], tmp_path / "state")
    resumed = train_on(in_pairs, **settings, resume=load_training(tmp_path / "state"))
    assert same_bits(undisturbed, resumed)
    assert (resumed.best_epoch, resumed.best_step) == (undisturbed.best_epoch, undisturbed.best_step)
    assert [record.loss for record in resumed.history] == [record.loss for record in undisturbed.history]


@pytest.mark.parametrize(
    "max_steps", [4, 9, 13]
)  # of epochs of 9 steps: within the first, its end, within the second
def test_resumed_behind_the_last_step_equals_undisturbed(max_steps):
    settings: dict[str, Any] = {"train": with_train(checkpoint_seconds=0), "max_steps": max_steps}
    states: list[dict[str, Any]] = []
    undisturbed = train(**settings, on_checkpoint=states.append)
    at_last = next(state for state in states if state["progress"]["total_steps"] == max_steps)
    assert at_last["progress"]["step"] > 0  # the epoch's record is not written yet
    resumed = train(**settings, resume=at_last)
    assert same_bits(undisturbed, resumed)
    assert resumed.best_step == undisturbed.best_step == max_steps
    assert resumed.best_epoch == undisturbed.best_epoch
    assert [record.loss for record in resumed.history] == [record.loss for record in undisturbed.history]


def test_compiled_training_is_resumed_at_the_end_of_an_epoch(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # when it compiles, not what
    monkeypatch.setenv("CXX", "true")
    settings = {"train": with_train(checkpoint_seconds=0, compile="on")}
    states: list[dict[str, Any]] = []
    undisturbed = train(**settings, on_checkpoint=states.append)
    assert undisturbed.resolved["compile"] == "on"
    assert states[8]["progress"]["step"] == undisturbed.resolved["steps_per_epoch"]
    assert same_bits(undisturbed, train(**settings, resume=states[8]))


def test_a_checkpoint_is_a_snapshot():
    states: list[dict[str, Any]] = []
    train(train=with_train(checkpoint_seconds=0), max_steps=2, on_checkpoint=states.append)
    assert not torch.equal(states[0]["model"]["items.ids.weight"], states[1]["model"]["items.ids.weight"])


def test_the_state_of_another_training_is_refused():
    states: list[dict[str, Any]] = []
    train(max_steps=1, on_checkpoint=states.append)
    with pytest.raises(ValueError, match="of another training"):
        train(seed=1, resume=states[-1])


def test_max_steps_is_exact_and_without_validation():
    result = train(max_steps=13, validation=held_out())
    assert result.best_step == 13
    assert result.history[-1].steps == 13
    assert not result.history[-1].validation
    assert result.history[0].steps == result.resolved["steps_per_epoch"] == 9
    assert [record.epoch for record in result.history] == [1, 2]


def test_early_stopping_keeps_the_best_weights():
    result = train(train=with_train(epochs=60, patience=2), validation=held_out())
    scores = [record.validation["validation_ndcg@10"] for record in result.history]
    assert len(scores) < 60
    assert result.best_epoch == int(np.argmax(scores)) + 1 == len(scores) - 2
    assert validate(result.model, held_out())["validation_ndcg@10"] == max(scores)
    assert result.best_step == result.history[result.best_epoch - 1].steps


def test_records():
    seen: list[EpochRecord] = []
    result = train(on_epoch=seen.append)
    assert seen == result.history
    targets = int((planted().lengths - 1).sum())
    assert [record.targets for record in seen] == [targets] * 3
    row = seen[0].row()
    assert row["targets_per_second"] == pytest.approx(targets / row["seconds"])
    assert row["learning_rate"] == 0.01
    assert 2**24 < row["peak_bytes"] < 2**36
    assert set(train(validation=held_out()).history[0].row()) >= {
        "validation_ndcg@10",
        "validation_hit_rate@10",
    }


def test_a_type_of_weight_zero_is_not_learned():
    # every other history ends in item 22 by an event of type 2
    rows = histories_from_lists([[1, 2, 3], [1, 2, 22]] * 20)
    types = np.where(rows.item_index == 22, 2, 1).astype(np.int16)
    histories = Histories(rows.item_index, rows.time, types, rows.starts, rows.ends)
    weights = np.array([1, 1, 0], np.float32)
    settings = {**SETTINGS, "num_event_types": 2, "train": with_train(epochs=15)}
    result = fit(histories, **settings, type_weights=weights)
    part = Histories(rows.item_index, rows.time, types, np.array([0]), np.array([2]))
    assert AttentionRecommender(result.model).recommend(part, 1)[0].tolist() == [[3]]


def test_validation_by_pencil():
    result = train(max_steps=1)
    histories = histories_from_lists([[1, 2], [3]])
    scores = AttentionRecommender(result.model).score_items(histories)
    best = scores.argmax(1).astype(np.int32)
    assert validate(result.model, Validation(histories, best, False))["validation_ndcg@10"] == 1
    scores[0, [1, 2]], scores[1, 3] = -np.inf, -np.inf
    best = scores.argmax(1).astype(np.int32)
    assert validate(result.model, Validation(histories, best))["validation_hit_rate@10"] == 1


@pytest.mark.parametrize("loss", ["softmax", *SAMPLED_LOSSES])
def test_a_catalogue_of_one_item(loss):
    train_settings = dataclasses.replace(SETTINGS["train"], loss=loss, epochs=1)
    result = fit(
        histories_from_lists([[1, 1, 1], [1]]), **SETTINGS | {"num_items": 1, "train": train_settings}
    )
    assert result.history[0].targets == 2
    assert all(weight.isfinite().all() for weight in result.model.parameters())
    assert AttentionRecommender(result.model).recommend(histories_from_lists([[1], []]), 3, False)[0].tolist() == [
        [1, 0, 0], [1, 0, 0],
    ]  # fmt: skip


def test_histories_without_a_target_are_refused():
    with pytest.raises(ValueError, match="two events"):
        fit(histories_from_lists([[1], [2]]), **SETTINGS)


def test_weights_that_are_not_finite_stop_the_training():
    states: list[dict[str, Any]] = []
    # one step of 1e30 leaves weights whose products are beyond fp32: the second step's loss is no number
    absurd = with_train(learning_rate=1e30, max_grad_norm=0, checkpoint_seconds=0)
    rows = BatchPlan(planted(), 8, 16, None, 0, one_window=True).epoch(0)[1]
    named = f"epoch 1, step 2 \\(training histories \\[{rows[0]}, .* lower train.learning_rate"
    with pytest.raises(ValueError, match=named):
        train(train=absurd, on_checkpoint=states.append)
    (kept,) = states
    assert all(weight.isfinite().all() for weight in kept["model"].values())
    assert kept["progress"]["total_steps"] == 1


def test_numbers_read_many_steps_at_a_time_are_those_of_each_step(monkeypatch):
    each = train(validation=held_out())
    monkeypatch.setitem(loop.STEPS_PER_READ, "cpu", 4)  # of 9 steps in an epoch, the ninth at its end
    together = train(validation=held_out())
    assert same_bits(each, together)
    assert [(one.loss, one.grad_norm) for one in each.history] == [
        (one.loss, one.grad_norm) for one in together.history
    ]


def test_a_step_that_is_not_finite_is_named_at_the_read_behind_it(monkeypatch):
    monkeypatch.setitem(loop.STEPS_PER_READ, "cpu", 4)
    states: list[dict[str, Any]] = []
    absurd = with_train(learning_rate=1e30, max_grad_norm=0, checkpoint_seconds=0)
    rows = BatchPlan(planted(), 8, 16, None, 0, one_window=True).epoch(0)[1]
    with pytest.raises(ValueError, match=f"epoch 1, step 2 \\(training histories \\[{rows[0]}, "):
        train(train=absurd, on_checkpoint=states.append)
    assert not states


def test_checkpoints_between_reads_lose_no_step(monkeypatch):
    monkeypatch.setitem(loop.STEPS_PER_READ, "cpu", 4)
    states: list[dict[str, Any]] = []
    undisturbed = train(train=with_train(checkpoint_seconds=0), on_checkpoint=states.append)
    assert [state["progress"]["total_steps"] for state in states] == [4, 8, 9, 13, 17, 18, 22, 26, 27]
    resumed = train(train=with_train(checkpoint_seconds=0), resume=states[4])
    assert same_bits(undisturbed, resumed)
    assert [record.loss for record in resumed.history] == [record.loss for record in undisturbed.history]


def test_weights_that_the_last_step_ruined_are_not_kept():
    states: list[dict[str, Any]] = []
    rows = BatchPlan(planted(), 8, 16, None, 0, one_window=True).epoch(0)[0]
    named = f"weights that are not finite at epoch 1, step 1 \\(training histories \\[{rows[0]}, "
    with pytest.raises(ValueError, match=named):
        train(train=with_train(learning_rate=1e300), max_steps=1, on_checkpoint=states.append)
    assert not states


def test_a_weight_that_is_infinite_names_the_batch():
    trained = train(max_steps=1).model
    with torch.no_grad():
        trained.norm.weight[3] = torch.inf
    with pytest.raises(ValueError, match=r"received loss nan .* step 1 .*training histories"):
        train(initial=initial_of(trained))


def test_accumulated_parts_make_the_same_step():
    undropped = dataclasses.replace(SETTINGS["encoder"], dropout=0.0)
    whole, parts = (train(encoder=undropped, train=with_train(accumulate=number)) for number in (1, 5))
    # a sum of parts differs from the sum by an eps of fp32 or so a step
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=2e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=2e-6)
        assert (one.targets, one.steps) == (other.targets, other.steps)


def test_the_average_of_the_weights_is_validated_and_kept():
    states: list[dict[str, Any]] = []
    result = train(train=with_train(ema_decay=0.9), validation=held_out(), on_checkpoint=states.append)
    kept = states[result.best_epoch - 1]
    for name, weight in result.model.named_parameters():
        assert torch.equal(weight, kept["average"][name])
        assert not torch.equal(weight, kept["model"][name])
    assert validate(result.model, held_out())["validation_ndcg@10"] == max(
        record.validation["validation_ndcg@10"] for record in result.history
    )
    unvalidated = train(train=with_train(ema_decay=0.9), on_checkpoint=states.append)
    average = states[-1]["average"]
    assert all(torch.equal(weight, average[name]) for name, weight in unvalidated.model.named_parameters())


def test_the_learning_rate_follows_the_schedule_whatever_steps_are_run():
    settings = with_train(schedule="cosine", warmup_steps=2, epochs=4)
    result = train(train=settings, max_steps=13)
    # of 4 epochs of 9 steps the thirteenth, counted from 0 behind 2 of warm-up: (12 - 2) / (36 - 2) of the way
    expected = 0.01 * (0.01 + 0.99 * (1 + np.cos(np.pi * 10 / 34)) / 2)
    assert result.history[-1].learning_rate == pytest.approx(expected)


def test_going_on_from_a_trained_encoder():
    trained = train().model
    item = np.zeros(NUM_ITEMS + 1, np.int32)
    item[1:NUM_ITEMS] = np.arange(2, NUM_ITEMS + 1)  # item 1 here was 2 there; the last one is new
    frozen = {**SETTINGS, "train": with_train(learning_rate=1e-30)}
    started = fit(planted(), **frozen, initial=Initial(trained, item), max_steps=1).model
    fresh = fit(planted(), **frozen, max_steps=1).model
    for name, weight in started.named_parameters():
        if name == "items.ids.weight":
            assert torch.equal(weight[1:-1], trained.get_parameter(name)[2:])
            assert torch.equal(weight[[0, -1]], fresh.get_parameter(name)[[0, -1]])
        else:
            assert torch.equal(weight, trained.get_parameter(name))
    assert not same_bits(fit(planted(), **SETTINGS, initial=Initial(trained, item)), train())


def test_going_on_begins_where_schedules_end():
    encoder = dataclasses.replace(
        SETTINGS["encoder"], weighting="gumbel_softmax", gumbel_start=3.0, gumbel_end=0.5
    )
    cosine = with_train(schedule="cosine", warmup_steps=7, epochs=2, checkpoint_seconds=0)
    trained = train(encoder=encoder, train=cosine, max_steps=1).model
    seen: list[dict[str, Any]] = []
    settings = {"encoder": encoder, "train": cosine, "max_steps": 10, "on_checkpoint": seen.append}
    further = train(**settings, initial=initial_of(trained))
    assert [record.learning_rate for record in further.history] == pytest.approx([0.01 / 100] * 2)
    assert {state["model"]["layers.0.attention.temperature"].item() for state in seen} == {0.5}
    constant = with_train(warmup_steps=7)
    further = train(train=constant, max_steps=1, initial=initial_of(train(max_steps=1).model))
    assert further.history[-1].learning_rate == 0.01


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_negatives_are_counted_as_what_is_trained_on(targets, monkeypatch):
    counts: list[Any] = []

    class Counting(NegativeSampler):
        def __init__(self, settings: TrainSettings, item_counts: Any, candidates: Any, seed: int) -> None:
            counts.append(item_counts)
            super().__init__(settings, item_counts, candidates, seed)

    monkeypatch.setattr(loop, "NegativeSampler", Counting)
    settings = with_train(targets=targets, loss="sampled_softmax", negative_sampling="in_batch", negatives=7)
    result = train(train=settings, max_steps=1)
    rows, expected = planted(), np.zeros(NUM_ITEMS + 1)
    for start, end in zip(rows.starts, rows.ends, strict=True):
        trained_on = rows.item_index[end - 1 : end] if targets == "last" else rows.item_index[start + 1 : end]
        for item in trained_on:
            expected[item] += 1 / len(trained_on) if targets == "random" else 1
    np.testing.assert_allclose(counts[0], expected)
    assert counts[0].sum() == pytest.approx(result.resolved["targets_per_epoch"])


# gbce is slower
@pytest.mark.parametrize(
    ("loss", "epochs"),
    [
        ("softmax", 12),
        ("sampled_softmax", 12),
        pytest.param("gbce", 25, marks=pytest.mark.slow),
        ("bce", 12),
        ("bpr", 12),
    ],
)
def test_every_loss_learns_the_pattern(loss, epochs):
    optimizer = "adamw" if loss == "softmax" else "rowwise_adagrad"
    chosen = {"loss": loss, "item_optimizer": optimizer} | ({} if loss == "softmax" else {"negatives": 8})
    settings = with_train(epochs=epochs, batch_histories=8, learning_rate=0.03, **chosen)
    gru = EncoderSettings(block="gru", dim=16, num_blocks=1, dropout=0.1)
    result = train(train=settings, encoder=gru)
    assert validate(result.model, held_out())["validation_ndcg@10"] > 0.7  # by chance 0.2
    assert result.resolved["item_optimizer"] == optimizer


@pytest.mark.parametrize(
    ("predict", "loss", "readout"),
    [
        ("next", "softmax", "last"),
        ("visit", "softmax", "last"),
        pytest.param("window", "softmax", "last", marks=pytest.mark.slow),
        ("window", "sampled_softmax", "last"),
        pytest.param("next", "sampled_softmax", "target", marks=pytest.mark.slow),
    ],
)
def test_what_follows_a_visit_is_learned(predict, loss, readout):
    """Visits of two items, each followed by the two that lie 6 further."""
    random = np.random.default_rng(0)
    firsts = (random.integers(0, 11, (200, 1)) + 3 * np.arange(4)) % 11
    items = (1 + 2 * np.repeat(firsts, 2, 1) + [0, 1] * 4).tolist()
    rows = histories_from_lists(items, [[0, 0, 10, 10, 20, 20, 30, 30]] * len(items))
    negatives = {} if loss == "softmax" else {"negatives": 16}
    settings = with_train(epochs=20, learning_rate=0.02, loss=loss, predict=predict, **negatives)
    encoder = dataclasses.replace(SETTINGS["encoder"], readout=readout)
    result = train_on(rows, train=settings, encoder=encoder, session=0, horizon=10)
    found, _ = AttentionRecommender(result.model).recommend(
        histories_from_lists([[1, 2], [9, 10, 15, 16]]), 2, exclude_seen=False
    )
    assert [sorted(row) for row in found.tolist()] == [[7, 8], [21, 22]]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"train\.targets"):
        train(encoder=dataclasses.replace(SETTINGS["encoder"], direction="bidirectional"))


def test_the_progress_line_is_drawn_on_a_terminal_alone(monkeypatch, capsys):
    train(max_steps=2, show_progress=True)
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    slow = {"train": with_train(checkpoint_seconds=0), "on_checkpoint": lambda _: time.sleep(0.15)}
    train(**slow, max_steps=4, show_progress=True)
    shown = capsys.readouterr().err
    assert all(each in shown for each in ("epoch 1", "loss=", "targets/s=", "lr=0.01", "grad=", "memory="))


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_a_disliked_item_is_pushed_below_the_liked_one(loss: Loss) -> None:
    """Of users with the same history a third take 7 and two thirds 5, half of these after they disliked 7."""
    rows = [[1, 2, 3, *rest, 6] for rest in ([7], [5], [7, 5]) for _ in range(20)]
    histories = histories_from_lists(rows)
    types = np.zeros(len(histories.time), np.int16)
    types[(histories.item_index == 7) & (np.roll(histories.item_index, -1) == 5)] = 1
    disliked = dataclasses.replace(histories, event_type=types, dislikes=np.array([0, 1], np.float32))
    train = TrainSettings(
        loss=loss, epochs=10, batch_histories=16, learning_rate=0.01, precision="fp32", compile="off"
    )
    settings = SETTINGS | {"train": train, "num_event_types": 1}
    asked, margin = histories_from_lists([[1, 2, 3]]), {}
    for name, log in (("left out", disliked.without_dislikes()), ("disliked", disliked)):
        scores = AttentionRecommender(fit(log, **settings).model).score_items(asked)
        margin[name] = float(scores[0, 5] - scores[0, 7])
    assert margin["disliked"] > margin["left out"] + 0.1
