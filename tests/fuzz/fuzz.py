"""Damaged logs and item tables through the readers: no traceback, no hang, no row that ends nowhere.

python tests/fuzz/fuzz.py --cases 10000 --seed 0

Each case takes the head of a real file (where LOOKBACK_SHARED_DATA or data/raw has it) or a generated one, damages its bytes
and reads it. A case is told by seed and number: `--first 1234 --cases 1` runs it again.
"""

import argparse
import bz2
import contextlib
import gzip
import io
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features import schema, tables
from features.events import row_counts, side_tables, validation, verdicts
from features.events.event_format import EventFormat
from features.events.item_content import ItemFormat
from features.readers import dialect, json_shapes, parquet, sources
from features.schema import IdType
from features.settings import EventSettings, TableFormat, iso_microseconds
from tests.fuzz import dialects

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    ROOT / "data" / "raw",
    Path(os.environ.get("LOOKBACK_SHARED_DATA", ROOT / ".." / "shared" / "data")),
)
SECONDS_PER_CASE = 20
LONGEST_MESSAGE_LINES = 8
LATEST = 2_000_000_000 * 10**6
NUM_LINES = 40
DIALECT_SHARE = 0.3
"""Share of cases in a random dialect; half of these are whole, and every record must be found."""


@dataclass(frozen=True)
class Origin:
    """A whole file and how it is to be read."""

    name: str
    content: bytes
    form: EventFormat | ItemFormat | TableFormat
    """Of a log, of items, of users."""
    num_rows: int | None = None
    """Number of records, where whoever wrote it knows."""


def columns(**names: str | int) -> dict[str, str | int]:
    """A mapping of columns."""
    return names


def log_format(names: dict[str, str | int], unit: str = "s", **settings: Any) -> EventFormat:
    """A log's format with the given settings of its table."""
    return EventFormat(EventSettings("log", columns=names, timestamp_unit=unit, **settings), latest=LATEST)


def real_files() -> list[Origin]:
    """The heads of the public data sets that are there."""
    rating = columns(user_id=1, item_id=2, value=3, timestamp=4)
    crowd = columns(user_id="personId", item_id="contentId", timestamp="timestamp", event_type="eventType")
    beauty = columns(user_id="user_id", item_id="item_id", timestamp="position")
    movies = columns(item_id=1, title=2, categories=3)
    people = columns(user_id=1, gender=2)
    known: dict[str, EventFormat | ItemFormat | TableFormat] = {
        "ml-1m/ratings.dat": log_format(rating, separator="::", header=False),
        "ml-100k/u.data": log_format(rating, separator="\t", header=False),
        "beauty/events.csv": log_format(beauty, unit="position"),
        "deskdrop/users_interactions.csv": log_format(crowd),
        "ml-1m/movies.dat": ItemFormat(
            TableFormat("items", movies, separator="::", header=False, encoding="latin-1")
        ),
        "ml-1m/users.dat": TableFormat("users", people, separator="::", header=False),
    }
    found = []
    for name, form in known.items():
        path = next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
        if path is not None:
            with path.open("rb") as file:
                content = b"".join(file.readline() for _ in range(NUM_LINES))
            found.append(Origin(path.name, content, form))
    return found


NAMES = columns(user_id="u", item_id="i", timestamp="t", event_type="e", value="v")
ITEM_NAMES = columns(item_id="i", title="e", embedding="v")
TREES = columns(user_id="user.id", item_id="i", timestamp="t", event_type="e", value="x.y.v")


def made_files() -> list[Origin]:
    """Generated logs and tables of every format."""
    rng = random.Random(0)
    rows = [
        {
            "u": rng.choice([rng.randrange(100), -5, 2**63 - 1]),
            "i": rng.choice(
                [f"{n}" for n in range(30)] + ["007", "17850.0", "", "é", 'a "b"', "x,y", "a\nb"]
            ),
            "t": rng.choice([1_600_000_000, 1_465_413_032]),
            "e": rng.choice(["view", "buy", None]),
            "v": rng.choice([1.5, 2.0, None, 1e-3]),
        }
        for _ in range(NUM_LINES)
    ]
    frame = pl.DataFrame(rows)
    csv = frame.write_csv().encode()
    plain = [{**row, "i": index} for index, row in enumerate(rows)]
    flat = "\n".join(map(json.dumps, rows)).encode()
    deep = "\n".join(
        json.dumps(
            {"user": {"id": row["u"]}, "x": {"y": {"v": row["v"]}}, "z": [1, {}], **row}, ensure_ascii=False
        )
        for row in rows
    ).encode()
    iso = [{**row, "t": f"2016-06-08T19:10:{index % 60:02}.5Z"} for index, row in enumerate(plain)]
    things = [
        {"item_id": row["i"], "title": row["e"], "categories": ["a", "b"], "embedding": [1.5, 2]}
        for row in plain
    ]
    return [
        Origin("quoted.csv", csv, log_format(NAMES)),
        Origin("plain.csv", pl.DataFrame(plain).write_csv().encode(), log_format(NAMES)),
        Origin("crlf.csv", pl.DataFrame(plain).write_csv(line_terminator="\r\n").encode(), log_format(NAMES)),
        Origin("latin.csv", csv.decode().encode("latin-1"), log_format(NAMES, encoding="latin-1")),
        Origin("bars.txt", csv.replace(b",", b"||"), log_format(NAMES, separator="||")),
        Origin("iso.csv", pl.DataFrame(iso).write_csv().encode(), log_format(NAMES, unit="iso")),
        Origin(
            "pattern.csv",
            pl.DataFrame(iso).write_csv().encode(),
            log_format(NAMES, unit="%Y-%m-%dT%H:%M:%S%.fZ"),
        ),
        Origin("flat.jsonl", flat, log_format(NAMES)),
        Origin("deep.ndjson", deep, log_format(TREES)),
        Origin("iso.jsonl", "\n".join(map(json.dumps, iso)).encode(), log_format(NAMES, unit="iso")),
        Origin("latin.jsonl", deep.decode().encode("latin-1"), log_format(TREES, encoding="latin-1")),
        *(Origin(f"{kind}.parquet", _parquet(frame, kind), log_format(NAMES)) for kind in ("snappy", "none", "zstd")),
        Origin("typed.parquet", _parquet(_typed(pl.DataFrame(plain)), "lz4"), log_format(NAMES)),
        Origin("items.csv", pl.DataFrame(plain).write_csv().encode(), ItemFormat(TableFormat("items", ITEM_NAMES))),
        Origin("items.jsonl", "\n".join(map(json.dumps, things)).encode(), ItemFormat(TableFormat("items", {}))),
        Origin("items.json", json.dumps({row["i"]: [1, 2] for row in plain}).encode(), ItemFormat(TableFormat("items", {}))),
        Origin("items.parquet", _parquet(pl.DataFrame(things), "zstd"), ItemFormat(TableFormat("items", {}))),
        Origin("users.jsonl", flat, TableFormat("users", columns(user_id="u", kind="e"))),
    ]  # fmt: skip


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        pl.col("u").cast(pl.Decimal(38, 0)),
        pl.from_epoch("t").cast(pl.Datetime("ns", "Europe/Berlin")),
        pl.col("e").cast(pl.Categorical()),
        pl.col("v").cast(pl.Decimal(10, 3)),
    )


def _parquet(frame: pl.DataFrame, compression: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(frame.to_arrow(), buffer, compression=compression, row_group_size=15)
    return buffer.getvalue()


# --- damage ---

PIECES = [
    b'"', b'""', b"\n", b"\r\n", b"\r", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b"\xc3", b"\xed\xa0\x80",
    b",", b"::", b"\t", b";", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800", b"null", b"NaN", b"-", b"+", b".", b" ",
    b"1e300", b"1e-400", b"9" * 40, b"-9223372036854775808", b"18446744073709551615", b"9223372036854775807", b"0" * 400,
    b"1" * 5000, b"9999-12-31T23:59:59Z", b"2016-13-41", b"+99:99", b"\x1f", b"\x1c", "é".encode(), "\u2028".encode(),
    b"[" * 2000, b'{"a":' * 500,
]  # fmt: skip


def _place(rng: random.Random, content: bytearray) -> int:
    return rng.randrange(len(content) + 1)


def _flip(rng: random.Random, content: bytearray) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _put(rng: random.Random, content: bytearray) -> None:
    place = _place(rng, content)
    content[place:place] = rng.choice(PIECES)


def _overwrite(rng: random.Random, content: bytearray) -> None:
    place, piece = _place(rng, content), rng.choice(PIECES)
    content[place : place + len(piece)] = piece


def _noise(rng: random.Random, content: bytearray) -> None:
    place = _place(rng, content)
    content[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))


def _delete(rng: random.Random, content: bytearray) -> None:
    place = _place(rng, content)
    del content[place : place + rng.choice([1, 1, 5, 50])]


def _copy(rng: random.Random, content: bytearray) -> None:
    first, place = _place(rng, content), _place(rng, content)
    content[place:place] = content[first : first + rng.choice([1, 10, 100, 1000])]


def _cut(rng: random.Random, content: bytearray) -> None:
    del content[_place(rng, content) :]


def _swap(rng: random.Random, content: bytearray) -> None:
    """One piece of text for another, everywhere or once."""
    old, new = rng.sample([b",", b"::", b"\t", b"||", b"\n", b"\r\n", b'"', b":", b"1", b"null", b" "], 2)
    content[:] = content.replace(old, new, rng.choice([-1, 1, 3]))


DAMAGES: list[Callable[[random.Random, bytearray], None]] = [
    _flip, _flip, _put, _put, _put, _overwrite, _noise, _delete, _copy, _cut, _swap
]  # fmt: skip

PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda content: gzip.compress(content, 1),
    ".bz2": lambda content: bz2.compress(content, 1),
    ".zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}


def damaged(rng: random.Random, content: bytes, times: int) -> bytes:
    """A content with some damage."""
    changed = bytearray(content)
    for _ in range(times):
        rng.choice(DAMAGES)(rng, changed)
    return bytes(changed)


def case(rng: random.Random, origins: list[Origin]) -> Origin:
    """A damaged file, perhaps compressed, perhaps in several pieces, perhaps damaged once it is."""
    if rng.random() < DIALECT_SHARE:
        written = dialects.write(rng, rng.randint(1, NUM_LINES))
        form = EventFormat(EventSettings("log", **written.keys), latest=LATEST)
        if rng.random() < 0.5:
            return Origin("dialect.csv", written.content, form, written.num_rows)
        origins = [Origin("dialect.csv", written.content, form)]
    origin = rng.choice(origins)
    content = damaged(rng, origin.content, rng.choice([0, 1, 1, 2, 3, 8, 30]))
    if origin.name.endswith(".parquet") or rng.random() < 0.75:
        return replace(origin, content=content)
    suffix = rng.choice(list(PACKS))
    cut = rng.choice([0, rng.randrange(len(content) + 1)])
    packed = b"".join(PACKS[suffix](part) for part in (content[:cut], content[cut:]) if part or not cut)
    return replace(origin, name=origin.name + suffix, content=damaged(rng, packed, rng.choice([0, 0, 1, 2])))


# --- checks ---


def run(rng: random.Random, origin: Origin, folder: Path) -> str:
    """Read a file and check what became of it: `read`, `refused` (a ValueError with a message) or `text ids`."""
    path = folder / origin.name
    path.write_bytes(origin.content)
    try:
        if isinstance(origin.form, EventFormat):
            _check_log(rng, path, origin, folder)
        else:
            _check_table(path, origin.form)
    except verdicts.TextIds:
        return "text ids"
    except ValueError as error:
        if type(error) not in (ValueError, tables.MissingColumn) or not _is_message(str(error), path):
            raise
        return "refused"
    finally:
        path.unlink()
    return "read"


def _is_message(text: str, path: Path) -> bool:
    """Whether it says what is wrong with which file or key, in a few lines that can be printed."""
    names = str(path) in text or ".columns." in text
    return names and len(text.splitlines()) <= LONGEST_MESSAGE_LINES and bool(text.encode())


def _check_log(rng: random.Random, path: Path, origin: Origin, folder: Path) -> None:
    form = origin.form
    assert isinstance(form, EventFormat)
    kind: IdType = rng.choice(["int64", "string"])
    id_types: dict[str, IdType] = {"user_id": kind, "item_id": rng.choice(["string", kind])}
    types, min_value = rng.choice([None, None, {"view": 1.0, "1": 1.0}]), rng.choice([None, None, 2.0])
    settings = replace(
        form.settings,
        id_types="int64" if rng.random() < 0.5 else "auto",
        timezone=rng.choice(["UTC", "Europe/Berlin"]),
        types=types if "event_type" in form.settings.columns else None,
        min_value=min_value if "value" in form.settings.columns else None,
    )
    form = replace(form, settings=settings)
    counts = validation.ingest_file(path, "f" * 16, form, id_types, folder)
    log = schema.read(folder / "events.parquet", schema.EVENTS)
    refused = schema.read(folder / "quarantine.parquet", schema.QUARANTINE)
    counts.check()
    assert (counts.rows_out, counts.refused.total()) == (len(log), len(refused))
    assert counts.refused == Counter(refused["reason"])
    assert set(counts.refused) <= set(row_counts.REFUSED)
    rows = log["source_row"].to_list() + refused["source_row"].to_list()
    assert len(set(rows)) == len(rows) == counts.rows_in - counts.left_out.total()
    assert not rows or (min(rows) >= 1 and max(rows) <= counts.rows_in)
    assert refused["source_row"].is_sorted()
    assert log["source_row"].is_sorted()
    assert not log.select("user_id", "item_id", "timestamp").null_count().sum_horizontal().item()
    if settings.timestamp_unit != "position":
        moments = log["timestamp"].dt.epoch("us")
        assert moments.is_between(iso_microseconds(settings.earliest), form.latest).all()
    expected = num_rows(path, settings.table) if origin.num_rows is None else origin.num_rows
    assert expected is None or counts.rows_in == expected, (counts.rows_in, expected)


def num_rows(path: Path, form: TableFormat) -> int | None:
    """How many rows a file has, counted independently; None where that takes a parser."""
    kind = sources.format_of(path, form)
    if kind == "parquet":
        return int(pq.read_metadata(path).num_rows)
    content = _unpacked(path).removeprefix(b"\xef\xbb\xbf")
    if kind == "jsonl":
        first, _, rest = content.lstrip().partition(b"\n")
        if first.startswith(b"[") or (first.startswith(b"{") and not rest.startswith(b"{")):
            return None  # perhaps an array, or objects over several lines
        return sum(bool(line.strip()) for line in content.split(b"\n"))
    if b'"' in content or form.comment or form.skip_lines or form.quote != "auto" or form.encoding != "utf-8":
        return None
    lines = [line for line in content.replace(b"\r\n", b"\n").split(b"\n") if line]
    while form.header and lines and not lines[0].strip(b"\r"):
        del lines[0]
    return len(lines) - (form.header and bool(lines))


def _unpacked(path: Path) -> bytes:
    """Content decompressed by what its first bytes say."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"BZh"):
        return bz2.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return bytes(pa.input_stream(str(path), compression="zstd").read())
    return content


def _check_table(path: Path, form: ItemFormat | TableFormat) -> None:
    if isinstance(form, ItemFormat):
        name, table = "item_id", side_tables.read_items([path], form, "string")
    else:
        name, table = "user_id", side_tables.read_users([path], form, "string")
    assert table.rows_in == len(table.frame) + sum(table.left_out.values())
    assert table.frame[name].is_unique().all()
    assert not table.frame[name].null_count()


@contextlib.contextmanager
def small_blocks(rng: random.Random) -> Iterator[None]:
    """Blocks so small that a small file has many, or as they are."""
    with contextlib.ExitStack() as stack:
        if rng.random() < 0.7:
            for owner, name, sizes in (
                (tables, "BLOCK_BYTES", [1, 7, 64, 1000]),
                (dialect, "FIRST_BYTES", [1, 30, 500, 1 << 20]),
                (parquet, "BATCH_ROWS", [1, 7, 20]),
                (json_shapes, "MIN_ROWS", [1, 5, 100]),
            ):
                stack.enter_context(mock.patch.object(owner, name, rng.choice(sizes)))
        yield


def _stop(*_: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS_PER_CASE} s")


def fuzz(first: int, num_cases: int, seed: int, origins: list[Origin]) -> Counter[str]:
    """Run cases and count their outcomes. Raises AssertionError naming the first case that goes wrong."""
    outcomes: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + num_cases):
            rng = random.Random(f"{seed}-{number}")
            origin = case(rng, origins)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
            try:
                with small_blocks(rng):
                    outcomes[run(rng, origin, Path(folder))] += 1
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise AssertionError(f"--seed {seed} --first {number}: {origin.name}: {error!r}") from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return outcomes


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on", action="store_true", help="print what goes wrong and go on")
    settings = parser.parse_args()
    origins = [*real_files(), *made_files()]
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    for number in range(settings.first, settings.first + settings.cases):
        try:
            outcomes += fuzz(number, 1, settings.seed, origins)
        except AssertionError as error:
            if not settings.go_on:
                raise
            outcomes["WRONG"] += 1
            print(error, flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{settings.cases} cases of {len(origins)} files in {seconds:.0f} s: {dict(outcomes.most_common())}"
    )


if __name__ == "__main__":
    main()
