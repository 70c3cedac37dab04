"""Targets of nights: what each user takes within the horizon of a night, from the history up to it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from features.histories.jagged import JaggedHistories
from features.histories.numbering import ItemNumbering
from models.histories import Histories, Int32, Int64
from models.topk import event_chunks
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.protocol import Nights, first_at
from pipeline.dataset.targets import NO_HISTORY, UNKNOWN_ITEM, WARM, RankedTargets


@dataclass(frozen=True)
class _Taken:
    """Distinct items that users took within the horizon of one night, by user and first position."""

    user: Int64
    """[targets]"""
    position: Int64
    """[targets], of the first event on the item"""
    left_out: dict[str, int]
    """Counts of events and user-nights left out, by reason."""


def night_targets(
    dataset: Dataset,
    nights: Nights,
    numbering: ItemNumbering,
    *,
    exclude_seen: bool,
    trained: NDArray[np.bool_],
    types: NDArray[np.bool_] | None = None,
    with_idle: bool = False,
    dislikes: bool = False,
) -> RankedTargets:
    """Requests of every night and evaluated user, with all items that the user takes, or dislikes, within the night's horizon.

    `with_idle`: requests of users with a history who take nothing too, without targets.

    `numbering`: items of the dataset -> the systems'; `trained`: [num_items + 1], items outside are cold even where a system
    knows them. Left out: `under_core` (events on items under the core filter), `dislike`, `other_type` (`types` [num_event_types
    + 1]: type not included), `taken_again` (a further event on an item within the horizon), `already_seen` (with `exclude_seen`:
    items of the history), and user-nights of users with a history: `nothing_taken` in the horizon, `nothing_left` by these
    reasons.
    """
    starts = np.asarray(dataset.histories.offsets[:-1])
    parts = []
    for moment in nights.moments.tolist():
        before, after = first_at(dataset, moment), first_at(dataset, moment + nights.horizon)
        taken = _taken(dataset, before, after, exclude_seen=exclude_seen, types=types, dislikes=dislikes)
        idle = dataset.split.kept_user & (before > starts) if with_idle else np.zeros(len(starts), bool)
        parts.append(_requests(dataset.histories, moment, starts, before, taken, idle))
    targets = _joined(parts)
    histories = targets.histories.translate(numbering.new)
    own = dataset.histories.item_index[targets.position]
    cold = np.full(len(targets), WARM, np.int8)
    cold[~trained[own]] = UNKNOWN_ITEM
    cold[(histories.lengths == 0)[targets.request]] = NO_HISTORY
    return replace(targets, histories=histories, item=numbering.new[own], cold=cold)


def _taken(
    dataset: Dataset,
    before: Int64,
    after: Int64,
    *,
    exclude_seen: bool,
    types: NDArray[np.bool_] | None,
    dislikes: bool,
) -> _Taken:
    """Items taken, or disliked, at positions [before[u], after[u]) by the evaluated users."""
    histories, kept_user = dataset.histories, dataset.split.kept_user
    ends = np.where(kept_user, after, before)
    user, position = rows(histories, before, ends).gather()
    if dislikes:
        is_disliked = histories.is_dislike(position)
        user, position = user[is_disliked], position[is_disliked]
    item = np.asarray(histories.item_index[position])
    is_idle = kept_user & (ends == before) & (before > np.asarray(histories.offsets[:-1]))
    kept = np.flatnonzero(~dataset.under_core()[item])
    left_out = {"under_core": len(item) - len(kept), "nothing_taken": int(np.count_nonzero(is_idle))}
    if histories.dislikes is not None and not dislikes:
        is_disliked = histories.is_dislike(position[kept])
        left_out["dislike"] = int(np.count_nonzero(is_disliked))
        kept = kept[~is_disliked]
    if types is not None:
        is_included = types[histories.event_type[position[kept]]]
        left_out["other_type"] = int(np.count_nonzero(~is_included))
        kept = kept[is_included]
    _, first = np.unique(user[kept] * (dataset.num_items + 1) + item[kept], return_index=True)
    left_out["taken_again"] = len(kept) - len(first)
    chosen = kept[np.sort(first)]
    if exclude_seen:
        seen = _occurs_before(histories, user[chosen], item[chosen], before)
        left_out["already_seen"] = int(np.count_nonzero(seen))
        chosen = chosen[~seen]
    left_out["nothing_left"] = len(np.unique(user)) - len(np.unique(user[chosen]))
    return _Taken(user[chosen], position[chosen], left_out)


def _occurs_before(histories: JaggedHistories, user: Int64, item: Int32, before: Int64) -> NDArray[np.bool_]:
    """[targets] whether an item occurs in its user's history before position `before` [num_users]; users ascending."""
    found = np.zeros(len(user), bool)
    users, row = np.unique(user, return_inverse=True)
    own = rows(histories, np.asarray(histories.offsets[:-1])[users], before[users])
    width = int(item.max(initial=0)) + 1
    key = row * width + item
    for part in event_chunks(own.lengths):
        owner, position = own.select(part).gather()
        past = np.asarray(histories.item_index[position]).astype(np.int64)
        here = slice(*np.searchsorted(row, (part.start, part.stop)))
        inside = past < width
        found[here] = np.isin(key[here], (owner[inside] + part.start) * width + past[inside])
    return found


def _requests(
    histories: JaggedHistories,
    moment: int,
    starts: Int64,
    before: Int64,
    taken: _Taken,
    others: NDArray[np.bool_],
) -> RankedTargets:
    """Requests of one night, in the dataset's numbering; others: [num_users], users with a request even without targets."""
    asks = others.copy()
    asks[taken.user] = True
    users, request = np.flatnonzero(asks), (np.cumsum(asks) - 1)[taken.user]
    own = rows(histories, starts[users], before[users])
    own = replace(own, request_time=np.full(len(users), moment, np.int64))
    cold = np.zeros(len(request), np.int8)
    item = np.asarray(histories.item_index[taken.position])
    return RankedTargets(own, users, request.astype(np.int64), item, taken.position, cold, taken.left_out)


def _joined(parts: list[RankedTargets]) -> RankedTargets:
    """Targets of all nights, the earliest first."""
    sizes = np.cumsum([0, *(part.num_requests for part in parts)])
    first = parts[0].histories
    histories = Histories(
        first.item_index,
        first.time,
        first.event_type,
        np.concatenate([part.histories.starts for part in parts]),
        np.concatenate([part.histories.ends for part in parts]),
        first.value,
        np.concatenate([part.moment for part in parts]),
        first.dislikes,
        context=None
        if first.context is None
        else np.concatenate([part.histories.context for part in parts if part.histories.context is not None]),
    )
    reasons = dict.fromkeys(reason for part in parts for reason in part.left_out)
    return RankedTargets(
        histories,
        np.concatenate([part.user for part in parts]),
        np.concatenate([part.request + size for part, size in zip(parts, sizes, strict=False)]),
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.cold for part in parts]),
        {reason: sum(part.left_out.get(reason, 0) for part in parts) for reason in reasons},
    )
