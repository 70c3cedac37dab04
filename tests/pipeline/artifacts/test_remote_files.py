"""Sources in object stores: a real S3 server on loopback, the real command line; what arrives is what local files give."""

import bz2
import contextlib
import glob
import gzip
import hashlib
import os
import random
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from pipeline.artifacts import remote_files, source_files
from pipeline.config import load_config
from pipeline.errors import LookbackError
from tests.workdir import Workdir

ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR")
BUCKET = "shop"
DAY_1 = (
    b"\xef\xbb\xbfu,i,t\r\n"
    b'1,"two\nlines",1600000000\r\n'  # an embedded newline
    b"2,\xff\xfe,1600000001\r\n"  # not UTF-8: quarantine
    b'3,"a ""quoted"" one",1600000002\r\n'
    b"4,11,never\r\n"
)
DAY_2 = b"u,i,t\n1,11,1600090000\n5,\xc3\xa9t\xc3\xa9,1600090001\n"
DAY_3 = b'{"u": 6, "i": "12", "t": 1600180000}\n{broken\n{"u": 1, "i": "12", "t": 1600180001}\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """moto's S3 server, a process of its own."""

    url: str
    log: Path

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=botocore.config.Config(retries={"max_attempts": 1}),
        )

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def requests(self) -> list[str]:
        """What was asked so far, such as `GET /shop/log/day1.csv`."""
        return re.findall(r"((?:GET|HEAD) \S+) HTTP", self.log.read_text())

    def fetched(self, already: int = 0) -> list[str]:
        """The keys whose content was asked for, after so many requests."""
        got = [line.split("?")[0] for line in self.requests()[already:] if line.startswith("GET ")]
        return sorted({line.split(f"/{BUCKET}/")[1] for line in got if f"/{BUCKET}/" in line})


@contextlib.contextmanager
def process_on_port(command: list[str], port: int, log: Path) -> Iterator[str]:
    """A server in a process of its own; its address once it answers."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "requests.log"
    with process_on_port(["-m", "moto.server", "-p", str(port)], port, log) as url:
        yield Server(url, log)


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with one empty bucket, and the environment that names it."""
    client = running.client
    if BUCKET in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=each["Key"])
    else:
        client.create_bucket(Bucket=BUCKET)
    point_to(running.url, monkeypatch)
    return running


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_environment(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def forget_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT):
            monkeypatch.delenv(name)


def log_of(path: str | list[str], folder: Path, more: str = "") -> Workdir:
    """A working directory with a configuration over a log."""
    folder.mkdir(exist_ok=True)
    listed = str([path] if isinstance(path, str) else path).replace("'", '"')
    (folder / "tiny.toml").write_text(
        f'name = "tiny"\n[events]\npath = {listed}\ncolumns = {{ user_id = "u", item_id = "i", timestamp = "t" }}\n'
        f"max_refused_fraction = 0.5\n{more}\n[tracking]\nenabled = false\n"
    )
    return Workdir(folder)


def tables(workdir: Workdir) -> dict[str, pl.DataFrame]:
    """Every table of the finished ingest, in one order."""
    folder = workdir.artifact("ingest")
    order = ["source_file", "source_row"]
    read = {
        name: pl.read_parquet(folder / name / "*.parquet").sort(order) for name in ("events", "quarantine")
    }
    for name in ("items", "users"):
        if (folder / f"{name}.parquet").exists():
            read[name] = pl.read_parquet(folder / f"{name}.parquet")
    return read


def inodes(workdir: Workdir) -> set[int]:
    return {path.stat().st_ino for path in (workdir.artifact("ingest") / "events").iterdir()}


def spooled(workdir: Workdir) -> list[Path]:
    """Copies of remote files that are still there."""
    folder = workdir.folder / "data" / "tiny" / ".remote"
    return [path for path in folder.rglob("*") if path.suffix != ".lock"]


def parquet(rows: dict[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


@pytest.mark.slow
def test_remote_files_give_what_local_ones_give(server: Server, tmp_path: Path) -> None:
    files = {
        "log/day1.csv": DAY_1,
        "log/2/day2.csv.gz": gzip.compress(DAY_2),
        "log/2/day2b.csv.bz2": bz2.compress(DAY_2 + b"7,9,1600090000\n"),
        "log/2/day3.jsonl.zst": zstd(DAY_3),
        "log/day4.parquet": parquet({"u": [7, None], "i": ["12", "13"], "t": [1600270000, 1600270001]}),
        "log/odd name+%20&é.csv": b"u,i,t\n8,12,1600360000\n",
        "log/empty.csv": b"",
        "log/_SUCCESS": b"",
        "log/.hidden/day5.csv": b"not,of,the,log\n",
        "tables/items.csv": b"item_id,title\n11,Eleven\n99,\xc3\x89t\xc3\xa9\n",
        "tables/users.jsonl": b'{"user_id": 1}\n',
        "tables/forget.parquet": parquet({"user_id": [5]}),
    }
    for key, content in files.items():
        server.put(key, content)
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)

    def ingested(root: str, folder: Path) -> Workdir:
        others = (
            f'exclude_users = "{root}/tables/forget.parquet"\n[items]\npath = "{root}/tables/items.csv"\n'
        )
        others += 'columns = { item_id = "item_id", title = "title" }\n'
        others += f'[users]\npath = "{root}/tables/users.jsonl"\ncolumns = {{ user_id = "user_id" }}\n'
        workdir = log_of(f"{root}/log", folder, others)
        summary = workdir.run("ingest")
        assert (summary["rows_in"], summary["rows_out"]) == (15, 9)
        refused = {"unparseable": 2, "impossible_time": 1, "missing_user": 1}
        assert summary["rows_left_out"] == {**refused, "excluded_user": 2}
        return workdir

    remote = ingested(f"s3://{BUCKET}", tmp_path / "remote")
    local = ingested(str(tmp_path), tmp_path / "local")
    found, wanted = tables(remote), tables(local)
    for name in ("events", "items", "users"):
        assert found[name].equals(wanted[name])
    assert found["events"]["item_id"].to_list().count("two\nlines") == 1
    assert found["quarantine"].drop("source_path").equals(wanted["quarantine"].drop("source_path"))
    assert "2,\\xff\\xfe,1600000001" in found["quarantine"]["raw"].to_list()
    assert found["quarantine"]["source_path"].to_list() == [
        path.replace(str(tmp_path), f"s3://{BUCKET}") for path in wanted["quarantine"]["source_path"]
    ]
    paths = [path for source in remote.manifest("ingest")["sources"] for path in source["paths"]]
    assert sorted(paths) == sorted(f"s3://{BUCKET}/{key}" for key in files if re.match(r"log/[^_.]", key))
    assert spooled(remote) == []


@pytest.mark.slow
def test_only_what_is_new_is_fetched(server: Server, tmp_path: Path) -> None:
    server.put("log/day1.csv", DAY_1)
    server.put("log/day2.csv", DAY_2)
    workdir = log_of(f"s3://{BUCKET}/log/*.csv", tmp_path, 'id_types = "string"')
    asked = len(server.requests())
    workdir.run("ingest")
    assert server.fetched(asked) == ["log/day1.csv", "log/day2.csv"]
    parts = inodes(workdir)

    asked = len(server.requests())
    again = workdir("run", "ingest")
    assert (again.code, again.err) == (0, "")
    assert "is up to date" in again.out
    assert server.fetched(asked) == []
    assert len(server.requests()) - asked <= 3  # however many files there are

    server.put("log/day3.csv", b"u,i,t\n9,11,1600180000\n")
    workdir.run("ingest")
    assert server.fetched(asked) == ["log/day3.csv"]
    assert len(inodes(workdir)) == 3
    assert inodes(workdir) > parts

    asked = len(server.requests())
    server.put("log/day2.csv", DAY_2 + b"6,11,1600090000\n")
    summary = workdir.run("ingest")
    assert server.fetched(asked) == ["log/day2.csv"]
    assert len(inodes(workdir) & parts) == 1
    assert (summary["rows_in"], summary["rows_out"]) == (8, 6)
    assert spooled(workdir) == []


def test_exposures_are_those_of_local_files_and_fetched_once(server: Server, tmp_path: Path) -> None:
    day_1 = b"u,i,t,r\n1,11,1600000000,1\n2,12,1600000000,0\n2,11,never,1\n1,12,1600000002,2\n"
    files = {"log/day2.csv": DAY_2, "shown/day1.csv.gz": gzip.compress(day_1), "shown/_SUCCESS": b""}
    for key, content in files.items():
        server.put(key, content)
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)

    def log_with_exposures(root: str, folder: Path) -> Workdir:
        columns = 'columns = { user_id = "u", item_id = "i", timestamp = "t", rank = "r" }'
        section = f'[exposures]\npath = "{root}/shown"\n{columns}'
        return log_of(f"{root}/log", folder, f'id_types = "string"\n{section}')

    def exposures(workdir: Workdir) -> pl.DataFrame:
        return pl.read_parquet(workdir.artifact("ingest") / "exposures" / "*.parquet").sort("timestamp")

    remote = log_with_exposures(f"s3://{BUCKET}", tmp_path / "remote")
    local = log_with_exposures(str(tmp_path), tmp_path / "local")
    for workdir in (remote, local):
        workdir.run("ingest")
    assert exposures(remote).equals(exposures(local))
    assert exposures(remote)["user_id"].to_list() == ["1", "1"]
    refused = tables(remote)["quarantine"]
    assert refused["reason"].to_list() == ["bad_rank", "impossible_time"]
    assert refused["source_path"].unique().to_list() == [f"s3://{BUCKET}/shown/day1.csv.gz"]
    server.put("shown/day2.csv", b"u,i,t,r\n5,11,1600090000,1\n")
    asked = len(server.requests())
    remote.run("ingest")
    assert server.fetched(asked) == ["shown/day2.csv"]
    assert exposures(remote)["user_id"].to_list() == ["1", "1", "5"]
    assert spooled(remote) == []


def test_local_and_remote_files_in_one_list(server: Server, tmp_path: Path) -> None:
    server.put("log/day1.csv", DAY_1)
    server.put("log/day2.csv", DAY_2)
    (tmp_path / "day3.csv").write_bytes(b"u,i,t\n9,11,1600180000\n")
    (tmp_path / "day2 again.csv").write_bytes(DAY_2)
    workdir = log_of(
        [f"s3://{BUCKET}/log/day1.csv", "day*.csv", f"s3://{BUCKET}/log/"], tmp_path, 'duplicates = "drop"'
    )
    summary = workdir.run("ingest")
    assert (summary["rows_in"], summary["rows_out"]) == (7, 5)  # what was delivered twice counts once
    named = {len(source["paths"]): source["paths"] for source in workdir.manifest("ingest")["sources"]}
    assert named[2] == ["day2 again.csv", f"s3://{BUCKET}/log/day2.csv"]


def test_a_copy_is_kept_until_it_is_ingested(server: Server, tmp_path: Path) -> None:
    server.put("log/day1.csv", DAY_1)
    workdir = log_of(f"s3://{BUCKET}/log/day1.csv", tmp_path)
    refused = workdir("run", "ingest", "--set", "events.max_refused_fraction=0.1")
    assert refused.code == 1
    assert "2 of 4 rows were refused" in refused.err
    assert ".remote" not in refused.err
    asked = len(server.requests())
    workdir.run("ingest")
    assert server.fetched(asked) == []
    assert spooled(workdir) == []
    workdir.run("ingest", "--set", "events.max_days_ahead=2")  # reads it again
    assert server.fetched(asked) == ["log/day1.csv"]


def test_a_reader_s_message_names_the_address(server: Server, tmp_path: Path) -> None:
    server.put("log/day1.csv.gz", gzip.compress(DAY_1)[:-9])
    failed = log_of(f"s3://{BUCKET}/log/day1.csv.gz", tmp_path)("run", "ingest")
    assert failed.code == 1
    assert re.match(rf"lookback: s3://{BUCKET}/log/day1.csv.gz: cannot be decompressed", failed.err)


# --- finding ---

NAMES = st.sampled_from(["a", "b.csv", ".h", "_x", "[1]", "ab", "c.gz"])
PATTERNS = st.lists(
    st.sampled_from(["a", "*", "**", "*.csv", "?", "[ab]*", ".*", "_*", "[[]1]"]), min_size=1, max_size=3
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=5), PATTERNS)
def test_a_glob_matches_as_the_local_one(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], pattern: list[str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        place = root.joinpath(*path)
        if not any(each.is_file() for each in place.parents if each != root) and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    files = [path for path in root.rglob("*") if path.is_file()]
    found = {path for path in files if remote_files.matches(path.relative_to(root).parts, pattern)}
    names = glob.glob("/".join(pattern), root_dir=root, recursive=True)  # noqa: PTH207
    # "a/**" gives "a/", be it a folder or not
    assert found == {root / name for name in names if (root / name).is_file() and not name.endswith("/")}


def test_what_an_address_finds(server: Server) -> None:
    keys = ("log/a.csv", "log/.h.csv", "log/_x.csv", "log/2/b.csv", "log/2/_x/c.csv", "log[1].csv", "log/")
    for key in keys:
        server.put(key, b"")

    def find(path: str) -> list[str]:
        found = remote_files.list_files("events.path", f"s3://{BUCKET}/{path}")
        return sorted(str(file).removeprefix(f"s3://{BUCKET}/") for file in found)

    assert find("log") == find("log/") == ["log/2/b.csv", "log/a.csv"]
    assert find("") == ["log/2/b.csv", "log/a.csv", "log[1].csv"]
    assert find("log/*.csv") == ["log/_x.csv", "log/a.csv"]
    assert find("log/.*") == ["log/.h.csv"]
    assert find("log/*/*.csv") == ["log/2/b.csv"]
    assert find("log/**/*.csv") == ["log/2/_x/c.csv", "log/2/b.csv", "log/_x.csv", "log/a.csv"]
    assert find("l*/a.csv") == ["log/a.csv"]
    assert find("log[1].csv") == ["log[1].csv"]
    assert find("log/_x.csv") == ["log/_x.csv"]


# --- fetching ---


def test_a_large_object_arrives_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_CHUNK_BYTES", 1000)
    content = random.Random(1).randbytes(12_345)
    server.put("big.bin.csv", content)
    url = f"s3://{BUCKET}/big.bin.csv"
    digest = remote_files.fetch(url, tmp_path)
    assert digest == hashlib.sha256(content).hexdigest()
    copy = remote_files.copy_of(url, digest, tmp_path)
    assert copy.read_bytes() == content
    assert copy.name == "big.bin.csv"
    remote_files.discard(url, digest, tmp_path)
    assert not copy.parent.exists()


@pytest.mark.parametrize("times", [1, 3])
def test_an_object_that_changes_while_it_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Of the same size, within the same second: its tag tells."""
    monkeypatch.setattr(remote_files, "_CHUNK_BYTES", 1000)
    server.put("log.csv", b"0" * 9_999)
    versions = iter(range(1, times + 1))
    original = remote_files._chunks

    def meddling(stream: Any, size: int) -> Iterator[bytes]:
        for index, chunk in enumerate(original(stream, size)):
            if index == 1 and (version := next(versions, None)) is not None:
                server.put("log.csv", str(version).encode() * 9_999)
            yield chunk

    monkeypatch.setattr(remote_files, "_chunks", meddling)
    if times == 1:
        assert (
            remote_files.fetch(f"s3://{BUCKET}/log.csv", tmp_path) == hashlib.sha256(b"1" * 9_999).hexdigest()
        )
    else:
        with pytest.raises(LookbackError, match=rf"s3://{BUCKET}/log.csv: changed while it was read"):
            remote_files.fetch(f"s3://{BUCKET}/log.csv", tmp_path)
        assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == []


def test_an_object_that_changed_since_it_was_listed(server: Server, tmp_path: Path) -> None:
    server.put("log/day1.csv", DAY_1)
    config = load_config(log_of(f"s3://{BUCKET}/log/day1.csv", tmp_path).folder / "tiny.toml")
    config = config.model_copy(update={"data_dir": str(tmp_path / "data")})
    found = source_files.source_digests(config)
    ((url, digest),) = found["events"].items()
    assert digest == hashlib.sha256(DAY_1).hexdigest()
    assert source_files.local_path(config, url, digest).read_bytes() == DAY_1
    source_files.release(config, found)
    assert source_files.local_path(config, url, digest).read_bytes() == DAY_1
    source_files.release(config, found)
    server.put("log/day1.csv", DAY_2)
    with pytest.raises(LookbackError, match=f"{url}: changed while it was read.*run again"):
        source_files.local_path(config, url, digest)


def test_a_connection_that_breaks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: asked again. Always: one message, and nothing half."""
    content = random.Random(2).randbytes(300_000)
    server.put("log.csv", content)
    url = f"s3://{BUCKET}/log.csv"
    with breaking_proxy(server.url, after_bytes=100_000, times=1) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert remote_files.fetch(url, tmp_path / "once") == hashlib.sha256(content).hexdigest()
    with breaking_proxy(server.url, after_bytes=100_000, times=100) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(
            LookbackError, match=rf"^{url}: cannot be read from the object store: .*partial file"
        ):
            remote_files.fetch(url, tmp_path / "always")
    assert [path for path in (tmp_path / "always").rglob("*") if path.suffix != ".lock"] == []


@contextlib.contextmanager
def breaking_proxy(url: str, after_bytes: int, times: int) -> Iterator[str]:
    """A proxy that cuts the first answers that are longer than so many bytes."""
    host, port = url.removeprefix("http://").split(":")
    left = [times]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as upstream:
                threading.Thread(target=self.forward, args=(upstream,), daemon=True).start()
                passed = 0
                while chunk := upstream.recv(65536):
                    passed += len(chunk)
                    if passed > after_bytes and left[0] > 0:
                        left[0] -= 1
                        break
                    self.request.sendall(chunk)
                upstream.shutdown(socket.SHUT_RDWR)

        def forward(self, upstream: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while chunk := self.request.recv(65536):
                    upstream.sendall(chunk)
                upstream.shutdown(socket.SHUT_WR)

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """The client has gone."""

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()
        thread.join()


# --- errors ---


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "s3://no-such-bucket/log",
            "there is no bucket 'no-such-bucket'; check the address and AWS_ENDPOINT_URL",
        ),
        ("s3://no-such-bucket/log/*.csv", "there is no bucket 'no-such-bucket'"),
        ("s3://*/log.csv", r"there is no bucket '\*'"),
        (f"s3://{BUCKET}/day7.csv", "nothing there; expected an object, a folder with objects, or a glob"),
        (f"s3://{BUCKET}/log/*.gz", "nothing there"),
        (f"s3://{BUCKET}//log", "Empty path component"),
        ("s3:///log", "names no bucket; expected s3://bucket/folder/file.csv"),
        ("az://container/log", "AZURE_STORAGE_ACCOUNT_NAME is not set"),
    ],
)
def test_an_address_with_nothing_is_one_message(
    server: Server, tmp_path: Path, path: str, message: str
) -> None:
    server.put("log/day1.csv", DAY_1)
    failed = log_of(path, tmp_path)("run", "ingest")
    assert failed.code == 1
    assert re.fullmatch(rf"lookback: events.path: {re.escape(path)}: .*{message}.*\n", failed.err)


def test_an_address_of_another_kind(tmp_path: Path) -> None:
    failed = log_of("gcs://bucket/log.csv", tmp_path)("run", "ingest")
    assert failed.code == 1
    assert "events.path: nothing at 'gcs://bucket/log.csv'" in failed.err
    assert "an address in an object store that begins with s3:// or gs:// or az://" in failed.err


def test_users_to_score_are_a_local_file(tmp_path: Path) -> None:
    config = load_config(log_of("log.csv", tmp_path).folder / "tiny.toml")
    with pytest.raises(
        LookbackError, match=r"score.users: received 's3://b/u.parquet', expected a local file"
    ):
        source_files.digest_of(config, "score.users", "s3://b/u.parquet")


def test_rights_are_missing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys, what is not public is refused."""
    url = f"s3://{BUCKET}/log/day1.csv"
    server.put("log/day1.csv", DAY_1)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    workdir = log_of(url, tmp_path)
    failed = workdir("run", "ingest")
    assert failed.code == 1
    assert re.fullmatch(
        rf"lookback: .*{url}: cannot be read .*ACCESS_DENIED.*AWS_ACCESS_KEY_ID.*\n", failed.err
    )
    assert spooled(workdir) == []
    server.client.put_object_acl(Bucket=BUCKET, Key="log/day1.csv", ACL="public-read")
    workdir.run("ingest")


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(f"http://127.0.0.1:{free_port()}", monkeypatch)
    failed = log_of(f"s3://{BUCKET}/log", tmp_path)("run", "ingest")
    assert failed.code == 1
    assert re.fullmatch(
        rf"lookback: events.path: s3://{BUCKET}/log: .*Could not connect to server.*AWS_ENDPOINT_URL.*\n",
        failed.err,
    )


@pytest.mark.slow
def test_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        failed = log_of(f"s3://{BUCKET}/log", tmp_path)("run", "ingest")  # gives up, which is what is tested
    assert failed.code == 1
    assert re.fullmatch(r"lookback: events.path: .*Timeout was reached.*\n", failed.err)


# --- settings ---


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, {}),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000/", "AWS_DEFAULT_REGION": "eu-north-1"},
            {"scheme": "http", "endpoint_override": "127.0.0.1:9000", "region": "eu-north-1"},
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "https://s3.example.com", "AWS_ENDPOINT_URL": "https://example.com"},
            {"scheme": "https", "endpoint_override": "s3.example.com"},
        ),
        ({"AWS_ENDPOINT": "minio:9000"}, {"scheme": "https", "endpoint_override": "minio:9000"}),
        (
            {"AWS_ENDPOINT": "minio:9000", "AWS_ALLOW_HTTP": "true"},
            {"scheme": "http", "endpoint_override": "minio:9000"},
        ),
        (
            {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-west-1", "AWS_SKIP_SIGNATURE": "1"},
            {"region": "eu-west-1", "anonymous": True},
        ),
        ({"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}, {"force_virtual_addressing": True}),
    ],
)
def test_s3_is_found_by_the_environment(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    options = remote_files.s3_options(environ)
    assert {name: value for name, value in options.items() if "timeout" not in name} == wanted
    assert isinstance(remote_files._file_system("S3FileSystem", **options), fs.S3FileSystem)


def test_without_endpoint_the_bucket_says_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_environment(monkeypatch)
    monkeypatch.setattr(fs, "resolve_s3_region", lambda bucket: {"lookback-north": "eu-north-1"}[bucket])
    assert remote_files._connect("s3", "lookback-north").region == "eu-north-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert remote_files._connect("s3", "lookback-north").region == "eu-west-1"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        (
            {"STORAGE_EMULATOR_HOST": "localhost:4443"},
            {"scheme": "http", "endpoint_override": "localhost:4443", "anonymous": True},
        ),
        ({"GOOGLE_SKIP_SIGNATURE": "true"}, {"anonymous": True}),
        ({"GOOGLE_APPLICATION_CREDENTIALS": "key.json"}, {}),  # pyarrow reads it itself
    ],
)
def test_gcs_is_found_by_the_environment(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    options = remote_files.gcs_options(environ)
    assert options.pop("retry_time_limit").total_seconds() == 10
    assert options == wanted


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}, {"account_key": "a2V5"}),
        ({"AZURE_STORAGE_SAS_TOKEN": "sv=1"}, {"sas_token": "sv=1"}),
        (
            {"AZURE_STORAGE_ENDPOINT": "https://shop.blob.core.usgovcloudapi.net"},
            {
                "blob_storage_scheme": "https",
                "blob_storage_authority": ".blob.core.usgovcloudapi.net",
                "dfs_storage_scheme": "https",
                "dfs_storage_authority": ".dfs.core.usgovcloudapi.net",
            },
        ),
        (
            {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:10000/shop"},
            {
                "blob_storage_scheme": "http",
                "blob_storage_authority": "127.0.0.1:10000",
                "dfs_storage_scheme": "http",
                "dfs_storage_authority": "127.0.0.1:10000",
            },
        ),
    ],
)
def test_azure_is_found_by_the_environment(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    options = remote_files.azure_options({"AZURE_STORAGE_ACCOUNT_NAME": "shop", **environ})
    assert options == {"account_name": "shop", **wanted}
    assert isinstance(remote_files._file_system("AzureFileSystem", **options), fs.AzureFileSystem)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_google_and_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Against a server of ours that speaks as much of their interfaces as reading needs: the real ones are not to be had."""
    forget_environment(monkeypatch)
    files = {"day1.csv": DAY_1, "2/day2.csv.gz": gzip.compress(DAY_2), "_x.csv": b"", "empty.csv": b""}
    for name, content in files.items():
        (tmp_path / "cloud" / BUCKET / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cloud" / BUCKET / "log" / name).write_bytes(content)
    port, log = free_port(), tmp_path / "requests.log"
    command = [str(Path(__file__).with_name("cloud_server.py")), str(port), str(tmp_path / "cloud")]
    remote = log_of(f"{scheme}://{BUCKET}/log", tmp_path / "remote")
    with process_on_port(command, port, log) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        assert not remote.run("ingest")["up_to_date"]
        fetched = len(re.findall(r'"GET .*day2.csv.gz\S* HTTP/1.1" 206', log.read_text()))
        assert fetched == 1
        assert remote.run("ingest")["up_to_date"]
        assert len(re.findall(r'HTTP/1.1" 206', log.read_text())) == 2
        found = tables(remote)
        for path, message in (
            (f"{scheme}://{BUCKET}/nothing", "nothing there"),
            (f"{scheme}://other/log", "there is no (bucket|container) 'other'"),
        ):
            failed = remote("run", "ingest", "--set", f"events.path={path}")
            assert failed.code == 1
            assert re.fullmatch(rf"lookback: events.path: {path}: {message}.*\n", failed.err)
    local = log_of(str(tmp_path / "cloud" / BUCKET / "log"), tmp_path / "local")
    local.run("ingest")
    wanted = tables(local)
    assert found["events"].equals(wanted["events"])
    assert found["quarantine"].drop("source_path").equals(wanted["quarantine"].drop("source_path"))
    assert set(found["quarantine"]["source_path"]) == {f"{scheme}://{BUCKET}/log/day1.csv"}


def test_a_store_that_pyarrow_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_environment(monkeypatch)
    remote_files._file_system.cache_clear()
    monkeypatch.delattr(fs, "GcsFileSystem")
    monkeypatch.setattr(fs, "_not_imported", ["GcsFileSystem"])
    with pytest.raises(LookbackError, match=r"events.path: gs://b/log: .*GcsFileSystem.*a build of pyarrow"):
        remote_files.list_files("events.path", "gs://b/log")
