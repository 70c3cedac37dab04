"""Drift between two scorings, with numbers one can check by hand."""

from pathlib import Path

import polars as pl

from pipeline.artifacts.files import write_json
from pipeline.serving.drift import drift


def a_scoring(folder: Path, users: pl.Series, items: pl.Series) -> Path:
    (folder / "recommendations").mkdir(parents=True)
    count = len(users)
    table = pl.DataFrame({"user_id": users, "item_id": items, "rank": [1] * count, "score": [0.5] * count})
    table.with_columns(pl.col("score").cast(pl.Float32)).write_parquet(
        folder / "recommendations" / "part-0.parquet"
    )
    write_json(folder / "manifest.json", {"bundle_digest": "d"})
    return folder


def test_half_of_the_lists_are_the_same(tmp_path: Path) -> None:
    users = pl.Series([1, 2])
    before = a_scoring(tmp_path / "before", users, pl.Series([7, 8]))
    change = drift(before, a_scoring(tmp_path / "now", users, pl.Series([7, 9])), "d")
    assert (change.users_in_both, change.overlap, change.psi, change.not_compared) == (1.0, 0.5, 0.0, "")


def test_lists_of_other_arms_are_not_by_the_same_model(tmp_path: Path) -> None:
    users, items = pl.Series([1, 2]), pl.Series([7, 8])
    before, now = (a_scoring(tmp_path / name, users, items) for name in ("before", "now"))
    arms = [{"name": "champion", "share": 0.5, "bundle_digest": "d", "users": 1}]
    experiment = {"name": "e", "arms": arms}
    assert drift(before, now, "d").same_model
    assert not drift(before, now, "d", experiment).same_model
    write_json(before / "manifest.json", {"bundle_digest": "d", "experiment": experiment})
    assert not drift(before, now, "d").same_model
    assert drift(before, now, "d", experiment | {"arms": [arms[0] | {"users": 2}]}).same_model


def test_ids_of_another_type_are_not_compared(tmp_path: Path) -> None:
    before = a_scoring(tmp_path / "before", pl.Series([1, 2]), pl.Series([7, 8]))
    now = a_scoring(tmp_path / "now", pl.Series(["1", "2"]), pl.Series(["7", "8"]))
    change = drift(before, now, "d")
    assert (change.users_in_both, change.overlap, change.psi) == (None, None, 0.0)
    assert change.not_compared == (
        "not compared: user_id was Int64 and is String, item_id was Int64 and is String"
    )
