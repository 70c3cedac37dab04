"""Queries of a tracking server: runs, child runs, files and addresses.

Each imports MLflow and raises ServerAway where the server does not answer.
"""

import re
from pathlib import Path

from pipeline.errors import LookbackError
from pipeline.tracking.client import client_at, reported, server_at
from pipeline.tracking.sending import logged
from pipeline.tracking.server import LoggedRun
from pipeline.tracking.ui import AS_TRAINING


def find_run(uri: str, id_or_name: str, experiment: str | None = None) -> LoggedRun:
    """Run with this id, or with this name or beginning of an id (4 digits or more) in one experiment (default: in all).

    Raises LookbackError for no run or several.
    """
    with reported(uri):
        client = client_at(uri)
        if re.fullmatch("[0-9a-f]{32}", id_or_name) and server_at(uri).run_status(id_or_name) is not None:
            return logged(client.get_run(id_or_name))
        experiments = (
            [client.get_experiment_by_name(experiment)] if experiment else client.search_experiments()
        )
        ids = [entity.experiment_id for entity in experiments if entity is not None]
        name = id_or_name.replace("'", "")
        runs = list(client.search_runs(ids, f"attributes.run_name = '{name}'")) if ids else []
        if ids and not runs and re.fullmatch("[0-9a-f]{4,31}", id_or_name):
            runs = list(client.search_runs(ids, f"attributes.run_id LIKE '{id_or_name}%'"))
    if len(runs) == 1:
        return logged(runs[0])
    where = f"on {uri}" + (f", experiment {experiment}" if experiment else "")
    if not runs:
        raise LookbackError(
            f"run {id_or_name!r}: no such run {where}; expected an id, its beginning, or a name that the UI shows"
        )
    ids = [f"{run.info.run_id} ({run.info.status})" for run in runs]
    raise LookbackError(
        f"run {id_or_name!r}: {len(runs)} runs have this name or beginning {where}; expected one of: {', '.join(ids)}"
    )


def find_tagged(uri: str, experiment_id: str, tags: dict[str, str]) -> LoggedRun | None:
    """Newest finished run of an experiment with all of these tags, or None."""
    conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    conditions.append("attributes.status = 'FINISHED'")
    with reported(uri):
        runs = client_at(uri).search_runs(
            [experiment_id], " AND ".join(conditions), max_results=1, order_by=["attributes.start_time DESC"]
        )
        return logged(runs[0]) if runs else None


def children(uri: str, run_id: str) -> list[LoggedRun]:
    """Child runs of a run, oldest first."""
    with reported(uri):
        client = client_at(uri)
        runs = client.search_runs(
            [client.get_run(run_id).info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run_id}'",
            order_by=["attributes.start_time ASC"],
        )
        return [logged(run) for run in runs]


def run_artifact(uri: str, run_id: str, path: str, to: Path) -> Path:
    """Download a file or folder of a run into the folder `to`; returns its path."""
    with reported(uri):
        to.mkdir(parents=True, exist_ok=True)
        return Path(client_at(uri).download_artifacts(run_id, path, str(to)))


def address(uri: str, run_id: str) -> str:
    """Address of a run for a link inside MLflow's UI."""
    with reported(uri):
        experiment_id = client_at(uri).get_run(run_id).info.experiment_id
    return f"#/experiments/{experiment_id}/runs/{run_id}{AS_TRAINING}"
