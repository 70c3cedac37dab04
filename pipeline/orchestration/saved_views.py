"""Saved views of the runs in MLflow's UI: trainings on the newest test targets, and nights."""

import contextlib
from collections.abc import Sequence

from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.evaluation import comparison
from pipeline.evaluation.report import EvaluationReport
from pipeline.monitoring import night_run
from pipeline.orchestration.parent_run import Record, evaluated, records
from pipeline.reporting import run_description
from pipeline.tracking.ui import View


def saved_views(config: Config) -> dict[str, View]:
    """Title to view: trainings and nights, each where there is such a run."""
    known = records(config)
    trainings = _trainings(config, known)
    is_night = any("score" in record.stages and "evaluate" not in record.stages for record in known)
    views = {} if trainings is None else {"trainings": trainings}
    return views | ({"nights": night_run.view_of(config)} if is_night else {})


def _trainings(config: Config, known: Sequence[Record]) -> View | None:
    """List of the runs on the targets of the newest evaluation that is kept; None without one."""
    for record in evaluated(known):
        folder = config.folder / "evaluate" / record.stages["evaluate"]["fingerprint"]
        with contextlib.suppress(OSError, DamagedArtifact, KeyError):
            metric = run_description.metric_of(EvaluationReport.load(folder), config.evaluate.gate_metric)
            return run_description.view_of(metric, comparison.target_set(folder))
    return None
