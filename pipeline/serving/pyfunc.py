"""MLflow pyfunc of a bundle: a frame of users or histories in, lists of items and scores out."""

from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from pipeline.serving import new_item_catalogue
from pipeline.serving.bundle import Bundle


class Recommender:
    """Pyfunc interface of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend for each row of the frame: `item_id` and `score`, lists of params["k"] (10) at most, best first.

        The frame has a column `history` (lists of item ids, oldest first, taken as interactions a second apart up to the time of
        the newest event of the bundle's log) or else `user_id`, answered from the bundle's own histories. Unknown users and empty
        histories get recently popular items; exclude_seen (by default as recorded in the bundle) excludes items of the history.
        `user_id` is passed through.
        Raises ValueError where both columns are missing, or a history is no list.
        """
        options = {"k": 10, "exclude_seen": self._bundle.excludes_seen} | (params or {})
        k, exclude_seen = int(options["k"]), bool(options["exclude_seen"])
        if k < 1:
            raise ValueError(f"params: received k = {k}, expected 1 or more")
        if "history" in frame:
            histories = [_ids(row) for row in frame["history"]]
            lists = self._bundle.recommend_item_lists(histories, k, exclude_seen)
        elif "user_id" in frame:
            lists = self._bundle.recommend_users(frame["user_id"].tolist(), k, exclude_seen)
        else:
            raise ValueError(f"frame: received columns {list(frame.columns)}, expected user_id or history")
        answer = {"item_id": [items for items, _ in lists], "score": [scores for _, scores in lists]}
        users = {"user_id": frame["user_id"].tolist()} if "user_id" in frame else {}
        return pd.DataFrame(users | answer, index=frame.index)


def _ids(history: Any) -> list[Any]:
    """Items of a cell of `history`; none for a missing value."""
    if pd.api.types.is_list_like(history):
        return list(history)
    if pd.isna(history):
        return []
    raise ValueError(f"frame: received the history {history!r}, expected a list of item ids, oldest first")


def load(data_path: str) -> Recommender:
    """Open a bundle's folder, with the catalogue of new items where there is one."""
    return Recommender(new_item_catalogue.with_catalogue(Bundle.open(Path(data_path))))
