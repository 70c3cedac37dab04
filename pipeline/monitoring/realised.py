"""Realised utility of delivered lists, from the events on their items in the days after."""

import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from models.evaluation.metrics import Float64
from models.ranking.outcomes import OutcomeLabels, Utility
from models.settings.outcomes import Utilities
from pipeline.dataset.dataset import Dataset, rows
from pipeline.dataset.outcome_events import events_at
from pipeline.monitoring.ledger import Delivery


def of_lists(
    dataset: Dataset, lists: pl.LazyFrame, delivery: Delivery, days: float, utilities: Utilities
) -> Float64:
    """Realised utility of each list within `days`: [users with a list], by user id.

    lists: user_id and item_id. Raises LookbackError for an outcome whose type the log does not have.
    """
    ids = lists.select("user_id").unique().sort("user_id").collect(engine="streaming")["user_id"]
    worth = np.zeros(len(ids))
    user, _ = Vocabulary(dataset.users["user_id"], 0).encode_known(ids, unknown=-1)
    before = dataset.histories.first_at(delivery.before)
    after = dataset.histories.first_at(delivery.end(days))
    active = np.flatnonzero((user >= 0) & (before[user] < after[user]))
    own = lists.select("user_id", "item_id").join(
        pl.LazyFrame({"user_id": ids.gather(active), "row": active}), on="user_id"
    )
    listed = own.select("row", "item_id").sort("row").collect(engine="streaming")
    item, _ = Vocabulary(dataset.items["item_id"], 1).encode_known(listed["item_id"])
    row = np.searchsorted(active, listed["row"].to_numpy())
    place = np.arange(len(row)) - np.searchsorted(row, row)
    items = np.zeros((len(active), int(place.max(initial=-1)) + 1), np.int32)
    items[row, place] = item
    request, position = rows(dataset.histories, before[user[active]], after[user[active]]).gather()
    types = list(utilities)
    same = np.arange(dataset.num_items + 1, dtype=np.int32)
    labels = OutcomeLabels.of(types, items, events_at(dataset, request, position, types, same))
    worth[active] = Utility.of(utilities, types)(labels.done, labels.value).sum(axis=1)
    return worth
