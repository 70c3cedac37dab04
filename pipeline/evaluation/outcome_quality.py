"""Outcomes in the evaluation report: quality of each head, and both orders of the lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.evaluation.bootstrap import Difference


@dataclass(frozen=True)
class OutcomeQuality:
    """Quality of the predictions of one outcome, over the candidates of the test's lists."""

    candidates: int
    positives: int
    auc: float | None
    """None where all candidates have the same label."""
    log_loss: float
    """nats"""
    base_log_loss: float
    """Log loss of the outcome's own rate among these candidates"""
    calibration_error: float
    """As in `CalibrationQuality`"""
    mean_probability: float
    values: int = 0
    """Positives with a value, where the value is predicted"""
    value_error: float | None = None
    """Root mean squared error of the predicted value, in the log's unit"""
    base_value_error: float | None = None
    """That of the mean value of these positives"""


@dataclass(frozen=True)
class OutcomeOrders:
    """Lists in the order of the next item and of expected utility, on the same requests with something taken."""

    requests: int
    users: int
    metrics: Mapping[str, Mapping[str, float]]
    """`next` and `utility` -> `ndcg@k` and realised `utility@k`"""
    intervals: Mapping[str, Mapping[str, Sequence[float]]]
    paired: Mapping[str, Difference]
    """Metric -> the order of utility minus that of the next item"""

    @property
    def sentence(self) -> str:
        """Relevance that a percent of utility costs; both in amounts where the order of the next item realises none above 0."""
        ndcg, utility = (
            next(name for name in self.paired if name.startswith(own)) for own in ("ndcg", "utility")
        )
        if self.paired[utility].low <= 0:
            return "The order of utility shows no more utility than that of the next item."
        gained, lost = (self.paired[name].difference for name in (utility, ndcg))
        base, relevance = (self.metrics["next"][name] for name in (utility, ndcg))
        if base <= 0:
            price = f"{-lost:.4f} of {ndcg}" if lost < 0 else f"no {ndcg}"
            return f"The order of utility brings {gained:.4g} more {utility} per list, from {base:.4g}; it costs {price}."
        price = f"{-lost / relevance / (gained / base):.2f} % of {ndcg}" if lost < 0 else f"no {ndcg}"
        return (
            f"The order of utility brings {gained / base:.1%} more utility; each percent of it costs {price}."
        )
