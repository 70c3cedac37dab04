"""Odd tracking addresses and servers that speak something else: one line, and the work goes on."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import LookbackError
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import DEFAULT_URI, absolute_uri, chosen_uri
from pipeline.tracking.tracker import Tracker

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Address of a server that sends these bytes to whoever connects, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def costs_one_line(uri: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = folder / "link.json"
    link.write_text(json.dumps({absolute_uri(uri): "f" * 32}))
    tracker = Tracker(uri, "small")
    assert tracker.linked_run(link) is None
    assert tracker.attempt(lambda client: client.create_experiment("small")) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tracking: ")
    with pytest.raises(LookbackError):
        Registry(uri).resolve("lookback-small")


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:50x0",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://",
        "http://a..b",
        "http://127.0.0.1 :5000",
        "htp://127.0.0.1:5000",
        "127.0.0.1:5000",
    ],
)
def test_mistyped_address(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs_one_line(uri, tmp_path, capsys)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"",
        OK + b'Content-Length: 1000\r\n\r\n{"run": {',
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    ],
)
def test_server_of_another_protocol_or_one_that_dies_within_an_answer(
    answer: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(answer) as uri:
        costs_one_line(uri, tmp_path, capsys)


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_address_is_none(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", blank)
    assert chosen_uri(blank) == absolute_uri(DEFAULT_URI)
    assert chosen_uri(" http://host:5000\n") == "http://host:5000"
