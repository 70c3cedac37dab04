"""Display names of metrics and systems."""

import re

_UPPER = {word.lower(): word for word in ("NDCG", "MRR", "MAP", "GRU", "ALS", "EASE")} | {
    "item knn": "ItemKNN",
    "co visitation": "co-visitation",
}
_WORD = re.compile(rf"\b({'|'.join(_UPPER)})\b")


def display_name(name: str) -> str:
    """Spell a metric's or system's name for display: `user_ndcg@10` is user NDCG@10, `ease` is EASE."""
    return _WORD.sub(lambda match: _UPPER[match[0]], name.replace("_", " "))
