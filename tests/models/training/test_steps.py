import threading

import numpy as np
import pytest
import torch

from models.encoder.batching import BatchPlan
from models.histories import histories_from_lists
from models.settings.training import TrainSettings
from models.training.steps import cut, prefetched, steps


def plan(lengths=(3, 5, 4, 2, 6, 3, 7)):
    rows = [list(range(10 * number, 10 * number + length)) for number, length in enumerate(lengths, 1)]
    return BatchPlan(histories_from_lists(rows), 8, len(lengths), None, 0)


def predicted_from(batch):
    """(the item at each target's position, the target, its weight), ascending: each item is in the histories once."""
    items = torch.cat([window.item_index.flatten() for window in batch.windows])[batch.position]
    return sorted(zip(items.tolist(), batch.target.tolist(), batch.weight.tolist(), strict=True))


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 11])
def test_parts_of_a_step_are_the_step(parts):
    whole = plan()
    rows = whole.epoch(0)[0]
    pieces = cut(rows, whole.windows.lengths[rows] - 1, parts)
    assert len(pieces) == parts
    assert np.concatenate(pieces).tolist() == rows.tolist()
    batches = [whole.batch(piece, 0) for piece in pieces if len(piece)]
    pairs = [pair for batch in batches for pair in predicted_from(batch)]
    assert sorted(pairs) == predicted_from(whole.batch(rows, 0))


@pytest.mark.parametrize(
    ("lengths", "parts", "expected"),
    [
        ([8, 2, 2, 2, 2], 1, [[5, 6, 7, 8, 9]]),
        ([8, 2, 2, 2, 2], 2, [[5], [6, 7, 8, 9]]),
        ([2, 2, 2, 2, 8], 2, [[5, 6, 7, 8], [9]]),
        # middles at 2, 5.5, 8, 10, 12.5 of 14 tokens; a third is 4.67
        ([4, 3, 2, 2, 3], 3, [[5], [6, 7], [8, 9]]),
        # the middle of the long one is in the second quarter, at 8 of 17; the last one's, at 16.5, in the fourth
        ([16, 1], 4, [[], [5], [], [6]]),
        ([3], 2, [[], [5]]),
    ],
)
def test_parts_are_cut_by_tokens(lengths, parts, expected):
    rows = np.arange(5, 5 + len(lengths))
    assert [part.tolist() for part in cut(rows, np.array(lengths), parts)] == expected


def taken(rank, size, accumulate, loss="softmax"):
    settings = TrainSettings(loss=loss) if loss == "softmax" else TrainSettings(loss=loss, negatives=3)
    from models.training.negatives import NegativeSampler

    whole = plan()
    sampler = None
    if loss != "softmax":
        counts = np.ones(80, np.int64)
        sampler = NegativeSampler(settings, counts, np.arange(1, 80), 0)
    place = {"rank": rank, "size": size, "accumulate": accumulate}
    return list(steps(whole, 0, 0, sampler=sampler, device=torch.device("cpu"), **place))


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 3), (2, 2), (3, 1), (5, 4)])
def test_processes_share_a_step_between_them(size, accumulate):
    (alone,) = taken(0, 1, 1)
    assert alone.weight == alone.num_targets == 23
    everyone = [taken(rank, size, accumulate)[0] for rank in range(size)]
    assert sum(share for step in everyone for _, share in step.parts) == pytest.approx(1)
    pairs = [
        pair for step in everyone for part, share in step.parts if share for pair in predicted_from(part)
    ]
    assert sorted(pairs) == predicted_from(alone.parts[0][0])
    for step in everyone:
        assert 1 <= len(step.parts) <= accumulate
        assert (step.weight, step.num_targets) == (alone.weight, alone.num_targets)


def test_a_process_without_rows_takes_one_that_counts_nothing():
    shares = [[share for _, share in taken(rank, 9, 1)[0].parts] for rank in range(9)]
    assert [0.0] in shares
    assert sum(sum(each) for each in shares) == pytest.approx(1)


def test_processes_draw_the_same_negatives():
    drawn = [taken(rank, 2, 1, "bce")[0].negatives for rank in range(2)]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert torch.equal(drawn[0].item_index, drawn[1].item_index)


def test_prefetching_keeps_the_order():
    assert list(prefetched(iter(range(50)))) == list(range(50))
    assert list(prefetched(iter([]))) == []


def test_what_is_made_ahead_is_made_meanwhile():
    made: list[int] = []
    ready = threading.Event()

    def numbers():
        for number in range(3):
            made.append(number)
            if number == 1:
                ready.set()
            yield number

    coming = prefetched(numbers())
    assert next(coming) == 0
    assert ready.wait(5)  # without anyone asking for it
    coming.close()
    assert made == [0, 1]


def test_an_error_in_the_making_comes_through_in_its_place():
    def numbers():
        yield 1
        raise ValueError("made badly")

    coming = prefetched(numbers())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="made badly"):
        next(coming)


def test_the_thread_ends_with_its_user():
    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

    before = running()
    coming = prefetched(iter(range(100)))
    assert next(coming) == 0
    (thread,) = set(running()) - set(before)
    coming.close()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_nothing_is_read_back_from_the_device():
    for step in steps(plan(), 0, 0, sampler=None, accumulate=2, rank=0, size=1, device=torch.device("meta")):
        assert all(batch.target.is_meta for batch, _ in step.parts)
        assert sum(share for _, share in step.parts) == pytest.approx(1)
