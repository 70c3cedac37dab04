"""Leak checks: no event of a later part in an earlier one, no system fitted on other than training events.

Order is (timestamp, source file, source row): an event stands at or after another one where its place in the user's history is
the same or later. The leaks that leave-one-out has by construction, across users, are measured and reported, never an error.
"""

import datetime
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.splits import Block, Split, blocks


class LeakError(ValueError):
    """An event of a later part stands in an earlier one, or a system was fitted on it."""


def check_leaks(histories: JaggedHistories, split: Split) -> None:
    """Raise LeakError if an event of a later part stands in an earlier one.

    Checked: each history is in order of time; the parts of each user follow one another, within the user's own events; in the
    temporal protocol the events of each part are exactly those before the next one's boundary in time: training ends before
    the validation boundary, validation before the test's, and the test before the held-back events.
    """
    if late := num_disordered(histories):
        raise LeakError(
            f"leak: a history is not in the order of time; {late} events stand after one that came later: "
            "the features folder is damaged, build it again with --force"
        )
    edges = (*split.edges(histories), histories.offsets[1:])
    for earlier, later in itertools.pairwise(edges):
        if (earlier > later).any():
            raise LeakError(
                f"leak: user index {int(np.flatnonzero(earlier > later)[0])}: parts of the split overlap"
            )
    parts = (
        (split.train_end, split.validation_from, "training"),
        (split.validation_end, split.test_from, "validation"),
        (split.test_end, split.test_until, "test"),
    )
    for end, boundary, part in parts:
        if boundary is not None:
            _check_boundary(histories, end, boundary, part)


def _check_boundary(histories: JaggedHistories, end: NDArray[np.int64], boundary: int, part: str) -> None:
    """Raise LeakError unless the events before `end` are exactly those before the boundary in time."""
    late = early = 0
    for block in blocks(histories):
        is_inside = block.is_before(end)
        is_earlier = block.cut(histories.time) < boundary
        late += int(np.count_nonzero(is_inside & ~is_earlier))
        early += int(np.count_nonzero(~is_inside & is_earlier))
    if late:
        raise LeakError(f"leak: {late} {part} events at or after the next part's boundary {_iso(boundary)}")
    if early:
        raise LeakError(f"leak: {early} events before the {part} part's end are held out after it")


def num_disordered(histories: JaggedHistories) -> int:
    """Events that are earlier than the same user's event before them."""
    number = 0
    for block in blocks(histories):
        time = block.cut(histories.time)
        is_earlier = time[1:] < time[:-1]
        is_earlier[block.starts[(block.lengths > 0) & (block.starts > 0)] - 1] = False  # pairs of two users
        number += int(np.count_nonzero(is_earlier))
    return number


def check_fitted(
    name: str,
    fitted_num_events: int,
    fitted_latest: int | None,
    histories: JaggedHistories,
    split: Split,
    with_validation: bool,
    with_dislikes: bool = True,
) -> None:
    """Raise LeakError if a system was fitted on other events than the split's training events, or with `with_dislikes` false
    those that are no dislikes.

    `fitted_num_events` and `fitted_latest` (microseconds, None for no events) are measured from the system's actual input and
    compared with `training_extent`, so statistics over the validation or test period are detected whatever their origin.
    """
    num_events, latest = training_extent(
        histories, split, with_validation=with_validation, with_dislikes=with_dislikes
    )
    if (fitted_num_events, fitted_latest) != (num_events, latest):
        part = "training and validation" if with_validation else "training"
        raise LeakError(
            f"leak: {name} was fitted on {fitted_num_events:,} events up to {_iso(fitted_latest)}, "
            f"expected the {num_events:,} of the {part} part, up to {_iso(latest)}: fit it on Dataset.training_rows"
        )


def training_extent(
    histories: JaggedHistories, split: Split, *, with_validation: bool, with_dislikes: bool = True
) -> tuple[int, int | None]:
    """Number and latest time (microseconds, None for no events) of the training events.

    These are the events of the training part (and of validation, if `with_validation`) that pass the core filter, unless
    `with_dislikes` without dislikes.
    """
    number, latest = 0, None
    for time in _training_times(
        histories, split, with_validation=with_validation, with_dislikes=with_dislikes
    ):
        number += len(time)
        if len(time):
            newest = int(time.max())
            latest = newest if latest is None else max(latest, newest)
    return number, latest


def leaks_by_construction(
    histories: JaggedHistories, split: Split, *, with_validation: bool = False
) -> dict[str, float]:
    """Temporal leaks that a protocol has by construction, as shares of 0 to 1; all 0 in the temporal protocol.

    - `training_after_first_target`, `training_after_median_target`: share of the training events that are later in time than
      the earliest (the median) test target, whoever they are of.
    - `targets_before_training_end`: share of the test targets that are earlier than some training event.
    - `mean_training_after_target`: mean over the test targets of the share of training events that are later than it.

    Test targets are the test events of evaluated users on items over the core filter. `with_validation`: validation events train
    too (`train.refit_validation`). Means nothing where a log has only the order of events.
    Source: Ji, Sun, Zhang and Li, "A Critical Study on Data Leakage in Recommender System Offline Evaluation", ACM TOIS 41(3),
    2023: under leave-one-out models train on interactions later than the test's, which changes what they recommend and how
    they compare.
    """
    targets = np.sort(np.concatenate([np.zeros(0, np.int64), *_target_times(histories, split)]))
    num_training = num_pairs = after_first = after_median = 0
    latest: int | None = None
    for time in _training_times(histories, split, with_validation=with_validation):
        if len(time) == 0 or len(targets) == 0:
            continue
        earlier_targets = np.searchsorted(targets, time, side="left")  # of each training event
        num_training += len(time)
        num_pairs += int(earlier_targets.sum())
        after_first += int(np.count_nonzero(earlier_targets))
        after_median += int(np.count_nonzero(time > targets[(len(targets) - 1) // 2]))
        latest = int(time.max()) if latest is None else max(latest, int(time.max()))
    early = 0 if latest is None else int(np.searchsorted(targets, latest, side="left"))
    return {
        "training_after_first_target": after_first / max(1, num_training),
        "training_after_median_target": after_median / max(1, num_training),
        "targets_before_training_end": early / max(1, len(targets)),
        "mean_training_after_target": num_pairs / max(1, num_training * len(targets)),
    }


def _training_times(
    histories: JaggedHistories, split: Split, *, with_validation: bool, with_dislikes: bool = True
) -> Iterator[NDArray[np.int64]]:
    """Times of the training events, by block of users."""
    ends = split.validation_end if with_validation else split.train_end
    for block in blocks(histories):
        chosen = _is_over_core(histories, split, block, split.train_user) & block.is_before(ends)
        if not with_dislikes:
            chosen &= ~histories.is_dislike(block.events)
        yield block.cut(histories.time)[chosen]


def _target_times(histories: JaggedHistories, split: Split) -> Iterator[NDArray[np.int64]]:
    """Times of the test events of evaluated users on items over the core filter, no dislikes, by block of users."""
    start, end = split.stretch(histories, "test")
    for block in blocks(histories):
        chosen = _is_over_core(histories, split, block, split.kept_user) & ~histories.is_dislike(block.events)
        yield block.cut(histories.time)[chosen & block.is_before(end) & ~block.is_before(start)]


def _is_over_core(
    histories: JaggedHistories, split: Split, block: Block, users: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """[events of the block] on items over the core filter, of the given users [num_users]."""
    chosen = split.kept_item[block.cut(histories.item_index)] & np.repeat(users[block.users], block.lengths)
    return np.asarray(chosen)


def _iso(time: int | None) -> str:
    return "none" if time is None else datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC).isoformat()
