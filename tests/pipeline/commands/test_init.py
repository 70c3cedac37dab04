"""A configuration from a look into the files: of forms of public data sets, run without an edit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.store import read_manifest
from pipeline.commands.init import find, init
from pipeline.config import load_config
from pipeline.errors import LookbackError
from pipeline.orchestration.runner import bring_up_to_date
from tests.public_forms import FORMS, NUM_ITEMS, NUM_USERS, retailrocket

EXPECTED: dict[str, dict[str, Any]] = {
    "movielens_csv": {
        "columns": {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "value": "rating"},
        "timestamp_unit": "s",
    },
    "retailrocket": {
        "columns": {
            "user_id": "visitorid",
            "item_id": "itemid",
            "timestamp": "timestamp",
            "event_type": "event",
        },
        "timestamp_unit": "ms",
    },
    "yoochoose": {"columns": {"user_id": 1, "item_id": 3, "timestamp": 2}, "timestamp_unit": "iso"},
    "diginetica": {
        "columns": {"user_id": "sessionId", "item_id": "itemId", "timestamp": "eventdate"},
        "timestamp_unit": "iso",
    },
    "lastfm_1k": {"columns": {"user_id": 1, "item_id": 3, "timestamp": 2}, "timestamp_unit": "iso"},
    "mind": {
        "columns": {"user_id": 2, "item_id": 5, "timestamp": 3},
        "timestamp_unit": "%m/%d/%Y %I:%M:%S %p",
        "items_separator": " ",
        "clicked_suffix": "-1",
    },
    "ga4": {
        "columns": {
            "user_id": "user_pseudo_id",
            "item_id": "items[].item_id",
            "timestamp": "event_timestamp",
            "event_type": "event_name",
        },
        "timestamp_unit": "us",
    },
    "beauty": {"columns": {"user_id": 1, "item_id": 2}, "timestamp_unit": "position"},
}
NUM_EVENTS = dict.fromkeys(EXPECTED, NUM_USERS * 20) | {"ga4": NUM_USERS * 40, "beauty": 237}


def run(config_path: Path, folder: Path, *stages: str, **keys: Any) -> dict[str, Any]:
    """The manifest of ingest after running stages."""
    overrides = [f"data_dir={json.dumps(str(folder / 'data'))}", "tracking.enabled=false"]
    config = load_config(config_path, [*overrides, *(f"{key}={value}" for key, value in keys.items())])
    bring_up_to_date(config, list(stages), force=False, show_progress=False, say=lambda _: None)
    return read_manifest((config.folder / "ingest" / "latest").resolve())


@pytest.mark.parametrize("name", FORMS)
def test_a_public_form_runs_without_an_edit(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = FORMS[name](tmp_path)
    target = tmp_path / "my.toml"
    init(files, target, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {key: found["events"].get(key) for key in EXPECTED[name]} == EXPECTED[name]
    assert len(found["rows"]) == 3
    manifest = run(target, tmp_path, "ingest")
    assert (manifest["rows_out"], manifest["rows_refused"]) == (NUM_EVENTS[name], 0)
    tables = {"movielens_csv", "mind", "beauty"}
    assert (manifest.get("items_table", {}).get("rows_out") == NUM_ITEMS) == (name in tables)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_public_form_becomes_histories(name: str, tmp_path: Path) -> None:
    init(FORMS[name](tmp_path), tmp_path / "my.toml", as_json=False)
    assert run(tmp_path / "my.toml", tmp_path, "features")["rows_out"] == NUM_EVENTS[name]


@pytest.mark.parametrize(
    ("folder", "files", "num_events"),
    [
        ("ml-100k", ["u.data", "u.item", "u.user"], 100_000),
        ("ml-1m", ["ratings.dat", "movies.dat", "users.dat"], 1_000_209),
        ("ta-feng", ["ta_feng_all_months_merged.csv.gz"], 817_741),
        ("deskdrop", ["users_interactions.csv"], 72_312),
        ("beauty", ["events.csv", "item_attributes.json"], 198_502),
    ],
)
@pytest.mark.slow
def test_real_logs_run_without_an_edit(
    folder: str, files: list[str], num_events: int, public_data: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = [public_data(folder) / file for file in files]
    init(paths, tmp_path / "my.toml", as_json=False)
    manifest = run(tmp_path / "my.toml", tmp_path, "features")
    assert manifest["rows_out"] == num_events
    assert all(f"{kind}_table" in manifest for kind in ("items", "users")[: len(files) - 1])


def test_what_is_not_certain_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,date\n" + "".join(f"{n % 7},{n % 5},0{n % 9 + 1}/05/2020\n" for n in range(40))
    )
    init([path], tmp_path / "my.toml", as_json=False)
    assert "is one of several that fit: are days and months right?" in capsys.readouterr().out
    assert "# Not certain: date:" in (tmp_path / "my.toml").read_text()


def test_words_for_nothing_among_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = "".join(f"{n % 7 if n % 90 else 'NA'},{n % 5},{1_500_000_000 + n}\n" for n in range(200))
    path.write_text("user,item,ts\n" + rows)
    assert find([path]).events["missing"] == ["", "NA"]


def test_parts_of_one_log(tmp_path: Path) -> None:
    """All files of their kind in a folder are a pattern, and tomorrow's file is read too; of some of them the list."""
    folder = tmp_path / "logs [2026]"
    folder.mkdir()
    (path,) = retailrocket(folder)
    lines = path.read_text().splitlines(keepends=True)
    more = folder / "more.csv"
    more.write_text("".join(lines[:11]))
    init([path, more], tmp_path / "shop.toml", as_json=False)
    assert load_config(tmp_path / "shop.toml", ()).name == "shop"
    assert run(tmp_path / "shop.toml", tmp_path, "ingest")["rows_out"] == NUM_EVENTS["retailrocket"] + 10
    (folder / "tomorrow.csv").write_text("".join(lines[:6]))
    assert find([path, more]).events["path"] == [str(path), str(more)]
    assert run(tmp_path / "shop.toml", tmp_path, "ingest")["rows_out"] == NUM_EVENTS["retailrocket"] + 15


def test_a_single_file_says_how_later_ones_are_read(tmp_path: Path) -> None:
    (path,) = retailrocket(tmp_path)
    init([path], tmp_path / "shop.toml", as_json=False)
    comment = f'# With later files of the same form: path = "{tmp_path}/*.csv"'
    assert comment in (tmp_path / "shop.toml").read_text().splitlines()
    assert find([path]).events["path"] == str(path)


def test_nothing_is_overwritten_and_no_log_is_one_message(tmp_path: Path) -> None:
    (path,) = retailrocket(tmp_path)
    target = tmp_path / "my.toml"
    target.write_text("mine")
    with pytest.raises(LookbackError, match="nothing is overwritten"):
        init([path], target, as_json=False)
    assert target.read_text() == "mine"
    (tmp_path / "notes.csv").write_text("a,b\nx y,0.5\nz w,1.5\n")
    with pytest.raises(LookbackError, match="no file has a column for users and one for items"):
        find([tmp_path / "notes.csv"])
    with pytest.raises(LookbackError, match="is no file"):
        find([tmp_path])
