"""Batch scoring by shards.

A shard is a function of the job and its number alone, whichever process writes it, with however many threads.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from features.histories.vocabulary import Vocabulary
from features.settings import iso_microseconds
from models.encoder.encoder import with_request_time
from models.histories import Histories, Int64
from models.recommendation.answer import Answer, ReasonMethod, Run
from models.recommendation.engine import RecommendationEngine
from models.recommendation.proofs import MOST_EVENTS
from models.recommendation.rules import Rules, UInt64
from models.settings.outcomes import Utilities
from pipeline.artifacts.files import digest_file, read_record, write_json
from pipeline.dataset.dataset import rows
from pipeline.dataset.protocol import excludes_seen
from pipeline.sections import ScoreConfig
from pipeline.serving import (
    outcome_order,
    output_table,
    partly_ranked,
    previous_lists,
    proven_reasons,
)
from pipeline.serving.assignment import keys_of
from pipeline.serving.bundle import Bundle
from pipeline.serving.business_rules import gone_items, read_ids, rules_of
from pipeline.serving.current_log import Log, segment_of, with_current_log
from pipeline.serving.previous_lists import PreviousLists, Reuse
from pipeline.serving.shards import POOL_BATCHES, Batch, Counts, Shard
from pipeline.serving.shown_items import NotAgain, Shown, shown_counts
from pipeline.serving.user_rules import UserRules

_POOLS_AHEAD = 1
"""Pools of users waiting while one is written."""
_BLOCK_EVENTS = 4_000_000
Progress = Callable[[int], object]
"""Called with the number of users just scored."""


@dataclass(frozen=True)
class NightPass:
    """Pass over all users for lists that keep budgets together."""

    folder: Path
    """Files of the night (`night_candidates`)"""
    is_allocated: bool
    """Whether lists have been chosen, and are to be written; else candidates are."""


@dataclass(frozen=True)
class Job:
    """Scoring job, by path."""

    bundle: Path
    features: Path
    ingest: Path
    folder: Path
    """Output folder of the shards."""
    settings: ScoreConfig
    seed: int
    timed: bool = True
    """Whether the log has times, not positions."""
    timezone: str = "UTC"
    """Time zone of times in the settings that name none."""
    reuse: Reuse | None = None
    """Digests of histories, and the lists of an earlier scoring; None: every list is made anew."""
    utilities: Utilities | None = None
    """Worth of each outcome"""
    not_again: NotAgain | None = None
    """Rule of `score.max_shown`; None: off."""
    user_rules: Path | None = None
    """Folder of rules for single users (`user_rules.prepare`); None: there are none."""
    night: "NightPass | None" = None
    """Pass of a scoring whose lists are chosen together; None: each list by itself."""


@dataclass(frozen=True)
class Users:
    """Users to score, in the order of their ids."""

    ids: pl.Series
    index: Int64
    """[users] in the log, -1: in the users' table, without events"""
    num_unknown: int
    """Requested ids that are neither in the log nor in the users' table."""
    num_later: int = 0
    """Users of the log without an event before the request, not scored."""

    def __len__(self) -> int:
        return len(self.index)


class _Options(TypedDict):
    """Arguments of an engine's answer beside the histories."""

    k: int
    rules: Rules
    keys: UInt64 | None
    segment: Int64
    because: ReasonMethod | None
    because_items: int
    run: Run
    in_blocks: bool


class Read(NamedTuple):
    """Histories of some users."""

    whole: Histories
    """In the bundle's numbering, unknown items as 0"""
    known: Histories
    """Without unknown items; with the items that lists leave out, and shortlists"""
    num_shown: Int64
    """[users] items left out because they were shown too often"""


@dataclass(frozen=True)
class Scorer:
    """Opened job."""

    job: Job
    bundle: Bundle
    log: Log
    users: Users
    rules: Rules
    rule_counts: Counts
    segment: Int64
    """[users] rows of the bundle's popularity."""

    @classmethod
    def open(cls, job: Job) -> "Scorer":
        """Open the bundle, extended by new items if set, and the log.

        Raises LookbackError where a file named in the settings is unusable.
        """
        opened = Bundle.open(job.bundle, verify=False)
        bundle, log = with_current_log(
            opened, job.features, job.ingest, job.settings, timed=job.timed, timezone=job.timezone
        )
        bundle = outcome_order.with_utility(bundle, job.settings.order, job.utilities)
        users = _selected_users(job, log)
        exclude_seen = excludes_seen(job.settings.exclude_seen, log.dataset)
        request_time = log.request.time
        rules, counts = rules_of(
            job.settings,
            bundle.items,
            request_time,
            job.seed,
            exclude_seen=exclude_seen,
            timezone=job.timezone,
            gone=items_gone(job.settings, job.ingest, bundle, log),
        )
        return cls(job, bundle, log, users, rules, counts, _segments(job, bundle, users))

    @property
    def num_shards(self) -> int:
        """Number of shards; without users, one empty shard."""
        return max(1, -(-len(self.users) // self.job.settings.shard_users))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of a shard."""
        has_utility = outcome_order.has_utility(self.bundle)
        outcomes = output_table.outcome_columns(outcome_order.types_of(self.bundle), has_utility=has_utility)
        ids = self.log.users.dtype, self.bundle.items.ids.dtype
        has_proofs = proven_reasons.are_sought(self.job.settings)
        return output_table.schema(*ids, outcomes, has_proofs=has_proofs)

    def score(self, number: int, progress: Progress) -> Counts:
        """Write one shard and return its counts; a complete shard is kept."""
        path = self.job.folder / f"part-{number:05d}.parquet"
        done = path.with_name(f".{path.name}.json")
        size = self.job.settings.shard_users
        users = np.arange(number * size, min((number + 1) * size, len(self.users)))
        record = read_record(done) if path.exists() else {}
        counts = record.get("counts")
        if (
            isinstance(counts, dict)
            and record.get("digest") == digest_file(path)
            and pq.read_schema(path).names == self.schema.names
            and (self.job.reuse is None or (self.job.reuse.histories / path.name).exists())
        ):
            progress(len(users))
            return counts | {"users_before": len(users)}
        temporary = path.with_suffix(".writing")
        try:
            shard, counts = self._write(temporary, users, self.previous, progress)
        except previous_lists.UNUSABLE:
            if self.previous is None:
                raise
            shard, counts = self._write(temporary, users, None, progress)  # removed meanwhile
        if self.job.reuse is not None:
            shard.save(self.job.reuse.histories / path.name)
        temporary.replace(path)
        write_json(done, {"digest": digest_file(path), "counts": counts})
        return counts

    @cached_property
    def previous(self) -> PreviousLists | None:
        """Earlier lists to copy; None where there are none, or none that can be used."""
        folder = None if self.job.reuse is None else self.job.reuse.previous
        with contextlib.suppress(*previous_lists.UNUSABLE):
            return None if folder is None else PreviousLists(folder)
        return None

    def _write(
        self, path: Path, users: Int64, previous: PreviousLists | None, progress: Progress
    ) -> tuple[Shard, Counts]:
        """Write the lists of a shard, a row group per `batch_users`; lists that it keeps are copied."""
        shard, size = self._shard(users, previous), self.job.settings.batch_users
        counts: Counter[str] = Counter(shard.copied(self.job.settings.k))
        waiting: deque[tuple[slice, Future[Batch]]] = deque()
        with (
            pq.ParquetWriter(path, self.schema, compression="zstd") as writer,
            scoring_threads() as (run, ahead),
        ):

            def write_next() -> None:
                pool, future = waiting.popleft()
                fresh = future.result()
                counts.update(fresh.counts)
                for table, copied in shard.row_groups(pool, size, fresh):
                    writer.write_table(table)
                    counts.update(proven_reasons.counts(table))
                    if copied is not None:
                        counts["new_item_recommendations"] += self._num_new(copied)
                progress(pool.stop - pool.start)

            for pool in shard.pools(size):
                waiting.append((pool, ahead.submit(self.batch, shard.fresh(pool), run)))
                if len(waiting) > _POOLS_AHEAD:
                    write_next()
            while waiting:
                write_next()
        return shard, dict(counts)

    def _shard(self, users: Int64, previous: PreviousLists | None) -> Shard:
        """A shard's users, with the digests of their histories if those are kept."""
        shard = Shard.of(self.users.ids.gather(users), users, previous)
        if self.job.reuse is None:
            return shard
        step = POOL_BATCHES * self.job.settings.batch_users
        for start in range(0, len(users), step):
            own = slice(start, start + step)
            read = self.histories(users[own])
            history = previous_lists.digests(read.known)
            if proven_reasons.are_sought(self.job.settings):
                # a trial without any event reads what is popular now
                history[read.known.lengths <= MOST_EVENTS] = 0
            shard.history[own] = history
            shard.num_unknown[own] = read.whole.lengths - read.known.lengths
            shard.num_shown[own] = read.num_shown
        return shard.compared()

    def batch(self, users: Int64, run: Run = map) -> Batch:
        """Lists of users in their order."""
        if not len(users):
            return Batch(self.schema.empty_table(), np.zeros(0, np.int64), {})
        read, engine = self.histories(users), self.bundle.engine
        if self.ranked is not None and isinstance(engine, RecommendationEngine):
            answer, counts = self._partly_ranked(engine, users, read.known, run)
        else:
            answer, counts = engine.answer(read.known, **self._options(users, run)), {}
        return self._batch_of(users, read, answer, counts)

    def _batch_of(self, users: Int64, read: Read, answer: Answer, counts: Counts) -> Batch:
        """Batch of an answer, with the pins of its users."""
        if self.user_rules is not None:
            answer, pins = self.user_rules.pinned(users, read.known, answer, self.rules)
            counts = counts | pins
        ids = self.users.ids.gather(users)
        probability = self.bundle.probability_at(self.log.request.time)
        types = outcome_order.types_of(self.bundle)
        table = output_table.table(ids, self.bundle.items, answer, probability, types)
        rows = (answer.item_index > 0).sum(1)
        return Batch(table.cast(self.schema), rows, self._counts(read, answer) | counts)

    @property
    def places(self) -> int:
        """Places of a list: k, or the number of items where that is less."""
        return min(self.job.settings.k, len(self.bundle.items))

    def _options(self, users: Int64, run: Run) -> _Options:
        """Arguments of an answer for users, beside their histories."""
        settings = self.job.settings
        return {
            "k": settings.k,
            "rules": self.rules,
            "keys": keys_of(self.users.ids.gather(users)) if self.rules.exploration.share else None,
            "segment": self.segment[users],
            "because": settings.because_method if settings.because else None,
            "because_items": settings.because_items,
            "run": run,
            "in_blocks": True,
        }

    def _partly_ranked(
        self, engine: RecommendationEngine, users: Int64, known: Histories, run: Run
    ) -> tuple[Answer, Counts]:
        """Answer whose lists a second stage ranks for some users alone, with counts."""
        assert self.ranked is not None

        def of_rows(own: RecommendationEngine, rows: NDArray[np.bool_]) -> Answer:
            return own.answer(known.select(rows), **self._options(users[rows], run))

        return partly_ranked.answer(engine, known, self.ranked[users], of_rows)

    def _num_new(self, table: pa.Table) -> int:
        """Number of recommendations of items that came after training."""
        added = self.bundle.items.ids.tail(self.bundle.num_added)
        return int(pl.Series(table["item_id"]).is_in(added.implode()).sum()) if len(added) else 0

    @cached_property
    def ranked(self) -> NDArray[np.bool_] | None:
        """[users] whether the second stage ranks a user's list; None: all (`score.second_stage_share`)."""
        share = self.job.settings.second_stage_share
        return partly_ranked.ranked_users(self.bundle, self.log, self.users.ids, self.users.index, share)

    @cached_property
    def _shown(self) -> Shown | None:
        """What users were shown before; None where nothing is left out for it."""
        rule = self.job.not_again
        return None if rule is None else self.log.shown(rule, self.bundle)

    @cached_property
    def user_rules(self) -> UserRules | None:
        """Rules for single users; None without any."""
        folder = self.job.user_rules
        return None if folder is None else UserRules.open(folder, self.bundle.items)

    def histories(self, users: Int64) -> Read:
        """Histories of users up to the request."""
        index = self.users.index[users]
        offsets, in_log = self.log.histories.offsets, index >= 0
        starts = np.where(in_log, offsets[index], 0)
        ends = np.where(in_log, self.log.ends[index], 0)
        whole = replace(rows(self.log.histories, starts, ends).compact(), user=index)
        whole = whole.with_types(self.log.types)
        known = whole.translate(self.log.items)
        if self.bundle.engine.looks_at_request:
            known = with_request_time(known, self.log.request.time)
        num_shown = np.zeros(len(users), np.int64)
        if self._shown is not None:
            left_out = self._shown.left_out(self.users.ids.gather(users), index, known)
            known, num_shown = replace(known, left_out=left_out), left_out.lengths
        if self.user_rules is not None:
            known = self.user_rules.applied(users, known)
        return Read(whole, self.log.with_exposures(known, index, self.bundle), num_shown)

    def _counts(self, read: Read, answer: Answer) -> Counts:
        given = answer.item_index > 0
        unknown = read.whole.lengths - read.known.lengths
        own = len(self.bundle.items) - self.bundle.num_added
        return {
            "users": len(answer.cold),
            "cold_users": int(answer.cold.sum()),
            "unknown_items": int(unknown.sum()),
            "users_with_unknown_items": int((unknown > 0).sum()),
            "short_lists": int((given.sum(1) < self.job.settings.k).sum()),
            "recommendations": int(given.sum()),
            "new_item_recommendations": int((answer.item_index > own).sum()),
            **shown_counts(read.num_shown),
        }


def items_gone(settings: ScoreConfig, ingest: Path, bundle: Bundle, log: Log) -> dict[str, NDArray[np.bool_]]:
    """Items that `score.max_item_age_days` leaves out; none where it is off."""
    days, histories = settings.max_item_age_days, log.histories
    if not days:
        return {}
    last_seen = np.zeros(len(bundle.items) + 1, np.int64)
    for first, last in histories.blocks(_BLOCK_EVENTS):
        events = slice(int(histories.offsets[first]), int(histories.offsets[last]))
        time = np.asarray(histories.time[events])
        is_known = time < log.request.before
        np.maximum.at(last_seen, log.items[histories.item_index[events]][is_known], time[is_known])
    last_seen[0] = 0
    return gone_items(bundle, last_seen, log.request.time, days, ingest / "items.parquet")


def _selected_users(job: Job, log: Log) -> Users:
    """Users selected by `score.users`."""
    selection, histories = job.settings.users, log.histories
    if selection == "all":
        if not log.is_later.any():
            return Users(log.users, np.arange(histories.num_users), 0)
        index = np.flatnonzero(~log.is_later)
        return Users(log.users.gather(index), index, 0, int(log.is_later.sum()))
    if selection.endswith(".parquet"):
        return _users_in_file(job, log)
    last = log.ends - 1
    has_events = last >= histories.offsets[:-1]
    last_time = np.asarray(histories.time)[np.maximum(last, 0)]
    index = np.flatnonzero(has_events & (last_time >= iso_microseconds(selection, job.timezone)))
    return Users(log.users.gather(index), index, 0)


def _users_in_file(job: Job, log: Log) -> Users:
    """Users whose ids a file lists: in the log, or in the users' table without events."""
    ids = read_ids("score.users", Path(job.settings.users), "user_id")
    index, num_unknown = Vocabulary(log.users, 0).encode_known(ids, unknown=-1)
    in_log = np.unique(index[index >= 0]).astype(np.int64)
    users = pl.DataFrame({"id": log.users.gather(in_log), "index": in_log})
    table = job.ingest / "users.parquet"
    if num_unknown and table.exists():
        others = Vocabulary.of(
            pl.read_parquet(table, columns=["user_id"])["user_id"].cast(log.users.dtype), 0
        )
        row, num_unknown = others.encode_known(ids.filter(pl.Series(index < 0)), unknown=-1)
        inactive = pl.DataFrame({"id": others.ids.gather(np.unique(row[row >= 0]))})
        users = pl.concat([users, inactive.with_columns(index=pl.lit(-1, pl.Int64))]).sort("id")
    return Users(users["id"].rename("user_id"), users["index"].to_numpy(), num_unknown)


def _segments(job: Job, bundle: Bundle, users: Users) -> Int64:
    """[users] rows of the bundle's popularity, by the current users' table."""
    segment = segment_of(bundle, job.ingest, users.ids)
    return np.zeros(len(users), np.int64) if segment is None else bundle.popularity.codes(segment)


@contextmanager
def scoring_threads() -> Iterator[tuple[Run, ThreadPoolExecutor]]:
    """`map` over torch's number of threads, and threads that wait for it; all with single-threaded kernels.

    Single-threaded kernels give the same bits whatever the number of threads.
    """
    num_threads = torch.get_num_threads()
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(num_threads, "score", initializer=_one_thread) as pool,
        ThreadPoolExecutor(_POOLS_AHEAD + 1, "pools", initializer=_one_thread) as ahead,
    ):
        try:
            yield pool.map, ahead
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)


def _one_thread() -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)
