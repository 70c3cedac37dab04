"""`lookback compare`: the models of several runs side by side, on the same test targets."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from models.judgement import Judgement
from pipeline.config import Config, EvaluateConfig
from pipeline.errors import LookbackError
from pipeline.tracking import LoggedRun, Tracker
from pipeline.tracking_server import chosen_uri

STAGE = "lookback.stage"
TARGETS = "evaluate/targets.parquet"
KEY = ("user_id", "item_id", "timestamp")
MODEL = "lookback"


def compare_runs(config: Config | None, runs: Sequence[str], *, as_json: bool) -> None:
    """Print metrics with intervals of each run, and its paired differences from the first one."""
    settings = config.evaluate if config is not None else EvaluateConfig()
    seed = config.seed if config is not None else 0
    judged = judge(tables(config, runs), tuple(settings.k), settings.resamples, seed)
    print(json.dumps(as_tree(judged)) if as_json else as_text(judged))


def tables(config: Config | None, runs: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Label -> targets.parquet of each run, from the tracking server."""
    tracker = Tracker.from_config(config) if config is not None else Tracker(chosen_uri(), "")
    found: dict[str, pl.DataFrame] = {}
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(runs):
            run = tracker.find_run(each, config.name if config is not None else None)
            evaluated = _evaluation_of(tracker, run, each)
            if evaluated.run_id in seen:
                raise LookbackError(
                    f"compare: {each!r} is an evaluation that was named before; expected different ones"
                )
            seen.add(evaluated.run_id)
            path = tracker.run_artifact(evaluated.run_id, TARGETS, Path(folder, str(number)))
            label = f"{run.name} {run.run_id[:8]}" if run.name in found else run.name
            found[label] = pl.read_parquet(path)
    return found


def _evaluation_of(tracker: Tracker, run: LoggedRun, named: str) -> LoggedRun:
    """The run itself if it evaluated, else the newest evaluation under the same training."""
    if run.tags.get(STAGE) == "evaluate":
        return run
    beneath = tracker.children(run.parent_run_id or run.run_id)
    evaluations = [
        child for child in beneath if child.tags.get(STAGE) == "evaluate" and child.status == "FINISHED"
    ]
    if not evaluations:
        raise LookbackError(
            f"compare: run {named!r} ({run.name}) has no finished evaluation, expected one:"
            " lookback run evaluate --config … with that run's settings"
        )
    return evaluations[-1]


def judge(targets: dict[str, pl.DataFrame], ks: tuple[int, ...], resamples: int, seed: int) -> Judgement:
    """The models of all runs on their common targets; LookbackError where two runs do not have the same ones."""
    ranked = {
        label: table.filter(pl.col("system") == MODEL).sort(*KEY, "history_length")
        for label, table in targets.items()
    }
    first, one = next(iter(ranked.items()))
    for label, other in ranked.items():
        if not one.select(KEY).equals(other.select(KEY)):
            raise LookbackError(_difference_of(first, one, label, other))
    ranks = {label: table["rank"].to_numpy() for label, table in ranked.items()}
    return Judgement.of(ranks, one["user_id"].to_numpy(), ks, resamples, seed)


def _difference_of(first: str, one: pl.DataFrame, label: str, other: pl.DataFrame) -> str:
    same_types = one.select(KEY).schema == other.select(KEY).schema
    shared = (
        f"{len(one.join(other, on=KEY, how='semi')):,} of {first!r} also in {label!r}"
        if same_types
        else "ids of other types"
    )
    return (
        f"compare: different test targets: {len(one):,} in {first!r}, {len(other):,} in {label!r}, {shared};"
        " expected runs with the same log, split, core filter and exclude_seen"
    )


def as_tree(judged: Judgement) -> dict[str, Any]:
    """What --json prints: users, targets, then metrics, intervals and differences from the first run, by run."""
    first, *others = judged.systems
    return {
        "users": judged.num_users,
        "targets": judged.num_targets,
        "metrics": {label: judged.values(label) for label in judged.systems},
        "intervals": {label: judged.intervals(label) for label in judged.systems},
        "differences": {label: {"from": first, **judged.paired(label, first)} for label in others},
    }


def as_text(judged: Judgement) -> str:
    """A row per metric: each run's value, then each later run's difference from the first."""
    first, *others = judged.systems
    values = {label: (judged.values(label), judged.intervals(label)) for label in judged.systems}
    paired = {label: judged.paired(label, first) for label in others}
    rows = [["", *judged.systems, *(f"{label} minus {first}" for label in others)]]
    for name in judged.names:
        cells = [
            f"{own[name]:.4f} [{ends[name][0]:.4f}, {ends[name][1]:.4f}]" for own, ends in values.values()
        ]
        rows.append([name, *cells, *(_shown(found[name]) for found in paired.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    counts = (
        f"{judged.num_targets:,} targets of {judged.num_users:,} users; 95 % intervals, bootstrap over users"
    )
    return "\n".join([counts, "", *lines])


def _shown(found: dict[str, Any]) -> str:
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}] {found['verdict']}"
