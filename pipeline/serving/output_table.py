"""Output table: one row per recommendation, in the log's ids, sorted by user and rank."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute  # else loaded by `cast` within the first batch
from numpy.typing import NDArray

from features.histories.vocabulary import Vocabulary
from models.histories import Float32
from models.recommendation.answer import Answer

EXPECTED_VALUE = "expected_value"
PROVEN = "proven"


def schema(
    user: pl.DataType, item: pl.DataType, further: Sequence[str] = (), *, has_proofs: bool = False
) -> pa.Schema:
    """Arrow schema, by the types of user and item ids. further: columns of outcomes. has_proofs: with `proven`."""
    arrow = {pl.Int64: pa.int64(), pl.String: pa.string()}
    because = pa.list_(pa.struct([("item_id", arrow[type(item)]), ("weight", pa.float32())]))
    columns = {"user_id": arrow[type(user)], "item_id": arrow[type(item)], "rank": pa.int32()}
    columns |= {
        "score": pa.float32(),
        "because": because,
        **({PROVEN: pa.bool_()} if has_proofs else {}),
        "probability": pa.float32(),
        "propensity": pa.float32(),
    }
    return pa.schema(columns | dict.fromkeys(further, pa.float32()))


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of a schema, nulls in place of those that it lacks."""
    known, number = set(table.column_names), len(table)
    return pa.table(
        [table[field.name] if field.name in known else pa.nulls(number, field.type) for field in schema],
        names=schema.names,
    ).cast(schema)


def outcome_columns(types: Sequence[str], *, has_utility: bool) -> tuple[str, ...]:
    """Columns of outcomes: the probability of each, and with utilities the expected one."""
    return (*(f"p_{name}" for name in types), *((EXPECTED_VALUE,) if has_utility else ()))


def table(
    users: pl.Series,
    items: Vocabulary,
    answer: Answer,
    probability: Callable[[Float32], Float32] | None,
    types: Sequence[str] = (),
) -> pa.Table:
    """One row per recommended item of the answer.

    probability: function from score to probability; None, and items of rows that are cold or of retrieval alone: null. types: of
    the outcomes that the answer predicts.
    """
    num_rows, k = answer.item_index.shape
    given = answer.item_index > 0
    frame = pl.DataFrame(
        {
            "user_id": users.gather(np.repeat(np.arange(num_rows), k)[given.ravel()]),
            "item_id": items.decode(answer.item_index[given]),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_rows)[given.ravel()],
            "score": pl.Series(answer.score[given]).fill_nan(None),
        }
    )
    rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    rows = rows.append_column("because", _because(items, answer, given, rows["item_id"].type))
    if answer.because is not None and (proven := answer.because.proven) is not None:
        rows = rows.append_column(PROVEN, pl.Series(proven[given]).to_arrow())
    rows = rows.append_column("probability", _probability(answer, given, probability).to_arrow())
    rows = rows.append_column("propensity", pl.Series(answer.propensity[given]).to_arrow())
    if (predicted := answer.outcomes) is None:
        return rows
    parts = [predicted.probability[given][:, place] for place in range(len(types))]
    parts += [] if predicted.utility is None else [predicted.utility[given]]
    names = outcome_columns(types, has_utility=predicted.utility is not None)
    for name, part in zip(names, parts, strict=True):
        rows = rows.append_column(name, pl.Series(part).fill_nan(None).to_arrow())
    return rows


def _probability(
    answer: Answer, given: NDArray[np.bool_], probability: Callable[[Float32], Float32] | None
) -> pl.Series:
    """Probability of each recommendation; null for popular items, for lists of retrieval alone, and without a calibration."""
    if probability is None:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, int(given.sum()))
    unranked = answer.cold if answer.ranked is None else answer.cold | ~answer.ranked
    is_missing = pl.Series(np.broadcast_to(unranked[:, None], given.shape)[given])
    scores = answer.score if answer.outcomes is None else answer.outcomes.score
    values = pl.Series(probability(scores[given])).fill_nan(None)
    return values.to_frame("p").select(pl.when(~is_missing).then("p")).to_series()


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
