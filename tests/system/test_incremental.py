"""Night after night equals from zero: whatever comes late, twice, out of order, changed or in another form.

LOOKBACK_EXAMPLES=1000 for more examples in the slow test.
"""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from features import schema
from features.events import validation
from pipeline.artifacts.store import read_manifest
from pipeline.config import load_config
from pipeline.errors import LookbackError
from pipeline.orchestration.runner import bring_up_to_date

START = 1_600_000_000
COLUMNS = ("user", "item", "at", "kind", "worth")
FORMS = ("csv", "csv.gz", "jsonl", "jsonl.gz")
MANY_EXAMPLES = int(os.environ.get("LOOKBACK_EXAMPLES", "40"))

Row = tuple[str, str, str, str, str]
FIRST: list[Row] = [
    (user, item, str(START + 500 * number), "view", "3")
    for number, (user, item) in enumerate([("1", "10"), ("2", "11"), ("1", "11")] * 2)
]


@dataclass(frozen=True)
class Delivery:
    """One night: a file that is written (again), or removed."""

    name: str
    content: bytes | None


@st.composite
def rows(draw: st.DrawFn, text_ids: bool) -> Row:
    """A row as text, most of them events; some are those of the first night again."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(FIRST))
    users = [str(number) for number in range(1, 7)] + ["", "17850.0"] + (["007", "Zoë"] if text_ids else [])
    worth = draw(st.sampled_from(["", "1", "2.5", "many"]))
    at = draw(st.sampled_from([str(START + 1000 * n) for n in range(8)] + ["soon", "", "99"]))
    kind = draw(st.sampled_from(["view", "like", "ad", ""]))
    return draw(st.sampled_from(users)), draw(st.sampled_from(["10", "11", "12", "013"])), at, kind, worth


def as_file(table: list[Row], form: str, broken: bool) -> bytes:
    """Rows as the bytes of a file."""
    if form.startswith("csv"):
        lines = [",".join(COLUMNS), *(",".join(row) for row in table), *(["1,10"] if broken else [])]
    else:
        lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in table] + ["{"] * broken
    content = "".join(f"{line}\n" for line in lines).encode()
    return gzip.compress(content, mtime=0) if form.endswith("gz") else content


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[Delivery]]:
    """Nights of deliveries; the first has a file from which every log can be learned."""
    text_ids = draw(st.booleans())
    nights = [[Delivery("day0.csv", as_file(FIRST, "csv", broken=False))]]
    written: list[bytes] = []
    for _ in range(draw(st.integers(1, 4))):
        night = []
        for _ in range(draw(st.integers(0, 2))):
            form = draw(st.sampled_from(FORMS))
            table = draw(st.lists(rows(text_ids), max_size=8))
            content = as_file(table, form, draw(st.booleans()))
            name = f"day{draw(st.integers(1, 3))}.{form}"  # a name that comes again is a file that changed
            night.append(Delivery(name, content))
            written.append(content)
            if draw(st.integers(0, 3)) == 0:
                night.append(Delivery(f"again-{name}", content))
        if draw(st.integers(0, 5)) == 0:
            night.append(Delivery(f"day{draw(st.integers(1, 3))}.{draw(st.sampled_from(FORMS))}", None))
        nights.append(night)
    return nights


SETTINGS = st.fixed_dictionaries(
    {
        "events.duplicates": st.sampled_from(["keep", "drop"]),
        "events.types": st.sampled_from(["", "{view=1, like=2}"]),
        "events.min_value": st.sampled_from(["", "2"]),
        "events.id_types": st.sampled_from(["auto", "auto", "string", "int64"]),
        "exclude": st.sampled_from([[], [], ["3"], ["4", "Zoë", "007"]]),
    }
)


class Log:
    """A folder of files and the pipeline over it."""

    def __init__(self, folder: Path, chosen: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "log").mkdir(parents=True)
        names = ("user_id", "item_id", "timestamp", "event_type", "value")
        columns = ", ".join(f'{ours} = "{theirs}"' for ours, theirs in zip(names, COLUMNS, strict=True))
        columns += ', channel = "kind", price = "worth"'  # further columns
        overrides = [f"{key}={value}" for key, value in chosen.items() if value and key != "exclude"]
        if chosen["exclude"]:
            pl.DataFrame({"user_id": chosen["exclude"]}).write_parquet(folder / "forget.parquet")
            overrides.append(f"events.exclude_users={folder}/forget.parquet")
        (folder / "log.toml").write_text(
            f'name = "log"\ndata_dir = "{folder}/data"\n[events]\npath = "{folder}/log"\ncolumns = {{ {columns} }}\n'
            'max_refused_fraction = 1.0\n[split]\nprotocol = "leave_one_out"\n[tracking]\nenabled = false\n'
        )
        self._config = load_config(folder / "log.toml", overrides)

    def receive(self, delivery: Delivery) -> None:
        path = self.folder / "log" / delivery.name
        if delivery.content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(delivery.content)

    def run(self, stage: str, *, force: bool = False) -> Path:
        """Bring a stage up to date; its folder."""
        done = bring_up_to_date(self._config, [stage], force=force, show_progress=False, say=lambda _: None)
        return Path(done[-1]["folder"])

    def night(self) -> Path:
        """Ingest; where a new file has other ids than all before, as the message says."""
        try:
            return self.run("ingest")
        except LookbackError as stopped:
            if "events.id_types" not in str(stopped):
                raise
            return self.run("ingest", force=True)


def sorted_rows(artifact: Path, name: str) -> pl.DataFrame:
    keys = [schema.SOURCE_FILE, schema.SOURCE_ROW]
    if name == "events":
        return (
            validation.scan(artifact / name)
            .with_columns(pl.col("event_type").cast(pl.String))
            .sort(keys)
            .collect()
        )
    return pl.read_parquet(artifact / name / "*.parquet").drop(schema.SOURCE_PATH).sort(keys)


def counts(artifact: Path) -> dict[str, Any]:
    manifest = read_manifest(artifact)
    names = ("rows_in", "rows_out", "rows_left_out", "rows_refused", "id_types")
    sources = [
        {name: value for name, value in source.items() if name != "paths"}  # where it was seen first
        for source in manifest["sources"]
    ]
    return {name: manifest[name] for name in names} | {"sources": sources}


def arrays(artifact: Path) -> dict[str, bytes]:
    """Every file of the features stage but those that hold times of the clock."""
    files = {path.relative_to(artifact).as_posix(): path for path in artifact.rglob("*") if path.is_file()}
    found = {name: np.load(path).tobytes() for name, path in files.items() if path.suffix == ".npy"}
    tables = {name: path for name, path in files.items() if path.suffix == ".parquet"}
    return found | {name: pl.read_parquet(path).write_ndjson().encode() for name, path in tables.items()}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


without_shrinking = settings(
    phases=(Phase.reuse, Phase.generate),  # making a failure small would take minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@settings(without_shrinking, max_examples=MANY_EXAMPLES)
@given(nights=deliveries(), chosen=SETTINGS)
def test_many_nights_equal_from_zero(
    place: Path, nights: list[list[Delivery]], chosen: dict[str, Any]
) -> None:
    nightly_equals_from_zero(place, nights, chosen)


@pytest.mark.slow
@settings(without_shrinking, max_examples=4)
@given(nights=deliveries(), chosen=SETTINGS)
def test_incremental_equals_from_zero(
    place: Path, nights: list[list[Delivery]], chosen: dict[str, Any]
) -> None:
    nightly_equals_from_zero(place, nights, chosen)


def nightly_equals_from_zero(place: Path, nights: list[list[Delivery]], chosen: dict[str, Any]) -> None:
    for folder in ("nightly", "zero"):
        shutil.rmtree(place / folder, ignore_errors=True)
    nightly, zero = Log(place / "nightly", chosen), Log(place / "zero", chosen)
    for night in nights:
        for delivery in night:
            nightly.receive(delivery)
        one = nightly.night()
    for path in sorted((place / "nightly" / "log").iterdir(), reverse=True):
        zero.receive(Delivery(path.name, path.read_bytes()))
    other = zero.run("ingest")
    for name in ("events", "quarantine"):
        assert sorted_rows(one, name).equals(sorted_rows(other, name))
    assert counts(one) == counts(other)
    assert arrays(nightly.run("features")) == arrays(zero.run("features"))
