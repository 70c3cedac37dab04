"""Outcomes of a bundle's second stage: their columns, and the order of lists by expected utility."""

import sys
from dataclasses import replace

from models.ranking.outcomes import Utility
from models.settings.outcomes import Utilities
from pipeline.errors import LookbackError
from pipeline.serving.bundle import Bundle
from pipeline.serving.bundle_baseline import baseline_of


def types_of(bundle: Bundle) -> tuple[str, ...]:
    """Outcomes that a bundle predicts; none by a baseline."""
    stage = bundle.second_stage
    return () if stage is None or stage.ranker.heads is None else stage.ranker.heads.types


def has_utility(bundle: Bundle) -> bool:
    """Whether a bundle's outcomes have a utility."""
    return bundle.second_stage is not None and bundle.second_stage.utility is not None


def with_utility(bundle: Bundle, order: str, utilities: Utilities | None) -> Bundle:
    """The bundle with a utility of its outcomes, which orders its lists where `order` is utility.

    A utility of an outcome, or of a value, without a head counts nothing. Without any head or utility the bundle stays the same.
    """
    stage, types = bundle.second_stage, types_of(bundle)
    if stage is None or not types or utilities is None:
        return bundle
    utility = Utility.of(utilities, types, orders=order == "utility")
    return replace(bundle, counted_stage=stage.with_utility(utility))


def not_predicted(bundle: Bundle, utilities: Utilities) -> list[str]:
    """Outcomes of utilities of which a bundle lacks the prediction: the probability or, where that is their worth, the value."""
    stage = bundle.second_stage
    heads = None if stage is None else stage.ranker.heads
    if heads is None:
        return list(utilities)
    return [
        name
        for name, worth in utilities.items()
        if name not in heads.types or (worth == "value" and name not in heads.valued)
    ]


def order_of(bundle: Bundle, order: str) -> str:
    """Order of a bundle's lists, `score.order`; the published one, next, of a baseline's."""
    return order if baseline_of(bundle.description) is None else "next"


def check_order(bundle: Bundle, order: str, utilities: Utilities | None) -> None:
    """Raise LookbackError where lists in the order of utility need outcomes that the model of the bundle does not predict.

    A published baseline keeps its own order, with a line on stderr.
    """
    if order != "utility" or utilities is None:
        return
    if order_of(bundle, order) != order:
        text = (
            f"score.order: 'utility', but {baseline_of(bundle.description)} is published, which predicts no outcomes: lists are "
            "in its own order; set publish.system = 'lookback' to publish the model, or score.order = 'next'"
        )
        print(text, file=sys.stderr, flush=True)
        return
    missing, types, stage = not_predicted(bundle, utilities), types_of(bundle), bundle.second_stage
    if not any(worth for name, worth in utilities.items() if name not in missing):
        learned = ", ".join(types) or ("none" if stage is not None else "none, it has no ranker")
        few = [name for name in missing if name in types]
        without = f"; without the value of {', '.join(few)}" if few else ""
        raise LookbackError(
            f"score.order: received 'utility', but of the outcomes in [utility] ({', '.join(utilities)}) the published model "
            f"predicts none (outcomes learned: {learned}{without}); expected one at least: set ranker.use = 'always', use a "
            "longer log, or set score.order = 'next'"
        )
