"""`lookback compare`: models of several runs on the same test targets."""

import contextlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.printable import markdown, printable_lines
from models.evaluation.bootstrap import PairedDifference
from pipeline.artifacts.files import digest_file, write_json
from pipeline.artifacts.scratch import scratch
from pipeline.config import Config
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.evaluation import dislike_rates
from pipeline.evaluation.comparison import KEY, Comparison, SeedGroup, as_tree, metrics_of_runs
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import comparison_page
from pipeline.reporting.text_table import aligned
from pipeline.sections import EvaluateConfig
from pipeline.tracking import queries
from pipeline.tracking.record import TARGETS_DIGEST, RunRecord
from pipeline.tracking.server import LoggedRun, chosen_uri
from pipeline.tracking.tracker import NOTE, Tracker

STAGE, FINGERPRINT, FROM_TRAINING = "lookback.stage", "lookback.fingerprint", "lookback.input.train"
EVALUATION = "lookback.run.evaluate"
"""Tag of a parent run: its evaluation, built by it or reused."""
TARGETS = "evaluate/targets.parquet"
DISLIKES = f"evaluate/{dislike_rates.FILE}"
TABLE, PAGE = "table.json", "compare.html"
SHOWN = ("ndcg", "hit_rate", "mrr", "user_ndcg", "dislike_rate")
SHOWN_OF_NIGHTS = ("ndcg", "hit_rate", "recall", "precision", "map", "mrr", "dislike_rate")
"""Metrics of the printed table; --json and the logged table have all."""
SHAPING = ("events.", "items.", "users.", "history.", "split.", "model.", "train.")
"""Prefixes of the parameters that determine a model, apart from `seed`."""


@dataclass(frozen=True)
class Evaluation:
    """One compared evaluation."""

    label: str
    run: LoggedRun
    training: LoggedRun | None
    """Training of the evaluated model, where the server has it."""
    targets: pl.DataFrame
    """targets.parquet of the evaluation."""
    dislikes: pl.DataFrame | None = None
    """dislikes.parquet of the evaluation; None where no dislike was held out."""


def compare_runs(
    config: Config | None, runs: Sequence[str], *, as_json: bool, html: Path | None = None
) -> None:
    """Print each run's metrics with intervals and paired differences from the first run; log them as a run.

    html: file for the HTML page, which is logged too.
    """
    settings = config.evaluate if config is not None else EvaluateConfig()
    seed = config.seed if config is not None else 0
    tracker = Tracker.from_config(config) if config is not None else Tracker(chosen_uri(), "")
    is_kept = config is not None and config.folder.exists()
    with scratch(config.folder) if config is not None and is_kept else contextlib.nullcontext():
        compared = evaluations(tracker, config.name if config is not None else None, runs)
    targets = {evaluation.label: evaluation.targets for evaluation in compared}
    own = {evaluation.label: evaluation.dislikes for evaluation in compared}
    dislikes = {label: table for label, table in own.items() if table is not None}
    systems = metrics_of_runs(
        targets,
        tuple(settings.k),
        settings.resamples,
        seed,
        dislikes if len(dislikes) == len(compared) else None,
    )
    comparison = Comparison.of(compared[0].targets, systems, seed_groups(compared))
    differing = differing_settings(compared)
    text, page = as_text(comparison), as_page(compared, comparison)
    if len(compared) > 1:
        text = f"{_settings_text(differing)}\n\n{text}"
    if html is not None:
        html.write_text(page, encoding="utf-8")
    run_id = log(tracker, compared, comparison, page) if len(compared) > 1 else None
    tree = as_tree(comparison) | {"settings": differing, "run_id": run_id}
    print(json.dumps(tree) if as_json else printable_lines(text))


def evaluations(tracker: Tracker, experiment: str | None, runs: Sequence[str]) -> list[Evaluation]:
    """Evaluations of the named runs, with their targets from the tracking server."""
    by_label: dict[str, Evaluation] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(runs):
            run = queries.find_run(tracker.uri, name, experiment)
            evaluated = _evaluation_of(tracker, run, name)
            if evaluated.run_id in {other.run.run_id for other in by_label.values()}:
                raise LookbackError(
                    f"compare: {name!r} repeats an earlier evaluation; expected different runs"
                )
            path = queries.run_artifact(tracker.uri, evaluated.run_id, TARGETS, Path(folder, str(number)))
            _check_targets(tracker, evaluated, path)
            label = f"{run.name} {run.run_id[:8]}" if run.name in by_label else run.name
            by_label[label] = Evaluation(
                label,
                evaluated,
                _training_of(tracker, evaluated),
                _read_targets(path),
                _dislikes(tracker, evaluated, Path(folder, str(number))),
            )
    return list(by_label.values())


def _check_targets(tracker: Tracker, evaluated: LoggedRun, path: Path) -> None:
    """Raise DamagedArtifact where the server's copy of the targets differs from the stage's; runs of 0.6 have no digest."""
    expected = evaluated.tags.get(TARGETS_DIGEST)
    if expected is not None and digest_file(path) != expected:
        raise DamagedArtifact(
            f"{TARGETS} of run {evaluated.name!r} ({evaluated.run_id}) on {tracker.uri}: is damaged: its digest differs from "
            "that of the stage evaluate; delete this run in MLflow's UI, and log it again with: lookback run evaluate --config …"
        )


def _dislikes(tracker: Tracker, evaluated: LoggedRun, folder: Path) -> pl.DataFrame | None:
    """Dislikes of an evaluation; None where none was held out."""
    if dislike_rates.TAG not in evaluated.tags:
        return None
    return _read_targets(queries.run_artifact(tracker.uri, evaluated.run_id, DISLIKES, folder))


def _read_targets(path: Path) -> pl.DataFrame:
    """Columns of targets.parquet that identify and rank the targets, those of nights included."""
    columns = ["system", *KEY, "history_length", "rank"]
    with_nights = [*columns, "night"] if "night" in pl.read_parquet_schema(path) else columns
    return pl.read_parquet(path, columns=with_nights)


def _evaluation_of(tracker: Tracker, run: LoggedRun, named: str) -> LoggedRun:
    """Evaluation behind a run: the run itself, or that of a training or of the parent run."""
    if run.tags.get(STAGE) == "evaluate":
        return run
    if run.tags.get(STAGE) == "train" and (
        evaluation := _find(tracker, run, "evaluate", FROM_TRAINING, FINGERPRINT)
    ):
        return evaluation
    parent = queries.find_run(tracker.uri, run.parent_run_id) if run.parent_run_id is not None else run
    if EVALUATION in parent.tags:
        return queries.find_run(tracker.uri, parent.tags[EVALUATION])
    evaluations = [
        child
        for child in queries.children(tracker.uri, parent.run_id)
        if child.tags.get(STAGE) == "evaluate" and child.status == "FINISHED"
    ]
    if not evaluations:
        raise LookbackError(
            f"compare: run {named!r} ({run.name}) has no finished evaluation, expected one:"
            " lookback run evaluate --config … with that run's settings"
        )
    return evaluations[-1]


def _training_of(tracker: Tracker, evaluated: LoggedRun) -> LoggedRun | None:
    """Training of the evaluated model, where the server has it."""
    training = _find(tracker, evaluated, "train", FINGERPRINT, FROM_TRAINING)
    if training is None and evaluated.parent_run_id is not None:
        return queries.find_run(tracker.uri, evaluated.parent_run_id)
    return training


def _find(tracker: Tracker, run: LoggedRun, stage: str, tag: str, own: str) -> LoggedRun | None:
    """Newest finished run of a stage whose `tag` equals the tag `own` of this run."""
    if own not in run.tags:
        return None
    return queries.find_tagged(tracker.uri, run.experiment_id, {STAGE: stage, tag: run.tags[own]})


def seed_groups(compared: Sequence[Evaluation]) -> list[SeedGroup]:
    """Groups of two or more runs with the same training settings and different seeds."""
    groups: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
    for evaluation in compared:
        params = evaluation.training.params if evaluation.training is not None else {}
        if "seed" in params:
            settings = frozenset(item for item in params.items() if item[0].startswith(SHAPING))
            groups.setdefault(settings, {})[evaluation.label] = params["seed"]
    return [
        SeedGroup(tuple(seeds), tuple(seeds.values()))
        for seeds in groups.values()
        if len(set(seeds.values())) > 1
    ]


def differing_settings(compared: Sequence[Evaluation]) -> dict[str, dict[str, str]]:
    """Settings of training and evaluation that are not the same in all runs: key -> run -> value."""
    settings = {
        evaluation.label: (evaluation.training.params if evaluation.training is not None else {})
        | evaluation.run.params
        for evaluation in compared
    }
    keys = sorted({key for own in settings.values() for key in own if not key.startswith("resolved.")})
    values = {key: {label: own.get(key, "not recorded") for label, own in settings.items()} for key in keys}
    return {key: by_run for key, by_run in values.items() if len(set(by_run.values())) > 1}


# --- printed and logged output ---


def _settings_text(differing: dict[str, dict[str, str]]) -> str:
    if not differing:
        return "the recorded settings are the same"
    labels = next(iter(differing.values()))
    rows = [[key, *values.values()] for key, values in differing.items()]
    return aligned([["settings that differ", *labels], *rows])


def as_text(comparison: Comparison) -> str:
    """Text table, a row per metric: each run's value, each later run's difference from the first, means over seeds."""
    systems, differences = comparison.systems, comparison.differences
    first = systems.systems[0]
    values = [(systems.values(label), systems.intervals(label)) for label in systems.systems]
    means = [
        f"mean ± sd of {', '.join(group.labels)} (seeds {', '.join(group.seeds)})"
        for group, _ in comparison.over_seeds
    ]
    rows = [["", *systems.systems, *(f"{label} minus {first}" for label in differences), *means]]
    for name in _shown_metrics(comparison):
        cells = [f"{own[name]:.4f} [{ends[name][0]:.4f}, {ends[name][1]:.4f}]" for own, ends in values]
        cells += [_shown(paired[name]) for paired in differences.values()]
        cells += [f"{moments[name][0]:.4f} ± {moments[name][1]:.4f}" for _, moments in comparison.over_seeds]
        rows.append([name, *cells])
    about = [f"{comparison.about}; 95 % intervals, bootstrap over users"]
    if differences:
        about.append("p: paired bootstrap")
    if len(differences) > 1:
        about[1] += f"; p and verdicts corrected for {len(differences)} comparisons (Holm)"
    best = ["", comparison_page.verdict(systems, _shown_metrics(comparison)[0])] if differences else []
    return "\n".join([*about, "", aligned(rows), *best])


def as_page(compared: Sequence[Evaluation], comparison: Comparison) -> str:
    """HTML page."""
    runs = {evaluation.label: evaluation.run.run_id for evaluation in compared}
    return comparison_page.page(comparison, _shown_metrics(comparison), runs)


def _shown_metrics(comparison: Comparison) -> list[str]:
    """Metrics of the printed table, NDCG first."""
    shown = SHOWN_OF_NIGHTS if comparison.is_nightly else SHOWN
    names = [name for name in comparison.systems.names if name.partition("@")[0] in shown]
    return sorted(names, key=lambda name: shown.index(name.partition("@")[0]))


def _shown(paired: PairedDifference) -> str:
    difference = f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
    return f"{difference} p {paired.p_bootstrap_holm:.3f} {paired.verdict}"


def log(tracker: Tracker, compared: Sequence[Evaluation], comparison: Comparison, page: str) -> str | None:
    """Log the comparison, with the whole table, as a run in the first run's experiment; returns its id.

    None, with one warning, where the server is unreachable.
    """
    record = RunRecord()
    record.tag(STAGE, "compare")
    record.tag("lookback.compared", ",".join(evaluation.run.run_id for evaluation in compared))
    record.tag(NOTE, _description(compared, comparison))
    for label, differences in comparison.differences.items():
        for name, paired in differences.items():
            for part in ("difference", "low", "high"):
                record.metric(f"{label}/{name}_{part}", getattr(paired, part))
    name = f"compare {' '.join(evaluation.label for evaluation in compared)}"[:250]
    record.table(TABLE)
    record.artifact(PAGE)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, TABLE), _table(compared, comparison))
        Path(folder, PAGE).write_text(page, encoding="utf-8")
        record.save(Path(folder))
        return tracker.log_in_experiment_of(compared[0].run, name, record, Path(folder))


def _description(compared: Sequence[Evaluation], comparison: Comparison) -> str:
    """Run description, in Markdown: the first metric's verdict, a table of values, the other metrics' verdicts."""
    shown, systems = _shown_metrics(comparison), comparison.systems
    first, *others = [comparison_page.verdict(systems, metric) for metric in shown]
    lines = [["run", *map(display_name, shown)], ["---"] * (1 + len(shown))]
    for evaluation in compared:
        label, run = evaluation.label, evaluation.run
        values, ends = systems.values(label), systems.intervals(label)
        cells = (f"{values[name]:.4f} ({ends[name][0]:.4f} to {ends[name][1]:.4f})" for name in shown)
        lines.append([f"[{markdown(label)}](#/experiments/{run.experiment_id}/runs/{run.run_id})", *cells])
    about = f"{comparison.about}; values with 95 % intervals; differences by the paired test."
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"**{first}**", about, table, *others])


def _table(compared: Sequence[Evaluation], comparison: Comparison) -> dict[str, list[Any]]:
    """{"columns": names, "data": rows}, a row per run and metric; the first run has no difference."""
    parts = ("difference", "low", "high", "p_value", "p_holm", "p_bootstrap_holm", "verdict")
    systems = comparison.systems
    rows = []
    for evaluation in compared:
        label = evaluation.label
        values, ends = systems.values(label), systems.intervals(label)
        differences = comparison.differences.get(label, {})
        for name in systems.names:
            row = {"metric": name, "run": label, "run_id": evaluation.run.run_id, "value": values[name]}
            row |= dict(zip(("value_low", "value_high"), ends[name], strict=True))
            rows.append(row | {part: getattr(differences.get(name), part, None) for part in parts})
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
