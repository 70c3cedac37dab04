"""Targets of a part of the split, by the configuration's protocol."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.histories.numbering import ItemNumbering
from models.ranking.shown import SHOWN_DAYS
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.exposed_items import shown_before
from pipeline.dataset.night_targets import night_targets
from pipeline.dataset.protocol import Kind, Nights, Protocol
from pipeline.dataset.targets import RankedTargets, ranked_targets
from pipeline.errors import LookbackError


def targets_of(
    config: Config,
    dataset: Dataset,
    part: str,
    numbering: ItemNumbering,
    *,
    trained: NDArray[np.bool_] | None = None,
    exclude_seen: bool | None = None,
    kind: Kind | None = None,
    with_idle: bool = False,
    nights: Nights | None = None,
    dislikes: bool = False,
) -> RankedTargets:
    """Targets of the `validation` or `test` part (see `ranked_targets`, `night_targets`); of the test those of some users,
    where it has more requests than `evaluate.max_requests`.

    `kind` None: the headline; `first` applies to the test alone. `exclude_seen` None: the configuration's value for evaluation.
    `trained` [num_items + 1]: items in training; None: those of `numbering`. `with_idle`: of nights, also requests without
    targets. `nights`: other nights than those of the part. Requests of nights know
    what their users were shown before. `dislikes`: the dislikes instead of all else, of every type; by
    `first` all of the test, as by `successive`; in leave-one-out those after the user's last event that is none. Raises
    LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    most, seed = config.evaluate.max_requests, config.seed
    protocol = Protocol.of(config, dataset)
    kind = protocol.headline if kind is None else kind
    masks = protocol.exclude_seen if exclude_seen is None else exclude_seen
    types = None if dislikes else target_types(config, dataset)
    if kind == "nightly":
        known = numbering.known if trained is None else trained
        targets = night_targets(
            dataset,
            protocol.nights(dataset, part) if nights is None else nights,
            numbering,
            exclude_seen=masks,
            trained=known,
            types=types,
            with_idle=with_idle,
            dislikes=dislikes,
        )
        shown = shown_before(dataset, targets.user, targets.moment, SHOWN_DAYS)
        if shown is not None:
            own = replace(targets.histories, shown=shown.translate(numbering.new))
            targets = replace(targets, histories=own)
    else:
        targets = ranked_targets(
            dataset,
            part,
            numbering,
            ties=protocol.ties,
            session_minutes=config.history.session_minutes,
            exclude_seen=masks,
            first_only=part == "test" and kind == "first" and not dislikes,
            trained=trained,
            types=types,
            dislikes=dislikes,
        )
    targets = replace(targets, histories=replace(targets.histories, user=targets.user))
    return targets.of_some_users(most, seed) if part == "test" else targets


def target_types(config: Config, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Event types that can be targets: [num_event_types + 1]; None for all.

    Raises LookbackError for a type of `evaluate.target_types` that the log does not have.
    """
    included, names = config.evaluate.target_types, dataset.event_types
    if included is None:
        return None
    if unknown := [name for name in included if name not in names]:
        raise LookbackError(
            f"evaluate.target_types: received {', '.join(unknown)}, "
            f"expected types of the log: {', '.join(names) or 'it has none'}"
        )
    return np.array([False, *(name in included for name in names)])
