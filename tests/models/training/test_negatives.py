import math

import numpy as np
import pytest
import torch

from models.settings.training import TrainSettings
from models.training.losses import sampled_loss_of_scores
from models.training.negatives import Negatives, NegativeSampler

KINDS = ("uniform", "popularity", "in_batch")
COUNTS = np.array([0, 40, 1, 7, 19, 3, 11, 16])  # of items 0..7: 97 targets
CANDIDATES = np.arange(1, 8)
TARGET = torch.from_numpy(np.repeat(np.arange(8), COUNTS))


def sampler(kind, negatives=31, seed=0, counts=COUNTS, candidates=CANDIDATES):
    settings = TrainSettings(loss="sampled_softmax", negatives=negatives, negative_sampling=kind)
    return NegativeSampler(settings, counts, candidates, seed)


def same(one: Negatives, other: Negatives) -> bool:
    return torch.equal(one.item_index, other.item_index) and torch.equal(one.log_expected, other.log_expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_follows_from_seed_epoch_and_step_alone(kind):
    used = sampler(kind)
    for step in range(5):
        used.draw(0, step, TARGET)
    drawn = used.draw(2, 3, TARGET)
    assert same(drawn, sampler(kind).draw(2, 3, TARGET))
    others = [(0, 3, 2), (0, 2, 4), (0, 4, 3), (1, 2, 3)]
    for seed, epoch, step in others:
        assert not torch.equal(
            drawn.item_index, sampler(kind, seed=seed).draw(epoch, step, TARGET).item_index
        )


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_drawn_as_often_as_expected(kind):
    # in 1,000 steps of 31 draws; a count of independent draws has at most the variance of its mean
    drawn = [sampler(kind).draw(1, step, TARGET) for step in range(1000)]
    found = np.bincount(torch.cat([part.item_index for part in drawn]), minlength=8)
    share = {"uniform": np.ones(7), "popularity": COUNTS[1:] + 1, "in_batch": COUNTS[1:]}[kind]
    expected = 31_000 * share / share.sum()
    assert found[0] == 0
    assert (np.abs(found[1:] - expected) < 4 * np.sqrt(expected)).all()
    for part in drawn[:3]:
        torch.testing.assert_close(
            part.log_expected.double(), torch.from_numpy(np.log(expected / 1000))[part.item_index - 1]
        )


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_only_candidates_are_drawn(kind):
    drawn = sampler(kind, 500, candidates=np.array([2, 6, 7])).draw(0, 0, TARGET)
    assert set(drawn.item_index.tolist()) == {2, 6, 7}
    share = {"uniform": np.ones(3) / 3, "popularity": np.array([2, 12, 17]) / 31}[kind]
    assert set(drawn.log_expected.tolist()) == set(np.log(500 * share).astype(np.float32).tolist())


def test_a_small_step_gives_all_its_targets_once():
    drawn = sampler("in_batch").draw(0, 0, torch.tensor([3, 7, 3, 5]))
    assert sorted(drawn.item_index.tolist()) == [3, 3, 5, 7]
    assert drawn.log_expected[drawn.item_index == 7].item() == pytest.approx(math.log(4 * 16 / 97))


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_of_one_item_gives_it(kind):
    drawn = sampler(kind, 3, counts=np.array([0, 5]), candidates=np.array([1])).draw(
        0, 0, torch.ones(5).int()
    )
    assert drawn.item_index.tolist() == [1, 1, 1]
    assert drawn.log_expected.exp().tolist() == pytest.approx([3, 3, 3])


def test_a_target_that_was_not_counted_is_refused():
    with pytest.raises(AssertionError, match="item_counts"):
        sampler("in_batch").draw(0, 0, torch.tensor([0]))


@pytest.mark.parametrize("kind", KINDS)
def test_corrected_for_how_often_items_are_drawn_the_divisor_is_unbiased(kind):
    # exp(loss + s+) is the divisor of the sampled softmax; over steps its mean is that of the whole catalogue
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, generator=generator, dtype=torch.float64)
    drawing, target = sampler(kind), torch.tensor([4])
    divisors = []
    for step in range(2000):
        batch = TARGET[torch.randint(len(TARGET), (len(TARGET),), generator=generator)]
        negatives = drawing.draw(0, step, batch)
        loss = sampled_loss_of_scores(
            "sampled_softmax",
            scores[target],
            scores[negatives.item_index].unsqueeze(0),
            target,
            negatives,
            torch.ones(1, dtype=torch.float64),
            num_candidates=7,
            logq_correction=True,
            gbce_calibration=0.75,
        )
        divisors.append(math.exp(loss.item() + scores[4].item()))
    error = np.mean(divisors) - scores[1:].exp().sum().item()
    assert abs(error) < 4 * np.std(divisors) / math.sqrt(len(divisors))


def test_five_million_items_cost_a_step_no_more_than_its_draws():
    counts, candidates = np.zeros(5_000_001, np.int64), np.arange(1, 5_000_001)
    drawing = sampler("uniform", 17, counts=counts, candidates=candidates)
    assert drawing.cumulative is None
    assert drawing.candidates is candidates
    drawn = drawing.draw(0, 0, torch.tensor([1]))
    assert drawn.item_index.max() > 1_000_000
    assert drawn.log_expected.exp().tolist() == pytest.approx([17 / 5e6] * 17)
