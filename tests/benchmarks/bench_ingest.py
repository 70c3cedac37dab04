"""Ingest and features on generated csv logs: rows/s and peak memory beside polars, DuckDB and pandas; growth; one day more.

python tests/benchmarks/bench_ingest.py        (1 M rows, a minute or two)
python tests/benchmarks/bench_ingest.py --rows 1e6 2e7 1e8 --string-ids 1e6 2e7 --incremental 1e8 --out FILE.json  (20 GB of disk)

Every figure is of a process of its own, from its start to its end, in alternating order, the file in the page cache. "inner" is
the stage's own time in its manifest (without the start of the process and what is digested before), for the others the conversion
without their imports; "CPU" is of all cores together. Ingest reads a log of which 0.1 % of the rows are bad, judges every row and
keeps the refused ones; the others validate nothing and are given a clean copy of the same log (`convert.py`; dataframely, which
judges rows too, is given the log itself).
Prints Markdown tables, and one JSON object unless --out names a file for it.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LARGEST_IN_MEMORY = 50_000_000
"""Rows; above it pandas is left out."""
CONFIG = """
name = "bench"
data_dir = "{folder}"
[events]
path = "{log}"
columns = {{ user_id = "user_id", item_id = "item_id", timestamp = "timestamp", event_type = "event_type", value = "value" }}
types = {{ product_view = 1.0, add_to_cart = 2.0, purchase = 3.0 }}
timestamp_unit = "s"
[tracking]
enabled = false
"""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One process."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Largest resident size, files that it maps included."""
    said: Figures
    """The JSON object that it printed."""


def run(*command: str | Path) -> Run:
    """Python with these arguments in a process of its own; CalledProcessError where it fails.

    This process imports nothing large: on Linux a child's peak begins with its parent's size.
    """
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, json.loads(output.splitlines()[-1]))


# --- what is measured ---


def make_log(folder: Path, rows: int, *flags: str, **options: Any) -> Figures:
    """A generated log in `folder/log`; what the generator says of it."""
    _say(f"generating {rows:,} rows")
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return run(HERE / "tools" / "make_log.py", folder, f"--rows={rows}", *flags, *named).said


class Lookback:
    """The pipeline on the log in a folder's `log/`, with artifacts of its own beside it."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._config = folder / "bench.toml"
        self._log.mkdir(parents=True, exist_ok=True)
        self._config.write_text(CONFIG.format(folder=self._data, log=self._log), encoding="utf-8")

    def add(self, file: Path) -> None:
        """Deliver one more file."""
        os.link(file, self._log / file.name)

    def forget(self) -> None:
        """Remove all artifacts."""
        shutil.rmtree(self._data, ignore_errors=True)

    def stage(self, name: str, *options: str) -> Run:
        """Run one stage."""
        return run("-m", "pipeline", "run", name, "--json", "--config", self._config, *options)


def measure_size(
    folder: Path, rows: int, ids: str, asked: argparse.Namespace, seen: Sequence[Figures]
) -> Figures:
    """All contenders on a log of one size."""
    log = make_log(folder, rows, "--clean", ids=ids, seed=asked.seed, bad_fraction=asked.bad_fraction)
    ours = Lookback(folder)
    left_out = {name: why for name in asked.against if (why := _left_out(name, rows, ids, seen))}
    names = ["lookback", *(name for name in asked.against if name not in left_out)]
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(asked.repeats):
        for name in names if number % 2 == 0 else reversed(names):
            if name in left_out:
                continue
            _say(f"{rows:,} rows, {ids} ids: {name}, {number + 1} of {asked.repeats}")
            try:
                runs[name].append(
                    _ingest(ours, folder, log) if name == "lookback" else _convert(name, folder)
                )
            except subprocess.CalledProcessError as error:
                if name == "lookback":
                    raise
                left_out[name] = f"failed: {error}"
    _say(f"{rows:,} rows, {ids} ids: features")
    features = [_stage_figures(ours.stage("features", "--force")) for _ in range(asked.repeats)]
    return {
        **log,
        "ids": ids,
        "ingest": {name: _summary(runs[name], rows, log["bytes"]) for name in names if runs[name]},
        "left_out": left_out,
        "features": _summary(features, features[0]["rows"], None),
        "up_to_date_seconds": round(ours.stage("features").wall_seconds, 3),
    }


def _left_out(name: str, rows: int, ids: str, seen: Sequence[Figures]) -> str | None:
    if importlib.util.find_spec(name) is None:
        return "not installed"
    if name == "dataframely" and ids == "string":
        return "its schema here is of int64 ids"
    if name != "pandas" or rows <= LARGEST_IN_MEMORY:
        return None
    sizes = [size for size in seen if size["ids"] == ids and name in size["ingest"]]
    if not sizes:
        return "everything in memory: not tried at this size"
    peak = sizes[-1]["ingest"][name]["peak_bytes"]
    needed = peak / sizes[-1]["rows"] * rows
    return f"everything in memory: about {needed / 1e9:.0f} GB, from its peak at {sizes[-1]['rows']:,} rows"


def _ingest(ours: Lookback, folder: Path, log: Figures) -> Figures:
    """Ingest from nothing; what it refuses, rows or values of rows, is what was spoilt."""
    ours.forget()
    _read_once(folder / "log" / "00000.csv")
    figures = _stage_figures(ours.stage("ingest"))
    found = figures["left_out"] | figures["values_left_out"]
    assert found == log["spoilt"], (found, log["spoilt"])
    return figures


def _stage_figures(stage: Run) -> Figures:
    folder = Path(stage.said["folder"])
    return {
        **_process_figures(stage),
        "inner_peak_bytes": stage.said["peak_bytes"],
        "rows": stage.said["rows_in"],
        "left_out": stage.said["rows_left_out"],
        "values_left_out": json.loads((folder / "manifest.json").read_text()).get("values_left_out", {}),
        "refused": stage.said["rows_in"] - stage.said["rows_out"],
        "written_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def _convert(name: str, folder: Path) -> Figures:
    source = folder / ("log" if name == "dataframely" else "clean") / "00000.csv"
    _read_once(source)
    target = folder / "converted.parquet"
    try:
        done = run(HERE / "tools" / "convert.py", name, source, target)
        written = target.stat().st_size
    finally:
        for file in folder.glob("converted.parquet*"):
            file.unlink()
    return {**_process_figures(done), "refused": done.said["refused"], "written_bytes": written}


def _process_figures(process: Run) -> Figures:
    return {
        "wall_seconds": process.wall_seconds,
        "cpu_seconds": process.cpu_seconds,
        "inner_seconds": process.said["seconds"],
        "peak_bytes": process.peak_bytes,
        "inner_peak_bytes": process.peak_bytes,
    }


def _read_once(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def _summary(runs: Sequence[Figures], rows: int, num_bytes: int | None) -> Figures:
    walls = [each["wall_seconds"] for each in runs]
    median = statistics.median(walls)
    return {
        "wall_seconds": {
            "best": round(min(walls), 3),
            "median": round(median, 3),
            "all": [round(each, 3) for each in walls],
        },
        "inner_seconds": round(statistics.median(each["inner_seconds"] for each in runs), 3),
        "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in runs), 3),
        "rows_per_second": round(rows / median),
        "bytes_per_second": None if num_bytes is None else round(num_bytes / median),
        "peak_bytes": max(each["peak_bytes"] for each in runs),
        "inner_peak_bytes": max(each["inner_peak_bytes"] for each in runs),
        "refused": runs[0]["refused"],
        "written_bytes": runs[0]["written_bytes"],
    }


def growth(sizes: Sequence[Figures]) -> list[Figures]:
    """From each size to the next, inner seconds: how many times longer a row takes, and what ten times the rows would take."""
    found = []
    for ids in ("int64", "string"):
        same = [size for size in sizes if size["ids"] == ids]
        for small, large in itertools.pairwise(same):
            before, after = ({**size["ingest"], "features": size["features"]} for size in (small, large))
            rows = large["rows"] / small["rows"]
            for name in [name for name in before if name in after and rows > 1]:
                times = after[name]["inner_seconds"] / before[name]["inner_seconds"]
                found.append(
                    {
                        "work": name,
                        "ids": ids,
                        "rows": [small["rows"], large["rows"]],
                        "per_row": round(times / rows, 3),
                        "per_decade": round(times ** (1 / math.log10(rows)), 2),
                    }
                )
    return found


def measure_incremental(folder: Path, rows: int, days: int, repeats: int, seed: int) -> Figures:
    """Seconds of ingest for one more daily file: to nothing, to a tenth of the days, to all of them."""
    total = rows * (days + repeats) // days
    make_log(folder, total, files=days + repeats, seed=seed)
    files = sorted((folder / "log").iterdir())
    stores: dict[int, Figures] = {}
    for num_days in (max(days // 10, 1), days):
        _say(f"a store of {num_days} days of {rows // days:,} rows")
        store = _store(folder / str(num_days), files[:num_days])
        stores[num_days] = {
            "store": store,
            "from_zero_seconds": round(store.stage("ingest").wall_seconds, 3),
            "runs": [],
        }
    stores[0] = {"from_zero_seconds": None, "runs": []}
    for day in files[days:]:
        for num_days, each in stores.items():
            _say(f"one more day to {num_days} days")
            store = each["store"] if num_days else _store(folder / day.stem, [])
            store.add(day)
            each["runs"].append(_stage_figures(store.stage("ingest")))
    found = [
        {
            "days": num_days,
            "from_zero_seconds": each["from_zero_seconds"],
            **_summary(each["runs"], each["runs"][-1]["rows"], None),
        }
        for num_days, each in sorted(stores.items())
    ]
    alone, tenth, whole = (each["wall_seconds"]["median"] for each in found)
    return {
        "rows": rows,
        "rows_per_day": rows // days,
        "one_more_day": found,
        "store_over_tenth": round(whole / tenth, 2),
        "store_over_nothing": round(whole / alone, 2),
    }


def _store(folder: Path, files: Sequence[Path]) -> Lookback:
    store = Lookback(folder)
    for file in files:
        store.add(file)
    return store


# --- what is said ---


def markdown(result: Figures) -> str:
    """The figures as tables."""
    lines = [
        f"{result['date']}, {result['commit']}, {result['machine']}; best and median of {result['repeats']}, whole processes."
    ]
    for size in result["sizes"]:
        lines += ["", *_size_table(size)]
    if result["growth"]:
        lines += ["", *_growth_table(result["growth"])]
    if result["incremental"]:
        lines += ["", *_incremental_table(result["incremental"])]
    return "\n".join(lines)


def _size_table(size: Figures) -> list[str]:
    spoilt = sum(size["spoilt"].values())
    lines = [
        f"**{size['rows']:,} rows, {size['ids']} ids, {size['bytes'] / 1e6:,.0f} MB, {spoilt:,} bad rows**",
        "",
        "| | seconds | inner | CPU | M rows/s | MB/s | peak GB | written GB | refused | ingest's rows/s are (inner) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = size["ingest"]["lookback"]
    for name, each in [*size["ingest"].items(), ("lookback features", size["features"])]:
        is_other = name not in ("lookback", "lookback features")
        inner = each["inner_seconds"] / ours["inner_seconds"]
        ratio = (
            f"{ours['rows_per_second'] / each['rows_per_second']:.2f} × ({inner:.2f} ×)" if is_other else ""
        )
        speed = f"{each['bytes_per_second'] / 1e6:,.0f}" if each["bytes_per_second"] else ""
        cells = [
            "lookback ingest" if name == "lookback" else name,
            _best_and_median(each),
            f"{each['inner_seconds']:.2f}",
            f"{each['cpu_seconds']:.2f}",
            f"{each['rows_per_second'] / 1e6:.2f}",
            speed,
            f"{each['peak_bytes'] / 1e9:.2f}",
            f"{each['written_bytes'] / 1e9:.3f}",
            f"{each['refused']:,}",
            ratio,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + [f"| {name} | {why} | | | | | | | | |" for name, why in size["left_out"].items()]


def _growth_table(found: Sequence[Figures]) -> list[str]:
    return [
        "| growth | ids | rows | time per row | ten times the rows take |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {each['work']} | {each['ids']} | {each['rows'][0]:,} → {each['rows'][1]:,} | × {each['per_row']:.2f} "
            f"| × {each['per_decade']:.1f} |"
            for each in found
        ),
    ]


def _incremental_table(found: Figures) -> list[str]:
    lines = [
        f"One more day of {found['rows_per_day']:,} rows: {found['store_over_tenth']:.2f} × the time with ten times the store.",
        "",
        "| ingest of one more day, to a store of | seconds | inner | peak GB | all from zero |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in found["one_more_day"]:
        from_zero = "" if each["from_zero_seconds"] is None else f"{each['from_zero_seconds']:.2f}"
        lines.append(
            f"| {each['days']} days, {each['days'] * found['rows_per_day']:,} rows | {_best_and_median(each)} "
            f"| {each['inner_seconds']:.2f} | {each['peak_bytes'] / 1e9:.2f} | {from_zero} |"
        )
    return lines


def _best_and_median(figures: Figures) -> str:
    return f"{figures['wall_seconds']['best']:.2f} / {figures['wall_seconds']['median']:.2f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the whole ---


def measure(asked: argparse.Namespace) -> Iterator[Figures]:
    """The result as far as it is known, after each part."""
    result: Figures = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {
            name: _version(name) for name in ("polars", "pyarrow", "duckdb", "pandas", "dataframely")
        },
        "command": sys.argv[1:],
        "repeats": asked.repeats,
        "sizes": [],
        "growth": [],
        "incremental": None,
    }
    cases = [(rows, "int64") for rows in asked.rows] + [(rows, "string") for rows in asked.string_ids]
    for rows, ids in sorted(cases):
        with _temporary(asked.folder) as folder:
            result["sizes"].append(measure_size(folder, rows, ids, asked, result["sizes"]))
        result["growth"] = growth(result["sizes"])
        yield result
    if asked.incremental:
        with _temporary(asked.folder) as folder:
            result["incremental"] = measure_incremental(
                folder, asked.incremental, asked.days, asked.repeats, asked.seed
            )
        yield result


@contextlib.contextmanager
def _temporary(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=parent) as folder:
        yield Path(folder).resolve()


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return answer.stdout.strip() or "unknown"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = {
        name: os.environ[name] for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS") if name in os.environ
    }
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        f"{usable} cores",
        f"{memory / 1e9:.0f} GB",
        platform.machine(),
        platform.system(),
        f"Python {platform.python_version()}",
        *(f"{name}={value}" for name, value in threads.items()),
    ]
    return ", ".join(parts)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _count(text: str) -> int:
    return int(float(text))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_count, nargs="*", default=[1_000_000], help="sizes, with int64 ids")
    parser.add_argument(
        "--string-ids", type=_count, nargs="*", default=[], metavar="ROWS", help="sizes, with string ids"
    )
    parser.add_argument(
        "--against",
        nargs="*",
        default=["polars", "duckdb", "pandas"],
        choices=["polars", "duckdb", "pandas", "dataframely"],
    )
    parser.add_argument(
        "--incremental",
        type=_count,
        default=1_000_000,
        metavar="ROWS",
        help="rows of the store that grows by a day; 0: none",
    )
    parser.add_argument("--days", type=int, default=100, help="daily files of that store")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bad-fraction", type=float, default=0.001, help="share of rows that are bad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the logs are generated; default: the system's temporary folder"
    )
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for; the file is written anew after each part."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder is removed
    asked = _arguments()
    result: Figures = {}
    for result in measure(asked):
        if asked.out is not None:
            asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not result:
        sys.exit("nothing to measure: --rows, --string-ids and --incremental name no size")
    print(markdown(result))
    if asked.out is None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
