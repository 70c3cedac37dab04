"""Lists of an earlier scoring, kept for users whose history has not changed since.

`histories/part-*.parquet` of a score artifact holds a row per user and shard: `user_id`, `history` (digest of the history that
the model read), `rows` (of the user in `recommendations`). `lists_key` of its manifest digests everything else that a list
follows from, so lists of equal key and history have equal bytes, and are copied.
"""

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.encoder.encoder import AttentionRecommender
from models.histories import Histories, Int64, ItemSets
from models.recommendation.rules import Rules, mix
from pipeline.artifacts.files import fingerprint
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.errors import DamagedArtifact
from pipeline.serving.bundle import Bundle

if TYPE_CHECKING:
    from pipeline.sections import ScoreConfig

FOLDER, _LISTS = "histories", "recommendations"
UNUSABLE = (OSError, pa.ArrowException, pl.exceptions.PolarsError, DamagedArtifact, KeyError)
"""Errors of lists that are damaged or gone."""
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True)
class Reuse:
    """Where a scoring keeps the digests of its histories, and the artifact whose lists it copies."""

    histories: Path
    previous: Path | None = None


def digests(known: Histories) -> UInt64:
    """[rows] digest of each history: items, times, types, values and dislikes in their order; 0 for an empty one.

    Items that the list leaves out are in it, and the items of a shortlist, as sets.
    """
    row, position = known.gather()
    digest = mix((position - known.starts[row]).astype(np.uint64))
    columns: list[NDArray[Any]] = [known.item_index, known.time, known.event_type]
    if known.value is not None:
        columns.append(known.value.view(np.uint32))
    if known.dislikes is not None:
        columns.append(known.dislikes[known.event_type].view(np.uint32))
    for column in columns:
        digest = mix(digest ^ column[position].astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(digest, dtype=np.uint64)])
    ends = np.cumsum(known.lengths)
    of_history = np.asarray(total[ends] - total[ends - known.lengths])
    if known.left_out is not None:
        of_history = of_history + _of_sets(known.left_out, len(known))
    if (shortlist := known.shortlist) is not None:
        of_limited = mix(_of_sets(shortlist, len(known)) + np.uint64(1))
        of_history = of_history + np.where(shortlist.is_limited, of_limited, np.uint64(0))
    return np.where(known.lengths > 0, of_history, 0).astype(np.uint64)


def _of_sets(sets: ItemSets, num_rows: int) -> UInt64:
    """[rows] digest of each set; 0 for an empty one."""
    row, item = sets.pairs()
    digest = np.zeros(num_rows, np.uint64)
    np.add.at(digest, row, mix(mix(item.astype(np.uint64))))
    return digest


def obstacle(bundle: Bundle, settings: "ScoreConfig") -> str | None:
    """Reason why a user's list follows from more than the user's history; None where it does not."""
    if settings.pin is not None:
        return "lists with pins are made anew"
    if not isinstance(bundle.recommender, AttentionRecommender):
        return "lists of a baseline are made anew"
    if bundle.second_stage is not None:
        return "the ranker's statistics of items are counted anew"
    if not bundle.recommender.encoder.scores_by_vector:
        return "readout target scores the whole catalogue for many users at a time"
    if bundle.engine.looks_at_request:
        return "the model sees the time of the request"
    return None


def key(bundle: Bundle, rules: Rules, settings: "ScoreConfig", version: int) -> str:
    """Digest of everything but the history that a list follows from, where there is no `obstacle`.

    version: of the stage. Libraries and processor are in it, since they decide the last bits.
    """
    import torch

    assert bundle.index is not None
    traits, kept = bundle.traits, dataclasses.asdict(rules)
    kept["allowed"] = _digest(rules.allowed)
    if not rules.exploration.share:
        del kept["seed"]  # follows the time of the request
    content: dict[str, Any] = {
        "version": version,
        "bundle": bundle.digest,
        "items": fingerprint([str(bundle.items.ids.dtype), *bundle.items.ids.to_list()]),
        "vectors": _digest(bundle.index.vectors),
        "index": str(bundle.index.facts),
        "rules": kept,
        "categories": _digest(traits.categories) if rules.max_per_category else None,
        "num_events": _digest(traits.num_events) if rules.popularity_damping else None,
        "k": settings.k,
        "because": [settings.because_method, settings.because_items] if settings.because else None,
        "libraries": [_version(name) for name in ("torch", "faiss-cpu", "numpy")],
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor()],
    }
    return fingerprint(content)


class PreviousLists:
    """Lists of a finished scoring by user. Raises UNUSABLE where they are damaged or gone."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        names = sorted(name for name in read_manifest(folder)["files"] if name.endswith(".parquet"))
        inside = {name: [path for path in names if path.startswith(f"{name}/")] for name in (_LISTS, FOLDER)}
        Artifact(folder.parent, folder.name).verify([*inside[_LISTS], *inside[FOLDER]])
        self._paths, parts = ([folder / path for path in inside[name]] for name in (_LISTS, FOLDER))
        self._users = pl.concat([pl.read_parquet(path) for path in parts])
        self._ends = np.cumsum(self._users["rows"].to_numpy(), dtype=np.int64)
        groups = [
            (place, group, metadata.row_group(group).num_rows)
            for place, metadata in enumerate(map(pq.read_metadata, self._paths))
            for group in range(metadata.num_row_groups)
        ]
        self._groups = [(place, group) for place, group, _ in groups]
        self._group_ends = np.cumsum([0, *(rows for _, _, rows in groups)])

    def positions(self, ids: pl.Series, history: UInt64) -> Int64:
        """[users] place of each user's lists, -1 where the history is empty or another one, or the user is new."""
        own = self._users.select("user_id", pl.col("history").alias("before")).with_row_index("place")
        asked = pl.DataFrame({"user_id": ids, "now": history})
        joined = asked.join(own, on="user_id", how="left", maintain_order="left")
        same = (pl.col("now") == pl.col("before")) & (pl.col("now") != 0)
        chosen = joined.select(pl.when(same).then("place").cast(pl.Int64).fill_null(-1))
        return chosen.to_series().to_numpy()

    def num_rows(self, positions: Int64) -> Int64:
        """[users] length of each user's list; 0 for position -1."""
        rows = self._users["rows"].to_numpy()
        return np.where(positions >= 0, rows[positions], 0).astype(np.int64) if len(rows) else 0 * positions

    def read(self, positions: Int64) -> pa.Table:
        """Lists of the users at some places, in their order."""
        number = self.num_rows(positions)
        starts = self._ends[positions] - number
        row = np.repeat(starts - np.cumsum(number) + number, number) + np.arange(int(number.sum()))
        group = np.searchsorted(self._group_ends, row, side="right") - 1
        needed, place = np.unique(group, return_inverse=True)
        tables = [self._group(number) for number in needed.tolist()]
        before = np.cumsum([0, *(len(table) for table in tables)])[:-1]
        chosen = row - self._group_ends[group] + before[place]
        return pa.concat_tables(tables).combine_chunks().take(pa.array(chosen))

    def _group(self, number: int) -> pa.Table:
        place, group = self._groups[number]
        with pq.ParquetFile(self._paths[place]) as file:
            return file.read_row_group(group)


def write_histories(path: Path, ids: pl.Series, history: UInt64, rows: Int64) -> None:
    """Write the digests of a shard's histories and the lengths of its lists."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".writing")
    pl.DataFrame({"user_id": ids, "history": history, "rows": rows.astype(np.int32)}).write_parquet(temporary)
    temporary.replace(path)


def _digest(array: NDArray[Any] | None) -> str | None:
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    """Model of the processor, empty where the system does not say."""
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
