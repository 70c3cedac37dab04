"""The runner: order, reuse, force, locks, failed stages and summaries; stages are stand-ins that write one file."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.artifacts import store
from pipeline.config import Config, load_config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.orchestration.context import Context
from pipeline.orchestration.graph import resolve
from pipeline.orchestration.runner import Summary, bring_up_to_date, ended_by_sigterm

NAMES = ("ingest", "features", "baselines")
Builds = dict[str, Callable[[Context], None]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A tiny log in an empty working directory, without tracking."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text("u,i,t\n1,a,1\n1,b,2\n2,a,3\n")
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\n[events]\npath = "log.csv"\ncolumns = { user_id = "u", item_id = "i", timestamp = "t" }\n'
        "[tracking]\nenabled = false\n"
    )
    return load_config("tiny.toml")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Stage to its stand-in; a test replaces one to look into the build or let it fail."""

    def stand_in(name: str) -> Callable[[Context], None]:
        def build(ctx: Context) -> None:
            (ctx.folder / "data.txt").write_text(f"{name} from {sorted(ctx.inputs)}")
            ctx.manifest.update(rows_in=3, rows_out=2, rows_left_out={"broken": 1})
            ctx.summary(f"{name} done")

        return build

    stages = {name: stand_in(name) for name in NAMES}
    for name in NAMES:
        module = SimpleNamespace(build=lambda ctx, name=name: stages[name](ctx))
        monkeypatch.setitem(sys.modules, f"pipeline.stages.{name}", module)
    return stages


def run(config: Config, *names: str, force: bool = False, lines: list[str] | None = None) -> list[Summary]:
    say = (lambda _: None) if lines is None else lines.append
    return bring_up_to_date(config, names, force=force, show_progress=False, say=say)


def built(summaries: list[Summary]) -> list[str]:
    return [summary["stage"] for summary in summaries if not summary["up_to_date"]]


def test_a_stage_is_built_after_the_stages_it_needs(config: Config, builds: Builds) -> None:
    lines: list[str] = []
    summaries = run(config, "baselines", lines=lines)
    assert built(summaries) == ["ingest", "features", "baselines"]
    assert [line.split(" (")[0] for line in lines] == [
        "ingest    ingest done",
        "features  features done",
        "baselines baselines done",
    ]
    assert Path(summaries[2]["folder"], "data.txt").read_text() == "baselines from ['features']"


def test_a_summary_holds_the_facts_of_the_manifest(config: Config, builds: Builds) -> None:
    (summary,) = run(config, "ingest")
    folder = Path(summary["folder"])
    manifest = store.read_manifest(folder)
    assert folder == resolve(config, ["ingest"]).nodes["ingest"].artifact.folder
    assert (summary["rows_in"], summary["rows_out"], summary["rows_left_out"]) == (3, 2, {"broken": 1})
    assert summary["summary"] == f"ingest done ({manifest['seconds']:.1f} s)"
    assert summary["seconds"] == manifest["seconds"]
    assert summary["peak_bytes"] == manifest["peak_bytes"] > 1_000_000
    assert manifest["fingerprint"] == summary["fingerprint"] == folder.name
    assert manifest["settings"]["events.columns"] == {"user_id": "u", "item_id": "i", "timestamp": "t"}
    assert set(manifest["files"]) == {"data.txt", "tracking.json"}


def test_an_up_to_date_stage_is_not_built_again(config: Config, builds: Builds) -> None:
    first = run(config, "features")
    second = run(config, "features")
    assert built(second) == []
    assert [summary["seconds"] for summary in second] == [0.0, 0.0]
    assert second[1]["summary"] == f"is up to date ({first[1]['folder']})"


def test_force_builds_the_named_stages_alone_and_discards_their_workspace(
    config: Config, builds: Builds
) -> None:
    run(config, "baselines")
    seen: dict[str, Any] = {}

    def look(ctx: Context) -> None:
        seen.update(force=ctx.force, files=list(ctx.folder.iterdir()))

    builds["baselines"] = look
    workspace = resolve(config, ["baselines"]).nodes["baselines"].artifact.workspace
    workspace.mkdir()
    (workspace / "checkpoint").touch()
    assert built(run(config, "baselines", force=True)) == ["baselines"]
    assert seen == {"force": True, "files": []}


@pytest.mark.parametrize(("name", "resumes"), [("baselines", True), ("features", False)])
def test_only_a_resumable_stage_finds_the_workspace_of_a_killed_run(
    config: Config, builds: Builds, name: str, resumes: bool
) -> None:
    workspace = resolve(config, [name]).nodes[name].artifact.workspace
    workspace.mkdir(parents=True)
    (workspace / "checkpoint").touch()
    found: list[bool] = []
    builds[name] = lambda ctx: found.append((ctx.folder / "checkpoint").exists())
    run(config, name)
    assert found == [resumes]


def test_a_stage_is_locked_while_it_is_built(config: Config, builds: Builds) -> None:
    nodes = resolve(config, ["features"]).nodes
    locked: list[tuple[bool, bool]] = []
    builds["features"] = lambda ctx: locked.append(
        (nodes["ingest"].artifact.is_locked(), nodes["features"].artifact.is_locked())
    )
    run(config, "features")
    assert locked == [(False, True)]
    assert not nodes["features"].artifact.is_locked()


def test_a_failed_stage_keeps_the_previous_artifact_and_builds_nothing_after_it(
    config: Config, builds: Builds
) -> None:
    folder = Path(run(config, "ingest")[0]["folder"])
    before = store.read_manifest(folder)

    def fail(ctx: Context) -> None:
        (ctx.folder / "data.txt").write_text("half")
        raise LookbackError("log.csv: broken")

    builds["ingest"] = fail
    with pytest.raises(LookbackError, match=r"log\.csv: broken"):
        run(config, "ingest", "features", force=True)
    nodes = resolve(config, ["features"]).nodes
    assert nodes["ingest"].artifact.is_complete()
    assert store.read_manifest(folder) == before
    assert (folder / "data.txt").read_text() == "ingest from []"
    assert not nodes["ingest"].artifact.is_locked()
    assert not nodes["features"].artifact.folder.exists()


def test_a_stage_refuses_a_damaged_input(config: Config, builds: Builds) -> None:
    folder = Path(run(config, "ingest")[0]["folder"])
    (folder / "data.txt").write_text("ingest from {}")  # the same size
    with pytest.raises(DamagedArtifact, match=r"data\.txt: is damaged.*lookback run ingest --force"):
        run(config, "features")
    (folder / "data.txt").unlink()
    with pytest.raises(DamagedArtifact, match=r"data\.txt: is missing"):
        run(config, "ingest")
    assert built(run(config, "ingest", force=True)) == ["ingest"]
    assert built(run(config, "features")) == ["features"]


def test_latest_follows_the_configuration_that_ran_last(config: Config, builds: Builds) -> None:
    first = Path(run(config, "features")[1]["folder"])
    other = load_config("tiny.toml", ["history.min_item_events=7"])
    second = Path(run(other, "features")[1]["folder"])
    assert first != second
    assert (first.parent / "latest").readlink().name == second.name
    manifest = second / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"created_utc": "2', '"created_utc": "9')
    )  # a clock was ahead
    run(config, "features")
    assert (first.parent / "latest").readlink().name == first.name


def test_sigterm_ends_a_run_as_an_exit_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
