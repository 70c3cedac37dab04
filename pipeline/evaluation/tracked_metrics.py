"""Metrics of an evaluation by their names in the tracking server."""

from collections.abc import Iterator

from pipeline.evaluation.metrics_report import OF_RANKS
from pipeline.evaluation.report import EvaluationReport, OffPolicyValue
from pipeline.sections import MODEL


def of_model(report: EvaluationReport) -> dict[str, float]:
    """Metrics of the model, `test/ndcg@10`: also those of the whole run."""
    return {f"test/{name}": value for name, value in report.metrics[MODEL].items()}


def beside_the_model(report: EvaluationReport) -> dict[str, float]:
    """All other metrics: of baselines, repeats, new items, kinds of targets, both stages, outcomes, rolling cuts; counts."""
    values = {
        f"{system}/{name}": value
        for system, own in report.metrics.items()
        for name, value in own.items()
        if system != MODEL and not name.startswith(("pessimistic_", "user_pessimistic_"))
    }
    values |= dict(_parts(report)) | dict(_off_policy(report))
    for stage, own in (report.ranker.metrics or {}).items():
        values |= {f"{stage}/{name}": value for name, value in own.items()}
    for outcome, quality in (report.outcomes or {}).items():
        kept = {name: getattr(quality, name) for name in ("auc", "log_loss", "calibration_error")}
        values |= {f"outcomes/{outcome}/{name}": value for name, value in kept.items() if value is not None}
    for order, own in ({} if report.orders is None else report.orders.metrics).items():
        values |= {f"order_{order}/{name}": value for name, value in own.items()}
    if report.rolling is not None:
        for moment, means in (("mean", report.rolling.mean), ("spread", report.rolling.spread)):
            values |= {f"rolling_{moment}/{name}": value for name, value in means.get(MODEL, {}).items()}
    return values | {"test/targets": report.targets, "test/users": report.users}


def _off_policy(report: EvaluationReport) -> Iterator[tuple[str, float]]:
    """`off_policy/snips_place` of the model and `popularity/off_policy/snips_place` of others, where there is a number."""
    for system, estimates in (report.off_policy or {}).items():
        prefix = "" if system == MODEL else f"{system}/"
        for name, estimate in estimates.items():
            if isinstance(estimate, OffPolicyValue):
                yield f"{prefix}off_policy/{name}", estimate.value


def _parts(report: EvaluationReport) -> Iterator[tuple[str, float]]:
    """Metrics of ranks at the shortest list length: repeats, new items, targets among candidates, further kinds of targets."""
    parts = {name: subset.metrics for name, subset in report.subsets.items()}
    if report.among_candidates is not None:
        parts["among_candidates"] = report.among_candidates.metrics
    kinds = report.by_targets or {}
    parts |= {kind: values for kind, values in kinds.items() if kind != report.targets_of_a_user}
    names = [f"{metric}@{report.list_lengths[0]}" for metric in OF_RANKS]
    for part, systems in parts.items():
        for system, values in systems.items():
            prefix = part if system == MODEL else f"{system}/{part}"
            yield from ((f"{prefix}/{name}", values[name]) for name in names if name in values)
