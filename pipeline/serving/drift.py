"""Drift of the recommendations against the previous scoring."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.histories import Float32
from pipeline.artifacts.files import read_json
from pipeline.artifacts.store import LATEST, LIVE, MANIFEST, linked

BINS = 10
MIN_SHARE = 1e-4
"""Share of an empty bin, so that logarithms are finite."""
MAX_USERS = 100_000
"""Users whose lists are compared, evenly spread over those with lists in both."""


def previous_artifact(stage_folder: Path, fingerprint: str) -> Path | None:
    """Lists of the previous night: those that `live` points to, else `latest`; None without any, or where it is `fingerprint`."""
    links = linked(stage_folder)
    folder = links.get(LIVE, links.get(LATEST))
    if folder is None or folder.name == fingerprint:
        return None
    return folder if (folder / "_SUCCESS").exists() and (folder / MANIFEST).exists() else None


@dataclass(frozen=True)
class ScoreDrift:
    """Difference of recommendations from those of an earlier scoring."""

    before: str
    """Fingerprint of the earlier artifact."""
    same_model: bool
    psi: float | None
    """Population stability index of the scores at rank 1."""
    users_in_both: float | None
    """Share of the later scoring's users with lists in both."""
    overlap: float | None
    """Mean overlap of the lists of users in both."""
    not_compared: str = ""
    """Reason why lists were not compared; empty where they were."""


def drift(
    before: Path, folder: Path, bundle_digest: str, experiment: Mapping[str, Any] | None = None
) -> ScoreDrift:
    """Compare the recommendations of two scoring artifacts; numbers to four decimals.

    bundle_digest, experiment: of the later one's manifest.
    psi = sum over bins (p - q) ln(p / q), p the later and q the earlier share of each decile of the earlier scores: below .1 no
    shift, above .25 a large one (Siddiqi 2006). overlap: mean over users in both of the items in both lists, as a share of the
    longer list. Scores of different models need not be comparable. Lists are not compared where ids changed their type.
    """
    (earlier_top, earlier_lists), (later_top, later_lists) = _read(before), _read(folder)
    scores = (top["score"].drop_nulls().to_numpy() for top in (earlier_top, later_top))  # null: pins
    psi = _psi(*scores)
    shift = None if psi is None else round(psi, 4)
    manifest = read_json(before / MANIFEST)
    is_same = manifest.get("bundle_digest") == bundle_digest
    same_model = is_same and _by_arm(manifest.get("experiment")) == _by_arm(experiment)
    changed = _changed_types(earlier_lists.collect_schema(), later_lists.collect_schema())
    if changed:
        return ScoreDrift(before.name, same_model, shift, None, None, f"not compared: {changed}")
    both = earlier_top.join(later_top, on="user_id")
    overlap = _overlap(earlier_lists, later_lists, both["user_id"])
    return ScoreDrift(
        before.name,
        same_model,
        shift,
        round(len(both) / max(1, len(later_top)), 4),
        None if overlap is None else round(overlap, 4),
    )


def _read(folder: Path) -> tuple[pl.DataFrame, pl.LazyFrame]:
    """(user_id, score) at rank 1, and all recommendations."""
    table = pl.scan_parquet(folder / "recommendations" / "*.parquet")
    top = table.filter(pl.col("rank") == 1).select("user_id", "score").collect(engine="streaming")
    return top, table.select("user_id", "item_id")


def _by_arm(experiment: Mapping[str, Any] | None) -> list[tuple[str, float, str]]:
    """Arms with shares and digests; none without an experiment."""
    arms = [] if experiment is None else experiment["arms"]
    return [(arm["name"], arm["share"], arm["bundle_digest"]) for arm in arms]


def _changed_types(before: pl.Schema, now: pl.Schema) -> str:
    """Id columns that changed their type, with both types; empty where none did."""
    changed = (name for name in now if before[name] != now[name])
    return ", ".join(f"{name} was {before[name]} and is {now[name]}" for name in changed)


def _psi(before: Float32, now: Float32) -> float | None:
    if not len(before) or not len(now):
        return None
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = (
        np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1) / len(scores)
        for scores in (before, now)
    )
    q, p = (np.maximum(share, MIN_SHARE) for share in shares)
    return float(((p - q) * np.log(p / q)).sum())


def _overlap(before: pl.LazyFrame, now: pl.LazyFrame, users: pl.Series) -> float | None:
    """Mean overlap of the users' lists, as a share of the longer one."""
    if not len(users):
        return None
    chosen = users.sort().gather_every(-(-len(users) // MAX_USERS)).to_frame().lazy()
    before, now = (table.join(chosen, on="user_id", how="semi") for table in (before, now))
    common = before.join(now, on=["user_id", "item_id"]).group_by("user_id").len("common")
    shares = (
        before.group_by("user_id")
        .len("before")
        .join(now.group_by("user_id").len("now"), on="user_id")
        .join(common, on="user_id", how="left")
    )
    share = pl.col("common").fill_null(0) / pl.max_horizontal("before", "now")
    return float(shares.select(share.mean()).collect().item())
