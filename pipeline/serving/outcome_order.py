"""Outcomes of a bundle's second stage: their columns, and the order of lists by expected utility."""

from dataclasses import replace

from models.ranking.outcomes import Utility
from models.settings.outcomes import Utilities
from pipeline.errors import LookbackError
from pipeline.serving.bundle import Bundle


def types_of(bundle: Bundle) -> tuple[str, ...]:
    """Outcomes that a bundle predicts; none by a baseline."""
    stage = bundle.second_stage
    return () if stage is None or stage.ranker.heads is None else stage.ranker.heads.types


def has_utility(bundle: Bundle) -> bool:
    """Whether a bundle's outcomes have a utility."""
    return bundle.second_stage is not None and bundle.second_stage.utility is not None


def with_utility(bundle: Bundle, order: str, utilities: Utilities | None) -> Bundle:
    """The bundle with a utility of its outcomes, which orders its lists where `order` is utility.

    A utility of an outcome without a head counts nothing. Without any head or utility the bundle stays the same.
    """
    stage, types = bundle.second_stage, types_of(bundle)
    if stage is None or not types or utilities is None:
        return bundle
    utility = Utility.of(utilities, types, orders=order == "utility")
    return replace(bundle, counted_stage=stage.with_utility(utility))


def check_order(bundle: Bundle, order: str, utilities: Utilities | None) -> None:
    """Raise LookbackError where lists in the order of utility need outcomes that the bundle does not predict."""
    if order != "utility" or utilities is None:
        return
    types, stage = types_of(bundle), bundle.second_stage
    useful = [name for name in types if utilities.get(name)]
    if not useful:
        learned = ", ".join(types) or ("none" if stage is not None else "none, it has no ranker")
        raise LookbackError(
            f"score.order: received 'utility', but of the outcomes in [utility] ({', '.join(utilities)}) the published model "
            f"predicts none (outcomes learned: {learned}); expected one at least: set ranker.use = 'always', use a longer log, "
            "or set score.order = 'next'"
        )
