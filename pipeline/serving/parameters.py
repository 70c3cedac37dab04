"""Parameters of a request to the served model, as its signature has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from models.histories import Histories, Int32
from models.recommendation.rules import Rules
from pipeline.errors import LookbackError
from pipeline.serving.bundle import Bundle
from pipeline.serving.business_rules import ITEM, allowlist, available, listed_items
from pipeline.serving.event_lists import ids_of
from pipeline.serving.item_lists import ItemList

LONGEST = 1_000_000
"""Maximum k."""


@dataclass(frozen=True)
class Parameters:
    """Length and rules of the lists, over a vocabulary."""

    k: int
    rules: Rules
    pins: Int32
    """[p] items at the top of every list, in their order."""

    @classmethod
    def of(cls, params: Mapping[str, Any], bundle: Bundle) -> "Parameters":
        """Read parameters: k (10), exclude_seen, allow, deny, availability, max_per_category, pin; the others are ignored.

        `availability` is at the bundle's `newest` event. Filters hold for `pin` too. Raises ValueError for a value that is none
        of the parameter's, an allowlist without a known item, and unusable windows.
        """
        items = bundle.items
        quota = _whole("max_per_category", params.get("max_per_category", 0), 0)
        allowed = np.arange(len(items) + 1) > 0
        try:
            if len(allow := params.get("allow") or []):
                allowed &= allowlist("params: allow", ids_of(allow), items)[0]
            allowed &= ~listed_items(ids_of(params.get("deny") or []), items)[0]
            if windows := params.get("availability"):
                table = pl.DataFrame({**windows, ITEM: ids_of(windows.get(ITEM, []))}, strict=False)
                allowed &= available("params: availability", table, items, bundle.newest)[0]
        except LookbackError as error:
            raise ValueError(str(error)) from None
        except pl.exceptions.PolarsError as error:
            raise ValueError(
                f"params: availability: received lists that do not fit together: {error}"
            ) from None
        wanted, _ = items.encode_known(ids_of(params.get("pin") or []))
        pins = np.array([item for item in dict.fromkeys(wanted.tolist()) if allowed[item]], np.int32)
        allowed[pins] = False
        rules = replace(
            bundle.rules(params.get("exclude_seen")),
            max_per_category=quota,
            allowed=None if allowed[1:].all() else allowed,
        )
        return cls(_whole("k", params.get("k", 10), 1), rules, pins)

    def pinned(
        self, lists: Sequence[ItemList], histories: Histories, items: Vocabulary
    ) -> list[tuple[list[Any], list[float | None]]]:
        """Lists with the pins before their items, without a score; with exclude_seen none of the row's history."""
        ids = items.decode(self.pins).to_list()
        whole: list[tuple[list[Any], list[float | None]]] = []
        for row, (own, scores) in enumerate(lists):
            history = histories.item_index[histories.starts[row] : histories.ends[row]]
            is_left = ~np.isin(self.pins, history if self.rules.exclude_seen else [])
            pins = [item for item, is_kept in zip(ids, is_left, strict=True) if is_kept][: self.k]
            rest = self.k - len(pins)
            whole.append(([*pins, *own[:rest]], [*[None] * len(pins), *scores[:rest]]))
        return whole


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number from `least` to `LONGEST`."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= LONGEST:
        return int(value)
    raise ValueError(
        f"params: received {name} = {value!r}, expected a whole number from {least} to {LONGEST:,}"
    )
