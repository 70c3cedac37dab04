"""Stores that were moved, copied, mounted elsewhere, or restored without their files."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts.files import digest_file, files_below, write_json
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.serving.bundle import Bundle
from pipeline.serving.bundle_cache import bundle_folder
from pipeline.tracking.client import client_at
from pipeline.tracking.queries import run_artifact
from pipeline.tracking.record import RunRecord
from pipeline.tracking.registry import ModelSource, Registry
from pipeline.tracking.server import absolute_uri, artifact_root
from pipeline.tracking.tracker import Tracker
from tests.factories import small_bundle
from tests.workdir import in_one_file, with_database

NAME = "lookback-small"


def uri_of(project: Path) -> str:
    return absolute_uri(f"sqlite:///{project}/mlruns/mlflow.db")


def log(project: Path, fingerprint: str) -> str:
    """Log a run with a file; returns its id."""
    uri, stage = uri_of(project), project / "stage"
    record = RunRecord()
    stage.mkdir(exist_ok=True)
    (stage / "note.txt").write_text("kept")
    record.artifact("note.txt")
    record.save(stage)
    tracker, link = Tracker(uri, "small", artifact_root(uri)), project / f"{fingerprint}.json"
    tracker.replay(
        stage="publish", fingerprint=fingerprint, run_name=fingerprint, tags={}, folder=stage, link_file=link
    )
    run_id = tracker.linked_run(link)
    assert run_id is not None
    assert tracker.is_logged(link)
    return run_id


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with one run, one version and a foreign experiment; read-only for tests."""
    project = tmp_path_factory.mktemp("first place") / "a project"
    project.mkdir()
    with_database(project, empty_database)
    digest = small_bundle(project / "bundle")
    run_id = log(project, "f")
    Registry(uri_of(project)).register(NAME, project / "bundle", digest, run_id)
    client = client_at(uri_of(project))
    client.set_registered_model_alias(NAME, "champion", "1")
    client.create_experiment("foreign", "file:///somewhere/artifacts")
    in_one_file(project / "mlruns" / "mlflow.db")
    return project


@pytest.fixture
def project(original: Path, tmp_path: Path) -> Path:
    """A copy at another place."""
    return Path(shutil.copytree(original, tmp_path / "second place"))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest_file(path) for path in files_below(folder)}


def config_of(project: Path) -> Config:
    tables = {"name": "small", "data_dir": str(project / "data"), "tracking": {"uri": uri_of(project)}}
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    return Config.model_validate(tables | {"events": {"path": "log.csv", "columns": columns}})


def test_a_copy_reads_and_writes_its_own_files_alone(original: Path, project: Path) -> None:
    before, models = contents(original), project / "mlruns" / "artifacts" / "models"
    registry = Registry(uri_of(project))
    folder = registry.download_bundle(registry.resolve(NAME), project / "downloaded")
    assert Bundle.open(folder).digest == registry.resolve(NAME).bundle_digest
    run_id = log(project, "g")
    assert run_artifact(uri_of(project), run_id, "note.txt", project / "to").read_text() == "kept"
    assert (project / "mlruns" / "artifacts" / run_id).is_dir()
    digest = small_bundle(project / "second", seed=1)
    assert registry.register(NAME, project / "second", digest, run_id).version == 2
    assert len(list(models.glob("*/artifacts/MLmodel"))) == 2
    assert contents(original) == before
    with contextlib.closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as database:
        experiments = dict(database.execute("SELECT name, artifact_location FROM experiments").fetchall())
    assert experiments["foreign"] == "file:///somewhere/artifacts"


def test_a_moved_store_serves_what_it_served(project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "third place"
    shutil.move(project, moved)
    registry = Registry(uri_of(moved))
    assert Bundle.open(registry.download_bundle(registry.resolve(NAME), moved / "bundle of 1"))
    found = client_at(uri_of(moved)).search_runs(["1"])
    assert len(found) == 1
    assert run_artifact(uri_of(moved), found[0].info.run_id, "note.txt", moved / "to").read_text() == "kept"


def test_two_paths_of_one_folder_leave_the_addresses(project: Path, tmp_path: Path) -> None:
    client_at(uri_of(project))
    (tmp_path / "mounted").symlink_to(project)
    client_at(uri_of(tmp_path / "mounted"))
    client_at.cache_clear()
    location = client_at(uri_of(project)).get_experiment("1").artifact_location
    assert location == artifact_root(uri_of(project))


def test_files_of_a_run_that_are_missing_are_sent_again(project: Path) -> None:
    run_id = log(project, "f")
    shutil.rmtree(project / "mlruns" / "artifacts")
    uri = uri_of(project)
    assert not Tracker(uri, "small", artifact_root(uri)).is_logged(project / "f.json")
    assert log(project, "f") == run_id
    assert run_artifact(uri, run_id, "note.txt", project / "to").read_text() == "kept"


def lost(project: Path) -> None:
    shutil.rmtree(project / "mlruns" / "artifacts")


def damaged(project: Path) -> None:
    for path in (project / "mlruns" / "artifacts").rglob("items.parquet"):
        path.write_bytes(b"half")


@pytest.mark.parametrize("harm", [lost, damaged])
def test_a_version_without_files_is_restored_from_its_stage(
    harm: Callable[[Path], None], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, registry = config_of(project), Registry(uri_of(project))
    client_at(registry.uri)
    version = registry.resolve(NAME)
    model = ModelSource(1, version.bundle_digest, version.uri)
    harm(project)
    with pytest.raises(LookbackError, match=r"keeps bundle .*publish again .*lookback promote VERSION"):
        bundle_folder(config, model)
    publish = config.folder / "publish" / ("0" * 16)
    shutil.copytree(project / "bundle", publish / "bundle")
    write_json(publish / "manifest.json", {"bundle_digest": version.bundle_digest})
    assert Bundle.open(bundle_folder(config, model)).digest == version.bundle_digest
    assert f"restored from {publish}" in capsys.readouterr().err
    assert registry.has_files(version)
    again = registry.download_bundle(version, project / "again")
    assert Bundle.open(again).digest == version.bundle_digest
    assert [path.name for path in (config.folder / ".bundles").iterdir()] == [version.bundle_digest]
    models = project / "mlruns" / "artifacts" / "models"
    assert [path.name for path in models.iterdir()] == [version.source.removeprefix("models:/")]


def test_registering_a_bundle_again_restores_its_files(project: Path) -> None:
    registry = Registry(uri_of(project))
    client_at(registry.uri)
    version = registry.resolve(NAME)
    lost(project)
    assert not registry.has_files(version)
    assert registry.register(NAME, project / "bundle", version.bundle_digest, version.run_id) == version
    assert registry.has_files(version)
    assert [known.version for known in registry.versions(NAME)] == [1]
