"""Files on disk: written whole, digested once per version, named by their content."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.artifacts import files
from pipeline.artifacts.files import Digests
from pipeline.errors import DamagedArtifact, LookbackError

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-4, example B.1."""


def test_fingerprints_follow_content_not_order() -> None:
    assert files.fingerprint({"a": 1, "b": [1, 2]}) == files.fingerprint({"b": [1, 2], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 1.5})
    assert files.fingerprint({"a": 1}) == "015abd7f5cc57a2d"  # sha256 of {"a":1}, the first 16 digits


def test_a_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.digest_file(path) == SHA256_OF_ABC


def test_files_below_a_folder_are_sorted_and_no_folders(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/deep/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in files.files_below(tmp_path)] == [
        "a",
        "b/1",
        "b/2",
        "c/deep/3",
    ]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"x": 1})
    files.write_json(path, {"x": "ü"})
    assert files.read_json(path) == {"x": "ü"}
    assert [other.name for other in path.parent.iterdir()] == ["a.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": {1, 2}})
    assert json.loads(path.read_text()) == {"x": 1}


@pytest.mark.parametrize("content", [b'{"x": ', b"", b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"a\.json: is damaged, not valid JSON"):
        files.read_json(path)


def test_digests_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, memory = tmp_path / "log.csv", tmp_path / "memory" / "digests.json"
    source.write_text("a")
    first = Digests(memory)(source)
    monkeypatch.setattr(files, "digest_file", lambda _: pytest.fail("read again"))
    assert Digests(memory)(source) == first
    monkeypatch.undo()
    source.write_text("b")
    os.utime(source, ns=(1, 1))
    assert Digests(memory)(source) != first


def test_digests_with_a_damaged_memory_begin_anew(tmp_path: Path) -> None:
    source, memory = tmp_path / "abc", tmp_path / "digests.json"
    source.write_bytes(b"abc")
    memory.write_text("{")
    assert Digests(memory)(source) == SHA256_OF_ABC
    assert json.loads(memory.read_text())[str(source)][-1] == SHA256_OF_ABC


def test_digests_of_several_threads_are_all_remembered(tmp_path: Path) -> None:
    sources = [tmp_path / f"{number}.csv" for number in range(20)]
    for source in sources:
        source.write_text(source.name)
    digests = Digests(tmp_path / "digests.json")
    with ThreadPoolExecutor(4) as pool:
        computed = list(pool.map(digests, sources))
    assert computed == [files.digest_file(source) for source in sources]
    assert set(json.loads((tmp_path / "digests.json").read_text())) == {str(source) for source in sources}


def test_a_file_that_changes_while_it_is_digested_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "log.csv"
    source.write_text("a")

    def grow(path: Path) -> str:
        path.write_text("longer")
        return "digest of neither"

    monkeypatch.setattr(files, "digest_file", grow)
    with pytest.raises(LookbackError, match=r"log\.csv: changed while it was read"):
        Digests(tmp_path / "digests.json")(source)
    assert not (tmp_path / "digests.json").exists()


def test_times_are_utc() -> None:
    assert files.now().utcoffset() is not None
    assert not files.now().utcoffset()


def test_temporary_names_differ_within_one_process_and_across_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "first.example/host")
    names = {files.temporary_beside(tmp_path / "a.json").name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith(f".a.json.first-example-host-{os.getpid()}-") for name in names)


@pytest.mark.parametrize(
    "content", ["[]", '"x"', '{"PATH": 1}', '{"PATH": []}', '{"PATH": [3, 4, 5, null]}', "{", "\x00"]
)
def test_a_damaged_cache_of_digests_is_made_again(tmp_path: Path, content: str) -> None:
    path, memory = tmp_path / "abc", tmp_path / ".digests.json"
    path.write_bytes(b"abc")
    memory.write_text(content.replace("PATH", str(path)))
    assert Digests(memory)(path) == SHA256_OF_ABC
    assert files.read_json(memory)[str(path)][-1] == SHA256_OF_ABC


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b"{", b"\xff\xfe"])
def test_a_record_of_another_type_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert files.read_record(tmp_path / "a.json") == files.read_record(tmp_path / "missing") == {}
    assert files.read_record(tmp_path) == {}
