"""A real `mlflow models serve`: requests in every documented form, and those it refuses."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.client import client_at, fluent
from pipeline.tracking.models import log_pyfunc
from tests.factories import small_bundle

EVENTS = [{"item_id": "i4", "timestamp": 3}]
CASES: list[tuple[dict[str, Any], int]] = [
    *(({"inputs": {"history": [["i4"]]}, "params": {"k": k}}, 400) for k in (0, -1, 10**9, "x", None)),
    *(({"inputs": inputs}, 400) for inputs in ({"item": ["i4"]}, {"history": [{"item_id": "i4"}]})),
    ({"instances": 3}, 400),
    ({"inputs": {"user_id": [20, 99]}}, 200),
    ({"inputs": {"history": [["i4", None], None]}}, 200),
    ({"inputs": [{"history": EVENTS}, {"user_id": 99}]}, 200),
    ({"instances": [{"user_id": 20}, {"user_id": 99}]}, 200),
    ({"instances": [{"history": ["i4"]}, {"history": ["new"]}]}, 200),
    ({"instances": [{"history": '["i4"]'}, {"history": '["new", "x"]'}]}, 200),
    ({"instances": {"history": [["i4"], ["new", "x"]]}}, 200),
    ({"instances": [{"history": ["i4"]}, {"history": ["new", "x"]}]}, 400),
    ({"dataframe_records": [{"user_id": 20}, {"history": None}]}, 200),
    ({"dataframe_split": {"columns": ["history"], "data": [[EVENTS], [[]]]}}, 200),
]
EXAMPLE = re.compile(
    r"curl -s http://127.0.0.1:5001(/\S+) -H 'Content-Type: (\S+)' -d '(.*?)'\n```", re.DOTALL
)
"""The example of a request in the documentation: path, type, body."""
SERVING = Path(__file__).parents[2] / "pipeline" / "serving" / "README.md"
CLOSED = {"item_id": ["i3", "i1"], "available_from": [None, None], "available_until": ["1969-01-01", None]}
USER_20, POPULAR = ["i6", "i5", "i7"], ["i6", "i7", "i1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a served bundle; its port may be set by LOOKBACK_TEST_PORT."""
    place = tmp_path_factory.mktemp("serve")
    small_bundle(place / "bundle")
    uri = f"sqlite:///{place}/mlflow.db"
    client = client_at(uri)
    run = client.create_run(client.create_experiment("small", artifact_location=str(place / "artifacts")))
    defaults = {"exclude_seen": True, "deny": ["i2"], "availability": CLOSED}
    model, _ = log_pyfunc(uri, run.info.run_id, place / "bundle", "string", None, [], defaults=defaults)
    with fluent(uri):
        import mlflow

        folder = mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(place / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(os.environ.get("LOOKBACK_TEST_PORT", "0"))))
        port = free.getsockname()[1]
    serve = ["models", "serve", "-m", folder, "--env-manager", "local", "-p", str(port)]
    binaries = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (place / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [shutil.which("mlflow", path=str(binaries)) or "mlflow", *serve],
            cwd=place,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (place / "serve.log").read_text()
                time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def post(address: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_every_form_is_answered_or_refused_in_a_line(server: str, tmp_path: Path) -> None:
    import pandas as pd  # type: ignore[import-untyped]

    for request, status in CASES:
        code, body = post(server, json.dumps({"params": {"k": 3}} | request).encode())
        assert code == status, (request, body)
        assert "\n" not in body
        if status == 200:
            lists = [row["item_id"] for row in json.loads(body)["predictions"]]
            assert lists == [USER_20, POPULAR], request
    for named, absent in (({}, {"i2", "i3"}), ({"deny": []}, {"i3"}), ({"availability": {}}, {"i2"})):
        request = {"inputs": [{"user_id": 99}], "params": {"k": 7} | named}
        code, body = post(server, json.dumps(request).encode())
        (answer,) = json.loads(body)["predictions"]
        assert set(answer["item_id"]) == {f"i{number}" for number in range(1, 8)} - absent
    code, body = post(server, b"user_id\n20\n", "text/csv")
    assert (code, "\n" in body) == (400, False)
    pd.DataFrame({"user_id": [20, 99]}).to_parquet(tmp_path / "users.parquet")
    code, body = post(server, (tmp_path / "users.parquet").read_bytes(), "application/vnd.apache.parquet")
    assert code == 200
    assert [row["item_id"][:3] for row in json.loads(body)["predictions"]] == [USER_20, POPULAR]


@pytest.mark.slow
def test_the_example_of_the_documentation_is_answered(server: str) -> None:
    """With the served model's items for the example's."""
    found = EXAMPLE.search(SERVING.read_text(encoding="utf-8"))
    assert found is not None
    path, kind, request = found.groups()
    assert path == "/invocations"
    code, body = post(server, request.replace("sku-", "i").encode(), kind)
    assert code == 200, body
    predictions = json.loads(body)["predictions"]
    assert [row["user_id"] for row in predictions] == [None, None, 42]
    for row in predictions:
        assert set(row) == {"user_id", "item_id", "score"}
        assert row["item_id"][0] == "i7"
        assert row["score"][0] is None
    assert [len(row["item_id"]) for row in predictions] == [4, 4, 5]
    assert not {"i1", "i2"} & {item for row in predictions[:2] for item in row["item_id"]}
