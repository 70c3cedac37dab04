"""How tonight's recommendations differ from the last night's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.histories import Float32
from pipeline.artifacts.files import read_json
from pipeline.artifacts.store import MANIFEST

BINS = 10
SMALLEST_SHARE = 1e-4
"""Of a bin, in place of 0, so that logarithms are finite."""
MOST_USERS = 100_000
"""Users whose lists are compared, evenly spread over the last night's."""


def last_night(stage_folder: Path, fingerprint: str) -> Path | None:
    """The newest complete artifact of the stage, but for the one that is being made; None where there is none."""
    latest = stage_folder / "latest"
    if not (latest / "_SUCCESS").exists() or not (latest / MANIFEST).exists():
        return None
    folder = latest.resolve()
    return None if folder.name == fingerprint else folder


@dataclass(frozen=True)
class ScoreDrift:
    """Difference of a night's recommendations from an earlier night's."""

    before: str
    """Artifact of the earlier night."""
    same_model: bool
    psi: float | None
    """Population stability index of the first places' scores."""
    users_in_both: float
    """Share of the later night's users with lists in both."""
    overlap: float | None
    """Mean overlap of the lists of users in both."""


def drift(before: Path, folder: Path, bundle_digest: str) -> ScoreDrift:
    """Compare a night's recommendations with an earlier night's; numbers to four decimals.

    psi = sum over bins (p - q) ln(p / q), p tonight's and q the last night's share of each tenth of the last night's scores:
    below .1 nothing has changed, above .25 much has (Siddiqi 2006). overlap: mean over users in both of the items that both lists
    have, as a share of the longer one. Scores of different models need not be alike.
    """
    first, second = (_read(each) for each in (before, folder))
    both = first[0].join(second[0], on="user_id")
    psi = _psi(first[0]["score"].to_numpy(), second[0]["score"].to_numpy())
    overlap = _overlap(first[1], second[1], both["user_id"])
    return ScoreDrift(
        before.name,
        read_json(before / MANIFEST).get("bundle_digest") == bundle_digest,
        None if psi is None else round(psi, 4),
        round(len(both) / max(1, len(second[0])), 4),
        None if overlap is None else round(overlap, 4),
    )


def _read(folder: Path) -> tuple[pl.DataFrame, pl.LazyFrame]:
    """(user_id, score) of every first place, and all recommendations."""
    table = pl.scan_parquet(folder / "recommendations" / "*.parquet")
    first = table.filter(pl.col("rank") == 1).select("user_id", "score").collect(engine="streaming")
    return first, table.select("user_id", "item_id")


def _psi(before: Float32, now: Float32) -> float | None:
    if not len(before) or not len(now):
        return None
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    share = [
        np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1) / len(each)
        for each in (before, now)
    ]
    q, p = (np.maximum(each, SMALLEST_SHARE) for each in share)
    return float(((p - q) * np.log(p / q)).sum())


def _overlap(before: pl.LazyFrame, now: pl.LazyFrame, users: pl.Series) -> float | None:
    """Mean share of the lists that both nights have."""
    if before.collect_schema()["item_id"] != now.collect_schema()["item_id"] or not len(users):
        return None
    chosen = users.sort().gather_every(-(-len(users) // MOST_USERS)).to_frame().lazy()
    lists = [each.join(chosen, on="user_id", how="semi") for each in (before, now)]
    lengths = [
        each.group_by("user_id").len(name) for each, name in zip(lists, ("before", "now"), strict=True)
    ]
    common = lists[0].join(lists[1], on=["user_id", "item_id"]).group_by("user_id").len("common")
    shares = lengths[0].join(lengths[1], on="user_id").join(common, on="user_id", how="left")
    share = pl.col("common").fill_null(0) / pl.max_horizontal("before", "now")
    return float(shares.select(share.mean()).collect().item())
