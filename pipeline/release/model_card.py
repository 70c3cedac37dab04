"""Model card of a registered version, in Markdown."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from features.printable import markdown
from features.profiling.profile import PROFILE, Profile
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.evaluation import target_words
from pipeline.evaluation.metric_names import display_name
from pipeline.evaluation.report import EvaluationReport
from pipeline.sections import MODEL
from pipeline.serving.start_version import START

MAX_SEGMENTS = 6
"""Segments listed as served worst."""
LONGEST_NAME = 80
"""Characters of an event type or category."""
MIN_TARGETS = 30
"""Targets that a listed segment has at least."""
_METRICS = ("ndcg", "hit_rate", "mrr", "user_ndcg", "dislike_rate", "coverage", "novelty")
_METRICS_OF_NIGHTS = (
    "ndcg",
    "hit_rate",
    "recall",
    "precision",
    "map",
    "mrr",
    "dislike_rate",
    "coverage",
    "novelty",
)
_METRICS_OF_SUBSETS = ("ndcg", "hit_rate")

Row = dict[str, Any]


def card(config: Config, description: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Describe data, protocol, metrics with intervals, worst segments, limits and scoring.

    description: content of bundle.json. inputs: stage -> fingerprint of the bundle's inputs; sections whose artifacts are
    missing or of an older version are left out.
    """
    features, evaluate = (
        config.folder / stage / inputs.get(stage, "-") for stage in ("features", "evaluate")
    )
    parts = [f"`{description['name']}`: {_model(description)}; deployed weights: {_deployed(description)}."]
    if "system_reason" in description:
        reason = str(description["system_reason"])
        parts.append(f"**System.** {reason[0].upper()}{reason[1:]}.")
    with contextlib.suppress(OSError, DamagedArtifact):
        parts.append(f"**Data.** {_data(Profile.load(features / PROFILE))}")
    try:
        parts += _evaluation(evaluate, description.get("system", MODEL))
    except DamagedArtifact:
        parts += [
            f"**Protocol.** {display_name(description['protocol'])} split.",
            _plain_metrics(description["metrics"]),
        ]
    return "\n\n".join([*parts, f"**Limits.** {_limits(description)}", _how_to_score(config)])


def _evaluation(evaluate: Path, published: str) -> list[str]:
    """Cautions, protocol, metrics and worst segments, from the folder of the version's evaluation.

    published: name of the published system.
    """
    report = EvaluationReport.load(evaluate)
    cautions = [f"**Caution.** {'; '.join(report.cautions)}."] if report.cautions else []
    return [
        *cautions,
        f"**Protocol.** {_protocol(report)}",
        f"**Metrics** of the evaluated weights.\n\n{_metrics(report, published)}",
        *_worst(evaluate / "segments.parquet", report, published),
    ]


def _model(description: Mapping[str, Any]) -> str:
    if "system_settings" in description:
        tuned = ", ".join(f"{key} {value:g}" for key, value in description["system_settings"].items())
        return f"the baseline {description['system']}{f' ({tuned})' if tuned else ''}"
    settings = description.get("settings", {}).get("model")
    if settings is None:
        return "of an older version"
    return f"{settings['block']}, {settings['num_blocks']} blocks of {settings['dim']} components"


def _deployed(description: Mapping[str, Any]) -> str:
    if description["deployed"] == "evaluated" or "refit_steps" not in description:
        return str(description["deployed"])
    if description["refit_steps"] is None:
        return "fitted on all events"
    if START in description:
        return (
            f"those of an earlier version trained on the events since ({description['refit_steps']:,} steps); the metrics are "
            "those of the last training from scratch"
        )
    return f"trained again on all events ({description['refit_steps']:,} steps)"


def _data(profile: Profile) -> str:
    text = f"{profile.num_events:,} events of {profile.num_users:,} users on {profile.num_items:,} items"
    if profile.times is not None:
        text += f", {profile.times.first[:10]} to {profile.times.last[:10]}"
    types = [
        f"{markdown(name, LONGEST_NAME)} {count:,}" for name, count in profile.events_by_type.items() if name
    ]
    return f"{text}{' (' + ', '.join(types) + ')' if types else ''}."


def _protocol(report: EvaluationReport) -> str:
    masked = "never recommended" if report.exclude_seen else "recommended too"
    kind = report.targets_of_a_user
    text = (
        f"{display_name(report.protocol).capitalize()} split; {target_words.tested(report)}, "
        f"ranked among all {report.num_items:,} items; items of the history are {masked}."
    )
    if target_words.is_nightly(kind):
        text += " At each night the histories are frozen; what the user takes within the days after it is relevant."
    reasons = target_words.left_out(kind, report.targets_left_out)
    return f"{text} Left out: {reasons}." if reasons else text


def _metrics(report: EvaluationReport, published: str) -> str:
    """Table of the model, the published and the best baseline, with 95 % intervals; repeats and new items apart."""
    best = report.best_baselines(f"ndcg@{report.list_lengths[0]}")[:1]
    others = [*({published} - {MODEL, *best}), *best]
    shown = _METRICS_OF_NIGHTS if target_words.is_nightly(report.targets_of_a_user) else _METRICS
    names = [name for name in report.metric_names if name.partition("@")[0] in shown]
    names.sort(key=lambda name: shown.index(name.partition("@")[0]))
    systems = [MODEL, *others]
    rows = [
        f"| {display_name(name)} | {' | '.join(_estimate(report, system, name) for system in systems)} |"
        for name in names
    ]
    words = [display_name(name) + (", the best baseline" if name in best else "") for name in others]
    head = f"| metric | lookback |{''.join(f' {name} |' for name in words)}"
    return "\n".join([head, f"| --- |{' --- |' * len(systems)}", *rows, *_subsets(report, systems)])


def _subsets(report: EvaluationReport, systems: Sequence[str]) -> Iterator[str]:
    """Rows of repeats and of new items, at the shortest list length."""
    for words, subset in target_words.parts(report).items():
        for metric in _METRICS_OF_SUBSETS:
            name = f"{metric}@{report.list_lengths[0]}"
            if name in report.metric_names:
                cells = " | ".join(str(subset.value(system, name)) for system in systems)
                yield f"| {display_name(name)} of {subset.targets:,} {words} | {cells} |"


def _estimate(report: EvaluationReport, system: str, metric: str) -> str:
    return str(report.value(system, metric)) if metric in report.metrics[system] else "–"


def _plain_metrics(metrics: Mapping[str, float | None]) -> str:
    rows = [f"| {display_name(name)} | {value:.4f} |" for name, value in metrics.items() if value is not None]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])


def _worst(path: Path, report: EvaluationReport, system: str) -> Iterator[str]:
    """Sentence on the segments with the lowest metric, among those with enough targets."""
    if not path.exists():
        return
    metric = f"ndcg@{report.list_lengths[0]}"
    table = pl.read_parquet(path).filter((pl.col("system") == system) & (pl.col("targets") >= MIN_TARGETS))
    if len(table):
        rows = table.sort(metric).head(MAX_SEGMENTS).to_dicts()
        segments = "; ".join(_segment(row, metric) for row in rows)
        yield f"**Served worst.** {display_name(metric)} by segment of the targets: {segments}."


def _segment(row: Row, metric: str) -> str:
    ends: Sequence[float] = (row[f"{metric}_low"], row[f"{metric}_high"])
    value = markdown(str(row["value"]), LONGEST_NAME)
    return f"{display_name(row['segment'])} {value} {row[metric]:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def _limits(description: Mapping[str, Any]) -> str:
    length = description.get("max_length")
    reads_all = length is None or "system_settings" in description
    read = "" if reads_all else f"The model reads the last {length:,} events of a history. "
    return (
        f"{read}Items newer than the training are ignored; users without a known interaction get popular items. "
        "The metrics are of later events of the same log: clicks on items that were never shown are not in it."
    )


def _how_to_score(config: Config) -> str:
    return (
        "**How to score.** Every user: `lookback run score --config FILE --set score.model=champion`. From Python:\n\n"
        "```python\nimport mlflow, pandas as pd\n"
        f'model = mlflow.pyfunc.load_model("models:/lookback-{config.name}@champion")\n'
        'model.predict(pd.DataFrame({"history": [["an item id", "another"]]}), params={"k": 10})\n```'
    )
