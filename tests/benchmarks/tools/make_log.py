"""A seeded behaviour log as csv in bounded memory: Zipf items, log-normal users, a little disorder in time, some bad rows.

python tests/benchmarks/tools/make_log.py FOLDER --rows 1e6 [--files 1] [--clean] [--ids string] [--bad-fraction 0.001] [--seed 0]

Writes FOLDER/log/00000.csv and on, of equal length and in order of time; with --clean also FOLDER/clean/ with the same rows, the
bad ones as they were before they were spoilt. Prints one JSON object: rows, bytes, and how many rows were spoilt by reason.
"""

import argparse
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "value")
NUM_ITEMS = 100_000
ITEM_EXPONENT = 1.1
ROWS_PER_USER = 100
USER_SIGMA = 1.0
"""Standard deviation of the logarithm of a user's activity."""
FIRST_USER, FIRST_ITEM = 3_000_000_000, 1_000_000_000
TYPES = {"product_view": 0.8, "add_to_cart": 0.15, "purchase": 0.05}
START = 1_735_689_600
"""Seconds, 2025-01-01."""
SPAN_SECONDS = 365 * 86_400
DISORDER_SECONDS = 60.0
"""Standard deviation of a row's time about its place in the file."""
CHUNK_ROWS = 1_000_000

BAD_ROWS: list[tuple[str, Callable[[list[bytes]], list[bytes]]]] = [
    ("unparseable", lambda fields: fields[:3]),
    ("unparseable", lambda fields: [*fields, b"one more"]),
    ("missing_user", lambda fields: [b"", *fields[1:]]),
    ("missing_item", lambda fields: [fields[0], b"", *fields[2:]]),
    ("missing_time", lambda fields: [*fields[:2], b"", *fields[3:]]),
    ("impossible_time", lambda fields: [*fields[:2], b"yesterday", *fields[3:]]),
    ("impossible_time", lambda fields: [*fields[:2], b"0", *fields[3:]]),
    ("bad_value", lambda fields: [*fields[:4], b"inf"]),
]
"""Reason for which such a row is refused, and how it is made of a good one's user, item, time, type, value."""


class Population:
    """Who and what the log is about, drawn once: how likely each user, item and type is, and under which id."""

    def __init__(self, num_users: int, seed: int, *, string_ids: bool) -> None:
        rng = np.random.default_rng(seed)
        self._users = _cumulative(rng.lognormal(sigma=USER_SIGMA, size=num_users))
        self._items = _cumulative(np.arange(1.0, NUM_ITEMS + 1) ** -ITEM_EXPONENT)
        self._item_ids = FIRST_ITEM + rng.permutation(NUM_ITEMS)
        self._types = _cumulative(np.array(list(TYPES.values())))
        self._string_ids = string_ids

    def rows(self, rng: np.random.Generator, first: int, num_rows: int, total: int) -> pl.DataFrame:
        """Rows `first` and on of a log of `total`."""
        place = (first + np.arange(num_rows)) / total * SPAN_SECONDS
        time = np.clip(place + rng.normal(0, DISORDER_SECONDS, num_rows), 0, SPAN_SECONDS - 1)
        values = (
            FIRST_USER + _draw(rng, self._users, num_rows),
            self._item_ids[_draw(rng, self._items, num_rows)],
            START + time.astype(np.int64),
            pl.Series(list(TYPES)).gather(_draw(rng, self._types, num_rows)),
            rng.lognormal(3.0, 1.0, num_rows).round(2),
        )
        frame = pl.DataFrame(dict(zip(COLUMNS, values, strict=True)))
        if not self._string_ids:
            return frame
        return frame.with_columns(
            (pl.lit(letter) + pl.col(name).cast(pl.String)).alias(name)
            for name, letter in (("user_id", "u"), ("item_id", "i"))
        )


def _cumulative(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(weight / weight.sum())


def _draw(rng: np.random.Generator, cumulative: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(cumulative, rng.random(number)), len(cumulative) - 1)


def spoil(text: bytes, bad_fraction: float, rng: np.random.Generator) -> tuple[list[bytes], Counter[str]]:
    """The text of some rows in pieces, a share of its lines replaced by bad ones; how many by reason."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    chosen = np.flatnonzero(rng.random(len(ends)) < bad_fraction)
    kinds = rng.integers(len(BAD_ROWS), size=len(chosen))
    pieces, reasons, done = [], Counter[str](), 0
    for line, kind in zip(chosen.tolist(), kinds.tolist(), strict=True):
        start, end = int(ends[line - 1]) + 1 if line else 0, int(ends[line])
        reason, change = BAD_ROWS[kind]
        pieces += [text[done:start], b",".join(change(text[start:end].split(b",")))]
        reasons[reason] += 1
        done = end
    return [*pieces, text[done:]], reasons


def write_log(folder: Path, people: Population, asked: argparse.Namespace) -> Counter[str]:
    """Write the log, and its clean copy where asked for; how many rows were spoilt by reason."""
    bounds = np.linspace(0, asked.rows, asked.files + 1).astype(int).tolist()
    reasons = Counter[str]()
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        rng = np.random.default_rng([asked.seed, number])
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_create(folder / "log" / f"{number:05}.csv"))
            copy = (
                stack.enter_context(_create(folder / "clean" / f"{number:05}.csv")) if asked.clean else None
            )
            for start in range(first, end, CHUNK_ROWS):
                rows = people.rows(rng, start, min(CHUNK_ROWS, end - start), asked.rows)
                text = rows.write_csv(include_header=False).encode()
                pieces, spoilt = spoil(text, asked.bad_fraction, rng)
                reasons += spoilt
                log.writelines(pieces)
                if copy is not None:
                    copy.write(text)
    return reasons


def _create(path: Path) -> IO[bytes]:
    """A new file with the header in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("wb")
    file.write((",".join(COLUMNS) + "\n").encode())
    return file


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--ids", choices=("int64", "string"), default="int64")
    parser.add_argument("--bad-fraction", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Write what is asked for and say what it is."""
    asked = _arguments()
    num_users = max(asked.rows // ROWS_PER_USER, 2)
    reasons = write_log(
        asked.folder, Population(num_users, asked.seed, string_ids=asked.ids == "string"), asked
    )
    num_bytes = sum(file.stat().st_size for file in (asked.folder / "log").iterdir())
    print(json.dumps({"rows": asked.rows, "bytes": num_bytes, "spoilt": dict(sorted(reasons.items()))}))


if __name__ == "__main__":
    main()
