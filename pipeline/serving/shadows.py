"""Shadows: lists of other models and of counting baselines for the same users, kept beside the delivered ones."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import optional
from pipeline.modelling.recommenders import fixed_settings, kind_of
from pipeline.sections import COUNTED_BASELINES
from pipeline.serving import bundle_cache, popularity_fallback
from pipeline.serving.batch import Job, Scorer
from pipeline.tracking.registry import ModelSource

FOLDER = "shadows"


def folder_name(name: str) -> str:
    """Name of a shadow's folder and of its system in the outcomes: `models:/NAME/3` becomes `NAME-3`."""
    return re.sub(r"[^\w.-]+", "-", name.removeprefix("models:/"))


def score(
    config: Config,
    scorer: Scorer,
    registered: Mapping[str, ModelSource],
    folder: Path,
    advance: Callable[[int], object],
) -> Iterator[tuple[str, ModelSource | None]]:
    """Write the lists of `score.shadows` into folders of `folder`; one that fails is named on stderr and left out.

    Yields the folder's name and the registered model, None for a baseline.
    scorer: of the delivered lists; registered: name in `score.shadows` to model; advance: called with numbers of scored users.
    """
    for name in config.score.shadows:
        own = folder / folder_name(name)
        is_counted = name in COUNTED_BASELINES
        if not is_counted and name not in registered:
            continue
        with optional(f"shadow {name}"):
            try:
                own.mkdir(parents=True, exist_ok=True)
                source = None if is_counted else registered[name]
                if source is None:
                    job = _job(scorer, scorer.job.bundle, own)
                    shadow = counting(scorer, name, counting_settings(config, name), job)
                else:
                    shadow = Scorer.open(_job(scorer, bundle_cache.bundle_folder(config, source), own))
                for number in range(shadow.num_shards):
                    shadow.score(number, advance)
                for rest in own.glob("[!p]*"):  # records of finished shards
                    rest.unlink()
            except BaseException:
                shutil.rmtree(own, ignore_errors=True)
                raise
            yield own.name, source


def counting_settings(config: Config, name: str) -> dict[str, float | int]:
    """Settings of a counting baseline: the first point of its grid, and those of the configuration."""
    return {**kind_of(name).grid[0], **fixed_settings(config, name)}


def counting(scorer: Scorer, name: str, settings: Mapping[str, float | int], job: Job) -> Scorer:
    """Scorer of a baseline counted on the log up to the request, among the items of the delivered model."""
    bundle, own = scorer.bundle, dict(settings)
    if name == "recent_popularity":
        own["days"] = popularity_fallback.days_of(bundle.description.get("popularity", {}))
    baseline = kind_of(name).fit(scorer.log.known, len(bundle.items), own)
    counted = replace(bundle, recommender=baseline, index=None, counted_stage=None)
    return replace(scorer, job=job, bundle=counted)


def _job(scorer: Scorer, bundle: Path, folder: Path) -> Job:
    """Job of a shadow: without reasons."""
    settings = scorer.job.settings.model_copy(update={"because": False})
    return replace(scorer.job, bundle=bundle, folder=folder, settings=settings, reuse=None)
