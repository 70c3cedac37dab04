"""Artifact store: atomic commits, damaged files named, locks, resumed workspaces, the latest link."""

import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import files, store
from pipeline.artifacts.files import digest_file, temporary_beside
from pipeline.artifacts.store import Artifact, being_made
from pipeline.errors import DamagedArtifact


def make(artifact: Artifact, text: str, created: str = "2026-01-01") -> None:
    artifact.prepare(resume=False)
    (artifact.workspace / "part").mkdir()
    (artifact.workspace / "part" / "data.txt").write_text(text)
    artifact.commit({"created_utc": created, "inputs": {}})


def test_an_artifact_is_there_only_when_committed(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "stage", "f" * 16)
    assert not artifact.is_complete()
    artifact.prepare(resume=False)
    (artifact.workspace / "data.txt").write_text("half")
    assert not artifact.is_complete()
    assert not artifact.folder.exists()
    make(artifact, "whole")
    assert artifact.is_complete()
    artifact.verify()
    assert (tmp_path / "stage" / "latest" / "part" / "data.txt").read_text() == "whole"


def test_damage_is_named(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "stage", "f" * 16)
    make(artifact, "whole")
    (artifact.folder / "part" / "data.txt").write_text("wholf")
    assert artifact.is_complete()  # names and sizes alone cannot tell
    with pytest.raises(DamagedArtifact, match=r"data\.txt.*--force"):
        artifact.verify()
    (artifact.folder / "part" / "data.txt").write_text("longer than before")
    with pytest.raises(DamagedArtifact, match=r"data\.txt.*18 bytes, expected 5"):
        artifact.is_complete()
    (artifact.folder / "part" / "data.txt").unlink()
    with pytest.raises(DamagedArtifact, match=r"data\.txt: is missing"):
        artifact.is_complete()
    (artifact.folder / "manifest.json").write_text("{")
    with pytest.raises(DamagedArtifact, match="not valid JSON"):
        artifact.is_complete()


def test_a_forced_rebuild_replaces_and_survives_a_kill_between_the_renames(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "stage", "f" * 16)
    make(artifact, "old")
    make(artifact, "new")
    assert (artifact.folder / "part" / "data.txt").read_text() == "new"
    assert {path.name for path in artifact.stage_folder.iterdir()} == {
        *("f" * 16, "latest", ".uses.json", ".links.lock")
    }
    artifact.folder.rename(artifact.stage_folder / f".old-{artifact.name}")
    assert artifact.is_complete()
    assert (artifact.folder / "part" / "data.txt").read_text() == "new"


def test_latest_is_the_one_used_last_whatever_the_clocks_say(tmp_path: Path) -> None:
    first, second = Artifact(tmp_path / "stage", "1" * 16), Artifact(tmp_path / "stage", "2" * 16)
    make(second, "b", created="2099-01-02")
    make(first, "a", created="2026-01-01")
    assert (tmp_path / "stage" / "latest").readlink().name == first.name
    assert store.uses(tmp_path / "stage") == {second.name: 1, first.name: 2}
    first.point_latest()
    assert store.uses(tmp_path / "stage") == {second.name: 1, first.name: 2}
    second.point_latest()
    assert (tmp_path / "stage" / "latest").readlink().name == second.name
    assert store.uses(tmp_path / "stage") == {second.name: 3, first.name: 2}


@pytest.mark.parametrize("damage", ["{", "[1]", '{"1": "x"}'])
def test_damaged_numbers_of_uses_begin_anew(tmp_path: Path, damage: str) -> None:
    first, second = Artifact(tmp_path / "stage", "1" * 16), Artifact(tmp_path / "stage", "2" * 16)
    make(first, "a")
    make(second, "b")
    (tmp_path / "stage" / ".uses.json").write_text(damage)
    first.point_latest()
    assert store.uses(tmp_path / "stage") == {first.name: 1}
    assert (tmp_path / "stage" / "latest").readlink().name == first.name


def test_links_lead_to_artifacts(tmp_path: Path) -> None:
    first, second = Artifact(tmp_path / "stage", "1" * 16), Artifact(tmp_path / "stage", "2" * 16)
    assert store.linked(tmp_path / "stage") == {}
    make(first, "a")
    first.point_live()
    make(second, "b")
    assert store.linked(tmp_path / "stage") == {"latest": second.folder, "live": first.folder}
    shutil.rmtree(first.folder)
    assert store.linked(tmp_path / "stage") == {"latest": second.folder}


def test_commit_takes_known_digests_without_reading_the_files(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "stage", "f" * 16)
    artifact.prepare(resume=False)
    (artifact.workspace / "linked.txt").write_text("four")
    (artifact.workspace / "own.txt").write_text("twelve")
    manifest: dict[str, Any] = {"created_utc": "2026-01-01", "inputs": {}}
    artifact.commit(manifest, {"linked.txt": "digest of the store"})
    own = digest_file(artifact.folder / "own.txt")
    assert manifest["files"] == {"linked.txt": [4, "digest of the store"], "own.txt": [6, own]}
    assert store.read_manifest(artifact.folder) == manifest
    assert not artifact.workspace.exists()
    with pytest.raises(DamagedArtifact, match=r"linked\.txt: is damaged: its digest differs"):
        artifact.verify()


def test_an_artifact_is_locked_within_its_lock_alone(tmp_path: Path) -> None:
    first, second = Artifact(tmp_path, "1" * 16), Artifact(tmp_path, "2" * 16)
    assert not first.is_locked()
    with first.lock({"ingest": "abc"}):
        assert first.is_locked()
        assert not second.is_locked()
        assert being_made(tmp_path) == {first.name: {"ingest": "abc"}}
    assert not first.is_locked()
    with pytest.raises(DamagedArtifact), first.lock():
        raise DamagedArtifact("a failed build")
    assert not first.is_locked(), "an error releases the lock"
    assert list((tmp_path / ".locks").glob("*.json")) == []


def test_a_workspace_is_kept_only_for_a_stage_that_resumes(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "stage", "f" * 16)
    artifact.prepare(resume=True)
    (artifact.workspace / "checkpoint").write_text("x")
    (artifact.workspace / ".checkpoint.4711").write_text("half")
    half = temporary_beside(artifact.workspace / "checkpoint")
    half.write_text("half")
    artifact.prepare(resume=True)
    assert (artifact.workspace / "checkpoint").exists()
    assert not (artifact.workspace / ".checkpoint.4711").exists()
    assert not half.exists()
    artifact.prepare(resume=False)
    assert not (artifact.workspace / "checkpoint").exists()


def test_a_second_maker_waits_and_says_for_whom(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from pipeline.artifacts.store import Artifact
        with Artifact(Path(sys.argv[1]), "f" * 16).lock({"ingest": "abc"}):
            print("held", flush=True)
            sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    monkeypatch.setattr(store, "_GRACE_SECONDS", 0.1)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert being_made(tmp_path) == {"f" * 16: {"ingest": "abc"}}
        got = threading.Event()

        def wait() -> None:
            with Artifact(tmp_path, "f" * 16).lock():
                got.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.3)
        assert not got.is_set()
        other.kill()  # a killed maker holds nothing
        waiter.join(timeout=10)
        assert got.is_set()
    assert f"is being made by process {other.pid}" in capfd.readouterr().err
    assert being_made(tmp_path) == {}


def test_peak_memory_is_of_the_stage_not_of_the_process() -> None:
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    during = store.PeakMemory().bytes()
    del block
    assert store.PeakMemory().bytes() < during - 100_000_000


def test_a_manifest_has_a_digest_of_its_own(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    path = artifact.folder / "manifest.json"
    content = json.loads(path.read_text())
    assert store.OWN_DIGEST not in store.read_manifest(artifact.folder)
    path.write_text(json.dumps(content | {"inputs": {"ingest": "0" * 16}}))
    with pytest.raises(DamagedArtifact, match=r"manifest\.json: is damaged: .* lookback run stage --force"):
        store.read_manifest(artifact.folder)
    with pytest.raises(DamagedArtifact, match="lookback run stage --force"):
        artifact.is_complete()
    del content[store.OWN_DIGEST]
    path.write_text(json.dumps(content))  # as 0.6 wrote it
    assert artifact.is_complete()


def test_files_are_read_once_per_process_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, read = made(tmp_path), list[Path]()

    def counted(path: Path) -> str:
        read.append(path)
        return digest_file(path)

    monkeypatch.setattr(files, "digest_file", counted)
    for _ in range(3):
        artifact.verify()
    assert read == [artifact.folder / "a.txt"]
    (artifact.folder / "a.txt").write_text("B")
    artifact.verify(("other.txt",))
    with pytest.raises(DamagedArtifact, match=r"a\.txt: is damaged: its digest"):
        artifact.verify()


def made(folder: Path) -> Artifact:
    artifact = Artifact(folder / "stage", "f" * 16)
    artifact.prepare(resume=False)
    (artifact.workspace / "a.txt").write_text("A")
    artifact.commit({"inputs": {}, "created_utc": "2026-11-29", "number": 0.1, "pair": (1, 2)})
    return artifact
