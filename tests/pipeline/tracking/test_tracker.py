"""Tracking against real MLflow: an SQLite store, and a server of its own on a free loopback port."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.store import Artifact
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.tracking.client import ClientServer, client_at
from pipeline.tracking.queries import children, find_run, run_artifact
from pipeline.tracking.record import RunRecord, allowed
from pipeline.tracking.server import (
    BUNDLE_DIGEST,
    GATE,
    ServerAway,
    SqliteServer,
    Version,
    absolute_uri,
    artifact_root,
    chosen_uri,
    open_server,
)
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.ui import View, serve, ui
from tests import interpreter

ROOT = Path(__file__).resolve().parents[3]
IDENTITY: dict[str, Any] = {
    "stage": "train",
    "fingerprint": "f" * 16,
    "run_name": "train small",
    "tags": {"lookback.git": "abc"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python(code: str, folder: Path, **variables: str) -> str:
    """Run code in a fresh interpreter, in a folder; its standard output."""
    done = interpreter.python(code, folder, os.environ | {"PYTHONPATH": str(ROOT)} | variables)
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow's migrations leave it, made once."""
    folder = tmp_path_factory.mktemp("store")
    python("from pipeline.tracking.client import client_at; client_at('sqlite:///mlflow.db')", folder)
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(empty_store, tmp_path / "mlruns" / "mlflow.db")
    return absolute_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db")


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker(uri, "small", artifact_root(uri))


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "train" / ".runs" / "f.json"


def a_stage(folder: Path, epochs: int = 3) -> Path:
    """A finished stage's folder: settings, three epochs, two data sets, a folder of figures and a file."""
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "loss.svg").write_text("<svg/>")
    (folder / "history.json").write_text("[]")
    content = RunRecord()
    content.params(
        {"model": {"dim": 64, "block": "transformer"}, "events.types": None, "evaluate.k": [10, 200]}
    )
    for epoch in range(1, epochs + 1):
        content.metric("validation_ndcg@10", epoch / 10, epoch)
    content.metric("seconds", 1.5)
    content.parent_metric("ndcg@10", 0.25)
    content.tag("lookback.note", "small")
    for part, rows in (("training", 90), ("validation", 10)):
        content.dataset("small", "0123456789abcdef", part, "data/small/features", rows)
    content.artifact("figures")
    content.artifact("history.json", "tables")
    content.save(folder)
    return folder


def steps(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_at(tracker.uri).get_metric_history(run_id, name)]


def assert_complete(tracker: Tracker, run_id: str, to: Path) -> None:
    run = find_run(tracker.uri, run_id)
    assert run.status == "FINISHED"
    assert run.params == {
        "model.dim": "64",
        "model.block": "transformer",
        "events.types": "null",
        "evaluate.k": "[10, 200]",
    }
    assert run.metrics == {"validation_ndcg_at_10": 0.3, "seconds": 1.5, "ndcg_at_10": 0.25}
    assert run.tags["lookback.note"] == "small"
    assert run.tags["lookback.stage"] == "train"
    assert run.tags["lookback.git"] == "abc"
    assert steps(tracker, run_id, "validation_ndcg_at_10") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    inputs = client_at(tracker.uri).get_run(run_id).inputs
    assert inputs is not None
    assert {
        (each.tags[0].value, each.dataset.digest, each.dataset.profile) for each in inputs.dataset_inputs
    } == {
        ("training", "0123456789abcdef", '{"num_rows": 90}'),
        ("validation", "0123456789abcdef", '{"num_rows": 10}'),
    }
    assert run_artifact(tracker.uri, run_id, "figures/loss.svg", to).read_text() == "<svg/>"
    assert run_artifact(tracker.uri, run_id, "tables/history.json", to).read_text() == "[]"


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("ndcg@10", "ndcg_at_10"),
        ("refit/loss", "refit/loss"),
        ("a[b]", "a_b_"),
        ("hit rate: x-y.z", "hit rate: x-y.z"),
    ],
)
def test_names_are_spelled_as_mlflow_takes_them(name: str, logged: str):
    assert allowed(name) == logged


def test_record_is_what_it_was_after_saving(tmp_path: Path):
    folder = a_stage(tmp_path / "stage")
    loaded = RunRecord.load(folder)
    assert [(point.name, point.value, point.step) for point in loaded.parent_points] == [
        ("ndcg_at_10", 0.25, 0)
    ]
    assert [each.context for each in loaded.datasets] == ["training", "validation"]
    assert loaded.artifacts == [("figures", ""), ("history.json", "tables")]
    assert 0 < loaded.started <= loaded.points[0].timestamp <= loaded.ended
    (folder / "tracking.json").write_text('{"points": 3}')
    with pytest.raises(DamagedArtifact, match=r"tracking\.json: is damaged"):
        RunRecord.load(folder)


@pytest.mark.parametrize("damage", ["", "[", "[1]", '{"points": 3}', "other", None])
def test_a_damaged_record_is_made_anew_from_the_manifest(
    tmp_path: Path, damage: str | None, capsys: pytest.CaptureFixture[str]
):
    artifact = Artifact(tmp_path / "train", "f" * 16)
    artifact.prepare(resume=False)
    a_stage(artifact.workspace)
    settings = {"train.epochs": 3, "split": {"ties": "order"}}
    facts = {"settings": settings, "seconds": 2.5, "rows_in": 7, "is_whole": True, "stage": "train"}
    artifact.commit(facts | {"created_utc": "2026-01-02T03:04:05+00:00"})
    whole, path = RunRecord.load(artifact.folder), artifact.folder / "tracking.json"
    assert whole.parent_points
    if damage is None:
        path.unlink()
    else:  # "other": valid, but not what the stage has written
        path.write_text(path.read_text().replace("validation", "Validation") if damage == "other" else damage)
    assert artifact.is_complete()
    artifact.verify()
    record = RunRecord.load(artifact.folder)
    assert record.param_values == {"train.epochs": "3", "split.ties": "order"}
    assert [(point.name, point.value) for point in record.points] == [("rows_in", 7.0), ("seconds", 2.5)]
    assert (record.started, record.ended) == (1_767_323_042_500, 1_767_323_045_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "tracking.json: is damaged; its run gets the settings and counts of manifest.json alone"
    )


def test_importing_loads_no_mlflow(tmp_path: Path):
    loaded = python(
        "import sys, pipeline.tracking.tracker, pipeline.tracking.registry; print(*sys.modules)", tmp_path
    ).split()
    assert not {"mlflow", "pandas", "sqlalchemy", "torch"} & set(loaded)


def test_configuration_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert chosen_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert artifact_root(chosen_uri()) == f"file://{tmp_path}/mlruns/artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert chosen_uri() == "http://tracking.example:5000"
    assert artifact_root(chosen_uri()) is None
    assert chosen_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"


def test_live_then_replay(tracker: Tracker, link: Path, tmp_path: Path):
    assert not tracker.is_logged(link)
    with tracker.start(**IDENTITY, link_file=link) as live:
        assert live.run_id is not None
        live.metrics({"validation_ndcg@10": 0.1}, 1)
        assert steps(tracker, live.run_id, "validation_ndcg_at_10") == [(1, 0.1)]
        live.metrics({"validation_ndcg@10": 0.2}, 2)  # kept back: too soon after the first
        assert steps(tracker, live.run_id, "validation_ndcg_at_10") == [(1, 0.1)]
        assert find_run(tracker.uri, "train small").status == "RUNNING"
    assert not tracker.is_logged(link)
    folder = a_stage(tmp_path / "stage")
    for _ in range(2):  # the second time changes nothing
        tracker.replay(**IDENTITY, folder=folder, link_file=link)
        assert_complete(tracker, live.run_id, tmp_path / "downloads")
    assert tracker.is_logged(link)
    assert tracker.linked_run(link) == live.run_id


def test_is_logged_needs_no_client(
    tracker: Tracker, link: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    monkeypatch.setattr("pipeline.tracking.tracker.client_at", None)
    assert tracker.is_logged(link)


def test_failed_attempt_ends_as_failed_and_goes_on(tracker: Tracker, link: Path):
    def attempt(error: type[BaseException]) -> str:
        with tracker.start(**IDENTITY, link_file=link) as live:
            assert live.run_id is not None
            assert find_run(tracker.uri, live.run_id).status == "RUNNING"
            started.append(live.run_id)
            live.metrics({"loss": 3.0}, 1)
            live.metrics({"loss": 2.0}, 2)
            raise error

    started: list[str] = []
    for error, status in ((ZeroDivisionError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error):
            attempt(error)
        assert find_run(tracker.uri, started[0]).status == status
    assert started[0] == started[1], "the second attempt goes on in the same run"
    assert set(steps(tracker, started[0], "loss")) == {(1, 3.0), (2, 2.0)}


def test_killed_process_is_resumed_in_its_run(tracker: Tracker, link: Path, tmp_path: Path):
    python(
        f"""
import os
from pathlib import Path
from pipeline.tracking.tracker import Tracker
tracker = Tracker({tracker.uri!r}, "small", {tracker.artifact_location!r})
live = tracker.start(**{IDENTITY!r}, link_file=Path({str(link)!r}))
live.metrics({{"validation_ndcg@10": 0.1}}, 1)
os._exit(0)
""",
        tmp_path,
    )
    killed = json.loads(link.read_text())[tracker.uri]
    assert find_run(tracker.uri, killed).status == "RUNNING"
    assert not tracker.is_logged(link)
    assert tracker.start(**IDENTITY, link_file=link).run_id == killed
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    assert_complete(tracker, killed, tmp_path / "downloads")
    assert tracker.start(**IDENTITY, link_file=link).run_id != killed, "built again: another run"


@pytest.mark.slow
def test_deleted_store_is_filled_again(uri: str, tmp_path: Path):
    folder, store = a_stage(tmp_path / "stage"), tmp_path / "mlruns"
    code = f"""
from pathlib import Path
from pipeline.tracking.server import DEFAULT_URI, artifact_root
from pipeline.tracking.tracker import Tracker
tracker = Tracker(DEFAULT_URI, "small", artifact_root(DEFAULT_URI))
link = Path("link.json")
assert not tracker.is_logged(link)
tracker.replay(**{IDENTITY!r}, folder=Path({str(folder)!r}), link_file=link)
assert tracker.is_logged(link)
print(tracker.linked_run(link))
"""
    first = python(code, tmp_path).strip()
    shutil.rmtree(store)
    second = python(code, tmp_path).strip()
    assert first != second
    assert_complete(Tracker(uri, "small"), second, tmp_path / "downloads")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "link.json", "mlruns", "stage"]


def test_deleted_run_is_logged_again_and_a_lost_link_found(
    tracker: Tracker, link: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = a_stage(tmp_path / "stage")
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    first = tracker.linked_run(link)
    link.unlink()
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    assert tracker.linked_run(link) == first
    assert first is not None
    client_at(tracker.uri).delete_run(first)
    assert not tracker.is_logged(link)
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    second = tracker.linked_run(link)
    assert second not in (first, None)
    client_at(tracker.uri).delete_experiment(find_run(tracker.uri, "train small").experiment_id)
    assert not tracker.is_logged(link)
    capsys.readouterr()
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    assert tracker.is_logged(link)
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the experiment '{tracker.experiment}' was deleted" in line
    assert "it is restored" in line


def test_stage_is_nested_under_its_training(tracker: Tracker, link: Path, tmp_path: Path):
    train = tmp_path / "stage"
    train.mkdir()
    RunRecord().save(train)
    tracker.replay(**IDENTITY, folder=train, link_file=link)
    parent = tracker.linked_run(link)
    assert parent is not None
    identity = IDENTITY | {"stage": "evaluate", "run_name": "evaluate small"}
    folder = a_stage(tmp_path / "evaluate")
    for _ in range(2):
        tracker.replay(**identity, folder=folder, link_file=tmp_path / "evaluate.json", parent_link_file=link)
    (child,) = children(tracker.uri, parent)
    assert (child.name, child.parent_run_id) == ("evaluate small", parent)
    assert find_run(tracker.uri, parent).metrics == {"ndcg_at_10": 0.25}
    assert steps(tracker, parent, "ndcg_at_10") == [(0, 0.25)]


def test_runs_are_found_by_name_or_id(tracker: Tracker, tmp_path: Path):
    folder = a_stage(tmp_path / "stage")
    tracker.replay(**IDENTITY, folder=folder, link_file=tmp_path / "1.json")
    found = find_run(tracker.uri, "train small", "small")
    assert find_run(tracker.uri, found.run_id) == found
    with pytest.raises(LookbackError, match="'other': no such run"):
        find_run(tracker.uri, "other")
    with pytest.raises(LookbackError, match="no such run"):
        find_run(tracker.uri, "train small", "no such experiment")
    tracker.start(**IDENTITY, link_file=tmp_path / "2.json")
    with pytest.raises(LookbackError, match="2 runs have this name"):
        find_run(tracker.uri, "train small")


def test_tracking_can_be_turned_off(tmp_path: Path, link: Path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "small", enabled=False)
    assert tracker.is_logged(link)
    with tracker.start(**IDENTITY, link_file=link) as live:
        live.metrics({"loss": 1.0}, 1)
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    assert tracker.linked_run(link) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]


def broken_database(folder: Path) -> str:
    (folder / "broken.db").write_bytes(b"no database " * 100)
    return f"sqlite:///{folder}/broken.db"


def unwritable_folder(folder: Path) -> str:
    (folder / "file").write_text("a file where a folder should be")
    return f"sqlite:///{folder}/file/mlflow.db"


def nobody_there(_: Path) -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("make", [broken_database, unwritable_folder, nobody_there])
def test_server_that_is_away_costs_one_line(
    make: Callable[[Path], str], tmp_path: Path, link: Path, capsys: pytest.CaptureFixture[str]
):
    tracker = Tracker(make(tmp_path), "small")
    for _ in range(3):
        tracker.is_logged(link)
        with tracker.start(**IDENTITY, link_file=link) as live:
            live.metrics({"loss": 1.0}, 1)
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    assert tracker._away_until > time.monotonic()  # nobody waits for it a second time
    assert live.run_id is None
    assert not link.exists()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "the next run logs what is missing" in said[0]
    with pytest.raises(ServerAway):
        find_run(tracker.uri, "train small")


@pytest.mark.slow
def test_processes_that_start_together_share_one_database(tmp_path: Path):
    code = f"""
import sys
from pathlib import Path
from pipeline.tracking.tracker import Tracker
tracker = Tracker("sqlite:///mlruns/mlflow.db", "small")
tracker.start(**{IDENTITY!r}, link_file=Path(sys.argv[1]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    links = [tmp_path / f"{number}.json" for number in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        )
        for path in links
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0), (b"", 0)]
    server = open_server(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    assert server is not None
    for path in links:
        (run_id,) = json.loads(path.read_text()).values()
        assert server.run_status(run_id) == "RUNNING"


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server's process group, from its first answer until it is killed."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            except OSError:
                log_text = (folder / "server.log").read_text()
                assert process.poll() is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """MLflow's own server, as somebody else would run it: artifacts go through it."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "kept"),
    ]
    with running(command, port, folder):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
def test_remote_server_and_its_absence(
    empty_store: Path,
    tmp_path: Path,
    link: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    port = free_port()
    with server(tmp_path, port) as uri:
        tracker = Tracker(uri, "small")
        assert not tracker.is_logged(link)
        live = tracker.start(**IDENTITY, link_file=link)
        live.metrics({"validation_ndcg@10": 0.1}, 1)
        assert live.run_id is not None
        assert find_run(tracker.uri, live.run_id).status == "RUNNING"
    monkeypatch.setattr("pipeline.tracking.live.LIVE_SECONDS", 0.0)
    for epoch in (2, 3):
        live.metrics({"validation_ndcg@10": epoch / 10}, epoch)
    folder = a_stage(tmp_path / "stage")
    tracker.replay(**IDENTITY, folder=folder, link_file=link)
    assert tracker.is_logged(link), "nothing can be done now"
    assert len(capsys.readouterr().err.splitlines()) == 1
    with server(tmp_path, port) as uri:
        tracker = Tracker(uri, "small")
        assert not tracker.is_logged(link)
        for _ in range(2):
            tracker.replay(**IDENTITY, folder=folder, link_file=link)
            assert_complete(tracker, live.run_id, tmp_path / "downloads")
        assert tracker.is_logged(link)
        assert_answers_about_models(uri, live.run_id)


def assert_answers_about_models(uri: str, run_id: str) -> None:
    """Over HTTP, a version is found by number and alias, and what is not there is told from a server that is away."""
    asked, client = open_server(uri), client_at(uri)
    assert asked is not None
    assert (asked.alias("m", "champion"), asked.version("m", 1), asked.run_status("f" * 32)) == (
        None,
        None,
        None,
    )
    client.create_registered_model("m")
    source = client.get_run(run_id).info.artifact_uri
    client.create_model_version("m", source, run_id, tags={BUNDLE_DIGEST: "d"})
    assert (asked.alias("m", "champion"), asked.version("m", 2)) == (None, None)
    client.set_registered_model_alias("m", "champion", "1")
    assert asked.alias("m", "champion") == 1
    assert asked.version("m", 1) == ClientServer(uri).version("m", 1) == Version("m", 1, "d", run_id, source)


def test_database_read_without_mlflow_answers_as_the_client_does(
    tracker: Tracker, link: Path, tmp_path: Path
):
    """The queries are on MLflow's private schema: a release that changes it fails here."""
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    run_id, client = tracker.linked_run(link), client_at(tracker.uri)
    assert run_id is not None
    source = client.get_run(run_id).info.artifact_uri
    client.create_registered_model("m")
    for number in ("1", "2"):
        client.create_model_version("m", source, run_id, tags={BUNDLE_DIGEST: "d", GATE: "passed"})
        client.set_registered_model_alias("m", "champion", number)
    client.delete_model_version("m", "1")
    gone = client.create_run("0").info.run_id
    client.delete_run(gone)
    direct, through_client = open_server(tracker.uri), ClientServer(tracker.uri)
    assert isinstance(direct, SqliteServer)
    for known in (run_id, gone, "f" * 32):
        assert direct.run_status(known) == through_client.run_status(known)
    for alias in ("champion", "nobody"):
        assert direct.alias("m", alias) == through_client.alias("m", alias)
    for version in (1, 2, 3):
        assert direct.version("m", version) == through_client.version("m", version)
    assert direct.version("m", 2) == Version("m", 2, "d", run_id, source, "passed")
    assert direct.run_status(run_id) == "FINISHED"


@pytest.mark.slow
def test_ui_shows_what_is_logged(tracker: Tracker, link: Path, tmp_path: Path):
    tracker.replay(**IDENTITY, folder=a_stage(tmp_path / "stage"), link_file=link)
    run_id, port = tracker.linked_run(link), free_port()
    views = "{name: View(name, name, '', ['m'], ['t'], name == 'nights') for name in ('trainings', 'nights')}"
    start = f"from pipeline.tracking.ui import View, ui; ui({port}, {tracker.uri!r}, {tracker.experiment!r}, {views})"
    command = [sys.executable, "-c", start]
    (tmp_path / "elsewhere").mkdir()
    with running(command, port, tmp_path / "elsewhere"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"MLflow" in page.read()
        address = f"http://127.0.0.1:{port}/get-artifact?path=figures%2Floss.svg&run_uuid={run_id}"
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == b"<svg/>"
        log = Path(tracker.uri.removeprefix("sqlite:///")).parent / "ui.log"
        while f"MLflow: http://127.0.0.1:{port}/" not in (
            said := (tmp_path / "elsewhere" / "server.log").read_text()
        ):
            time.sleep(0.1)
        for title in ("MLflow: ", "nights: "):
            key = "nights" if title == "nights: " else "trainings"
            assert re.search(
                rf"^{title}http://127\.0\.0\.1:{port}/#/experiments/\d+/.*viewStateShareKey={key}\b",
                said,
                re.MULTILINE,
            )
        entity = client_at(tracker.uri).get_experiment_by_name(tracker.experiment)
        assert entity is not None
        orders = {
            json.loads(json.loads(value)["state"])["orderByKey"]
            for name, value in entity.tags.items()
            if name.startswith("mlflow.sharedViewState.")
        }
        assert orders == {"metrics.`m`", "attributes.start_time"}
        assert "GET /" not in said
        assert "GET /" in log.read_text()
        with pytest.raises(LookbackError, match=f"port {port} on 127.0.0.1 cannot be used .*--port"):
            ui(port, tracker.uri)
    with pytest.raises(LookbackError, match="has its own UI"):
        ui(port, "http://127.0.0.1:1")


def test_an_address_is_printed_only_for_a_server_that_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = [sys.executable, "-c", "import sys; sys.exit('no module')"]
    with pytest.raises(LookbackError, match=r"ended with code 1; its last words are in .*ui\.log"):
        serve(broken, free_port(), tmp_path / "ui.log", "MLflow: here")
    assert capsys.readouterr().out == ""
    assert "no module" in (tmp_path / "ui.log").read_text()


def test_a_view_that_somebody_changed_stays_as_it_is(tracker: Tracker):
    view = View("best", "Best", "tags.a = 'b'", ["test/ndcg_at_10"], ["verdict"])
    tracker.offer(view)
    client = client_at(tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    assert experiment is not None
    (tag,) = (name for name in experiment.tags if name.endswith(".best"))
    kept = json.loads(json.loads(experiment.tags[tag])["state"])
    assert kept["selectedColumns"] == ["metrics.`test/ndcg_at_10`", "tags.`verdict`"]
    client.set_experiment_tag(experiment.experiment_id, tag, "mine")
    tracker.offer(view)
    assert client.get_experiment(experiment.experiment_id).tags[tag] == "mine"
