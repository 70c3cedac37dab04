"""Recommenders beside the model: the built-in baselines by name, and classes of one's own as `package.module:Class`.

A class of one's own answers the contract `models.recommender.FittableRecommender`; a subclass of `Baseline` does already.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.baselines.als import ALS
from models.baselines.base import Baseline, FittedOn
from models.baselines.co_visitation import CoVisitation
from models.baselines.ease import EASE
from models.baselines.item_knn import ItemKNN
from models.baselines.own_items import OwnFrequent, OwnRecent
from models.baselines.popularity import Popularity, RecentPopularity
from models.baselines.tifu_knn import TIFUKNN
from models.histories import Float32, Histories
from models.recommender import FittableRecommender
from pipeline.artifacts.class_source import add_working_directory
from pipeline.artifacts.files import read_json, write_json
from pipeline.errors import ConfigError, LookbackError

if TYPE_CHECKING:
    from pipeline.config import Config

KEY = "evaluate.baselines"
"""Configuration key that names the recommenders."""
BUILT_IN: Mapping[str, type[Baseline]] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "own_frequent": OwnFrequent,
    "own_recent": OwnRecent,
    "co_visitation": CoVisitation,
    "item_knn": ItemKNN,
    "tifu_knn": TIFUKNN,
    "ease": EASE,
    "als": ALS,
}
"""Baselines that `fit` makes; gru is a training."""
METHODS = ("fit", "score_items", "save", "load")
"""Methods of a class of one's own; `GRID`, `needs_seen` and `moves` may be left out."""
CUSTOM_FACTS, CUSTOM_FOLDER = "custom.json", "custom"
Settings = Mapping[str, float | int]


@dataclass(frozen=True)
class RecommenderKind:
    """Class of a recommender with the attributes that the pipeline reads, see `Baseline`."""

    name: str
    """Name of the baseline, or package.module:Class."""
    made_by: Any
    """The class."""
    grid: tuple[Settings, ...]
    needs_seen: bool
    moves: bool

    @property
    def is_custom(self) -> bool:
        """Whether the class is one's own."""
        return self.name not in BUILT_IN

    def fits(self, histories: Histories, num_items: int, points: Sequence[Settings]) -> Iterable[Baseline]:
        """`fit` with the settings of several grid points, in order."""
        if self.is_custom:
            return (self.fit(histories, num_items, point) for point in points)
        built_in: type[Baseline] = self.made_by
        return built_in.fits(histories.without_dislikes(), num_items, [dict(point) for point in points])

    def fit(self, histories: Histories, num_items: int, settings: Settings) -> Baseline:
        """Fit with the settings of a grid point, on the rows without dislikes. Raises LookbackError where one's own class returns
        something else.
        """
        histories = histories.without_dislikes()
        system = self.made_by.fit(histories, num_items, **settings)
        if not self.is_custom:
            fitted: Baseline = system
            return fitted
        if missing := [method for method in ("score_items", "save") if not hasattr(system, method)]:
            raise LookbackError(
                f"{KEY}: {self.name}.fit returned a {type(system).__name__} without {', '.join(missing)}; expected an "
                "instance of the class"
            )
        known = getattr(system, "num_items", num_items)
        if known != num_items:
            raise LookbackError(
                f"{KEY}: {self.name}.fit received num_items={num_items} and returned a recommender with num_items={known}"
            )
        return CustomRecommender(self.name, system, num_items, FittedOn.of(histories))

    def load(self, folder: Path) -> Baseline:
        """Read what `Baseline.save` of this kind wrote. Raises ValueError for the files of another."""
        if not self.is_custom:
            saved: Baseline = self.made_by.load(folder)
            return saved
        if not (folder / CUSTOM_FACTS).is_file():
            raise ValueError(f"{folder}: not a saved {self.name}: no {CUSTOM_FACTS}")
        facts = read_json(folder / CUSTOM_FACTS)
        if facts["class"] != self.name:
            raise ValueError(f"{folder}: received a saved {facts['class']}, expected {self.name}")
        system = self.made_by.load(folder / CUSTOM_FOLDER)
        return CustomRecommender(self.name, system, facts["num_items"], FittedOn(**facts["fitted_on"]))


class CustomRecommender(Baseline):
    """Recommender of one's own whose scores are checked; only its `score_items` and `save` are called."""

    def __init__(self, name: str, system: FittableRecommender, num_items: int, fitted_on: FittedOn) -> None:
        super().__init__(num_items, fitted_on)
        self.name, self.system = name, system

    def score_items(self, histories: Histories) -> Float32:
        """[r, n + 1] scores as float32, column 0 -inf. Raises LookbackError for another shape, NaN or +inf."""
        scores = np.array(self.system.score_items(histories), np.float32)
        expected = (len(histories), self.num_items + 1)
        if scores.shape != expected:
            raise LookbackError(
                f"{KEY}: {self.name}.score_items returned the shape {scores.shape}, expected {expected}: a row per history and "
                "a column per item, with column 0 unused"
            )
        scores[:, 0] = -np.inf
        wrong = np.isnan(scores) | np.isposinf(scores)
        if wrong.any():
            row, item = np.argwhere(wrong)[0].tolist()
            raise LookbackError(
                f"{KEY}: {self.name}.score_items returned {scores[row, item]} for item {item} of a history with "
                f"{int(histories.lengths[row])} interactions ({int(wrong.sum())} such scores); expected finite ones, or -inf"
            )
        return scores

    def save(self, folder: Path) -> None:
        """Write custom.json (class, number of items, training events), and custom/ by the class itself."""
        (folder / CUSTOM_FOLDER).mkdir(exist_ok=True)
        self.system.save(folder / CUSTOM_FOLDER)
        facts = {"class": self.name, "num_items": self.num_items, "fitted_on": asdict(self.fitted_on)}
        write_json(folder / CUSTOM_FACTS, facts)


def fixed_settings(config: "Config", name: str) -> dict[str, float | int]:
    """Settings of `fit` that the configuration sets, beside those of the grid."""
    if name == "als":
        return {"seed": config.seed}
    if name in BUILT_IN and kind_of(name).needs_seen and config.events.timestamp_unit != "position":
        return {"session": round(config.history.session_minutes * 60_000_000)}
    return {}


def kind_of(name: str) -> RecommenderKind:
    """Kind of a built-in baseline (not gru), or of `package.module:Class`, which is imported.

    Raises ConfigError if the module cannot be imported, or the class is missing or does not answer the contract.
    """
    made_by: Any = BUILT_IN[name] if ":" not in name else _imported(name)
    grid: Any = getattr(made_by, "GRID", ({},))
    is_grid = isinstance(grid, tuple | list) and all(isinstance(point, Mapping) for point in grid)
    if not grid or not is_grid:
        raise ConfigError(
            f"{KEY}: {name}.GRID is {grid!r}, expected settings of fit as a tuple of dictionaries"
        )
    needs_seen, moves = (bool(getattr(made_by, fact, False)) for fact in ("needs_seen", "moves"))
    return RecommenderKind(name, made_by, tuple(grid), needs_seen, moves)


def _imported(name: str) -> type:
    """Import a class of one's own and check its methods."""
    add_working_directory()
    module, _, class_name = name.partition(":")
    try:
        value = getattr(importlib.import_module(module), class_name, None)
    except Exception as error:
        raise ConfigError(
            f"{KEY}: received {name!r}, but importing {module} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, type):
        raise ConfigError(f"{KEY}: received {name!r}, but {module} has no class {class_name!r}")
    if missing := [method for method in METHODS if not callable(getattr(value, method, None))]:
        raise ConfigError(
            f"{KEY}: {name} has no {', '.join(missing)}; expected the methods {', '.join(METHODS)}, as in a subclass of "
            "models.baselines.base.Baseline (models/README.md has an example)"
        )
    if abstract := sorted(getattr(value, "__abstractmethods__", ())):
        raise ConfigError(f"{KEY}: {name} leaves {', '.join(abstract)} abstract; expected them implemented")
    return value
