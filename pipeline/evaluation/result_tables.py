"""Tables of an evaluation: ranks of every target, metrics of every user, metrics of every system."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from features.histories.numbering import ItemNumbering
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import SystemRanks
from models.histories import Int32
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.targets import RankedTargets
from pipeline.evaluation.report import EvaluationReport


def write_targets(
    folder: Path,
    dataset: Dataset,
    numbering: ItemNumbering,
    targets: RankedTargets,
    ranked: Mapping[str, SystemRanks],
    *,
    nightly: bool,
    name: str = "targets.parquet",
) -> None:
    """Write targets.parquet, or the file of another name: rank and pessimistic rank per system and target, and the list of the
    target's request.

    Of nights with a column `night`; the list stands beside the request's first target alone. `numbering`: items of the dataset ->
    the ranked ones.
    """
    histories, request = dataset.histories, targets.request
    users, items = dataset.users["user_id"], dataset.items["item_id"]
    ranked_items = items.gather(numbering.inverse().new[1:].astype(np.int64) - 1)
    columns = pl.DataFrame(
        {
            "user_id": users.gather(targets.user_of_target),
            "item_id": items.gather(histories.item_index[targets.position].astype(np.int64) - 1),
            "timestamp": pl.Series(histories.time[targets.position]).cast(pl.Datetime("us", "UTC")),
        }
    )
    if nightly:
        columns = columns.with_columns(
            pl.Series("night", targets.moment[request]).cast(pl.Datetime("us", "UTC"))
        )
    length = pl.Series("history_length", targets.histories.lengths[request])
    is_first = np.diff(request, prepend=-1) > 0
    pl.concat(
        columns.select(
            pl.lit(system).alias("system"),
            pl.all(),
            pl.Series("rank", ranks.rank),
            length,
            pl.Series("pessimistic_rank", ranks.pessimistic),
            _id_lists(np.where(is_first[:, None], ranks.lists[request], 0), ranked_items).alias(
                "recommended"
            ),
        )
        for system, ranks in ranked.items()
    ).write_parquet(folder / name)


def _id_lists(lists: Int32, ids: pl.Series) -> pl.Series:
    """Lists of ids without padding: [targets]; `ids` at position p is item p + 1."""
    import pyarrow as pa

    filled = lists > 0
    offsets = np.concatenate(([0], np.cumsum(filled.sum(axis=1)))).astype(np.int32)
    values = ids.gather(lists[filled].astype(np.int64) - 1).to_arrow(compat_level=pl.CompatLevel.oldest())
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values))
    assert isinstance(series, pl.Series)
    return series


def write_users(folder: Path, user_ids: pl.Series, systems: SystemComparison) -> None:
    """Write per_user.parquet: the mean of each metric over a user's requests, per system and user."""
    users = user_ids.gather(systems.users)
    pl.concat(
        pl.DataFrame({"user_id": users} | systems.of_users(name)).select(
            pl.lit(name).alias("system"), pl.all()
        )
        for name in systems.systems
    ).write_parquet(folder / "per_user.parquet")


def systems_table(report: EvaluationReport) -> pl.DataFrame:
    """A row per system and metric: value, interval, and the model's difference from the system."""
    rows = []
    for system, values in report.metrics.items():
        for metric in values:
            row = {"system": system, "metric": metric, **report.value(system, metric)._asdict()}
            paired = report.differences.get(system, {}).get(metric)
            for key in ("difference", "low", "high"):
                row[f"model_minus_it_{key}"] = getattr(paired, key, None)
            rows.append(
                row | {key: getattr(paired, key, None) for key in ("p_bootstrap_holm", "p_holm", "verdict")}
            )
    return pl.DataFrame(rows, infer_schema_length=None)
