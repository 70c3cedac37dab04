"""A version that lookback 0.6.0 registered still scores: the same items in the same order for the same reasons.

published_0_6.zip holds its configuration (a simulated log), the model as MLflow stored it (without the copy of the code) and
the recommendations that 0.6.0 wrote. Scores may differ in their last bits where a processor chooses other kernels.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.tracking.client import client_at, fluent
from tests.workdir import Workdir, with_database

ARCHIVE = Path(__file__).with_name("published_0_6.zip")
NAME = "lookback-tiny"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Workdir:
    """The unpacked archive as a working directory, its model registered."""
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    with_database(folder, empty_database)
    digest = json.loads((folder / "model" / "data" / "bundle" / "bundle.json").read_text())["digest"]
    client = client_at(f"sqlite:///{folder}/mlruns/mlflow.db")
    client.create_registered_model(NAME)
    client.create_model_version(
        NAME, str(folder / "model"), tags={"lookback.bundle_digest": digest, "lookback.gate": "off"}
    )
    client.set_registered_model_alias(NAME, "champion", "1")
    return Workdir(folder)


def compare(scored: pl.DataFrame, held: pl.DataFrame) -> None:
    exact = ["user_id", "item_id", "rank"]
    assert scored.select(exact).equals(held.select(exact))
    assert scored["score"].to_numpy() == pytest.approx(held["score"].to_numpy(), abs=1e-4)
    reasons = pl.col("because").list.eval(pl.element().struct.field("item_id"))
    assert scored.select(reasons).equals(held.select(reasons))


@pytest.mark.slow
def test_a_night_with_the_champion_of_0_6_recommends_what_it_did(published: Workdir) -> None:
    summary = published.run("score", "--set", "score.model=champion", "--set", "score.exclude_seen=true")
    assert [stage["stage"] for stage in summary["stages"]] == ["ingest", "features", "score"]
    scored = pl.read_parquet(published.folder / summary["folder"] / "recommendations" / "*.parquet")
    compare(scored, pl.read_parquet(published.folder / "recommendations.parquet"))


def test_pyfunc_loads_what_0_6_logged(published: Workdir) -> None:
    with fluent(f"sqlite:///{published.folder}/mlruns/mlflow.db"):
        import mlflow
        import pandas as pd  # type: ignore[import-untyped]

        model = mlflow.pyfunc.load_model(str(published.folder / "model"))
        held = pl.read_parquet(published.folder / "recommendations.parquet")
        users = held["user_id"].unique(maintain_order=True).head(20)
        answer = model.predict(pd.DataFrame({"user_id": users.to_list()}), params={"k": 10})
    expected = held.filter(pl.col("user_id").is_in(users.implode())).group_by("user_id", maintain_order=True)
    for (user, lists), items, scores in zip(expected, answer["item_id"], answer["score"], strict=True):
        assert lists["item_id"].to_list() == list(items), user
        assert np.asarray(scores) == pytest.approx(lists["score"].to_numpy(), abs=1e-4)
