"""A finished run opened from Python, in a folder that is not the checkout."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import api
from pipeline.config import load_config
from pipeline.errors import ConfigError, DamagedArtifact, LookbackError
from pipeline.orchestration.graph import ALL
from tests.workdir import TINY, Workdir


@pytest.fixture
def opened(finished: Workdir, monkeypatch: pytest.MonkeyPatch) -> api.Run:
    """The finished run, opened from its working directory."""
    monkeypatch.chdir(finished.folder)
    return api.open(finished.config)


def test_folders_and_manifests_are_those_of_the_command_line(
    opened: api.Run, finished: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened.folder("score").samefile(finished.artifact("score"))
    assert [opened.manifest(stage)["stage"] for stage in ALL] == list(ALL)
    assert opened.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.chdir(tmp_path)  # what was opened stays where it is
    assert opened.folder("train").is_dir()


def test_tables_are_those_on_disk(opened: api.Run) -> None:
    assert opened.events.select(pl.len()).collect().item() == opened.manifest("ingest")["rows_out"]
    assert {"user_id", "item_id", "timestamp"} <= set(opened.events.collect_schema().names())
    assert opened.recommendations.columns == [
        "user_id",
        "item_id",
        "rank",
        "score",
        "because",
        "probability",
        "propensity",
    ]
    assert len(opened.recommendations) == opened.manifest("score")["rows_out"]


def test_metrics_have_a_row_per_system_and_metric(opened: api.Run) -> None:
    written = json.loads((opened.folder("evaluate") / "metrics.json").read_text(encoding="utf-8"))
    assert len(opened.metrics) == sum(map(len, written["metrics"].values()))
    row = opened.metrics.row(
        by_predicate=(pl.col("system") == "lookback") & (pl.col("metric") == "ndcg@10"), named=True
    )
    assert row["value"] == written["metrics"]["lookback"]["ndcg@10"]
    assert [row["low"], row["high"]] == written["intervals"]["lookback"]["ndcg@10"]


def test_one_user_gets_what_scoring_gave_all(opened: api.Run) -> None:
    scored = opened.recommendations
    user = scored["user_id"][0]
    first = scored.filter(pl.col("user_id") == user)["item_id"].to_list()
    assert opened.recommend(user)["item_id"].to_list() == first
    answer = opened.recommend(history=first[:2], k=3)
    assert answer["rank"].to_list() == [1, 2, 3]
    assert not set(answer["item_id"]) & set(first[:2])
    for wrong in ({}, {"user_id": user, "history": first}):
        with pytest.raises(ConfigError, match="expected one of user_id and history"):
            opened.recommend(**wrong)


def test_a_missing_artifact_names_the_command(opened: api.Run) -> None:
    other = api.open("tiny.toml", set={"train.epochs": 4})
    assert other.folder("features") == opened.folder("features")
    for look in (lambda: other.folder("train"), lambda: other.recommendations, lambda: other.metrics):
        with pytest.raises(LookbackError, match="no up-to-date artifact; make it with: lookback run"):
            look()
    with pytest.raises(ConfigError, match="'trian': no such stage"):
        other.folder("trian")


@pytest.mark.parametrize(
    ("name", "stage", "pattern"),
    [
        ("events", "ingest", "events/*.parquet"),
        ("recommendations", "score", "recommendations/*.parquet"),
        ("metrics", "evaluate", "metrics.json"),
        ("report", "report", "report.html"),
    ],
)
def test_a_changed_file_of_the_same_size_is_not_read(
    copied: Workdir, monkeypatch: pytest.MonkeyPatch, name: str, stage: str, pattern: str
) -> None:
    monkeypatch.chdir(copied.folder)
    run = api.open("tiny.toml")
    path = next(run.folder(stage).glob(pattern))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # may be a hard link
    path.write_bytes(content)
    with pytest.raises(DamagedArtifact, match=rf"{path.name}: is damaged: .* lookback run {stage} --force"):
        getattr(run, name)


def test_stages_are_brought_up_to_date(copied: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.folder)
    lines: list[str] = []
    untracked = {"tracking.enabled": False}
    run = api.run("tiny.toml", set=untracked, say=lines.append)
    assert [line.split()[0] for line in lines] == list(ALL)
    assert all("is up to date" in line for line in lines)
    assert run.folder("report").samefile(copied.artifact("report"))
    created = run.manifest("index")["created_utc"]
    config = load_config("tiny.toml", ["tracking.enabled=false", "train.epochs=4"])
    assert api.run(config, ["features"], say=lines.append).folder("features") == run.folder("features")
    again = api.run("tiny.toml", ["index"], set=untracked, force=True, say=lines.append)
    assert "is up to date" not in lines[-1]
    assert again.manifest("index")["created_utc"] > created


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.learning_rate", 1e-07),
        ("train.epochs", 7),
        ("evaluate.gate", True),
        ("evaluate.k", [5, 20]),
        ("events.types", {"view": 1.0, "a b": 2.5}),
        ("items.path", 'Größe "1"\\2.csv'),
        ("data_dir", Path("else where")),
    ],
)
def test_settings_arrive_as_they_were_given(opened: api.Run, key: str, value: Any) -> None:
    config = api.open("tiny.toml", set={key: value}).config
    expected = str(value) if isinstance(value, Path) else value
    expected = {"view": 1.0, "like": 1.5, "purchase": 2.0} | value if key == "events.types" else expected
    assert config.get(key) in (expected, value)


def test_settings_that_toml_has_no_word_for_are_refused(opened: api.Run) -> None:
    with pytest.raises(ConfigError, match=r"set: train\.epochs: received None, expected text, a number"):
        api.open("tiny.toml", set={"train.epochs": None})
    with pytest.raises(ConfigError, match="set: received with a Config"):
        api.open(opened.config, set={"train.epochs": 3})


def test_a_shipped_configuration_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert api.open("demo").config == api.open("demo.toml").config
    with pytest.raises(ConfigError, match=r"configuration demos: no such file"):
        api.open("demos")
    (tmp_path / "demo.toml").write_text(TINY.replace('"tiny"', '"mine"'))
    assert api.open("demo.toml").config.name == "mine"
    assert api.open("demo").config.name == "demo"
