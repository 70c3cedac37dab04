"""Recommendations shard by shard: what a process opens by path, and how it writes one shard.

A shard is a function of the job and its number alone, whichever process writes it, with however many threads.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from features.histories.jagged import JaggedHistories
from features.histories.vocabulary import Vocabulary
from models.encoder.encoder import as_asked
from models.histories import Histories, Int32, Int64
from models.recommendation.engine import Answer
from models.recommendation.rules import Rules, UInt64
from pipeline.artifacts.files import digest_file, read_json, write_json
from pipeline.dataset.dataset import Dataset, rows
from pipeline.sections import ScoreConfig
from pipeline.serving import new_item_catalogue, output_table, popularity_fallback
from pipeline.serving.bundle import Bundle
from pipeline.serving.business_rules import moment_of, read_ids, rules_of

Counts = dict[str, int]
Progress = Callable[[int], object]
"""Told how many users are done."""


@dataclass(frozen=True)
class Job:
    """What there is to score, by path."""

    bundle: Path
    features: Path
    ingest: Path
    folder: Path
    """Where the shards go."""
    settings: ScoreConfig
    seed: int


@dataclass(frozen=True)
class Log:
    """The log's histories and how its numbers translate into the bundle's."""

    dataset: Dataset
    items: Int32
    """[num_items + 1] -> the bundle's item, 0: unknown to it"""
    types: NDArray[np.int16]
    """[num_event_types + 1] -> the bundle's event type"""

    @classmethod
    def of(cls, dataset: Dataset, bundle: Bundle) -> "Log":
        """The log of a features folder, for a bundle."""
        items, _ = bundle.item_mapping(dataset.items["item_id"])
        return cls(dataset, items, bundle.type_mapping(dataset.event_types))

    @property
    def histories(self) -> JaggedHistories:
        """Histories of all users, in the items of the dataset."""
        return self.dataset.histories

    @property
    def users(self) -> pl.Series:
        """User ids in the order of the user index."""
        return self.dataset.users["user_id"]

    @cached_property
    def newest(self) -> int:
        """Time of the newest event, microseconds since the epoch: the time of the request."""
        return self.dataset.newest

    @property
    def known(self) -> Histories:
        """What the bundle knows of every user's history, in its numbering."""
        return self.dataset.all_rows().translate(self.items)


@dataclass(frozen=True)
class Users:
    """Those to score, in the order of their ids."""

    ids: pl.Series
    index: Int64
    """[users] in the log, -1 for those of the users' table without any event"""
    strangers: int
    """Asked for, and neither in the log nor in the users' table."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Scorer:
    """An opened job."""

    job: Job
    bundle: Bundle
    log: Log
    users: Users
    rules: Rules
    rule_counts: Counts
    segment: Int64
    """[users] the row of the bundle's popularity of each."""

    @classmethod
    def open(cls, job: Job) -> "Scorer":
        """Open the bundle, with tonight's new items if they are wanted, and the log.

        Raises LookbackError where a file that the settings name cannot be used.
        """
        opened = Bundle.open(job.bundle, verify=False)
        bundle, log = as_of_tonight(opened, job.features, job.ingest, job.settings)
        users = _chosen(job, log)
        rules, counts = rules_of(job.settings, bundle.items, lambda: log.newest, job.seed)
        return cls(job, bundle, log, users, rules, counts, _segments(job, bundle, users))

    @property
    def num_shards(self) -> int:
        """Nobody to score: one empty file with its columns."""
        return max(1, -(-len(self.users) // self.job.settings.shard_users))

    def score(self, number: int, progress: Progress) -> Counts:
        """Write one shard and return its counts; a shard that is there already, whole, is only counted."""
        path = self.job.folder / f"part-{number:05d}.parquet"
        done = path.with_name(f".{path.name}.json")
        size = self.job.settings.shard_users
        users = np.arange(number * size, min((number + 1) * size, len(self.users)))
        known = read_json(done) if done.exists() and path.exists() else None
        if known is not None and known["digest"] == digest_file(path):
            progress(len(users))
            before: Counts = known["counts"]
            return before | {"users_before": len(users)}
        counts: Counter[str] = Counter()
        temporary = path.with_suffix(".writing")
        schema = output_table.schema(self.log.users.dtype, self.bundle.items.ids.dtype)
        waiting: deque[Future[tuple[Any, Counts]]] = deque()
        with (
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
            _single_threads() as (pool, num_threads),
        ):

            def write_next() -> None:
                table, batch_counts = waiting.popleft().result()
                writer.write_table(table.cast(schema))
                counts.update(batch_counts)
                progress(batch_counts["users"])

            for batch in self._batches(users):
                waiting.append(pool.submit(self._batch, batch))
                if len(waiting) > num_threads:
                    write_next()
            while waiting:
                write_next()
        temporary.replace(path)
        write_json(done, {"digest": digest_file(path), "counts": counts})
        return dict(counts)

    def _batches(self, users: Int64) -> list[Int64]:
        size = self.job.settings.batch_users
        return [users[start : start + size] for start in range(0, len(users), size)]

    def _batch(self, users: Int64) -> tuple[Any, Counts]:
        """The Arrow table of a batch of users, and its counts."""
        settings = self.job.settings
        whole, known = self._histories(self.users.index[users])
        ids = self.users.ids.gather(users)
        answer = self.bundle.answering.answer(
            known,
            settings.k,
            self.rules,
            keys=keys_of(ids) if self.rules.exploration else None,
            segment=self.segment[users],
            because=settings.because_method if settings.because else None,
            because_items=settings.because_items,
        )
        return output_table.table(ids, self.bundle.items, answer), self._counts(whole, known, answer)

    def _histories(self, index: Int64) -> tuple[Histories, Histories]:
        """Users' whole histories, and what the bundle knows of them in its numbering."""
        offsets, there = self.log.histories.offsets, index >= 0
        starts = np.where(there, offsets[index], 0)
        ends = np.where(there, offsets[index + 1], 0)
        whole = rows(self.log.histories, starts, ends).compact()
        whole = replace(whole, event_type=self.log.types[whole.event_type])
        known = whole.translate(self.log.items)
        if self.bundle.answering.looks_at_request:
            known = as_asked(known, self.log.newest)
        return whole, known

    def _counts(self, whole: Histories, known: Histories, answer: Answer) -> Counts:
        given = answer.item_index > 0
        unknown = whole.lengths - known.lengths
        own = len(self.bundle.items) - self.bundle.num_added
        return {
            "users": len(answer.cold),
            "cold_users": int(answer.cold.sum()),
            "unknown_items": int(unknown.sum()),
            "users_with_unknown_items": int((unknown > 0).sum()),
            "short_lists": int((~given[:, -1]).sum()),
            "recommendations": int(given.sum()),
            "new_item_recommendations": int((answer.item_index > own).sum()),
        }


def as_of_tonight(bundle: Bundle, features: Path, ingest: Path, settings: ScoreConfig) -> tuple[Bundle, Log]:
    """The bundle with what the log and the items' table of two artifacts add to it, and that log.

    Items that are new to it, if these are wanted; for a ranker when and how often items were met.
    """
    dataset = Dataset.open(features)
    if settings.new_items:
        log_ids = dataset.items["item_id"]
        table = new_item_catalogue.unknown_to(bundle.items.ids, log_ids, ingest / "items.parquet")
        bundle = new_item_catalogue.extended(bundle, table)
    log = Log.of(dataset, bundle)
    return (bundle if bundle.second_stage is None else bundle.counting(log.known)), log


def _chosen(job: Job, log: Log) -> Users:
    """The users that the settings ask for."""
    wanted, num_users = job.settings.users, log.histories.num_users
    if wanted == "all":
        return Users(log.users, np.arange(num_users), 0)
    if wanted.endswith(".parquet"):
        return _asked(job, log)
    last = np.asarray(log.histories.offsets[1:]) - 1
    has_events = last >= log.histories.offsets[:-1]
    since = moment_of(wanted)
    index = np.flatnonzero(has_events & (np.asarray(log.histories.time)[np.maximum(last, 0)] >= since))
    return Users(log.users.gather(index), index, 0)


def _asked(job: Job, log: Log) -> Users:
    """The users that a file names: those of the log, and those of the users' table without any event."""
    asked = read_ids("score.users", Path(job.settings.users), "user_id")
    index, strangers = Vocabulary(log.users, 0).encode_known(asked, unknown=-1)
    users = pl.DataFrame({"id": log.users.gather(np.unique(index[index >= 0]))}).with_columns(
        index=pl.Series(np.unique(index[index >= 0]), dtype=pl.Int64)
    )
    table = job.ingest / "users.parquet"
    if strangers and table.exists():
        others = Vocabulary.of(
            pl.read_parquet(table, columns=["user_id"])["user_id"].cast(log.users.dtype), 0
        )
        found, strangers = others.encode_known(asked.filter(pl.Series(index < 0)), unknown=-1)
        silent = pl.DataFrame({"id": others.ids.gather(np.unique(found[found >= 0]))})
        users = pl.concat([users, silent.with_columns(index=pl.lit(-1, pl.Int64))]).sort("id")
    return Users(users["id"].rename("user_id"), users["index"].to_numpy(), strangers)


def _segments(job: Job, bundle: Bundle, users: Users) -> Int64:
    """[users] the row of popularity of each, by tonight's users' table."""
    column = bundle.description.get("popularity", {}).get("segment")
    table = job.ingest / "users.parquet"
    if column is None or not table.exists() or column not in pl.read_parquet_schema(table):
        return np.zeros(len(users), np.int64)
    return popularity_fallback.codes(
        bundle.segments, popularity_fallback.segment_of(table, column, users.ids)
    )


def keys_of(ids: pl.Series) -> UInt64:
    """[n] a number for each id that is the same in every log."""
    digests = (hashlib.blake2b(str(each).encode(), digest_size=8).digest() for each in ids)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


@contextmanager
def _single_threads() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Pool of as many threads as the process may use, each computing by itself, and their number.

    Kernels of one thread give the same bits whatever the number of threads, and no core waits for another.
    """
    num_threads = torch.get_num_threads()
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(num_threads, "score", initializer=_one_thread) as pool,
    ):
        try:
            yield pool, num_threads
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)


def _one_thread() -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)
