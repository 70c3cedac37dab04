import math

import pytest
import torch
from torch import nn

from models.encoder.encoder import Encoder
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training.optimizers import (
    RowwiseAdagrad,
    WeightAverage,
    build,
    clip_gradients,
    learning_rate,
    rowwise_table,
)


def sparse_table() -> nn.Embedding:
    table = nn.Embedding(5, 2, sparse=True)
    nn.init.ones_(table.weight)
    return table


def test_rowwise_adagrad_by_pencil():
    table = sparse_table()
    optimizer = RowwiseAdagrad([table.weight], lr=0.5)
    (table(torch.tensor([3])) * torch.tensor([3.0, 1.0])).sum().backward()
    optimizer.step()
    # mean(9, 1) = 5: 1 - .5 * 3 / sqrt 5 and 1 - .5 * 1 / sqrt 5
    assert table.weight[3].tolist() == pytest.approx([1 - 1.5 / math.sqrt(5), 1 - 0.5 / math.sqrt(5)])
    optimizer.zero_grad()
    table(torch.tensor([3])).sum().backward()
    before = table.weight[3].tolist()
    optimizer.step()
    # mean(1, 1) = 1 on top of 5
    assert table.weight[3].tolist() == pytest.approx([each - 0.5 / math.sqrt(6) for each in before])


def test_rowwise_adagrad_touches_only_the_rows_it_sees():
    table = sparse_table()
    optimizer = RowwiseAdagrad([table.weight], lr=0.1)
    table(torch.tensor([1, 4, 1])).sum().backward()
    optimizer.step()
    assert (table.weight != 1).any(1).tolist() == [False, True, False, False, True]
    # item 1 occurs twice: one gradient of 2, not two of 1
    assert optimizer.state[table.weight]["accumulated"].tolist() == [0, 4, 0, 0, 1]
    assert table.weight[1].tolist() == pytest.approx([0.9, 0.9])


def test_rowwise_adagrad_goes_on_from_its_state():
    def steps(table, optimizer, numbers):
        for number in numbers:
            optimizer.zero_grad()
            (table(torch.tensor([number, 2])) ** 2).sum().backward()
            optimizer.step()

    whole = sparse_table()
    steps(whole, RowwiseAdagrad([whole.weight], 0.1), [0, 1, 2, 3])
    half = sparse_table()
    first = RowwiseAdagrad([half.weight], 0.1)
    steps(half, first, [0, 1])
    second = RowwiseAdagrad([half.weight], 0.7)
    second.load_state_dict(first.state_dict())
    steps(half, second, [2, 3])
    assert torch.equal(whole.weight, half.weight)


def test_rowwise_adagrad_refuses_a_dense_gradient():
    table = nn.Embedding(5, 2)
    optimizer = RowwiseAdagrad([table.weight], 0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=True"):
        optimizer.step()


@pytest.mark.parametrize(
    ("loss", "item_optimizer", "num_items", "rowwise"),
    [
        ("sampled_softmax", "auto", 999_999, False),
        ("sampled_softmax", "auto", 1_000_000, True),
        ("softmax", "auto", 1_000_000, False),
        ("bpr", "rowwise_adagrad", 3, True),
        ("bpr", "adamw", 1_000_000, False),
    ],
)
def test_which_optimiser_items_get(loss, item_optimizer, num_items, rowwise):
    model = Encoder(EncoderSettings(dim=2, num_blocks=1, num_heads=1), num_items, 0, 3)
    table = rowwise_table(model, TrainSettings(loss=loss, item_optimizer=item_optimizer))
    assert model.items.ids is not None
    assert model.items.ids.sparse == rowwise
    assert (table is model.items.ids.weight) == rowwise


def test_only_matrices_of_layers_decay():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(7, 3),
            "linear": nn.Linear(3, 5),
            "norm": nn.LayerNorm(5),
            "gru": nn.GRU(5, 2),
            "convolution": nn.Conv1d(2, 2, 3),
        }
    )
    settings = TrainSettings(weight_decay=0.1, learning_rate=0.01)
    (adamw,) = build(model, settings)
    decayed, others = adamw.param_groups
    wanted = ["linear.weight", "gru.weight_ih_l0", "gru.weight_hh_l0", "convolution.weight"]
    assert {id(weight) for weight in decayed["params"]} == {id(model.get_parameter(name)) for name in wanted}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    table = model.get_parameter("table.weight")
    adamw, rowwise = build(model, settings, sparse=table)
    assert [weight is table for weight in rowwise.param_groups[0]["params"]] == [True]
    assert not any(weight is table for group in adamw.param_groups for weight in group["params"])


def test_the_schedule_by_pencil():
    settings = TrainSettings(learning_rate=2.0, warmup_steps=4)
    assert [learning_rate(settings, step, 12) for step in (0, 1, 3, 4, 11)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = TrainSettings(learning_rate=2.0, warmup_steps=4, schedule="cosine")
    assert learning_rate(cosine, 1, 12) == 1.0
    assert learning_rate(cosine, 4, 12) == 2.0
    assert learning_rate(cosine, 8, 12) == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert learning_rate(cosine, 12, 12) == pytest.approx(0.02)
    assert learning_rate(cosine, 40, 12) == pytest.approx(0.02)
    assert learning_rate(cosine, 9, 2) == pytest.approx(0.02)  # planned for fewer steps than the warm-up has


def test_the_moving_average_by_pencil():
    model = nn.Linear(1, 1, bias=False)
    weight = model.weight.detach()
    weight.fill_(10.0)
    average = WeightAverage(model, decay=0.15)
    weight.fill_(20.0)
    average.update(0)  # k = min(.15, 1/10)
    assert average.average["weight"].item() == pytest.approx(0.1 * 10 + 0.9 * 20)
    weight.fill_(30.0)
    average.update(1)  # k = min(.15, 2/11)
    assert average.average["weight"].item() == pytest.approx(0.15 * 19 + 0.85 * 30)
    with average.in_place():
        assert model.weight.item() == pytest.approx(28.35)
    assert model.weight.item() == 30
    other = WeightAverage(model, 0.15)
    other.load(average.average)
    assert other.average["weight"].item() == pytest.approx(28.35)


def test_clipping_by_pencil_with_a_sparse_gradient():
    table, linear = sparse_table(), nn.Linear(1, 1, bias=False)
    # rows 1 and 1 again: gradient (2, 2); row 2: (1, 1); the linear weight: sqrt 6. In all 4 + 4 + 1 + 1 + 6 = 16
    loss = table(torch.tensor([1, 1, 2])).sum() + linear(torch.tensor([[math.sqrt(6.0)]])).sum()
    loss.backward()
    parameters = [table.weight, linear.weight]
    assert clip_gradients(parameters, math.inf).item() == pytest.approx(4)
    assert clip_gradients(parameters, 2.0).item() == pytest.approx(4)
    assert table.weight.grad is not None
    assert linear.weight.grad is not None
    assert table.weight.grad.to_dense()[1].tolist() == pytest.approx([1, 1])
    assert linear.weight.grad.item() == pytest.approx(math.sqrt(6) / 2)


def test_clipping_gives_torch_s_bits():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
    norms = clip_gradients(ours.parameters(), 1.0), torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    assert torch.equal(*norms)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)
