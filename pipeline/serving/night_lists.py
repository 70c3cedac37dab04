"""Lists of a night that keep budgets together: candidates of all users, one allocation, then the lists shard by shard.

Each step leaves files in `night/` of the workspace that are a function of the job alone, so that a killed scoring resumes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.allocation.allocate import Allocation, allocate, with_fairness
from models.allocation.night import NO_CAP, UNIT, Budgets, Fairness, Night, Quota
from models.histories import Histories, Int32, Int64
from models.recommendation.answer import Answer, Because, Outcomes, Run
from pipeline.artifacts.files import read_record, write_json
from pipeline.errors import LookbackError
from pipeline.serving import budget_table, outcome_order
from pipeline.serving.batch import NightPass, Scorer
from pipeline.serving.budget_table import Budget, Catalogue
from pipeline.serving.night_candidates import FOLDER, CandidateScorer, Store, shortlists, wanted_items
from pipeline.serving.shards import Batch

if TYPE_CHECKING:
    from pipeline.budgets_section import BudgetsConfig

_PINS, _LISTS, _CERTIFICATE = "pins.npy", "column.npy", "certificate.json"
_DAY = 86_400_000_000
_BLOCK_USERS = 2**15


@dataclass(frozen=True)
class Certificate:
    """Entry of the manifest: what lists are worth, what is proven of them, and what the budgets cost."""

    value: float
    """Sum over places; with `budgets.weight_by_place` weighted"""
    bound: float
    """No lists that keep the budgets are worth more, with fairness of its objective"""
    gap: float
    """Greatest share of the bound by which other lists may be better"""
    value_without_budgets: float
    value_lost: float
    value_lost_share: float
    num_budgets: int
    binding: list[dict[str, object]]
    """field, value, kind (max, min), price of a place, places, limit; the dearest first"""
    infeasible: list[dict[str, object]]
    """field, value, missing, min_places"""
    exposure: dict[str, float] | None
    """gini, smallest_share and objective, with fairness"""


@dataclass(frozen=True)
class Plan:
    """Budgets of a scoring, and what pins take of them."""

    settings: "BudgetsConfig"
    rows: list[Budget]
    budgets: Budgets
    weight: Int64
    """[k] units of each rank"""
    pinned: Int64
    """[n + 1] units of pins"""
    fairness: Int64 | None
    """[n + 1] group of each item, from 1; 0: none"""
    scorer: CandidateScorer

    @property
    def store(self) -> Store:
        """Files of the night."""
        return self.scorer.store

    def allocated(self) -> Certificate:
        """Choose the lists, if they are not there.

        Raises LookbackError where floors cannot be met and `budgets.infeasible` is stop.
        """
        path, record = self.store.folder / _LISTS, self.store.folder / _CERTIFICATE
        saved: dict[str, Any] = read_record(record)
        if path.exists() and saved:
            certificate = Certificate(**saved)
        else:
            found = allocate(self._night(), self.scorer.job.seed)
            temporary = path.with_suffix(".writing.npy")
            np.save(temporary, found.column)
            temporary.replace(path)
            certificate = self._certificate(found)
            write_json(record, asdict(certificate))
        if (missing := certificate.infeasible) and self.settings.infeasible == "stop":
            first = missing[0]
            raise LookbackError(
                f"{budget_table.KEY}: {len(missing):,} floors cannot be met, the first {first['field']} {first['value']!r}: "
                f"{first['missing']:,.10g} of {first['min_places']:,.10g} places are missing; lower min_places or raise the caps "
                "of the same items, or set budgets.infeasible = 'report'"
            )
        return certificate

    def _night(self) -> Night:
        """Allocation problem of the stored candidates; pins have their places already."""
        item, value = self.store.open()[:2]
        places = np.full(len(item), len(self.weight), np.int64)
        if self.pinned.any():
            places -= self._num_pins()
            item = np.maximum(item, 0)
        used = self.budgets.usage(self.pinned)
        budgets = replace(
            self.budgets,
            low=np.maximum(self.budgets.low - used, 0),
            high=np.where(self.budgets.high < NO_CAP, self.budgets.high - used, NO_CAP),
        )
        rules, traits = self.scorer.rules, self.scorer.bundle.traits
        quota = None
        if rules.max_per_category and traits.categories is not None:
            quota = Quota(traits.categories, rules.max_per_category)
        if self.fairness is None:
            return Night(item, value, places, self.weight, budgets, quota)
        base = np.zeros(int(self.fairness.max(initial=0)) + 1, np.int64)
        np.add.at(base, self.fairness, self.pinned)
        night = Night(item, value, places, self.weight, budgets, quota, Fairness(self.fairness, base, 0.0))
        assert self.settings.fairness is not None
        return with_fairness(night, self.settings.fairness.strength)

    def _num_pins(self) -> Int64:
        """[users] pins of each list."""
        number: Int64 = np.load(self.store.folder / _PINS)
        return number

    def _certificate(self, found: Allocation) -> Certificate:
        """Value, bound, and budgets that bind or lack places, with what pins take."""
        used = self.budgets.usage(self.pinned) + found.usage
        names = [{"field": row.field, "value": row.value} for row in self.rows]
        binding: list[dict[str, Any]] = []
        infeasible: list[dict[str, Any]] = []
        for number, (name, price, own) in enumerate(
            zip(names, found.price.tolist(), used.tolist(), strict=True)
        ):
            low, high = int(self.budgets.low[number]), int(self.budgets.high[number])
            if missing := int(found.missing[number]):
                infeasible.append(name | {"missing": missing / UNIT, "min_places": low / UNIT})
            elif price:
                binding.append(
                    name
                    | {"kind": "max" if price > 0 else "min", "price": abs(price), "places": own / UNIT}
                    | {"limit": (high if price > 0 else low) / UNIT}
                )
        binding.sort(key=lambda row: row["price"], reverse=True)
        lost, exposure = found.unlimited - found.value, None
        if found.exposure is not None:
            exposure = _spread(found.exposure / UNIT) | {"objective": found.objective}
        return Certificate(
            value=found.value,
            bound=found.bound,
            gap=found.gap,
            value_without_budgets=found.unlimited,
            value_lost=lost,
            value_lost_share=lost / found.unlimited if found.unlimited else 0.0,
            num_budgets=len(self.rows),
            binding=binding,
            infeasible=infeasible,
            exposure=exposure,
        )


def sentence(kept: Mapping[str, Any]) -> str:
    """Budgets of a manifest and what they cost, for the summary line."""
    missing = f" ({len(kept['infeasible']):,} floors missed)" if kept["infeasible"] else ""
    lost, gap = kept["value_lost_share"], kept["gap"]
    return f", {kept['num_budgets']:,} budgets kept{missing}, value lost {lost:.2%}, gap {gap:.3%}"


def _spread(places: NDArray[np.float64]) -> dict[str, float]:
    """Gini coefficient and smallest share of the groups' exposure [g]."""
    total, ordered = places.sum(), np.sort(places)
    number = len(ordered)
    if not total:
        return {"gini": 0.0, "smallest_share": 0.0}
    rank = np.arange(1, number + 1)
    gini = float((2 * rank - number - 1) @ ordered / (number * total))
    return {"gini": gini, "smallest_share": float(ordered[0] / total)}


def prepare(settings: "BudgetsConfig", scorer: Scorer, folder: Path) -> Plan:
    """Read the budgets of a scoring and make the files of its candidates. Raises LookbackError where no lists could keep them."""
    scorer = replace(scorer, job=replace(scorer.job, night=NightPass(folder / FOLDER, is_allocated=False)))
    own = CandidateScorer.of(scorer)
    weight = np.full(own.places, UNIT, np.int64)
    if settings.weight_by_place:
        weight = np.rint(UNIT / np.log2(np.arange(2, own.places + 2))).astype(np.int64)
    catalogue = Catalogue(
        scorer.bundle.items,
        scorer.job.ingest / "items.parquet",
        scorer.rules.allowed,
        lambda: _age_days(scorer),
    )
    rows: list[Budget] = []
    budgets = _no_budgets(len(scorer.bundle.items))
    if scorer.job.settings.budgets is not None:
        path = Path(scorer.job.settings.budgets)
        rows, budgets = budget_table.budgets_of(path, catalogue, len(scorer.users), weight)
    floored = [budgets.item[budgets.budget == number] for number in np.flatnonzero(budgets.low > 0)]
    wanted = wanted_items(floored, own.places)
    own.store.create(len(own.users), own.width(wanted), own.num_outcomes, wanted)
    pinned = np.zeros(len(scorer.bundle.items) + 1, np.int64)
    if own.user_rules is not None and own.user_rules.pin is not None:
        number, pinned = _pins(own)
        np.save(own.store.folder / _PINS, number)
        _check_pins(rows, budgets, pinned)
    groups = None
    if settings.fairness is not None:
        groups = budget_table.groups_of(settings.fairness.field, catalogue)
    return Plan(settings, rows, budgets, weight, pinned, groups, own)


def _no_budgets(num_items: int) -> Budgets:
    none = np.zeros(0, np.int64)
    return Budgets(none, none, none, none, num_items)


def _age_days(scorer: Scorer) -> NDArray[np.float64]:
    """[n + 1] days since each item's first event before the request; 0 without one."""
    log, histories = scorer.log, scorer.log.histories
    first = np.full(len(scorer.bundle.items) + 1, log.request.time, np.int64)
    for start, end in histories.blocks(2**22):
        events = slice(int(histories.offsets[start]), int(histories.offsets[end]))
        np.minimum.at(first, log.items[histories.item_index[events]], np.asarray(histories.time[events]))
    return np.maximum(log.request.time - first, 0) / _DAY


def _pins(scorer: Scorer) -> tuple[Int64, Int64]:
    """[users] pins that each list will have, and [n + 1] their units by item."""
    number, units = np.zeros(len(scorer.users), np.int64), np.zeros(len(scorer.bundle.items) + 1, np.int64)
    assert scorer.user_rules is not None
    assert scorer.user_rules.pin is not None
    for start in range(0, len(number), _BLOCK_USERS):
        users = np.arange(start, min(start + _BLOCK_USERS, len(number)))
        pins, _ = scorer.user_rules.pin.pins(users).allowed(scorer.histories(users).known, scorer.rules)
        number[users] = np.bincount(pins.row, minlength=len(users))
        units += UNIT * np.bincount(pins.item, minlength=len(units))
    return number, units


def _check_pins(rows: list[Budget], budgets: Budgets, pinned: Int64) -> None:
    """Raise LookbackError where pins alone exceed a cap."""
    used = budgets.usage(pinned)
    for number in np.flatnonzero(used > budgets.high):
        high = int(budgets.high[number]) / UNIT
        raise LookbackError(
            f"score.pin: pins take {int(used[number]) / UNIT:,.10g} places of {rows[number].name}, whose max_places in "
            f"{budget_table.KEY} is {high:,.10g}; expected at most that many pins, or max_places of at least "
            f"{int(used[number]) / UNIT:,.10g}"
        )


@dataclass(frozen=True)
class AllocatedScorer(Scorer):
    """Scorer of lists that an allocation has chosen."""

    @classmethod
    def of(cls, scorer: Scorer) -> "AllocatedScorer":
        """Scorer of a job's lists."""
        return cls(**{part.name: getattr(scorer, part.name) for part in fields(Scorer)})

    @cached_property
    def _store(self) -> Store:
        assert self.job.night is not None
        return Store(self.job.night.folder)

    @cached_property
    def _column(self) -> Int32:
        """[users, k] chosen candidates."""
        column: Int32 = np.load(self._store.folder / _LISTS, mmap_mode="r")
        return column

    def batch(self, users: Int64, run: Run = map) -> Batch:
        """Chosen lists of users in their order."""
        if not len(users):
            return super().batch(users, run)
        read = self.histories(users)
        return self._batch_of(users, read, self._chosen(users, read.known, run), {})

    def _chosen(self, users: Int64, known: Histories, run: Run) -> Answer:
        """Chosen lists of users with the scores of their candidates, and reasons by the engine; pinned candidates at the end."""
        stored = self._store.open()
        item, score, outcome = stored.item[users], stored.score[users], stored.outcomes[users]
        width = item.shape[1]
        pinned = np.where(item < 0, np.arange(width), width)
        pinned = np.sort(pinned, axis=1)[:, : self.places]
        chosen = np.concatenate([np.where(self._column[users] < 0, width, self._column[users]), pinned], 1)
        order = np.argsort(chosen == width, axis=1, kind="stable")[:, : self.places]
        column = np.take_along_axis(chosen, order, 1)
        is_given, column = column < width, np.minimum(column, width - 1)
        items = np.where(is_given, np.abs(np.take_along_axis(item, column, 1)), np.int32(0))
        scores = np.where(is_given, np.take_along_axis(score, column, 1), np.float32(-np.inf))
        return Answer(
            items,
            scores,
            np.ones(items.shape, np.float32),
            known.lengths == 0,
            self._because(users, known, items, run),
            self._outcomes(outcome, column, is_given),
        )

    def _outcomes(
        self, stored: NDArray[np.float32], column: Int64, is_given: NDArray[np.bool_]
    ) -> Outcomes | None:
        """Outcomes of chosen candidates [rows, k]."""
        if not stored.shape[2]:
            return None
        own = np.where(
            is_given[:, :, None], np.take_along_axis(stored, column[:, :, None], 1), np.float32(np.nan)
        )
        if outcome_order.has_utility(self.bundle):
            return Outcomes(own[:, :, 0], own[:, :, 1:-1], own[:, :, -1])
        return Outcomes(own[:, :, 0], own[:, :, 1:], None)

    def _because(self, users: Int64, known: Histories, items: Int32, run: Run) -> Because | None:
        """Reasons of chosen items [rows, k], by an answer among them alone."""
        settings = self.job.settings
        if not settings.because:
            return None
        answer = self.bundle.engine.answer(
            replace(known, shortlist=shortlists([items])),
            self.places,
            replace(self.rules, max_per_category=0),
            segment=self.segment[users],
            because=settings.because_method,
            because_items=settings.because_items,
            run=run,
            in_blocks=True,
        )
        assert answer.because is not None
        is_own = (answer.item_index[:, None, :] == items[:, :, None]) & (items > 0)[:, :, None]
        place, is_found = is_own.argmax(axis=2)[:, :, None], is_own.any(axis=2)[:, :, None]
        index = np.take_along_axis(answer.because.item_index, place, 1)
        weight = np.take_along_axis(answer.because.weight, place, 1)
        return Because(np.where(is_found, index, np.int32(0)), np.where(is_found, weight, np.float32(0)))


def opened(scorer: Scorer) -> Scorer:
    """Scorer of the pass that a job is in."""
    if scorer.job.night is None:
        return scorer
    return AllocatedScorer.of(scorer) if scorer.job.night.is_allocated else CandidateScorer.of(scorer)


def with_lists(scorer: Scorer, plan: Plan) -> Scorer:
    """Scorer of the lists of a plan."""
    night = NightPass(plan.store.folder, is_allocated=True)
    return opened(replace(scorer, job=replace(scorer.job, night=night)))
