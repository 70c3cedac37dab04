"""MLflow's own server on 127.0.0.1, over the database and the artifacts that runs are logged to."""

import contextlib
import os
import socket
import sys

from pipeline.errors import LookbackError
from pipeline.tracking_client import client_at, patient, reported
from pipeline.tracking_server import artifact_root, chosen_uri

AS_TRAINING = "?workflowType=machine_learning"
"""The end of an address at which MLflow's UI shows runs as trainings; a browser that never was there sees them as traces."""


def ui(port: int = 5000, uri: str | None = None, experiment: str = "") -> None:
    """Become MLflow's server on 127.0.0.1, with the database and the artifacts that runs are logged to; say where.

    Raises LookbackError where the port is in use, or runs are logged to a server that has its own UI.
    """
    uri = chosen_uri(uri)
    root = artifact_root(uri)
    if root is None:
        raise LookbackError(f"ui: runs are logged to {uri}, which has its own UI; open it in a browser")
    with reported(uri):
        found = client_at(uri).get_experiment_by_name(experiment) if experiment else None
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LookbackError(
                f"ui: port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port or tracking.port"
            ) from None
    runs = f"/#/experiments/{found.experiment_id}/runs{AS_TRAINING}" if found is not None else ""
    print(f"MLflow: http://127.0.0.1:{port}{runs} ({uri})", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "2",
    ]
    command += ["--backend-store-uri", patient(uri), "--default-artifact-root", root]
    os.execve(  # noqa: S606  (there is no shell to go through, on purpose)
        sys.executable, command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )
