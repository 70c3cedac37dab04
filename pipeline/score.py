"""Stage score: recommendations for every user, streamed batch by batch into sharded Parquet; it trains nothing."""

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from features.histories import JaggedHistories
from features.vocabulary import Vocabulary
from models.encoder import as_asked
from pipeline import histories as rows
from pipeline.bundle import Answer, Bundle
from pipeline.config import ScoreConfig
from pipeline.errors import LookbackError
from pipeline.stages import Context
from pipeline.store import Artifact, digest_file, read_json, write_json

_COUNTS = ("users", "cold_users", "unknown_items", "short_lists", "recommendations")


@dataclass(frozen=True)
class _Log:
    """The log's histories and how its numbers translate into the bundle's."""

    histories: JaggedHistories
    users: pl.Series
    items: NDArray[np.int32]
    """[num_items + 1] -> the bundle's item, 0: unknown to it"""
    types: NDArray[np.int16]
    """[num_event_types + 1] -> the bundle's event type"""

    @cached_property
    def newest(self) -> int:
        """Time of the newest event, microseconds since the epoch: when recommendations are asked for."""
        return int(self.histories.time.max(initial=0))


@dataclass
class _Counts:
    """What the summary counts, shard by shard."""

    users: int = 0
    cold_users: int = 0
    unknown_items: int = 0
    """interactions whose item the bundle does not know"""
    short_lists: int = 0
    recommendations: int = 0
    seconds: float = 0.0

    def add(self, other: dict[str, Any]) -> None:
        """Add another shard's counts."""
        for name, value in other.items():
            setattr(self, name, getattr(self, name) + value)


def build(ctx: Context) -> None:
    """Write recommendations/part-*.parquet and _SUCCESS; shards that an interrupted run finished are kept."""
    settings = ctx.config.score
    bundle = _open_bundle(ctx)
    log = _read_log(ctx.inputs["features"], bundle)
    chosen, strangers = _choose_users(settings, log)
    folder = ctx.folder / "recommendations"
    folder.mkdir(exist_ok=True)
    total = _Counts()
    shards = range(
        0, max(len(chosen), 1), settings.shard_users
    )  # nobody to score: one empty file with its columns
    with tqdm(total=len(chosen), unit="users", desc="score", disable=not ctx.show_progress) as bar:
        for number, start in enumerate(shards):
            users = chosen[start : start + settings.shard_users]
            total.add(_score_shard(settings, bundle, log, users, folder / f"part-{number:05d}.parquet"))
            bar.update(len(users))
    (ctx.folder / "_SUCCESS").touch()
    for other in folder.iterdir():  # records of finished shards, and what a killed run was writing
        if not (other.name.startswith("part-") and other.suffix == ".parquet"):
            other.unlink()
    _report(ctx, bundle, total, strangers)


def _open_bundle(ctx: Context) -> Bundle:
    if ctx.model is None:
        return Bundle.open(ctx.inputs["publish"] / "bundle", verify=False)
    from pipeline import registry

    return Bundle.open(registry.bundle_folder(ctx.config, ctx.model))


def _read_log(features: Path, bundle: Bundle) -> _Log:
    item_ids = pl.read_parquet(features / "items.parquet", columns=["item_id"])["item_id"]
    items, _ = bundle.item_mapping(item_ids)
    users = pl.read_parquet(features / "users.parquet", columns=["user_id"])["user_id"]
    return _Log(JaggedHistories.load(features), users, items, bundle.type_mapping(rows.event_types(features)))


def _choose_users(settings: ScoreConfig, log: _Log) -> tuple[NDArray[np.int64], int]:
    """Index of the users to score, in the order of their ids, and how many that were asked for are not in the log."""
    num_users = log.histories.num_users
    if settings.users == "all":
        return np.arange(num_users), 0
    if settings.users.endswith(".parquet"):
        asked = _asked_users(Path(settings.users))
        index, strangers = Vocabulary(log.users, 0).encode_known(asked, unknown=-1)
        return np.unique(index[index >= 0]).astype(np.int64), strangers
    since = _moment(settings.users)
    last = np.asarray(log.histories.offsets[1:]) - 1
    active = (last >= log.histories.offsets[:-1]) & (
        np.asarray(log.histories.time)[np.maximum(last, 0)] >= since
    )
    return np.flatnonzero(active), 0


def _asked_users(path: Path) -> pl.Series:
    try:
        asked = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise LookbackError(f"score.users: {path}: cannot be read as Parquet: {error}") from None
    if "user_id" not in asked.columns:
        raise LookbackError(
            f"score.users: {path} has the columns {', '.join(asked.columns)}; expected a column user_id"
        )
    return asked["user_id"].drop_nulls().unique()


def _moment(iso: str) -> int:
    moment = datetime.datetime.fromisoformat(iso)
    return round(
        (moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1e6
    )


def _score_shard(
    settings: ScoreConfig, bundle: Bundle, log: _Log, users: NDArray[np.int64], path: Path
) -> dict[str, Any]:
    """Write one shard and return its counts; a shard that is there already, whole, is only counted."""
    done = path.with_name(f".{path.name}.json")
    if done.exists() and path.exists():
        known = read_json(done)
        if known["digest"] == digest_file(path):
            counts: dict[str, Any] = known["counts"]
            return counts
    started = time.monotonic()
    counts = dict.fromkeys(_COUNTS, 0)
    temporary = path.with_suffix(".writing")
    schema = _schema(log.users.dtype, bundle.items.ids.dtype)
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table, found in _batches(settings, bundle, log, users):
            writer.write_table(table.cast(schema))
            counts = {name: counts[name] + found[name] for name in _COUNTS}
    counts["seconds"] = time.monotonic() - started
    temporary.replace(path)
    write_json(done, {"digest": digest_file(path), "counts": counts})
    return counts


def _batches(
    settings: ScoreConfig, bundle: Bundle, log: _Log, users: NDArray[np.int64]
) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """One Arrow table and its counts for every batch of users."""
    offsets = log.histories.offsets
    for start in range(0, len(users), settings.batch_users):
        batch = users[start : start + settings.batch_users]
        whole = rows.rows(log.histories, np.asarray(offsets[batch]), np.asarray(offsets[batch + 1])).compact()
        whole = replace(whole, event_type=log.types[whole.event_type])
        known = whole.translate(log.items)
        if bundle.recommender.encoder.settings.request_time:
            known = as_asked(known, log.newest)
        answer = bundle.recommend(
            known,
            settings.k,
            exclude_seen=settings.exclude_seen,
            because=settings.because_method if settings.because else None,
            because_items=settings.because_items,
        )
        lengths = (answer.item_index > 0).sum(1)
        yield (
            _table(log.users.gather(batch), bundle, answer),
            {
                "users": len(batch),
                "cold_users": int(answer.cold.sum()),
                "unknown_items": int(whole.lengths.sum() - known.lengths.sum()),
                "short_lists": int((lengths < settings.k).sum()),
                "recommendations": int(lengths.sum()),
            },
        )


def _schema(user: pl.DataType, item: pl.DataType) -> pa.Schema:
    arrow = {pl.Int64: pa.int64(), pl.String: pa.string()}
    because = pa.list_(pa.struct([("item_id", arrow[type(item)]), ("weight", pa.float32())]))
    return pa.schema(
        [
            ("user_id", arrow[type(user)]),
            ("item_id", arrow[type(item)]),
            ("rank", pa.int32()),
            ("score", pa.float32()),
            ("because", because),
        ]
    )


def _table(users: pl.Series, bundle: Bundle, answer: Answer) -> pa.Table:
    """The answer in the log's own ids, a row per recommendation, sorted by user and rank."""
    num_rows, k = answer.item_index.shape
    given = answer.item_index > 0
    frame = pl.DataFrame(
        {
            "user_id": users.gather(np.repeat(np.arange(num_rows), k)[given.ravel()]),
            "item_id": bundle.items.decode(answer.item_index[given]),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_rows)[given.ravel()],
            "score": answer.score[given],
        }
    )
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.append_column("because", _because_column(bundle, answer, given, table["item_id"].type))


def _because_column(
    bundle: Bundle, answer: Answer, given: NDArray[np.bool_], item_type: pa.DataType
) -> pa.Array:
    """For each recommendation, a list of {item_id, weight}; empty where nothing in the history carried it."""
    if answer.because is None:
        lengths, items, weights = (
            np.zeros(int(given.sum()), np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
        )
    else:
        index, weight = answer.because.item_index[given], answer.because.weight[given]
        named = index > 0
        lengths, items, weights = named.sum(1), index[named], weight[named]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = bundle.items.decode(items).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(item_type)
    return pa.ListArray.from_arrays(
        pa.array(offsets),
        pa.StructArray.from_arrays([ids, pa.array(weights, pa.float32())], names=["item_id", "weight"]),
    )


def _own_version(ctx: Context) -> int | None:
    """The version under which this configuration's own bundle is registered, if it is."""
    from pipeline import registry

    folder = ctx.inputs["publish"]
    return (
        registry.version_of_bundle(ctx.config, Artifact(folder.parent, folder.name))
        if ctx.config.tracking.enabled
        else None
    )


def _report(ctx: Context, bundle: Bundle, total: _Counts, strangers: int) -> None:
    rate = total.users / total.seconds if total.seconds > 0 else 0.0
    version = ctx.model.version if ctx.model is not None else _own_version(ctx)
    ctx.manifest.update(
        rows_in=total.users + strangers,
        rows_out=total.recommendations,
        rows_left_out={"user_not_in_log": strangers},
        model=ctx.config.score.model,
        model_version=version,
        bundle_digest=bundle.digest,
        users_per_second=round(rate, 1),
        users=total.users,
        cold_users=total.cold_users,
        unknown_items=total.unknown_items,
        short_lists=total.short_lists,
    )
    for name in ("users", "cold_users", "unknown_items", "short_lists", "users_per_second"):
        ctx.track.metric(name, ctx.manifest[name])
    ctx.track.tag("lookback.bundle_digest", bundle.digest)
    if version is not None:
        ctx.track.tag("lookback.model_version", str(version))
    stale = f", {strangers:,} asked for are not in the log" if strangers else ""
    ctx.summary(
        f"{total.recommendations:,} recommendations for {total.users:,} users ({total.cold_users:,} by popularity{stale}), "
        f"{total.unknown_items:,} interactions with unknown items, {total.short_lists:,} short lists, {rate:,.0f} users/s"
    )
