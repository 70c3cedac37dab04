"""Events of several outcomes within the horizon of each request."""

from collections.abc import Sequence

import numpy as np

from models.histories import Int32, Int64
from models.ranking.outcomes import NO_TYPE, OutcomeEvents
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.protocol import first_at
from pipeline.dataset.targets import RankedTargets
from pipeline.errors import LookbackError

OTHER = -2
"""Kind of an event of a type that is no outcome."""


def outcome_events(
    dataset: Dataset, targets: RankedTargets, types: Sequence[str], numbering: Int32, horizon: int
) -> OutcomeEvents:
    """Events of some types, and those without a type, within `horizon` microseconds of each request.

    Without a horizon the event of a request is its target alone. numbering: [num_items + 1], items of the dataset -> the
    candidates'.

    Raises LookbackError for a type that the log does not have.
    """
    if horizon:
        request, position = _within(dataset, targets, horizon)
    else:
        request, position = targets.request, targets.position
    return events_at(dataset, request, position, types, numbering)


def events_at(
    dataset: Dataset, request: Int64, position: Int64, types: Sequence[str], numbering: Int32
) -> OutcomeEvents:
    """Events of some types, and those without a type, among those at flat positions [e] that follow requests [e].

    numbering: [num_items + 1], items of the dataset -> the candidates'. Raises LookbackError for a type that the log lacks.
    """
    names = dataset.event_types
    if unknown := [name for name in types if name not in names]:
        raise LookbackError(
            f"outcomes.types: received {', '.join(unknown)}, expected types of the log: {', '.join(names) or 'it has none'}"
        )
    kinds = np.array([NO_TYPE, *(list(types).index(name) if name in types else OTHER for name in names)])
    histories = dataset.histories
    kind = kinds[histories.event_type[position]]
    chosen = kind != OTHER
    position = position[chosen]
    return OutcomeEvents(
        request[chosen],
        numbering[histories.item_index[position]],
        kind[chosen],
        np.asarray(histories.value[position], np.float32),
    )


def _within(dataset: Dataset, targets: RankedTargets, horizon: int) -> tuple[Int64, Int64]:
    """Request and flat position of every event within the horizon of a night."""
    requests, positions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for moment in np.unique(targets.moment).tolist():
        own = np.flatnonzero(targets.moment == moment)
        users = targets.user[own]
        starts, ends = (first_at(dataset, time)[users] for time in (moment, moment + horizon))
        row, position = rows(dataset.histories, starts, ends).gather()
        requests.append(own[row])
        positions.append(position)
    return np.concatenate(requests), np.concatenate(positions)
