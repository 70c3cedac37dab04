"""Candidates of all users of a night, on disk: more than a list holds, so that lists can be chosen together.

`night/` of a score workspace: item.npy, value.npy, score.npy and outcomes.npy [users, candidates], each shard at its rows, so
that shards of any size, and processes on any machine, leave the same bytes. A pinned item is stored as its negative number.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.histories import Float32, Histories, Int32, Int64, ItemSets, Shortlists
from models.recommendation.answer import Answer, Run
from models.recommendation.pins import Pins
from models.recommendation.rules import Rules
from pipeline.artifacts.files import read_record, write_json
from pipeline.serving import outcome_order
from pipeline.serving.batch import Progress, Scorer, scoring_threads
from pipeline.serving.shards import POOL_BATCHES, Counts

FOLDER = "night"
MIN_CANDIDATES, PER_PLACE = 200, 4
"""Least candidates of a user, and as a multiple of the places."""
_WANTED = "wanted.npz"


class Columns(NamedTuple):
    """Candidates of some users, in the order of lists without budgets."""

    item: Int32
    """[rows, w], 0: none; negative: pinned"""
    value: Float32
    """[rows, w], worth of a place in the user's list, at least 0"""
    score: Float32
    """[rows, w]"""
    outcomes: Float32
    """[rows, w, m]: score of the second stage, probability of each outcome, utility; m = 0 without outcomes"""


@dataclass(frozen=True)
class Store:
    """Files of a night's candidates."""

    folder: Path

    def create(self, num_users: int, width: int, num_outcomes: int, wanted: list[Int64]) -> None:
        """Make files of empty rows; what an interrupted run left is kept. wanted: items that every user has as candidates."""
        self.folder.mkdir(exist_ok=True)
        shape = num_users, width
        kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
            "item": (np.int32, shape),
            "value": (np.float32, shape),
            "score": (np.float32, shape),
            "outcomes": (np.float32, (*shape, num_outcomes)),
        }
        for name, (kind, size) in kinds.items():
            path = self.folder / f"{name}.npy"
            if not path.exists():
                temporary = path.with_suffix(".writing")
                np.lib.format.open_memmap(temporary, "w+", kind, size).flush()
                temporary.replace(path)
        offsets = np.cumsum([0, *(len(items) for items in wanted)])
        items = np.concatenate([np.zeros(0, np.int64), *wanted])
        np.savez(self.folder / _WANTED, items=items, offsets=offsets)

    def open(self) -> Columns:
        """All users' candidates, memory-mapped."""
        return Columns(*(np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in Columns._fields))

    @cached_property
    def wanted(self) -> list[Int64]:
        """Sets of items of which every user has the best as candidates."""
        with np.load(self.folder / _WANTED) as saved:
            return np.split(saved["items"], saved["offsets"][1:-1])

    def record(self, number: int) -> Path:
        """Record of a finished shard."""
        return self.folder / f"shard-{number:05d}.json"

    def write(self, rows: slice, columns: Columns) -> None:
        """Write the candidates of consecutive users."""
        for name, part in zip(Columns._fields, columns, strict=True):
            whole = np.lib.format.open_memmap(self.folder / f"{name}.npy", "r+")
            whole[rows] = part
            whole.flush()

    def digest(self, rows: slice) -> str:
        """Digest of the candidates of consecutive users."""
        hasher = hashlib.sha256()
        for part in self.open():
            hasher.update(np.ascontiguousarray(part[rows]).tobytes())
        return hasher.hexdigest()


def wanted_items(floored: list[Int64], k: int) -> list[Int64]:
    """Sets of items with floors: groups no larger than a list in one set, each larger group by itself."""
    small = [items for items in floored if len(items) <= k]
    together = [np.unique(np.concatenate(small))] if small else [np.zeros(0, np.int64)]
    return [*together, *(items for items in floored if len(items) > k)]


@dataclass(frozen=True)
class CandidateScorer(Scorer):
    """Scorer whose shards are rows of `Store`."""

    @classmethod
    def of(cls, scorer: Scorer) -> "CandidateScorer":
        """Scorer of a job's candidates."""
        return cls(**{part.name: getattr(scorer, part.name) for part in fields(Scorer)})

    def width(self, wanted: list[Int64]) -> int:
        """Candidates of a user."""
        own = self._num_best + (self.places if self.rules.max_per_category else 0)
        return min(len(self.bundle.items), own + len(wanted[0]) + self.places * len(wanted[1:]))

    @property
    def _num_best(self) -> int:
        return max(MIN_CANDIDATES, PER_PLACE * self.places)

    @property
    def num_outcomes(self) -> int:
        """Numbers that are kept of each candidate's outcomes."""
        types = outcome_order.types_of(self.bundle)
        return 1 + len(types) + outcome_order.has_utility(self.bundle) if types else 0

    @cached_property
    def store(self) -> Store:
        """Files of the night."""
        assert self.job.night is not None
        return Store(self.job.night.folder)

    def score(self, number: int, progress: Progress) -> Counts:
        """Write the candidates of a shard; those that are complete are kept."""
        size, record = self.job.settings.shard_users, self.store.record(number)
        rows = slice(number * size, min((number + 1) * size, len(self.users)))
        if read_record(record) != self._record(rows):
            step = POOL_BATCHES * self.job.settings.batch_users
            with scoring_threads() as (run, _):
                for start in range(rows.start, rows.stop, step):
                    pool = slice(start, min(start + step, rows.stop))
                    self.store.write(pool, self.columns(np.arange(pool.start, pool.stop), run))
            write_json(record, self._record(rows))
        progress(rows.stop - rows.start)
        return {}

    def _record(self, rows: slice) -> dict[str, object]:
        return {"first": rows.start, "end": rows.stop, "digest": self.store.digest(rows)}

    def columns(self, users: Int64, run: Run = map) -> Columns:
        """Candidates of some users: the best, the list under quotas, and the best of each set of wanted items."""
        known = self.histories(users).known
        wanted = self.store.wanted
        asked = [(self._num_best, self._rules())]
        if self.rules.max_per_category:
            asked.append((self.places, self.rules))
        for number, items in enumerate(wanted):
            if len(items):
                asked.append((self.places if number else len(items), self._rules(items)))
        answers = [self._candidates(users, known, number, rules, run) for number, rules in asked]
        if len(answers) > 1 and self.bundle.second_stage is not None:
            among = shortlists([answer.item_index for answer in answers])  # to be ranked beside each other
            known_among = replace(known, shortlist=among)
            answers = [self._candidates(users, known_among, self.width(wanted), self._rules(), run)]
        merged = _merged(answers, self.width(wanted), self.num_outcomes)
        value = self._value(merged, answers[0].cold)
        item = merged.item
        if self.user_rules is not None and self.user_rules.pin is not None:
            pins, _ = self.user_rules.pin.pins(users).allowed(known, self.rules)
            is_pin = pins_of_rows(item, pins)
            item = np.where(is_pin, -item, item)
        return merged._replace(item=item, value=value)

    def _rules(self, items: Int64 | None = None) -> Rules:
        """Rules of candidates: filters alone, among some items."""
        rules = replace(self.rules, max_per_category=0)
        if items is None:
            return rules
        allowed = np.zeros(len(self.bundle.items) + 1, bool)
        allowed[items] = True
        return replace(rules, allowed=allowed if rules.allowed is None else allowed & rules.allowed)

    def _candidates(self, users: Int64, known: Histories, number: int, rules: Rules, run: Run) -> Answer:
        segment = self.segment[users]
        return self.bundle.engine.answer(known, number, rules, segment=segment, run=run, in_blocks=True)

    def _value(self, columns: Columns, cold: NDArray[np.bool_]) -> Float32:
        """[rows, w] worth of a place: expected utility (0 at least), probability, or softmax of the scores.

        Of rows of popular items their share of the candidates' events.
        """
        is_real = columns.item > 0
        score = np.where(is_real, columns.score, -np.inf).astype(np.float64)
        if self.job.settings.order == "utility" and outcome_order.has_utility(self.bundle):
            value = columns.outcomes[:, :, -1].astype(np.float64)
        elif (probability := self.bundle.probability_at(self.log.request.time)) is not None:
            value = probability(np.where(is_real, columns.score, np.nan)).astype(np.float64)
        else:
            value = softmax(score)
        shares = np.where(is_real, np.maximum(columns.score, 0), 0).astype(np.float64)
        shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        value = np.where(cold[:, None], shares, value)
        return np.where(is_real & np.isfinite(value), np.maximum(value, 0), 0).astype(np.float32)


def shortlists(items: list[Int32]) -> Shortlists:
    """The items [rows, …] of each row, all together, as the only ones that it may have."""
    every = np.concatenate(items, axis=1)
    row, place = np.nonzero(every)
    width = int(every.max(initial=0)) + 1
    pair = np.unique(row * width + every[row, place])
    sets = ItemSets.of(pair // width, pair % width, len(every))
    return Shortlists(sets.item_index, sets.starts, sets.ends, np.ones(len(every), bool))


def softmax(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """[rows, w] exp(score) / sum; 0 at -inf, and in rows without any finite score."""
    greatest = score.max(axis=1, keepdims=True, initial=-np.inf)
    share = np.exp(score - np.where(np.isfinite(greatest), greatest, 0))
    return np.asarray(share / np.maximum(share.sum(axis=1, keepdims=True), 1e-300))


def pins_of_rows(item: Int32, pins: Pins) -> NDArray[np.bool_]:
    """[rows, w] whether each item is pinned in its row."""
    width = max(int(item.max(initial=0)), int(pins.item.max(initial=0))) + 1
    own = np.arange(len(item))[:, None] * width + item
    return np.isin(own, pins.row * width + pins.item) & (item > 0)


def _merged(answers: list[Answer], width: int, num_outcomes: int) -> Columns:
    """Distinct candidates of several answers, the first of each item, by score; cut or padded to a width. Values are still 0."""
    item = np.concatenate([answer.item_index for answer in answers], 1)
    score = np.concatenate([answer.score for answer in answers], 1)
    outcomes = np.concatenate([_outcomes(answer, num_outcomes) for answer in answers], 1)
    by_item = np.argsort(item, axis=1, kind="stable")
    ordered = np.take_along_axis(item, by_item, 1)
    is_repeated = np.zeros(item.shape, bool)
    np.put_along_axis(is_repeated, by_item, np.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0))), 1)
    is_real = (item > 0) & ~is_repeated
    score = np.where(is_real, score, -np.inf).astype(np.float32)
    order = np.lexsort(
        (np.broadcast_to(np.arange(item.shape[1]), item.shape), -np.nan_to_num(score, nan=-np.inf), ~is_real),
        axis=1,
    )
    order = order[:, :width]
    missing = ((0, 0), (0, width - order.shape[1]))
    item = np.pad(np.take_along_axis(np.where(is_real, item, np.int32(0)), order, 1), missing)
    score = np.pad(np.take_along_axis(score, order, 1), missing, constant_values=-np.inf)
    outcomes = np.take_along_axis(outcomes, order[:, :, None], 1)
    outcomes = np.pad(outcomes, (*missing, (0, 0)), constant_values=np.nan)
    return Columns(item, np.zeros_like(score), score, outcomes)


def _outcomes(answer: Answer, number: int) -> Float32:
    """[rows, k, m] outcomes of an answer's items as stored; NaN where there are none."""
    own = answer.outcomes
    if own is None:
        return np.full((*answer.item_index.shape, number), np.nan, np.float32)
    parts = [own.score[:, :, None], own.probability]
    parts += [] if own.utility is None else [own.utility[:, :, None]]
    return np.concatenate(parts, 2)
