"""What ingest is measured against: one csv to one Parquet file, by a process that does nothing else.

python tests/benchmarks/tools/convert.py polars|duckdb|pandas|dataframely CSV PARQUET

Prints one JSON object: seconds without the start of the process and its imports, rows, and rows refused.
polars, duckdb and pandas validate nothing and need a clean file; pandas also sorts by user and time, in memory.

dataframely judges the rows of a log that is not clean, as far as it can: typed columns, missing and impossible values, refused
rows to a file of their own, all streaming through `Schema.filter` on a lazy frame. What it does not see: too few or too many
fields (polars fills or cuts such rows before), the raw text, one reason per row. It is no dependency; to try it:
pip install --target SITE --no-deps dataframely==3.1.2
PYTHONPATH=SITE python tests/benchmarks/bench_ingest.py --against polars dataframely
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

LATEST = 1_893_456_000
"""Seconds, 2030-01-01."""

Convert = Callable[[], tuple[int, int]]
"""Rows written and rows refused."""


def polars(source: str, target: str) -> Convert:
    """The bare streaming sink."""
    import polars as pl

    def convert() -> tuple[int, int]:
        pl.scan_csv(source).sink_parquet(target, compression="zstd")
        return num_rows(target), 0

    return convert


def duckdb(source: str, target: str) -> Convert:
    """DuckDB's COPY, in the order of the file."""
    import duckdb

    def convert() -> tuple[int, int]:
        duckdb.sql(f"COPY (SELECT * FROM read_csv('{source}')) TO '{target}' (FORMAT parquet)")
        return num_rows(target), 0

    return convert


def pandas(source: str, target: str) -> Convert:
    """Everything in memory, sorted by user and time."""
    import pandas as pd  # type: ignore[import-untyped]

    def convert() -> tuple[int, int]:
        log = pd.read_csv(source).sort_values(["user_id", "timestamp"])
        log.to_parquet(target, index=False)
        return len(log), 0

    return convert


def dataframely(source: str, target: str) -> Convert:
    """Every field read as text, judged and typed by a dataframely schema; good and refused rows to a file each."""
    import importlib

    import polars as pl

    dy: Any = importlib.import_module("dataframely")
    columns = {
        "row": dy.UInt32(),
        "user_id": dy.Int64(nullable=False),
        "item_id": dy.Int64(nullable=False),
        "timestamp": dy.Int64(nullable=False, min=631_152_000, max=LATEST),
        "event_type": dy.String(nullable=True),
        "value": dy.Float32(nullable=True),
    }
    schema: Any = type("Events", (dy.Schema,), columns)

    def convert() -> tuple[int, int]:
        log = pl.scan_csv(source, infer_schema=False, truncate_ragged_lines=True, row_index_name="row")
        refused = target + ".refused"
        good, failure = schema.filter(log, cast=True)
        pl.collect_all(
            [
                good.sink_parquet(target, compression="zstd", lazy=True),
                failure._lf.sink_parquet(refused, lazy=True),
            ],
            engine="streaming",
        )
        return num_rows(target), num_rows(refused)

    return convert


def num_rows(parquet: str) -> int:
    """From the footer."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(parquet).num_rows)


if __name__ == "__main__":
    name, csv, parquet = sys.argv[1:]
    work = {"polars": polars, "duckdb": duckdb, "pandas": pandas, "dataframely": dataframely}[name](
        csv, parquet
    )
    started = time.monotonic()
    rows, refused = work()
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "rows": rows, "refused": refused}))
