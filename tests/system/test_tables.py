"""Tables of items and users on their way through ingest and features."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts.store import read_manifest
from pipeline.config import load_config
from pipeline.orchestration.runner import bring_up_to_date

EVENTS = "u,i,t\n" + "".join(
    f"{user},{item},{1_600_000_000 + user * 60 + item}\n" for user in range(20) for item in (10, 20, 30)
)


class Shop:
    """A log and tables in one folder, and the stages over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("items", "users"):
            (folder / name).mkdir()
        (folder / "log.csv").write_text(EVENTS)
        (folder / "shop.toml").write_text(f"""
name = "shop"
data_dir = "{folder}/data"
[events]
path = "{folder}/log.csv"
columns = {{ user_id = "u", item_id = "i", timestamp = "t" }}
max_refused_fraction = 0.5
[items]
path = "{folder}/items"
columns = {{ item_id = "id", title = "name" }}
[users]
path = "{folder}/users"
columns = {{ user_id = "id", age = "age" }}
[tracking]
enabled = false
""")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, stage: str) -> Path:
        """The folder of the up-to-date artifact."""
        config = load_config(self.folder / "shop.toml")
        bring_up_to_date(config, [stage], force=False, show_progress=False, say=lambda _: None)
        return (self.folder / "data" / "shop" / stage / "latest").resolve()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop with items 10, 20 and 30 in the log, of which the table has 20 (twice), and 5 and 25, which nobody has seen."""
    shop = Shop(tmp_path)
    shop.write("items/a.csv", "id,name\n20,twenty\n5,five\n,none\n")
    shop.write("items/b.csv", "id,name\n20,again\n25,\nx,bad\n")
    shop.write("users/a.csv", "id,age\n3,33\n99,9\n3,44\n")
    return shop


def test_every_row_of_a_table_is_accounted_for(shop: Shop) -> None:
    folder = shop.run("ingest")
    manifest = read_manifest(folder)
    said = manifest["items_table"]
    assert (said["rows_in"], said["rows_out"]) == (6, 3)
    assert said["rows_left_out"] == {"missing_item": 1, "bad_item": 1, "duplicate": 1}
    assert pl.read_parquet(folder / "items.parquet").rows() == [(20, "twenty"), (5, "five"), (25, None)]
    assert pl.read_parquet(folder / "users.parquet").rows() == [(3, "33"), (99, "9")]
    assert manifest["users_table"]["rows_left_out"] == {"duplicate": 1}


def test_a_cold_item_keeps_its_place_and_a_known_one_needs_no_row(shop: Shop) -> None:
    folder = shop.run("features")
    table = pl.read_parquet(folder / "items.parquet")
    assert table.select("item_index", "item_id", "num_events", "title").rows() == [
        (1, 5, 0, "five"),
        (2, 10, 20, None),
        (3, 20, 20, "twenty"),
        (4, 25, 0, None),
        (5, 30, 20, None),
    ]
    assert read_manifest(folder)["num_items"] == 5


def test_the_first_file_by_name_counts_also_when_contents_change_places(shop: Shop) -> None:
    first = shop.run("ingest")
    texts = [(shop.folder / "items" / name).read_text() for name in ("a.csv", "b.csv")]
    shop.write("items/a.csv", texts[1])
    shop.write("items/b.csv", texts[0])
    second = shop.run("ingest")
    assert second != first
    assert pl.read_parquet(second / "items.parquet").rows() == [(20, "again"), (25, None), (5, "five")]
