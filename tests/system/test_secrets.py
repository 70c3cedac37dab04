"""Credentials in addresses are used for requests, and no byte that a run writes or sends has them."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.__main__ import main
from pipeline.artifacts import remote_files
from pipeline.artifacts.files import files_below
from pipeline.errors import LookbackError
from pipeline.tracking.client import client_at

SECRET = "h7Wq/zPl4nted"
QUOTED = "h7Wq%2FzPl4nted"
LOG = "user,item,at\n" + "".join(f"{n % 7},{n % 5},{1_600_000_000 + n}\n" for n in range(70))


class TrackingServer(BaseHTTPRequestHandler):
    """The part of MLflow's interface that one run needs, for who knows the password."""

    bodies: ClassVar[list[bytes]] = []
    refused: ClassVar[list[str]] = []
    created: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self.bodies.append(self.path.encode())
        self.answer(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.bodies.append(self.path.encode() + body)
        self.answer(body)

    def do_PATCH(self) -> None:
        self.do_POST()

    def answer(self, body: bytes) -> None:
        expected = "Basic " + base64.b64encode(f"robot:{SECRET}".encode()).decode()
        method = self.path.partition("?")[0].partition("/mlflow/")[2]
        if self.headers.get("Authorization") != expected:
            self.refused.append(self.path)
            self.reply(401, {})
        elif method == "experiments/get-by-name":
            experiment = {"experiment_id": "1", "name": "log", "artifact_location": "mlflow-artifacts:/1"}
            self.reply(200, {"experiment": experiment | {"lifecycle_stage": "active"}})
        elif method == "runs/create":
            run_id = f"{len(self.created):032x}"
            self.created.add(run_id)
            self.reply(200, {"run": self.run(run_id)})
        elif method == "runs/get":
            run_id = self.path.rpartition("run_id=")[2][:32]
            known = run_id in self.created
            self.reply(
                200 if known else 404, {"run": self.run(run_id), "error_code": "RESOURCE_DOES_NOT_EXIST"}
            )
        else:
            self.reply(200, {})

    def run(self, run_id: str) -> dict[str, object]:
        info = {"run_id": run_id, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        return {"info": info | {"start_time": 1, "artifact_uri": "mlflow-artifacts:/1"}, "data": {}}

    def reply(self, code: int, content: dict[str, object]) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Port of a tracking server with a password."""
    for known in (TrackingServer.bodies, TrackingServer.refused, TrackingServer.created):
        known.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), TrackingServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a log and its configuration, and secrets in the environment."""
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "log.toml").write_text(
        'name = "log"\n[events]\npath = "log.csv"\ncolumns = { user_id = "user", item_id = "item", timestamp = "at" }\n'
        f'[data]\nfolder = "raw"\nurl = "https://127.0.0.1:1/a.zip?X-Amz-Signature={QUOTED}"\nfiles = ["a.csv"]\n'
        f'[deliver]\ndatabase = "postgresql://robot:{QUOTED}@127.0.0.1:1/shop"\ntable = "recommendations"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("https_proxy", f"http://robot:{QUOTED}@127.0.0.1:1")
    return tmp_path


def lookback(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["lookback", *words, "--config", "log.toml"])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def without_secret(texts: Iterator[bytes] | list[bytes]) -> None:
    for text in texts:
        for spelling in (SECRET, QUOTED, base64.b64encode(f"robot:{SECRET}".encode()).decode()):
            assert spelling.encode() not in text, text[:2000]


def test_a_run_logs_with_the_password_of_the_address_and_writes_it_nowhere(
    port: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://robot:{QUOTED}@127.0.0.1:{port}"
    sources = folder / "log.toml", folder / "log.csv"
    assert lookback(monkeypatch, "run", "ingest", "--set", f"tracking.uri={uri}") == 0
    assert not TrackingServer.refused
    assert len(TrackingServer.created) == 2, "a run of the stage, and the parent run"
    assert b"X-Amz-Signature=***" in b"".join(TrackingServer.bodies)
    links = [path for path in files_below(folder) if f"http://127.0.0.1:{port}" in path.read_text("latin-1")]
    assert {path.name for path in links} >= {"links.json"}, "named without them in the links"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert lookback(monkeypatch, "run", "ingest", "--set", "seed=1") == 0
    output = capfd.readouterr()
    assert "tracking:" not in output.err
    without_secret([output.out.encode(), output.err.encode(), *TrackingServer.bodies])
    without_secret([path.read_bytes() for path in files_below(folder) if path not in sources])


@pytest.mark.parametrize(
    "words",
    [
        ("run", "ingest", "--set", f"tracking.uri=http://robot:{SECRET}@127.0.0.1:1"),
        ("run", "ingest", "--set", f"tracking.uri=ftp://robot:{QUOTED}@127.0.0.1:1/mlflow"),
        (
            "run",
            "score",
            "--set",
            f"tracking.uri=https://{QUOTED}@127.0.0.1:1",
            "--set",
            "score.model=champion",
        ),
        ("run", "ingest", "--set", f"events.path=https://h/a.csv?token={QUOTED}"),
        ("run", "ingest", "--set", f"events.path=gs://robot:{SECRET}@bucket/a.csv"),
        ("run", "ingest", "--set", f"tracking.port=http://robot:{SECRET}@h"),
        ("run", "ingest", "--set", f"http://robot:{SECRET}@h"),
        ("data",),
    ],
)
def test_no_failure_shows_a_password(
    words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lookback(monkeypatch, *words)
    output = capfd.readouterr()
    assert output.err
    without_secret([output.out.encode(), output.err.encode()])
    sources = folder / "log.toml", folder / "log.csv"
    without_secret([path.read_bytes() for path in files_below(folder) if path not in sources])


def test_keys_in_the_address_of_a_bucket_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, object]] = []
    monkeypatch.setattr(remote_files, "_file_system", lambda name, **options: opened.append((name, options)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for url in (f"s3://robot:{SECRET}@shop/log/a@b.csv", f"az://robot:{QUOTED}@shop/log.csv"):
        with pytest.raises(LookbackError) as failed:
            remote_files.list_files("events.path", url.replace("shop/", "/"))
        without_secret([str(failed.value).encode()])
        scheme, path = remote_files._split(url, url)
        assert path.startswith("shop/log")
        remote_files._connect(scheme, "shop")
    (_, s3), (_, azure) = opened
    assert isinstance(s3, dict)
    assert isinstance(azure, dict)
    assert (s3["access_key"], s3["secret_key"]) == ("robot", SECRET)
    assert (azure["account_name"], azure["account_key"]) == ("robot", SECRET)


@pytest.fixture(autouse=True)
def _no_client_kept() -> Iterator[None]:
    yield
    client_at.cache_clear()
