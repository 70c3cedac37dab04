"""What prune keeps because something uses it, whatever the clocks said, and the leftovers of killed commands that it removes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.files import temporary_beside, write_json
from pipeline.artifacts.scratch import SCRATCH, scratch
from pipeline.artifacts.store import Artifact
from pipeline.commands.prune import prune
from pipeline.config import Config
from pipeline.tracking.client import client_at
from pipeline.tracking.models import STAGE
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import BUNDLE_DIGEST, absolute_uri, artifact_root
from tests.workdir import with_database

NAME = "lookback-small"


def config_of(folder: Path, **tracking: Any) -> Config:
    tables = {"name": "small", "data_dir": str(folder / "data"), "tracking": tracking}
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    return Config.model_validate(tables | {"events": {"path": str(folder / "no.csv"), "columns": columns}})


def artifact(config: Config, stage: str, number: int, **entries: Any) -> Path:
    folder: Path = config.folder / stage / f"{number:016x}"
    facts = {"inputs": {}, "settings": {}, "created_utc": f"2026-01-{number:02}", "files": {}}
    write_json(folder / "manifest.json", facts | entries)
    return folder


def made(config: Config, stage: str, digit: str, created: str, **inputs: str) -> Artifact:
    artifact = Artifact(config.folder / stage, digit * 16)
    artifact.prepare(resume=False)
    artifact.commit({"created_utc": created, "inputs": inputs})
    return artifact


def left(config: Config, stage: str) -> set[str]:
    return {path.parent.name[0] for path in (config.folder / stage).glob("[0-9a-f]*/manifest.json")}


def test_what_was_used_last_stays_though_a_clock_was_ahead(tmp_path: Path) -> None:
    config = config_of(tmp_path, enabled=False)
    made(config, "ingest", "1", "2026-01-01")
    ahead = made(config, "ingest", "2", "2099-01-01")
    prune(config, keep=1, dry_run=False)
    assert left(config, "ingest") == {"2"}
    made(config, "ingest", "3", "2026-01-02")
    made(config, "ingest", "4", "2026-01-03")
    prune(config, keep=2, dry_run=False)
    assert left(config, "ingest") == {"3", "4"}
    assert not ahead.folder.exists()


def test_what_links_point_to_stays_with_its_lineage(tmp_path: Path) -> None:
    """Night 1 is live, night 2 is of some users: both stay with the logs they were made from."""
    config = config_of(tmp_path, enabled=False)
    for night in "123":
        made(config, "ingest", night, "2026-01-01")
    live = made(config, "score", "a", "2026-01-01", ingest="1" * 16)
    live.point_live()
    for digit in "bc":
        made(config, "score", digit, "2026-01-02", ingest="2" * 16)
    (config.folder / "score" / ".uses.json").write_text(json.dumps({"b" * 16: 9}))  # restored from elsewhere
    prune(config, keep=1, dry_run=False)
    assert left(config, "score") == {"a", "b", "c"}
    assert left(config, "ingest") == {"1", "2", "3"}


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_commands_go(tmp_path: Path) -> None:
    config, gone = config_of(tmp_path, enabled=False), ended_process()
    train = config.folder / "train"
    whole = artifact(config, "train", 1)
    replaced, interrupted = train / f".old-{2:016x}", train / f".old-{3:016x}"
    artifact(config, "train", 2)
    for folder in (replaced, interrupted):
        write_json(folder / "manifest.json", {})
    remains = [
        train / f"{4:016x}",
        replaced,
        train / f".old-{5:016x}",
        config.folder / "features" / f".building-{6:016x}",
        config.folder / "ingest" / ".parts" / ".building-x",
        config.folder / ".bundles" / SCRATCH / "abc",
        config.folder / SCRATCH / "abc",
        config.folder / ".downloading-abc",
    ]
    for folder in remains:
        (folder / "inner").mkdir(parents=True)
    ours, digests = temporary_beside(config.folder / ".digests.json"), config.folder / ".digests.json"
    host = ours.name.split(".")[-2].split(f"-{os.getpid()}-")[0]
    of_another, of_yesterday = (digests.with_name(f".a.{name}-1-0123abcd.part") for name in ("x", "y"))
    files = [
        *(
            path.with_name(f".{path.name}.{host}-{gone}-0123abcd.part")
            for path in (digests, train / "latest")
        ),
        train / ".runs" / f".f.json.{host}-{gone}-0123abcd.part",
        of_yesterday,
    ]
    kept_files = [ours, digests, of_another]
    for path in (*files, *kept_files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    os.utime(of_yesterday, (0, 0))
    resumed = train / f".building-{7:016x}"  # the log is missing: nobody can tell whose it is
    running = Artifact(config.folder / "features", f"{8:016x}")
    for folder in (resumed, running.workspace):
        folder.mkdir(parents=True)
    with running.lock():
        before = set(prune(config, keep=5, dry_run=True))
        assert all(folder.exists() for folder in remains)
        removed = set(prune(config, keep=5, dry_run=False))
    assert before == removed == {*remains, *files}
    assert not any(os.path.lexists(path) for path in removed)
    for path in (whole, interrupted, resumed, running.workspace, *kept_files):
        assert path.exists()


def test_a_download_that_goes_on_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, enabled=False)
    with scratch(config.folder / ".bundles") as folder:
        prune(config, keep=1, dry_run=False)
        assert folder.exists()


def test_lists_in_use_and_pins_stay_with_what_made_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, enabled=False)
    publish = [artifact(config, "publish", number, bundle_digest=f"d{number}") for number in range(1, 6)]
    made = {"model": "champion", "bundle_digest": "d1"}
    live = artifact(config, "score", 1, **made)
    pin = {"model": "models:/lookback-small/2", "bundle_digest": "d2"}
    earlier = artifact(config, "score", 2, settings={"score.k": 5}, **pin)
    pinned = artifact(config, "score", 3, settings={"score.k": 5}, **pin)
    freed = artifact(config, "score", 4, settings={"score.k": 6}, model="models:/x/3", bundle_digest="d3")
    artifact(config, "score", 5, settings={"score.k": 6}, model="champion", bundle_digest="d5")
    newest = artifact(config, "score", 6, **made)
    (config.folder / "score" / "live").symlink_to(live.name)
    other = Config.model_validate(config.model_dump() | {"name": "other"})
    artifact(other, "score", 1, settings={"score.k": 5}, model="models:/lookback-small/4", bundle_digest="d4")
    prune(config, keep=1, dry_run=False)
    assert [folder.exists() for folder in publish] == [True, True, False, True, True]
    assert [folder.exists() for folder in (live, earlier, pinned, freed, newest)] == [
        True,
        False,
        True,
        False,
        True,
    ]


@pytest.fixture
def registered(tmp_path: Path, empty_database: Path) -> Config:
    """Five versions: 1 is champion, 2 has an alias, 5 is the newest."""
    with_database(tmp_path, empty_database)
    uri = absolute_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    client = client_at(uri)
    experiment = client.create_experiment("small", artifact_root(uri))
    run_id = client.create_run(experiment).info.run_id
    client.create_registered_model(NAME)
    for number in range(1, 6):
        client.create_model_version(NAME, f"{tmp_path}/files", run_id, tags={BUNDLE_DIGEST: f"d{number}"})
    client.set_registered_model_alias(NAME, "champion", "1")
    client.set_registered_model_alias(NAME, "holiday", "2")
    return config_of(tmp_path, uri=uri)


def test_versions_with_an_alias_or_a_pin_stay(registered: Config) -> None:
    artifact(registered, "score", 1, model=f"models:/{NAME}/3", bundle_digest="d3")
    publish = [artifact(registered, "publish", number, bundle_digest=f"d{number}") for number in range(1, 7)]
    prune(registered, keep=1, dry_run=False)
    versions = Registry(registered.tracking.uri or "").versions(NAME)
    assert [version.version for version in versions] == [5, 3, 2, 1]
    assert [folder.exists() for folder in publish] == [True, True, True, False, False, True]


def test_a_logged_model_without_a_version_goes(registered: Config) -> None:
    client = client_at(registered.tracking.uri or "")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    run_id = client.create_run(experiment.experiment_id, tags={STAGE: "publish"}).info.run_id
    alone = client.create_logged_model(experiment.experiment_id, name="model", source_run_id=run_id)
    trained = client.create_logged_model(experiment.experiment_id, name="transformer-2x16")
    files = registered.folder.parent.parent / "mlruns" / "artifacts" / "models"
    for model in (alone, trained):
        client.finalize_logged_model(model.model_id, "READY")
        (files / model.model_id / "artifacts").mkdir(parents=True)
    with Artifact(registered.folder / "publish", "a" * 16).lock():
        prune(registered, keep=9, dry_run=False)
        assert (files / alone.model_id / "artifacts").exists()
    prune(registered, keep=9, dry_run=False)
    assert not (files / alone.model_id / "artifacts").exists()
    assert (files / trained.model_id / "artifacts").exists()
