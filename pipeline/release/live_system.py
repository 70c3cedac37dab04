"""Choice of the system that is published: the model, or the best baseline where that is better."""

from dataclasses import dataclass

from models.evaluation.bootstrap import Difference
from pipeline.errors import LookbackError
from pipeline.evaluation.report import EvaluationReport
from pipeline.sections import MODEL, UNPUBLISHED


@dataclass(frozen=True)
class LiveSystem:
    """System that is published, and why."""

    name: str
    reason: str

    @property
    def sentence(self) -> str:
        """Sentence for summary, report and card, without capital and full stop."""
        return f"the published system is {'the model' if self.name == MODEL else self.name}: {self.reason}"


def choose(report: EvaluationReport, setting: str, gate_metric: str) -> LiveSystem:
    """System to publish by `publish.system` and an evaluation.

    auto: the best baseline where the interval of its paired difference from the model in `gate_metric` lies on its side of 0;
    else the model, also where neither is shown to be better. Raises LookbackError where the named baseline was not evaluated.
    """
    if setting != "auto":
        if setting not in report.systems:
            reason = report.not_applicable.get(setting, "it was not evaluated")
            raise LookbackError(
                f"publish.system: received {setting!r}, but {reason}; expected auto, or one of {', '.join(report.systems)}"
            )
        return LiveSystem(setting, f"publish.system is {setting!r}")
    metric = measured(report, gate_metric)
    ranked = report.best_baselines(metric)
    best = next((name for name in ranked if name not in UNPUBLISHED), None)
    is_passed_over = bool(ranked) and ranked[0] != best
    note = f"; {ranked[0]} has a higher value, but cannot be published" if is_passed_over else ""
    if best is None:
        return LiveSystem(MODEL, f"no baseline that can be published was evaluated{note}")
    paired = report.paired(best, metric)
    if paired.high < 0:
        return LiveSystem(best, f"it is better than the model, {metric} {_reversed(paired)}{note}")
    verdict = "it is better than" if paired.low > 0 else "it is not shown to be worse than"
    return LiveSystem(
        MODEL,
        f"{verdict} {best}, the best baseline, {metric} {paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]{note}",
    )


def measured(report: EvaluationReport, gate_metric: str) -> str:
    """The gate's metric, or NDCG at the shortest list length where that was not measured."""
    names = report.metric_names
    return gate_metric if gate_metric in names or not names else f"ndcg@{report.list_lengths[0]}"


def _reversed(paired: Difference) -> str:
    """Difference of the baseline from the model, with its interval."""
    return f"{-paired.difference:+.4f} [{-paired.high:+.4f}, {-paired.low:+.4f}]"
