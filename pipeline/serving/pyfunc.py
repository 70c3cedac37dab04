"""MLflow pyfunc of a bundle: a frame of users or histories in, lists of items and scores out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from models.histories import Histories, Int64
from pipeline.serving import new_item_catalogue
from pipeline.serving.bundle import Bundle
from pipeline.serving.event_lists import EventList, id_of, is_missing
from pipeline.serving.parameters import Parameters
from pipeline.tracking.served_model import refusal


class Recommender:
    """Pyfunc interface of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recommend for each row of the frame: `item_id` and `score`, lists of params["k"] (10) at most, best first.

        A row is answered from its `history`, as by `EventList.of` (item ids are taken as interactions a second apart up to the
        time of the newest event of the bundle's log), or without one from the bundle's own history of its `user_id`. Unknown
        users and empty histories get recently popular items. params: as by `Parameters.of`; exclude_seen is by default as
        recorded in the bundle. `user_id` is passed through.
        Raises ValueError, for MLflow a refused request, where both columns are missing, for a history of another form, and for
        parameters out of range.
        """
        try:
            frame = _a_row_each(frame)
            by_history = _by_history(frame)
            events = [EventList.of(cell) for cell in frame["history"][by_history]] if by_history.any() else []
            asked = Parameters.of(params or {}, self._bundle)
        except ValueError as error:
            raise refusal(str(error)) from None
        of_histories = self._answer(self._bundle.from_events(events)[0], None, asked)
        users = frame.get("user_id")
        of_users = (
            [] if users is None else self._answer(*self._bundle.rows_of(users[~by_history].tolist()), asked)
        )
        left = {True: iter(of_histories), False: iter(of_users)}
        answers = [next(left[is_history]) for is_history in by_history.tolist()]
        answer = {"item_id": [items for items, _ in answers], "score": [scores for _, scores in answers]}
        named = {} if users is None else {"user_id": _passed(users)}
        return pd.DataFrame(named | answer, index=frame.index)

    def _answer(
        self, histories: Histories, segment: Int64 | None, asked: Parameters
    ) -> list[tuple[list[Any], list[float | None]]]:
        lists = self._bundle.lists(histories, segment, asked.k, asked.rules)
        return asked.pinned(lists, histories, self._bundle.items)


def _a_row_each(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame itself; where MLflow has put a whole column of users into one row, that column.

    Raises ValueError for a frame without a known column.
    """
    if not {"user_id", "history"} & set(frame):
        raise ValueError(f"frame: received columns {list(frame.columns)}, expected user_id or history")
    if list(frame) == ["user_id"] and len(frame) == 1 and isinstance(frame["user_id"].iloc[0], list):
        return pd.DataFrame({"user_id": frame["user_id"].iloc[0]})
    return frame


def _by_history(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """[rows] whether a row's history is in the frame; without one its user's is meant, where users are named."""
    if "history" not in frame or "user_id" not in frame:
        return np.full(len(frame), "history" in frame)
    return np.array([not is_missing(cell) for cell in frame["history"]], bool)


def _passed(users: pd.Series) -> pd.Series:
    """Users as they came; where some are missing, which makes floats of integers, None and the integers."""
    if not users.hasnans:
        return users
    return pd.Series([id_of(user) for user in users], users.index, object)


def load(data_path: str) -> Recommender:
    """Open a bundle's folder, with the catalogue of new items where there is one."""
    return Recommender(new_item_catalogue.with_catalogue(Bundle.open(Path(data_path))))
