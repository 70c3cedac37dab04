"""Output table: one row per recommendation, in the log's ids, sorted by user and rank."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute  # else loaded by `cast` within the first batch
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models.histories import Float32
from models.recommendation.answer import Answer


def schema(user: pl.DataType, item: pl.DataType) -> pa.Schema:
    """Arrow schema, by the types of user and item ids."""
    arrow = {pl.Int64: pa.int64(), pl.String: pa.string()}
    because = pa.list_(pa.struct([("item_id", arrow[type(item)]), ("weight", pa.float32())]))
    columns = {"user_id": arrow[type(user)], "item_id": arrow[type(item)], "rank": pa.int32()}
    columns |= {
        "score": pa.float32(),
        "because": because,
        "probability": pa.float32(),
        "propensity": pa.float32(),
    }
    return pa.schema(columns)


def table(
    users: pl.Series, items: Vocabulary, answer: Answer, probability: Callable[[Float32], Float32] | None
) -> pa.Table:
    """One row per recommended item of the answer.

    probability: function from score to probability; None, and popular items of cold rows: null.
    """
    num_rows, k = answer.item_index.shape
    given = answer.item_index > 0
    frame = pl.DataFrame(
        {
            "user_id": users.gather(np.repeat(np.arange(num_rows), k)[given.ravel()]),
            "item_id": items.decode(answer.item_index[given]),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_rows)[given.ravel()],
            "score": answer.score[given],
        }
    )
    rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    rows = rows.append_column("because", _because(items, answer, given, rows["item_id"].type))
    rows = rows.append_column("probability", _probability(answer, given, probability).to_arrow())
    return rows.append_column("propensity", pl.Series(answer.propensity[given]).to_arrow())


def _probability(
    answer: Answer, given: NDArray[np.bool_], probability: Callable[[Float32], Float32] | None
) -> pl.Series:
    """Probability of each recommendation, null for rows of popular items and where there is no calibration."""
    if probability is None:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, int(given.sum()))
    is_cold = pl.Series(np.broadcast_to(answer.cold[:, None], given.shape)[given])
    values = pl.Series(probability(answer.score[given]))
    return values.to_frame("p").select(pl.when(~is_cold).then("p")).to_series()


def _because(items: Vocabulary, answer: Answer, given: NDArray[np.bool_], item_type: pa.DataType) -> pa.Array:
    """List of {item_id, weight} per recommendation; empty where no past interaction supports it."""
    if answer.because is None:
        lengths = np.zeros(int(given.sum()), np.int64)
        index, weight = np.zeros(0, np.int32), np.zeros(0, np.float32)
    else:
        index, weight = answer.because.item_index[given], answer.because.weight[given]
        named = index > 0
        lengths, index, weight = named.sum(1), index[named], weight[named]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = items.decode(index).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(item_type)
    # through polars: `pa.array` of a numpy array loads pandas first
    parts = [ids, pl.Series(weight).to_arrow()]
    pairs = pa.StructArray.from_arrays(parts, names=["item_id", "weight"])
    return pa.ListArray.from_arrays(pl.Series(offsets).to_arrow(), pairs)
