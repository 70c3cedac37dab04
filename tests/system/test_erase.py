"""`prune --excluded`: nothing that is left holds an excluded user, and what has to stay is named."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from mlflow import MlflowClient

from pipeline.artifacts.event_parts import PARTS
from pipeline.artifacts.scratch import SCRATCH, scratch
from pipeline.artifacts.store import Artifact, being_made
from pipeline.commands.erase import prune_excluded
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, LookbackError
from pipeline.orchestration.runner import bring_up_to_date
from pipeline.tracking.models import log_pyfunc
from pipeline.tracking.record import RunRecord
from pipeline.tracking.registry import Registry
from pipeline.tracking.tracker import Tracker
from tests.factories import small_bundle
from tests.workdir import Workdir, with_database

LOG = "".join(
    f"{user},{item},{1_600_000_000 + 1000 * time}\n"
    for time, (user, item) in enumerate([(1, 10), (2, 11), (3, 12), (1, 11), (2, 10), (3, 10), (4, 12)] * 4)
)


def configuration(folder: Path, *overrides: str) -> Config:
    columns = '{ user_id = "user", item_id = "item", timestamp = "at" }'
    (folder / "log.toml").write_text(
        f'name = "log"\ndata_dir = "{folder}/data"\n[events]\npath = "{folder}/log.csv"\ncolumns = {columns}\n'
        "[tracking]\nenabled = false\n"
    )
    return load_config(folder / "log.toml", overrides)


def forget(folder: Path, *users: int | str) -> str:
    """The setting that excludes users."""
    pl.DataFrame({"user_id": users}).write_parquet(folder / "forget.parquet")
    return f"events.exclude_users={folder}/forget.parquet"


def run(config: Config, stage: str) -> Artifact:
    done = bring_up_to_date(config, [stage], force=False, show_progress=False, say=lambda _: None)[-1]
    folder = Path(done["folder"])
    return Artifact(folder.parent, folder.name)


def holding(folder: Path, user: int | str) -> Iterator[Path]:
    """Parquet files that have a user."""
    for path in folder.rglob("*.parquet"):
        table = pl.read_parquet(path)
        if path.parent.name != "raw" and "user_id" in table and str(user) in table["user_id"].cast(pl.String):
            yield path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder with a log, and its ingest and features stages without and with an exclusion."""
    (tmp_path / "log.csv").write_text("user,item,at\n" + LOG)
    run(configuration(tmp_path), "features")
    return tmp_path


def test_only_what_was_made_with_the_present_exclusion_stays(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = 'exposures.columns={ user_id = "user", item_id = "item", timestamp = "at" }'
    shown = (f"exposures.path={log}/log.csv", columns)
    old = run(configuration(log, *shown, forget(log, 2)), "features")
    config = configuration(log, *shown, forget(log, 2, 3))  # a list that grew
    new = run(config, "features")
    for rest in (".building-" + "0" * 16, ".old-" + old.name):
        (old.stage_folder / rest).mkdir()
        (old.stage_folder / rest / "users.parquet").write_bytes((old.folder / "users.parquet").read_bytes())
    new.workspace.mkdir()  # an interrupted run of the present configuration goes on
    would_go = prune_excluded(config, dry_run=True)
    assert "would remove" in capsys.readouterr().out
    assert set(holding(log / "data", 3))
    assert prune_excluded(config, dry_run=False) == would_go
    for user in (2, 3):
        assert not list(holding(log / "data", user))
    for stage in ("ingest", "features"):
        left = [path for path in (log / "data" / "log" / stage).glob("[0-9a-f]*") if path.is_dir()]
        assert len(left) == 1
    parts = list((log / "data" / "log" / "ingest" / PARTS).glob("[0-9a-f]*"))
    assert sorted(file.name for part in parts for file in part.glob("e*.parquet")) == [
        "events.parquet",
        "exposures.parquet",
    ]
    assert len(parts) == 2
    assert new.workspace.exists()
    new.verify()
    assert prune_excluded(config, dry_run=False) == []


def test_what_a_running_stage_uses_is_named_and_stays(log: Path) -> None:
    features = run(configuration(log), "features")
    config = configuration(log, forget(log, 3))
    (ingest,) = json.loads((features.folder / "manifest.json").read_text())["inputs"].values()
    train = Artifact(log / "data" / "log" / "train", "f" * 16)
    with train.lock({"features": features.name}):
        assert being_made(train.stage_folder)
        with pytest.raises(
            LookbackError, match=rf"not all is gone: a running stage uses .*{ingest}.*{features.name}"
        ):
            prune_excluded(config, dry_run=False)
    features.verify()
    prune_excluded(config, dry_run=False)
    assert not list(holding(log / "data", 3))


def test_somebody_has_to_be_excluded(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"events\.exclude_users is not set"):
        prune_excluded(configuration(log), dry_run=False)


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, removals: int) -> Iterator[None]:
    """After so many removed files nothing more is removed, as in a process that was killed."""
    left, unlink, rmdir = [removals], os.unlink, os.rmdir

    def counting(remove: Callable[..., None]) -> Callable[..., None]:
        def removing(*arguments: Any, **named: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            remove(*arguments, **named)

        return removing

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", counting(unlink))
        patch.setattr(os, "rmdir", counting(rmdir))
        with contextlib.suppress(Killed):
            yield


@pytest.mark.slow
def test_no_kill_leaves_an_excluded_user_behind(
    log: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_database(log, empty_database)
    tracked = ("tracking.enabled=true", f"tracking.uri=sqlite:///{log}/mlruns/mlflow.db")
    config = configuration(log, *tracked)
    publish = config.folder / "publish" / ("a" * 16)
    digest = small_bundle(publish / "bundle")  # of the users 10, 20, 30
    models, name = Registry.from_config(config), "lookback-log"
    tracker, link = Tracker.from_config(config), log / "link.json"
    RunRecord().save(log)
    tracker.replay(stage="publish", fingerprint="a", run_name="p", tags={}, folder=log, link_file=link)
    run_id = tracker.linked_run(link) or ""
    places: list[Path] = []

    def logged(*arguments: Any, **named: Any) -> tuple[str, str]:
        places.append(Path(tempfile.mkdtemp()))
        return log_pyfunc(*arguments, **named)

    monkeypatch.setattr("pipeline.tracking.registry.log_pyfunc", logged)
    models.register(name, publish / "bundle", digest, run_id)
    assert places[0].is_relative_to(publish), "MLflow's copy, below data_dir"
    assert not (publish / SCRATCH).exists()
    with mock.patch.object(MlflowClient, "create_model_version", side_effect=Killed), pytest.raises(Killed):
        models.register(name, publish / "bundle", "other", run_id)
    bundles = config.folder / ".bundles"
    models.download_bundle(models.versions(name)[0], bundles / digest)
    for rest in (bundles / SCRATCH / "dead", config.folder / ".downloading-x", publish / SCRATCH / "dead"):
        shutil.copytree(publish / "bundle", rest / "data" / "bundle")
    (config.folder / ".remote" / "f").mkdir(parents=True)
    shutil.copyfile(log / "log.csv", config.folder / ".remote" / "f" / "log.csv")
    unlisted = log / "mlruns" / "artifacts" / "models" / "m-gone" / "artifacts" / "data" / "bundle"
    shutil.copytree(publish / "bundle", unlisted)

    excluding = configuration(log, *tracked, forget(log, 3, 20))
    monkeypatch.setattr("pipeline.commands.erase.source_files.release", lambda *_: None)
    places_of_users = (log / "data", log / "mlruns")
    attempts = 0
    while any(list(holding(place, user)) for place in places_of_users for user in (3, 20)):
        attempts += 1
        assert attempts < 60
        with killed_after(monkeypatch, 20 if attempts < 20 else 1000):
            prune_excluded(excluding, dry_run=False)
    prune_excluded(excluding, dry_run=False)
    assert attempts > 3
    assert models.versions(name) == []
    assert not list((log / "data").rglob("log.csv"))
    assert not list(log.rglob(SCRATCH))


def test_a_copy_in_use_is_named_and_stays(log: Path) -> None:
    config = configuration(log, forget(log, 3))
    with scratch(config.folder) as place:
        with pytest.raises(LookbackError, match=f"not all is gone: another process uses .*{place.name}"):
            prune_excluded(config, dry_run=False)
        assert place.exists()
    prune_excluded(config, dry_run=False)


@pytest.mark.slow
def test_the_champion_is_named_until_another_one_takes_its_place(workdir: Workdir) -> None:
    workdir.run("all", "--set", "train.epochs=1")
    judged = workdir.artifact("evaluate", "--set", "train.epochs=1") / "targets.parquet"
    user = pl.read_parquet(judged)["user_id"][0]
    data, runs = workdir.folder / "data", workdir.folder / "mlruns"
    settings = ("--set", forget(workdir.folder, user), "--set", "train.epochs=1")
    assert list(holding(data, user))
    in_runs = list(holding(runs, user))
    assert any("evaluate" in path.parts for path in in_runs)
    assert list(runs.rglob("report.html"))

    shutil.rmtree(data / "tiny" / "report")  # its copy on the server is found all the same
    first = workdir("prune", "--excluded", *settings)
    assert first.code == 1
    assert "models:/lookback-tiny/1 is the champion and holds excluded users" in first.err
    assert not list(holding(data, user))
    champion = [path for path in in_runs if path.name == "users.parquet"]
    assert list(holding(runs, user)) == champion
    assert not list(runs.rglob("report.html"))

    workdir.run("publish", *settings)
    assert workdir("promote", "2", *settings).code == 0
    second = workdir("prune", "--excluded", *settings)
    assert second.code == 0, second.err
    assert "removed models:/lookback-tiny/1" in second.out
    assert not list(holding(data, user))
    assert not list(holding(runs, user))
    assert "0 folders gone" in second.out
    assert "files of run" not in second.out
    assert list(runs.rglob("targets.parquet"))
