"""Configuration section of lists that are chosen together."""

from typing import Literal

from pydantic import Field

from pipeline.experiment_section import ExperimentConfig
from pipeline.sections import ScoreConfig, Section


class FairnessConfig(Section):
    """Fair exposure of groups of items."""

    field: str
    """Column of the items table, such as provider."""
    strength: float = Field(ge=0, le=1)
    """Weight of the sum over groups of log(1 + places), 0 to 1: at 1 a group's logarithm weighs as much as its mean part of the
    value of all lists without budgets."""


class BudgetsConfig(Section):
    """Lists of a night that are chosen together: the `[budgets]` section."""

    infeasible: Literal["stop", "report"] = "stop"
    """Floors that no lists meet. stop: no lists are written; report: they are, and the manifest names what is missing."""
    weight_by_place: bool = False
    """Places that count 1 / log2(1 + rank), as far down lists are seen less, in limits and values; else each counts 1."""
    fairness: FairnessConfig | None = None
    """Fair exposure, { field, strength }: Nash welfare beside the value of the lists."""


def are_kept(score: ScoreConfig, budgets: BudgetsConfig | None) -> bool:
    """Whether lists are chosen together."""
    return score.budgets is not None or (budgets is not None and budgets.fairness is not None)


def check_budgets(
    score: ScoreConfig, budgets: BudgetsConfig | None, experiment: ExperimentConfig | None
) -> None:
    """Raise ValueError for settings beside budgets that would not keep them."""
    if not are_kept(score, budgets):
        if budgets is not None:
            raise ValueError(
                "budgets: received a section without score.budgets or budgets.fairness, expected one of them"
            )
        return
    own = "score.budgets" if score.budgets is not None else "budgets.fairness"
    beside = {
        "score.diversity": bool(score.diversity),
        "score.popularity_damping": bool(score.popularity_damping),
        "score.exploration": score.exploration not in (0, 0.0),
        "score.second_stage_share": score.second_stage_share < 1,
        "score.shadows": bool(score.shadows),
        "[experiment]": experiment is not None,
        "score.because_method = 'proven'": score.because and score.because_method == "proven",
        "score.pin with budgets.weight_by_place": score.pin is not None
        and budgets is not None
        and budgets.weight_by_place,
    }
    for name in (name for name, is_set in beside.items() if is_set):
        raise ValueError(
            f"{name}: received beside {own}, which chooses all lists together; expected only one of the two"
        )
