"""`lookback compare --lists` on fabricated scorings: which lists a name means, text, JSON and page."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts.files import read_json, write_json
from pipeline.commands.compare_lists import compare_lists
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError
from pipeline.serving import scored_lists
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import Version
from tests.pipeline.stages.test_report import Page

HOSTILE = "<script>alert('&')</script>"
VERSIONS = {
    f"models:/lookback-small/{number}": Version("lookback-small", number, f"d{number}", "", "")
    for number in (1, 2, 3)
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Configuration with versions 1 to 3, of which 1 and 2 have lists of the log "new"."""
    tables: dict[str, Any] = {"name": "small", "data_dir": str(tmp_path)}
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    config = Config.model_validate(tables | {"events": {"path": "no.csv", "columns": columns}})
    monkeypatch.setattr(Registry, "resolve", lambda _, uri: VERSIONS[uri])
    for log in ("old", "new"):
        folder = config.folder / "features" / log
        folder.mkdir(parents=True)
        items = {"item_id": [1, 2, 3], "title": ["one", "two", HOSTILE], "num_events": [3, 2, 1]}
        pl.DataFrame(items).write_parquet(folder / "items.parquet")
    (config.folder / "ingest" / "new").mkdir(parents=True)
    providers = pl.DataFrame({"item_id": [3, 2], "provider": ["P", "P"]})
    providers.write_parquet(config.folder / "ingest" / "new" / "items.parquet")
    scored(config, "a", "d1", [1, 2], created="2026-01-01", log="old")
    scored(config, "b", "d1", [1, 2], created="2026-01-02")
    scored(config, "c", "d2", [1, 3], created="2026-01-02")
    scored(config, "d", "d1", [2, 1], created="2026-01-03", log="old")
    return config


def scored(
    config: Config, name: str, digest: str, items: list[int], *, created: str, log: str = "new", **inputs: str
) -> Path:
    folder = config.folder / "score" / name
    (folder / "recommendations").mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    write_json(
        folder / "manifest.json",
        {
            "bundle_digest": digest,
            "created_utc": created,
            "inputs": {"features": log, "ingest": log} | inputs,
            "settings": {"score.k": 2},
        },
    )
    users = [10, 20]
    table = pl.DataFrame({"user_id": users, "item_id": [items] * 2, "rank": [[1, 2]] * 2}).explode(
        "item_id", "rank"
    )
    table.write_parquet(folder / "recommendations" / "part-00000.parquet")
    return folder


def test_the_newest_lists_of_the_same_log_are_compared(config: Config, capsys: pytest.CaptureFixture[str]):
    compare_lists(config, ["1", "2"], as_json=True)
    tree = json.loads(capsys.readouterr().out)
    assert (tree["before"], tree["after"], tree["other_reasons"]) == ("version 1", "version 2", [])
    assert (tree["changes"]["users"], tree["changes"]["changed"]) == (2, 2)
    assert tree["changes"]["places"]["item"]["lost"] == [{"value": "two", "before": 2, "after": 0}]
    assert tree["changes"]["places"]["provider"] == {"gained": [], "lost": []}, "3 instead of 2, both of P"
    assert tree["metric"] is None


def test_other_reasons_than_the_model_are_named(config: Config):
    of_one_log = scored_lists.of_bundle(config, "d1")[1:2]
    first, second = scored_lists.newest_pair(scored_lists.of_bundle(config, "d1"), of_one_log)
    assert (first.folder.name, second.folder.name) == ("b", "b")
    denied = scored(config, "e", "d3", [1, 2], created="2026-01-04", deny="digest")
    pair = scored_lists.of_pair(config, "1", str(denied))
    assert pair[0].folder.name == "d", "no pair of the same log and settings: the newest of each"
    assert scored_lists.differing(*pair) == ["the log", "score.deny"]


def test_lists_by_the_arms_of_an_experiment_are_of_no_bundle(config: Config):
    before = [lists.folder.name for lists in scored_lists.of_bundle(config, "d1")]
    folder = scored(config, "f", "d1", [1, 2], created="2026-01-05")
    manifest = read_json(folder / "manifest.json")
    assert [lists.folder.name for lists in scored_lists.of_bundle(config, "d1")] == ["f", *before]
    write_json(folder / "manifest.json", manifest | {"experiment": {"name": "e", "arms": []}})
    assert [lists.folder.name for lists in scored_lists.of_bundle(config, "d1")] == before


def test_text_and_page(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "lists.html"
    compare_lists(config, ["b", str(config.folder / "score" / "c")], as_json=False, html=page)
    text = capsys.readouterr().out
    assert text.splitlines()[:2] == [
        "b -> c",
        "2 of 2 users get another list (100.0%), 2 of them other items.",
    ]
    assert "user 10, overlap" in text
    shown = Page(page.read_text(encoding="utf-8"))
    assert "2 of 2 users get another list" in shown.text
    assert HOSTILE in shown.text, "escaped: text, no tag"


def test_names_without_lists_are_refused(config: Config):
    with pytest.raises(
        LookbackError,
        match=r"models:/lookback-small/3 has no finished lists.*score.model=models:/lookback-small/3",
    ):
        compare_lists(config, ["1", "3"], as_json=False)
    for named in (["1"], ["1", "2", "3"]):
        with pytest.raises(ConfigError, match=f"received {len(named)} names, expected two versions"):
            compare_lists(config, named, as_json=False)
    with pytest.raises(ConfigError, match="and no configuration"):
        compare_lists(None, ["1", "2"], as_json=False)
