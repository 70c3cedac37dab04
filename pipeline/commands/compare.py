"""`lookback compare`: the models of several runs side by side, on the same test targets."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from models.evaluation.bootstrap import PairedDifference
from models.evaluation.comparison import SystemComparison
from pipeline.artifacts.files import write_json
from pipeline.config import Config
from pipeline.errors import LookbackError
from pipeline.evaluation.comparison import KEY, Comparison, SeedGroup, as_tree, metrics_of_runs
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import comparison_page
from pipeline.reporting.text_table import aligned
from pipeline.sections import EvaluateConfig
from pipeline.tracking import queries
from pipeline.tracking.record import RunRecord
from pipeline.tracking.server import LoggedRun, chosen_uri
from pipeline.tracking.tracker import NOTE, Tracker

STAGE, FINGERPRINT, FROM_TRAINING = "lookback.stage", "lookback.fingerprint", "lookback.input.train"
EVALUATION = "lookback.run.evaluate"
"""Tag of a whole run: the run that evaluated in it, or whose evaluation it found."""
TARGETS = "evaluate/targets.parquet"
TABLE, PAGE = "table.json", "compare.html"
SHOWN = ("ndcg", "hit_rate", "mrr", "user_ndcg")
"""Metrics of the table that is printed; --json and the logged table have all of them."""
SHAPING = tuple(
    f"{section}." for section in ("events", "items", "users", "history", "split", "model", "train")
)
"""Parameters of a training that make another model of it; `seed` is looked at apart."""


@dataclass(frozen=True)
class Evaluation:
    """One of the runs that are compared."""

    label: str
    run: LoggedRun
    """The evaluation."""
    training: LoggedRun | None
    """The training that it judged, where the server knows it."""
    targets: pl.DataFrame
    """Its targets.parquet."""


def compare_runs(
    config: Config | None, runs: Sequence[str], *, as_json: bool, html: Path | None = None
) -> None:
    """Print metrics with intervals of each run, and its paired differences from the first one; log them as a run.

    html: a file to write the page to, which the run has as well.
    """
    settings = config.evaluate if config is not None else EvaluateConfig()
    seed = config.seed if config is not None else 0
    tracker = Tracker.from_config(config) if config is not None else Tracker(chosen_uri(), "")
    found = evaluations(tracker, config.name if config is not None else None, runs)
    targets = {each.label: each.targets for each in found}
    systems = metrics_of_runs(targets, tuple(settings.k), settings.resamples, seed)
    comparison = Comparison.of(systems, seed_groups(found))
    text, page = as_text(comparison), as_page(found, comparison)
    if html is not None:
        html.write_text(page, encoding="utf-8")
    run_id = log(tracker, found, comparison, page) if len(found) > 1 else None
    print(json.dumps(as_tree(comparison) | {"run_id": run_id}) if as_json else text)


def evaluations(tracker: Tracker, experiment: str | None, runs: Sequence[str]) -> list[Evaluation]:
    """What was named, each with its targets from the tracking server."""
    found: dict[str, Evaluation] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(runs):
            run = queries.find_run(tracker.uri, each, experiment)
            evaluated = _evaluation_of(tracker, run, each)
            if evaluated.run_id in {other.run.run_id for other in found.values()}:
                raise LookbackError(
                    f"compare: {each!r} is an evaluation that was named before; expected different ones"
                )
            path = queries.run_artifact(tracker.uri, evaluated.run_id, TARGETS, Path(folder, str(number)))
            label = f"{run.name} {run.run_id[:8]}" if run.name in found else run.name
            found[label] = Evaluation(
                label,
                evaluated,
                _training_of(tracker, evaluated),
                pl.read_parquet(path, columns=["system", *KEY, "history_length", "rank"]),
            )
    return list(found.values())


def _evaluation_of(tracker: Tracker, run: LoggedRun, named: str) -> LoggedRun:
    """The run itself if it evaluated, else the evaluation of the training or of the whole run that it is (or is in)."""
    if run.tags.get(STAGE) == "evaluate":
        return run
    if run.tags.get(STAGE) == "train" and (
        found := _find(tracker, run, "evaluate", FROM_TRAINING, FINGERPRINT)
    ):
        return found
    whole = queries.find_run(tracker.uri, run.parent_run_id) if run.parent_run_id is not None else run
    if EVALUATION in whole.tags:
        return queries.find_run(tracker.uri, whole.tags[EVALUATION])
    beneath = queries.children(tracker.uri, whole.run_id)
    evaluations = [
        child for child in beneath if child.tags.get(STAGE) == "evaluate" and child.status == "FINISHED"
    ]
    if not evaluations:
        raise LookbackError(
            f"compare: run {named!r} ({run.name}) has no finished evaluation, expected one:"
            " lookback run evaluate --config … with that run's settings"
        )
    return evaluations[-1]


def _training_of(tracker: Tracker, evaluated: LoggedRun) -> LoggedRun | None:
    """The training of what was evaluated, where the server has it."""
    found = _find(tracker, evaluated, "train", FINGERPRINT, FROM_TRAINING)
    if found is None and evaluated.parent_run_id is not None:
        return queries.find_run(tracker.uri, evaluated.parent_run_id)
    return found


def _find(tracker: Tracker, run: LoggedRun, stage: str, tag: str, own: str) -> LoggedRun | None:
    """The newest finished run of a stage that has under `tag` what this one has under `own`."""
    if own not in run.tags:
        return None
    return queries.find_tagged(tracker.uri, run.experiment_id, {STAGE: stage, tag: run.tags[own]})


def seed_groups(found: Sequence[Evaluation]) -> list[SeedGroup]:
    """Runs whose trainings have the same settings and different seeds, two or more together."""
    groups: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
    for each in found:
        params = each.training.params if each.training is not None else {}
        if "seed" in params:
            settings = frozenset(item for item in params.items() if item[0].startswith(SHAPING))
            groups.setdefault(settings, {})[each.label] = params["seed"]
    return [
        SeedGroup(tuple(seeds), tuple(seeds.values()))
        for seeds in groups.values()
        if len(set(seeds.values())) > 1
    ]


# --- what is printed and logged ---


def as_text(comparison: Comparison) -> str:
    """A row per metric that is shown: each run's value, each later run's difference from the first, means over seeds."""
    systems, differences = comparison.systems, comparison.differences
    first = systems.systems[0]
    values = [(systems.values(label), systems.intervals(label)) for label in systems.systems]
    means = [
        f"mean ± sd of {', '.join(group.labels)} (seeds {', '.join(group.seeds)})"
        for group, _ in comparison.over_seeds
    ]
    rows = [["", *systems.systems, *(f"{label} minus {first}" for label in differences), *means]]
    for name in _shown_metrics(systems):
        cells = [f"{own[name]:.4f} [{ends[name][0]:.4f}, {ends[name][1]:.4f}]" for own, ends in values]
        cells += [_shown(found[name]) for found in differences.values()]
        cells += [f"{found[name][0]:.4f} ± {found[name][1]:.4f}" for _, found in comparison.over_seeds]
        rows.append([name, *cells])
    about = [
        f"{systems.num_targets:,} targets of {systems.num_users:,} users; 95 % intervals, bootstrap over users"
    ]
    if differences:
        about.append("p: paired bootstrap")
    if len(differences) > 1:
        about[1] += f"; p and verdicts corrected for {len(differences)} comparisons (Holm)"
    best = ["", comparison_page.verdict(systems, _shown_metrics(systems)[0])] if differences else []
    return "\n".join([*about, "", aligned(rows), *best])


def as_page(found: Sequence[Evaluation], comparison: Comparison) -> str:
    """The HTML page."""
    shown = _shown_metrics(comparison.systems)
    runs = {each.label: each.run.run_id for each in found}
    return comparison_page.page(comparison, shown, runs)


def _shown_metrics(systems: SystemComparison) -> list[str]:
    """Metrics of the table, NDCG first."""
    names = [name for name in systems.names if name.partition("@")[0] in SHOWN]
    return sorted(names, key=lambda name: SHOWN.index(name.partition("@")[0]))


def _shown(paired: PairedDifference) -> str:
    difference = f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
    return f"{difference} p {paired.p_bootstrap_holm:.3f} {paired.verdict}"


def log(tracker: Tracker, found: Sequence[Evaluation], comparison: Comparison, page: str) -> str | None:
    """Log the comparison as a run of its own, with the whole table, in the first run's experiment; the run's id.

    None where the server does not take it, which costs one warning.
    """
    plan = RunRecord()
    plan.tag(STAGE, "compare")
    plan.tag("lookback.compared", ",".join(each.run.run_id for each in found))
    plan.tag(NOTE, _description(found, comparison.systems))
    for label, differences in comparison.differences.items():
        for name, each in differences.items():
            for part in ("difference", "low", "high"):
                plan.metric(f"{label}/{name}_{part}", getattr(each, part))
    name = f"compare {' '.join(each.label for each in found)}"[:250]
    plan.table(TABLE)
    plan.artifact(PAGE)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, TABLE), _table(found, comparison))
        Path(folder, PAGE).write_text(page, encoding="utf-8")
        plan.save(Path(folder))
        return tracker.log_beside(found[0].run, name, plan, Path(folder))


def _description(found: Sequence[Evaluation], systems: SystemComparison) -> str:
    """Which run is best, in Markdown: the first metric's verdict, every run's values, the verdicts on the other metrics."""
    shown = _shown_metrics(systems)
    first, *others = [comparison_page.verdict(systems, metric) for metric in shown]
    links = [
        f"[{each.label}](#/experiments/{each.run.experiment_id}/runs/{each.run.run_id})" for each in found
    ]
    lines = [["run", *map(display_name, shown)], ["---"] * (1 + len(shown))]
    for each, link in zip(found, links, strict=True):
        values, ends = systems.values(each.label), systems.intervals(each.label)
        told = (f"{values[name]:.4f} ({ends[name][0]:.4f} to {ends[name][1]:.4f})" for name in shown)
        lines.append([link, *told])
    about = f"{systems.num_users:,} users; values with 95 % intervals; differences by the paired test."
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"**{first}**", about, table, *others])


def _table(found: Sequence[Evaluation], comparison: Comparison) -> dict[str, list[Any]]:
    """{"columns": names, "data": rows}, a row per run and metric; the first run has no difference."""
    parts = ("difference", "low", "high", "p_value", "p_holm", "p_bootstrap_holm", "verdict")
    systems = comparison.systems
    rows = []
    for each in found:
        values, ends = systems.values(each.label), systems.intervals(each.label)
        differences = comparison.differences.get(each.label, {})
        for name in systems.names:
            row = {"metric": name, "run": each.label, "run_id": each.run.run_id, "value": values[name]}
            row |= dict(zip(("value_low", "value_high"), ends[name], strict=True))
            rows.append(row | {part: getattr(differences.get(name), part, None) for part in parts})
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
