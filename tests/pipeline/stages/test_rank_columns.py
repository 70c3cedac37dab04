"""Columns of users and items from their tables to the lists: what rank writes, what bundle and scoring do with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models import checkpoint
from pipeline.modelling.ranker_columns import RankerColumns
from pipeline.serving.bundle import Bundle
from tests.workdir import Workdir

USERS = """
[users]
path = "users.csv"
columns = { user_id = "user", group = "group", number = "number", same = "same" }
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def with_users(copied: Workdir) -> Workdir:
    """Finished run to which a users' table came, and prices of items."""
    events = pl.read_csv(
        next((copied.folder / "data").rglob("raw/events.csv")), truncate_ragged_lines=True, infer_schema=False
    )
    users = events["user_id"].drop_nulls().unique().sort()
    number = np.arange(len(users))
    table = {
        "user": users,
        "group": [f"g{n % 3}" for n in number],
        "number": number + 1000,
        "same": ["x"] * len(users),
    }
    pl.DataFrame(table).write_csv(copied.folder / "users.csv")
    items = next((copied.folder / "data").rglob("raw/items.csv"))
    priced = pl.read_csv(items, infer_schema=False).with_row_index("row")
    priced.with_columns(price=pl.col("row") / 4).drop("row").write_csv(copied.folder / "priced.csv")
    path = copied.folder / copied.config
    text = path.read_text().replace("{data_dir}/{name}/raw/items.csv", "priced.csv")
    path.write_text(
        text.replace('categories = "categories" }', 'categories = "categories", price = "price" }') + USERS
    )
    return copied


@pytest.mark.slow
def test_columns_from_the_tables_to_the_lists(with_users: Workdir) -> None:
    columns = 'ranker.columns=["group","price","number","same"]'
    settings = ("--set", columns, "--set", "ranker.use=always")
    said = with_users("run", "score", *settings)
    assert said.code == 0, said.err
    unused = "users.number (a value of its own in every row), users.same (a single value)"
    expected = f"columns: users.group, items.price, left out {unused}"
    assert expected in said.out
    rank, publish, evaluate = (
        with_users.artifact(stage, *settings) for stage in ("rank", "publish", "evaluate")
    )
    facts = read(rank / "ranker.json")["columns"]
    assert facts["taken"] == ["users.group", "items.price"]
    assert set(facts["importance"]) == {*facts["taken"]}
    assert RankerColumns.load(rank).labels == ("users.group", "items.price")
    assert expected in read(evaluate / "metrics.json")["ranker"]["reason"]
    bundle = Bundle.open(publish / "bundle")
    assert bundle.second_stage is not None
    tables = bundle.second_stage.columns
    assert tables is not None
    assert tables.users.shape == (len(bundle.users) + 1, 1)
    assert len(np.unique(tables.users[:-1])) == 3
    assert tables.items.shape == (len(bundle.items) + 2, 1)
    assert len(np.unique(tables.items[1:-1])) > 10
    score = read(with_users.artifact("score", *settings) / "manifest.json")
    assert score["ranker_columns_unseen"] == {"users.group": 0, "items.price": 0}
    recommended = with_users("recommend", "--user", str(bundle.users.ids[0]), *settings)
    assert recommended.code == 0, recommended.err


@pytest.mark.slow
def test_auto_says_what_it_found(with_users: Workdir) -> None:
    setting = ("--set", "ranker.columns=auto")
    with_users.run("rank", *setting)
    folder = with_users.artifact("rank", *setting)
    facts = read(folder / "ranker.json")["columns"]
    assert facts["setting"] == "auto"
    assert set(facts["left_out"]) == {"users.number", "users.same"}
    assert set(facts["importance"]) == {"users.group", "items.categories", "items.price"}
    assert (facts["gain"]["low"] > 0) == bool(facts["taken"]) == (folder / "columns.json").exists()
    assert (checkpoint.load_ranker(folder).columns is not None) == bool(facts["taken"])


def test_an_unknown_column_is_refused_before_anything_runs(workdir: Workdir) -> None:
    said = workdir("run", "rank", "--set", 'ranker.columns=["brand"]')
    assert said.code == 2
    assert (
        "ranker.columns: received 'brand', expected auto or columns of [users] and [items], or further ones of [events]: "
        "items.categories" in said.err
    )


@pytest.fixture
def with_devices(copied: Workdir) -> Workdir:
    """Finished run whose log has a device, which decides what is taken, a column of noise and one of nulls."""
    path = next((copied.folder / "data").rglob("raw/events.csv"))
    header, *lines = path.read_text().splitlines()
    item = header.split(",").index("item_id")
    random = np.random.default_rng(0)
    table = [f"{header},device,noise,nothing"]
    for line in lines:
        fields = line.split(",")
        number = sum(map(ord, fields[item])) if len(fields) > item else 0
        table.append(f"{line},{('phone', 'tv', 'watch')[number % 3]},n{random.integers(4)},")
    (copied.folder / "events.csv").write_text("\n".join(table) + "\n")
    config = copied.folder / copied.config
    text = config.read_text().replace("{data_dir}/{name}/raw/events.csv", "events.csv")
    further = ', device = "device", noise = "noise", nothing = "nothing" }'
    config.write_text(text.replace('event_type = "event_type" }', 'event_type = "event_type"' + further))
    return copied


@pytest.mark.slow
def test_columns_of_events_from_the_log_to_the_lists(with_devices: Workdir) -> None:
    settings = ("--set", 'ranker.columns=["device", "nothing"]', "--set", "ranker.use=always")
    said = with_devices("run", "score", *settings)
    assert said.code == 0, said.err
    assert "columns: events.device, left out events.nothing (no value)" in said.out
    publish = with_devices.artifact("publish", *settings)
    bundle = Bundle.open(publish / "bundle")
    stage = bundle.second_stage
    assert stage is not None
    assert stage.columns is not None
    assert stage.columns.events is not None
    assert len(np.unique(stage.columns.events.values(bundle.known_histories))) == 3
    assert len(np.unique(stage.columns.events.values(bundle.from_ids([["1001"]])[0]))) == 1, (
        "a typed one has none"
    )
    unknown = bundle.rows_of(["nobody"])[0]
    assert unknown.context is not None
    assert not unknown.context.any()
    score = read(with_devices.artifact("score", *settings) / "manifest.json")
    assert score["ranker_columns_unseen"] == {"events.device": 0}
    for asked in (("--user", str(bundle.users.ids[0])), ("--history", str(bundle.items.ids[0]))):
        recommended = with_devices("recommend", *asked, *settings)
        assert recommended.code == 0, recommended.err
    # the champion's ranker reads a later log, whose codes are others: of a device that it does not know
    log = with_devices.folder / "events.csv"
    log.write_text(log.read_text().replace(",phone,", ",camera,"))
    champion = (*settings, "--set", "score.model=champion")
    later = with_devices("run", "score", *champion)
    assert later.code == 0, later.err
    unseen = read(with_devices.artifact("score", *champion) / "manifest.json")["ranker_columns_unseen"]
    assert 0 < unseen["events.device"] < len(bundle.users), "the last device of some users"
