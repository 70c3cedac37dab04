"""Servers that answer, but not as MLflow does."""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.tracking import client, server
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import RestServer, ServerAway, Version
from pipeline.tracking.tracker import Tracker

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Serve one answer to every request; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads, listening.block_on_close = True, False
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def with_body(text: str, code: int = 200) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.end_headers()
        request.wfile.write(text.encode())

    return answer


def drop_by_drop(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.02)


@pytest.mark.parametrize(
    "answer",
    [
        with_body('{"login": "please"}'),
        with_body("{}"),
        with_body("[1]"),
        with_body('"text"'),
        with_body('{"run": null, "model_version": [1]}'),
        with_body("<html>login</html>"),
        with_body("[]", 404),
        drop_by_drop,
    ],
)
def test_an_answer_of_another_kind_costs_one_line(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.2)
    with answering(answer) as uri:
        asked = RestServer(uri)
        for query in (
            lambda: asked.run_status("r"),
            lambda: asked.alias("m", "a"),
            lambda: asked.version("m", 1),
        ):
            with pytest.raises(ServerAway):
                query()
        tracker = Tracker(uri, "small")
        (tmp_path / "link.json").write_text("[]")
        for _ in range(2):
            assert tracker.attempt(lambda client: client) is None
        assert tracker.is_logged(tmp_path / "link.json")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_server_that_slows_down_after_the_probe_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It never ends an answer, but sends a byte within any wait for the next one."""
    monkeypatch.setattr(client, "REQUEST_SECONDS", 0.2)
    asked: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if "runs/get" in request.path:
            with_body('{"error_code": "RESOURCE_DOES_NOT_EXIST"}', 404)(request)
        else:
            asked.append(request.path)
            drop_by_drop(request)

    with answering(answer) as uri:
        for _ in range(2):
            tracker = Tracker(uri, "small")
            assert tracker.attempt(lambda client: client.create_experiment("small")) is None
        with pytest.raises(ServerAway, match="asked no more"):
            Registry(uri).tags(Version("small", 1, "", "", ""))
    assert len(asked) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "no whole answer within 0.2 s" in first
    assert "asked no more" in second


def test_a_missing_driver_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker("postgresql+nosuchdriver://127.0.0.1/mlflow", "small")
    for _ in range(2):
        assert tracker.attempt(lambda client: client.search_experiments()) is None
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ServerAway):
        Registry(tracker.uri).champion("m")
