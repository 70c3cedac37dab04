"""Stage baselines: recommenders tuned on validation, fitted on the model's training events, ranking its test targets.

They depend on the log and the split alone, so that all models of a split are compared with the same baselines.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from features.histories.leaks import check_fitted
from features.histories.numbering import ItemNumbering
from models.baselines.base import Baseline, FittedOn
from models.baselines.co_visitation import MovingCoVisitation
from models.baselines.ease import EASE, LARGE_CATALOGUE
from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender
from models.evaluation import metrics
from models.evaluation.ranks import ColdStart, SystemRanks
from models.histories import Histories
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from models.training import distributed
from pipeline.artifacts.files import read_json, write_json
from pipeline.artifacts.store import Artifact
from pipeline.background import divided
from pipeline.config import Config
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.exposed_lists import FOLDER as EXPOSURES
from pipeline.dataset.exposed_lists import ExposedLists
from pipeline.dataset.item_features import known_by_content
from pipeline.dataset.protocol import Kind
from pipeline.dataset.targets import counted
from pipeline.errors import LookbackError
from pipeline.evaluation import dislike_rates, target_words
from pipeline.evaluation.ranking import ENDINGS, Part, rank_all, rank_nightly, save
from pipeline.modelling.recommenders import BUILT_IN, RecommenderKind, fixed_settings, kind_of
from pipeline.modelling.trainer import Trained
from pipeline.orchestration.context import Context

VALIDATION_K = 10
GRU = "gru"
GRU_LEARNING_RATE = 0.002
"""AdamW learning rate of the baseline `gru`, from its results on MovieLens-1M."""
GRU_EMA_DECAY = 0.998
"""Decay of the moving average of its weights: on the demo as good after 7 epochs as without it after 10."""
LONGEST_FIRST = (
    *("als", "ease", "tifu_knn", "co_visitation", "item_knn"),
    *("own_frequent", "own_recent", "recent_popularity", "popularity"),
)
"""Built-in baselines in the order in which they start: the last to end is then a short one."""
Settings = Mapping[str, float | int]


@dataclass(frozen=True)
class Tuned:
    """Settings that validation chose for a baseline."""

    settings: Settings
    """Settings of the best grid point."""
    grid: list[dict[str, Any]]
    """Grid points: settings and `ndcg@10` on the validation requests."""


@dataclass(frozen=True)
class Finished(Tuned):
    """A tuned baseline whose ranks are written."""

    fitted_on: FittedOn


class _Clock:
    """Seconds of a baseline: of each grid point, then of what remains, the last fit and the ranks."""

    def __init__(self) -> None:
        self._moments = [time.monotonic()]

    def lap(self) -> None:
        """End a grid point."""
        self._moments.append(time.monotonic())

    def ended(self) -> list[float]:
        """[points + 1] seconds, to the millisecond."""
        self.lap()
        return [round(later - earlier, 3) for earlier, later in itertools.pairwise(self._moments)]


def build(ctx: Context) -> None:
    """Write KIND/items.npy (numbering of the ranked items), KIND/NAME.parquet (ranks of the test targets), baselines.json.

    KIND_dislikes/ has the same of the held-out dislikes, and exposures/ the lists instead of exposed ones, where there are any.
    """
    if distributed.rank():
        if GRU in names(ctx.config) and not _facts_file(ctx.folder, GRU).exists():
            _trained_gru(ctx)
        return
    kinds, with_validation = ctx.protocol.kinds, ctx.config.train.refit_validation
    selection = _part(ctx, "validation", kinds[0], with_validation=False)
    parts: dict[str, Part] = {
        kind: _part(ctx, "test", kind, with_validation=with_validation) for kind in kinds
    }
    if ctx.dataset.histories.dislikes is not None:
        parts |= {
            f"{kind}{dislike_rates.SUFFIX}": _part(
                ctx, "test", kind, with_validation=with_validation, dislikes=True
            )
            for kind in kinds
        }
    exposed = ExposedLists.of(ctx.config, ctx.dataset)
    if exposed is not None and len(exposed):
        headline = parts[kinds[0]]
        requests = exposed.requests(ctx.dataset, headline.learned)
        parts[EXPOSURES] = replace(headline, targets=requests, common=headline.learned)
    tests = {folder: part for folder, part in parts.items() if folder in kinds or part.targets.num_requests}
    for folder, test in tests.items():
        (ctx.folder / folder).mkdir(exist_ok=True)
        test.common.save(ctx.folder / folder / "items.npy")
    reasons = {
        name: _not_applicable(ctx, name, tests[kinds[0]].learned.num_items) for name in names(ctx.config)
    }
    not_applicable = {name: reason for name, reason in reasons.items() if reason is not None}
    applicable = [name for name in reasons if name not in not_applicable]
    _take_over(ctx, applicable, tests)
    seconds = _finish(
        ctx, [name for name in applicable if not _facts_file(ctx.folder, name).exists()], selection, tests
    )
    systems = {name: read_json(_facts_file(ctx.folder, name)) for name in applicable}
    write_json(ctx.folder / "baselines.json", {"systems": systems, "not_applicable": not_applicable})
    _report(ctx, systems, not_applicable, len(tests[kinds[0]].targets), seconds)


def _take_over(ctx: Context, names: Sequence[str], folders: Iterable[str]) -> None:
    """Copy the baselines that an artifact with fewer of them has finished."""
    if ctx.previous is None or ctx.force:
        return
    Artifact(ctx.previous.parent, ctx.previous.name).verify()
    for name in names:
        facts = _facts_file(ctx.previous, name)
        if not facts.exists() or _facts_file(ctx.folder, name).exists():
            continue
        for file in (f"{folder}/{name}{ending}" for folder in folders for ending in ENDINGS):
            shutil.copyfile(ctx.previous / file, ctx.folder / file)
        write_json(_facts_file(ctx.folder, name), read_json(facts))


def _finish(
    ctx: Context, waiting: Sequence[str], selection: Part, tests: Mapping[str, Part]
) -> dict[str, list[float]]:
    """Tune, fit and rank baselines side by side; returns the seconds of each, see `_Clock`.

    This thread alone runs the training and classes of one's own. A large EASE runs before the others: its memory and its kernels
    fill the machine.
    """
    seconds: dict[str, list[float]] = {}

    def finish(name: str) -> None:
        clock = _Clock()
        finished = _gru(ctx, tests) if name == GRU else _of_baseline(ctx, name, selection, tests, clock)
        seconds[name] = clock.ended()
        write_json(_facts_file(ctx.folder, name), asdict(finished))
        ctx.ended(name)

    alone = [name for name in waiting if _is_large(name, selection.learned.num_items)]
    for name in alone:
        finish(name)
    own = [name for name in waiting if name == GRU or name not in BUILT_IN]
    others = [name for name in LONGEST_FIRST if name in waiting and name not in alone]
    divided(finish, others, own, ctx.failures)
    return {name: seconds[name] for name in waiting}


def names(config: Config) -> tuple[str, ...]:
    """Configured baselines, in the order of `BASELINES`, then classes of one's own."""
    return config.evaluate.baseline_names


def _part(ctx: Context, name: str, kind: Kind, *, with_validation: bool, dislikes: bool = False) -> Part:
    """Training rows and targets of a part: of nights among all items, else among those known by training or content."""
    config, dataset = ctx.config, ctx.dataset
    training = dataset.training_rows(with_validation=with_validation)
    trained, described = dataset.occurring(training), known_by_content(config, dataset)
    learned = ItemNumbering.of_known(trained if described is None else trained | described)
    common = ItemNumbering.of_known(~dataset.under_core()) if kind == "nightly" else learned
    targets = targets_of(config, dataset, name, common, trained=trained, kind=kind, dislikes=dislikes)
    if name == "validation":
        included = counted(targets, cold_users=False, cold_items=kind == "nightly")
        targets = targets.select(included).sample(config.train.validation_targets, config.seed)
    return Part(training.translate(learned.new), learned, targets, common)


def _not_applicable(ctx: Context, name: str, num_items: int) -> str | None:
    """Reason why a baseline does not apply to this log, or None.

    Raises LookbackError where EASE is configured by name for too large a catalogue.
    """
    reason, config = None, ctx.config
    if name != GRU and kind_of(name).needs_seen and ctx.protocol.exclude_seen:
        reason = "items already seen are not recommended"
    if name == "recent_popularity" and config.events.timestamp_unit == "position":
        reason = "the log has no times, only each user's order"
    if name == "ease":
        reason = EASE.refusal(num_items)
    if reason is not None and name == "ease" and name in config.evaluate.baselines:
        raise LookbackError(f"evaluate.baselines: {reason}")
    return reason


def _of_baseline(
    ctx: Context, name: str, selection: Part, tests: Mapping[str, Part], clock: _Clock
) -> Finished:
    """Tune a baseline, fit it on the evaluated model's training events, rank the test targets of every folder."""
    candidates = _candidates(ctx.config, name)
    tuned, system = _tune(ctx, candidates, selection, clock)
    if ctx.config.train.refit_validation:
        system = None  # it was fitted on the training part alone
    ctx.at(name, "test")
    for folder, test in tests.items():
        if candidates.moves and target_words.is_nightly(folder.removesuffix(dislike_rates.SUFFIX)):
            ranked = _ranked_nightly(ctx, candidates, tuned.settings, test)
        else:
            system = system or candidates.fit(test.training, test.learned.num_items, tuned.settings)
            ranked = rank_all(system, test, ctx.config, exclude_seen=ctx.protocol.exclude_seen)
        save(ranked, ctx.folder / folder, name)
    training = next(iter(tests.values())).training
    fitted_on = FittedOn.of(training.without_dislikes()) if system is None else system.fitted_on
    _check_fitted(ctx, name, fitted_on)
    return Finished(tuned.settings, tuned.grid, fitted_on)


def _check_fitted(ctx: Context, name: str, on: FittedOn) -> None:
    """Raise LeakError where a system was fitted on other events than the evaluated model."""
    dataset, with_validation = ctx.dataset, ctx.config.train.refit_validation
    check_fitted(
        name,
        on.num_events,
        on.latest,
        dataset.histories,
        dataset.split,
        with_validation=with_validation,
        with_dislikes=False,
    )


@dataclass(frozen=True)
class _Candidates:
    """A baseline's grid of settings, and the fits with them."""

    kind: RecommenderKind
    grid: tuple[Settings, ...]
    fixed: Settings
    """Settings of every fit, beside those of the grid."""

    @property
    def moves(self) -> bool:
        """Whether the baseline is counted anew at each night."""
        return self.kind.moves

    def fit(self, histories: Histories, num_items: int, point: Settings) -> Baseline:
        """Fit with the settings of one point."""
        return self.kind.fit(histories, num_items, {**point, **self.fixed})

    def fits(self, histories: Histories, num_items: int) -> Iterator[Baseline]:
        """Fit with the settings of every point."""
        return iter(self.kind.fits(histories, num_items, [{**point, **self.fixed} for point in self.grid]))


def _candidates(config: Config, name: str) -> _Candidates:
    """Grid and fits of a baseline."""
    kind = kind_of(name)
    grid = kind.grid
    if name == "recent_popularity":
        days = config.evaluate.recent_days
        grid = tuple({"days": number} for number in (days if isinstance(days, list) else [days]))
    return _Candidates(kind, grid, fixed_settings(config, name))


def _ranked_nightly(
    ctx: Context, candidates: _Candidates, settings: Settings, part: Part, *, with_lists: bool = True
) -> SystemRanks:
    """Ranks by a baseline whose counts move with the night."""
    plain: dict[str, Any] = dict(settings)
    moving = MovingCoVisitation(**plain) if candidates.kind.name == "co_visitation" else None
    return rank_nightly(
        moving.fit if moving else lambda before, num_items: candidates.fit(before, num_items, settings),
        part,
        ctx.dataset,
        ctx.config,
        exclude_seen=ctx.protocol.exclude_seen,
        with_lists=with_lists,
    )


def _tune(
    ctx: Context, candidates: _Candidates, selection: Part, clock: _Clock
) -> tuple[Tuned, Baseline | None]:
    """Grid point with the highest NDCG@10 on the validation requests, the first of ties, and its fit on the training part.

    The fit is None where nothing was fitted on the training part alone, or it is too large to keep.
    """
    targets, name, grid = selection.targets, candidates.kind.name, candidates.grid
    if len(grid) == 1 or not len(targets):
        return Tuned(dict(grid[0]), [dict(grid[0])]), None
    nightly = candidates.moves and ctx.protocol.headline == "nightly"
    num_items = selection.learned.num_items
    fits = candidates.fits(selection.training, num_items)
    points: list[dict[str, Any]] = []
    best, chosen = -1, None
    for number, point in enumerate(grid):
        ctx.at(name, f"setting {number + 1} of {len(grid)}")
        if nightly:
            system, ranked = None, _ranked_nightly(ctx, candidates, point, selection, with_lists=False)
        else:
            system, excluded = next(fits), ctx.protocol.exclude_seen
            ranked = rank_all(system, selection, ctx.config, exclude_seen=excluded, with_lists=False)
        values = metrics.metrics_of_ranks(ranked.rank, (VALIDATION_K,), targets.request, targets.num_requests)
        points.append(dict(point) | {"ndcg@10": float(values[f"ndcg@{VALIDATION_K}"].mean())})
        if best < 0 or points[number]["ndcg@10"] > points[best]["ndcg@10"]:
            best, chosen = number, None if _is_large(name, num_items) else system
        clock.lap()
    return Tuned(dict(grid[best]), points), chosen


def _is_large(name: str, num_items: int) -> bool:
    """Whether a fit fills the machine."""
    return name == "ease" and num_items > LARGE_CATALOGUE


def _trained_gru(ctx: Context) -> Trained:
    """Train GRU4Rec with the full softmax: one GRU layer, epoch chosen on validation."""
    settings = ctx.config.evaluate
    encoder = EncoderSettings(block="gru", dim=settings.gru_dim, num_blocks=1)
    train = replace(
        TrainSettings(),
        learning_rate=GRU_LEARNING_RATE,
        ema_decay=GRU_EMA_DECAY,
        epochs=settings.gru_epochs,
        patience=settings.gru_patience,
        batch_histories=ctx.config.train.batch_histories,
        validation_targets=ctx.config.train.validation_targets,
        refit_validation=ctx.config.train.refit_validation,
    )
    return ctx.trainer(encoder=encoder, train=train, reads_dislikes=False).fit_split(GRU)


def _gru(ctx: Context, tests: Mapping[str, Part]) -> Finished:
    """Train the GRU and rank the test targets of every kind; it reads no content."""
    trained = _trained_gru(ctx)
    grid = [
        {"epoch": record.epoch, "ndcg@10": record.validation["validation_ndcg@10"]}
        for record in trained.selection.history
    ]
    chosen = {
        "dim": trained.result.model.settings.dim,
        "epoch": trained.selection.best_epoch,
        "steps": trained.result.best_step,
    }
    fitted_on = FittedOn.of(trained.histories)
    _check_fitted(ctx, GRU, fitted_on)
    model, own = trained.result.model, trained.histories.translate(trained.numbering.new)
    system = ColdStart(AttentionRecommender(model), Popularity.fit(own, model.num_items))
    for kind, test in tests.items():
        ranked = rank_all(
            system, test, ctx.config, exclude_seen=ctx.protocol.exclude_seen, own=trained.numbering
        )
        save(ranked, ctx.folder / kind, GRU)
    return Finished(chosen, grid, fitted_on)


def _facts_file(folder: Path, name: str) -> Path:
    """File with the facts of a finished baseline, from which an interrupted run resumes."""
    return folder / f"{name}.json"


def _report(
    ctx: Context,
    systems: dict[str, Any],
    absent: dict[str, str],
    num_targets: int,
    seconds: dict[str, list[float]],
) -> None:
    """Counts in the manifest, settings and validation metrics to track, one line.

    seconds: of the baselines built now, see `_Clock`.
    """
    ctx.manifest.update(rows_in=num_targets, rows_out=num_targets * len(systems))
    ctx.manifest["seconds_of_systems"] = {name: round(sum(laps), 3) for name, laps in seconds.items()}
    ctx.manifest["seconds_of_settings"] = {name: laps[:-1] for name, laps in seconds.items()}
    for name, laps in seconds.items():
        ctx.track.metric(f"{name}/seconds", round(sum(laps), 3))
        for step, value in enumerate(laps[:-1]):
            ctx.track.metric(f"{name}/setting_seconds", value, step)
    for name, facts in systems.items():
        ctx.track.param(f"baseline.{name}", json.dumps(facts["settings"]))
        for step, point in enumerate(facts["grid"] if name != GRU else []):
            if "ndcg@10" in point:
                ctx.track.metric(f"{name}/validation_ndcg@10", point["ndcg@10"], step)
    ctx.track.artifact("baselines.json")
    shutil.rmtree(ctx.folder / "checkpoints", ignore_errors=True)
    reasons = "".join(f"; no {name}: {reason}" for name, reason in absent.items())
    named = ", ".join(_with_seconds(name, seconds.get(name, [])) for name in systems)
    ctx.summary(f"{named or 'none'} on {num_targets:,} targets{reasons}")


def _with_seconds(name: str, laps: Sequence[float]) -> str:
    """Name with the seconds of each setting tried, and of the baseline as a whole: `ease 4.1 s (1.2, 1.3)`."""
    points = f" ({', '.join(f'{value:.1f}' for value in laps[:-1])})" if len(laps) > 1 else ""
    return f"{name} {sum(laps):.1f} s{points}" if laps else name
