"""Exposures before requests, against a count one by one."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from pipeline.dataset.exposed_items import DAY, shown_before
from tests.pipeline.serving.test_shown_items import dataset_of, exposures_of

NOW = 100 * DAY


@pytest.mark.parametrize("has_dislikes", [False, True])
def test_each_request_knows_what_came_before_it_alone(has_dislikes: bool) -> None:
    random = np.random.default_rng(1)
    rows = [
        sorted(
            (int(NOW - random.integers(0, 9 * DAY)), int(random.integers(0, 6)), int(delay))
            for delay in delays
        )
        for delays in random.choice([-1, DAY // 2], (20, 15))
    ]
    exposures = exposures_of(rows)
    kind = random.integers(0, 3, len(exposures.time)).astype(np.int16)
    dataset = dataset_of(replace(exposures, reaction_type=kind), 5)
    if has_dislikes:
        histories = replace(dataset.histories, dislikes=np.array([0, 0, 1], np.float32))
        dataset = replace(dataset, histories=histories)
        dataset.__dict__["exposures"] = replace(exposures, reaction_type=kind)
    user = np.array([*range(20), 3, 3, -1])
    moment = np.array([NOW] * 20 + [NOW - DAY, NOW - 4 * DAY, NOW])
    shown = shown_before(dataset, user, moment, 3.0)
    assert shown is not None
    for number, (own, at) in enumerate(zip(user, moment, strict=True)):
        ignored, last = defaultdict[int, int](int), dict[int, int]()
        for place in range(exposures.offsets[own], exposures.offsets[own + 1]) if own >= 0 else ():
            time, item, delay = (
                int(part[place]) for part in (exposures.time, exposures.item_index, exposures.reaction_delay)
            )
            if item and at - 3 * DAY <= time < at:
                is_reaction = 0 <= delay < at - time and not (has_dislikes and kind[place] == 2)
                ignored[item] += not is_reaction
                last[item] = time
        here = slice(shown.starts[number], shown.ends[number])
        assert shown.item_index[here].tolist() == sorted(ignored)
        assert shown.ignored[here].tolist() == [ignored[item] for item in sorted(ignored)]
        assert shown.last[here].tolist() == [last[item] for item in sorted(last)]


def test_there_is_nothing_without_a_log() -> None:
    assert shown_before(dataset_of(None, 5), np.array([0]), np.array([NOW]), 3.0) is None
