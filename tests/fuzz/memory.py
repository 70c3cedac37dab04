"""Small files that decode to gigabytes, and a reader under a memory limit.

python tests/fuzz/memory.py FILE events|items FOLDER      reads one file; the last line says what became of it
"""

import bz2
import gzip
import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.events import side_tables, validation
from features.events.event_format import EventFormat
from features.events.item_content import ItemFormat
from features.schema import IdType
from features.settings import EventSettings, TableFormat

LIMIT_BYTES = 5 << 28
"""Growth of private memory while reading with NUM_THREADS."""
NUM_THREADS = 2
TEXT_BYTES = 1 << 26
HEADER = b"u,i,t,e\n"

Text = tuple[bytes, bytes]
"""Beginning of a text, and the part after it that is repeated."""

TEXTS: dict[str, Callable[[random.Random], Text]] = {
    "line-feeds.csv": lambda _: (HEADER, b"\n" * (1 << 20)),
    "line-ends.csv": lambda _: (HEADER, b"\r\n" * (1 << 19)),
    "line-feeds.jsonl": lambda _: (b"", b"\n" * (1 << 20)),
    "short-rows.csv": lambda rng: (HEADER, rng.choice([b",,,\n", b"1,2,3,\n", b"x\n"]) * (1 << 18)),
    "quotes.csv": lambda rng: (HEADER, rng.choice([b'"",,,\n', b'"\r",,,\n', b'1,"2"",3,\n"\n']) * (1 << 16)),
    "open-quotes.csv": lambda rng: (HEADER, b'1,"' + b"x" * rng.choice([1000, 10**6]) + b"\n"),
    "one-line.csv": lambda _: (HEADER, b"x" * (1 << 20)),
    "long-ids.csv": lambda rng: (HEADER, b"a" * rng.choice([66_000, 10**7]) + b",2,1600000000,\n"),
    "ids.csv": lambda _: (HEADER, b"a" * 60_000 + b",2,1600000000,\n"),
    "long-types.csv": lambda _: (HEADER, b"1,2,1600000000," + b"a" * 10**6 + b"\n"),
    "wide-header.csv": lambda _: (b"u,i,t,e", b",ab" * (1 << 18)),
    "wide-rows.csv": lambda rng: (HEADER, b"," * rng.choice([1000, 15 << 20]) + b"\n"),
    "wide-quoted-rows.csv": lambda rng: (HEADER, b'"a",' * rng.choice([1000, 3 << 20]) + b"\n"),
    "objects.jsonl": lambda rng: (b"", rng.choice([b"{}\n", b'{"u":1}\n', b"[]\n", b'{"u":{"a":[1]}}\n']) * (1 << 16)),
    "lists.jsonl": lambda rng: (b"", b"[" + rng.choice([b"10,", b"{},", b'"ab",']) * (3 << 20) + b"1]\n"),
    "nested.jsonl": lambda rng: (b"", b'{"u":' + b"[" * rng.choice([1000, 1 << 20]) + b"\n"),
    "long-ids.jsonl": lambda _: (b"", b'{"u":"' + b"a" * (1 << 20) + b'","i":1,"t":1600000000}\n'),
    "categories.csv": lambda rng: (HEADER, b"1," + rng.choice([b"|", b"a|"]) * (7 << 20) + b",1,x\n"),
    "numbers.csv": lambda rng: (HEADER, b"1,a," + rng.choice([b"1 ", b"x;"]) * (7 << 20) + b",x\n"),
    "numbers.jsonl": lambda rng: (b"", b'{"u":1,"i":[' + rng.choice([b"1,", b"{},"]) * (4 << 20) + b"1]}\n"),
    "one-object.json": lambda _: (b"{", b'"1":[10,11,12],' * (1 << 16)),
}  # fmt: skip

Table = tuple[pa.Array, int, dict[str, Any]]
"""A column, how many times it stands in a row group, and settings of the writer."""


def _dictionary(rng: random.Random) -> Table:
    num_rows, length = rng.choice([(4000, 1 << 20), (40_000, 60_000), (60_000, 66_000)])
    codes = np.zeros(num_rows, np.int32)
    codes[num_rows // rng.choice([2, 1000]) :] = 1
    ids = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(["x", "a" * length]))
    return ids, 1, {"store_schema": rng.choice([True, False])}  # with it, it is read as a dictionary


def _long_texts(rng: random.Random) -> tuple[pa.Array, int]:
    num_rows, length = rng.choice([(2000, 60_000), (120, 1 << 20)])
    return pa.array(["x"] * 10_000 + ["a" * length] * num_rows), 20


def _plain(rng: random.Random) -> Table:
    encoding = {"u": rng.choice(["PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])}
    return *_long_texts(rng), {"use_dictionary": False, "column_encoding": encoding}


def _prefixes(rng: random.Random) -> Table:
    return *_long_texts(rng), {"use_dictionary": False, "column_encoding": {"u": "DELTA_BYTE_ARRAY"}}


def _fixed_width(_: random.Random) -> Table:
    return pa.array([b"a" * (1 << 20)] * 100, pa.binary(1 << 20)), 25, {}


def _large_page(_: random.Random) -> Table:
    settings = {"use_dictionary": False, "data_page_size": 2 << 30, "write_batch_size": 10_000}
    return pa.array(["a" * (1 << 20)] * 120), 6, settings


TABLES: dict[str, Callable[[random.Random], Table]] = {
    "dictionary.parquet": _dictionary,
    "plain.parquet": _plain,
    "prefixes.parquet": _prefixes,
    "fixed-width.parquet": _fixed_width,
    "large-page.parquet": _large_page,
}


def write(rng: random.Random, name: str, folder: Path) -> Path:
    """A file of one kind, with what the seed chooses."""
    return _write_text(rng, name, folder) if name in TEXTS else _write_table(rng, name, folder)


def _write_text(rng: random.Random, name: str, folder: Path) -> Path:
    start, part = TEXTS[name](rng)
    suffix = rng.choice([".gz", ".zst", ".bz2"])
    path = folder / f"{name}{suffix}"
    packs: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda text: bytes(pa.compress(text, "zstd", asbytes=True))
    }  # fmt: skip
    several = max((1 << 24) // len(part), 1)
    packed = packs[suffix](part * several)
    with path.open("wb") as file:
        file.write(packs[suffix](start))
        for _ in range(TEXT_BYTES // (len(part) * several)):  # streams one after the other are one stream
            file.write(packed)
    return path


def _write_table(rng: random.Random, name: str, folder: Path) -> Path:
    ids, times, settings = TABLES[name](rng)
    numbers = pa.array(np.full(len(ids), 1_600_000_000))
    batch = pa.record_batch({"u": ids, "i": numbers, "t": numbers, "e": pa.nulls(len(ids), pa.string())})
    path = folder / name
    options = {"store_schema": False, "compression": rng.choice(["zstd", "gzip"])} | settings
    with pq.ParquetWriter(path, batch.schema, **options) as writer:
        for _ in range(times):
            writer.write_batch(batch, row_group_size=1 << 30)
    return path


def read(path: Path, role: str, folder: Path) -> str:
    """Read a log or an items table: `read`, with the number of rows and what was refused, or the message that refuses it."""
    ids: dict[str, IdType] = {"user_id": "string", "item_id": "string"}
    try:
        if role == "items":
            columns: dict[str, str | int] = {
                "item_id": "u",
                "categories": "i",
                "embedding": "t",
                "title": "e",
            }
            table = side_tables.read_items([path], ItemFormat(TableFormat("items", columns)), "string")
            return f"read {table.rows_in} {table.left_out}"
        names: dict[str, str | int] = {"user_id": "u", "item_id": "i", "timestamp": "t", "event_type": "e"}
        form = EventFormat(EventSettings("log", columns=names), latest=2 * 10**15)
        counts = validation.ingest_file(path, "f" * 16, form, ids, folder)
        return f"read {counts.rows_in} {dict(counts.refused)}"
    except ValueError as error:
        return f"refused {str(error)[:300]}"


def main() -> None:
    """Read one file under the limit, after the libraries have started their threads."""
    path, role, folder = sys.argv[1:]
    os.cpu_count = lambda: NUM_THREADS
    pa.set_cpu_count(NUM_THREADS)
    small = Path(folder) / "small.csv"
    small.write_bytes(HEADER + b"1,2,1600000000,\n" * 1000)
    pl.read_csv(small).write_parquet(Path(folder) / "small.parquet")
    for warm in (small, small.with_suffix(".parquet")):
        read(warm, "events", Path(folder))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmData"].split()[0]) * 1024 + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answer = read(Path(path), role, Path(folder))
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB", file=sys.stderr)
    print(answer)


if __name__ == "__main__":
    main()
