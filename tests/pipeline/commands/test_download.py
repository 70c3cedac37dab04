"""`lookback data` against a local HTTP server: the right archive, a wrong digest, a connection that breaks off."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from features.settings import EventSettings
from pipeline.artifacts.scratch import SCRATCH
from pipeline.commands import download
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.sections import DataConfig

RATINGS = b"1::1193::5::978300760\n" * 50


def archive_bytes() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/ratings.dat", RATINGS)
        archive.writestr("tiny/movies.dat", "1::Toy Story\n")
    return memory.getvalue()


class Answer(BaseHTTPRequestHandler):
    """Answers every GET with the server's body; `cut` sends half of what was announced, `status` an error."""

    def __init__(self, *arguments: Any, body: bytes, cut: bool, status: int) -> None:
        self.body, self.cut, self.status = body, cut, status
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body[: len(self.body) // 2] if self.cut else self.body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(body: bytes, cut: bool = False, status: int = 200) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, body=body, cut=cut, status=status)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/tiny.zip"
        server.shutdown()
        thread.join()


def configuration(folder: Path, url: str | None, digest: str | None = None, **more: str) -> Config:
    md5 = hashlib.md5(archive_bytes(), usedforsecurity=False).hexdigest()
    return Config(
        name="tiny",
        events=EventSettings(path="ratings.dat", columns={"user_id": 1, "item_id": 2, "timestamp": 3}),
        data=DataConfig(
            url=url,
            digest=digest or f"md5:{md5}",
            member="tiny",
            folder=str(folder),
            files=["ratings.dat", "movies.dat"],
            **more,
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "tiny"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_right_archive_is_unpacked_once(folder: Path) -> None:
    with serving(archive_bytes()) as url:
        config = configuration(folder, url)
        assert "ratings.dat, movies.dat from http" in download.download(config)
    assert (folder / "ratings.dat").read_bytes() == RATINGS
    assert files_below(folder.parent) == ["tiny.zip", "tiny/movies.dat", "tiny/ratings.dat"]
    assert "already there and correct" in download.download(config), "the server is gone: no second download"


def test_missing_file_comes_back_from_the_kept_archive(folder: Path) -> None:
    with serving(archive_bytes()) as url:
        config = configuration(folder, url)
        download.download(config)
    (folder / "movies.dat").unlink()
    assert f"{folder}: movies.dat from" in download.download(config)


def test_wrong_digest_leaves_nothing(folder: Path) -> None:
    with (
        serving(archive_bytes()) as url,
        pytest.raises(LookbackError, match="wrong digest: received md5:") as caught,
    ):
        download.download(configuration(folder, url, digest="md5:" + "0" * 32))
    assert "expected md5:" + "0" * 32 in str(caught.value)
    assert files_below(folder.parent) == []


def test_cut_connection_leaves_nothing(folder: Path) -> None:
    with (
        serving(archive_bytes(), cut=True) as url,
        pytest.raises(LookbackError, match="broke off before the end"),
    ):
        download.download(configuration(folder, url))
    assert files_below(folder.parent) == []


def test_half_archives_of_killed_downloads_go(folder: Path) -> None:
    rest = folder.parent / SCRATCH / "killed"
    rest.mkdir(parents=True)
    (rest / "tiny.zip").write_bytes(archive_bytes()[:99])
    with serving(archive_bytes()) as url:
        download.download(configuration(folder, url))
    assert files_below(folder.parent) == ["tiny.zip", "tiny/movies.dat", "tiny/ratings.dat"]


def test_error_answer_is_named(folder: Path) -> None:
    with (
        serving(b"gone", status=404) as url,
        pytest.raises(LookbackError, match="the server answered 404 Not Found"),
    ):
        download.download(configuration(folder, url))
    assert files_below(folder.parent) == []


def test_no_server(folder: Path) -> None:
    with serving(b"") as url:
        pass
    with pytest.raises(LookbackError, match="cannot be reached"):
        download.download(configuration(folder, url))


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file where a folder should be")
    with serving(archive_bytes()) as url, pytest.raises(LookbackError, match="cannot be written") as caught:
        download.download(configuration(tmp_path / "raw" / "tiny", url))
    assert str(tmp_path / "raw") in str(caught.value)


def test_changed_file_is_not_overwritten(folder: Path) -> None:
    with serving(archive_bytes()) as url:
        config = configuration(folder, url)
        download.download(config)
    (folder / "ratings.dat").write_bytes(b"mine")
    with pytest.raises(LookbackError, match="received 4 bytes"):
        download.download(config)
    assert (folder / "ratings.dat").read_bytes() == b"mine"


def test_archive_without_the_files(folder: Path) -> None:
    body = b"this is no zip file"
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    with serving(body) as url, pytest.raises(LookbackError, match="not the archive that"):
        download.download(configuration(folder, url, digest=digest))


def test_files_put_by_hand_need_no_address(folder: Path) -> None:
    config = configuration(folder, None, instructions="Get it from its home.")
    with pytest.raises(
        LookbackError, match=r"ratings\.dat, movies\.dat missing in .* Get it from its home\."
    ):
        download.download(config)
    folder.mkdir(parents=True)
    for name in ("ratings.dat", "movies.dat"):
        (folder / name).write_bytes(b"by hand")
    assert "nothing to do" in download.download(config)


def test_no_data_section(tmp_path: Path) -> None:
    config = configuration(tmp_path, None).model_copy(update={"data": None})
    with pytest.raises(LookbackError, match=r"no section \[data\]"):
        download.download(config)
