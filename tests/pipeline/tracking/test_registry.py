"""The registry and what MLflow serves, with a small bundle of random weights."""

import json
import os
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from features.histories.jagged import JaggedHistories
from models.recommendation.rules import Rules
from models.settings.encoder import EncoderSettings
from pipeline.artifacts.files import write_json
from pipeline.dataset.dataset import Dataset
from pipeline.errors import DamagedArtifact, LookbackError
from pipeline.evaluation.evaluated_model import EvaluatedModel
from pipeline.sections import ScoreConfig
from pipeline.serving import _load_pyfunc
from pipeline.serving.batch import Job, Scorer, Users
from pipeline.serving.bundle import Bundle, seal
from pipeline.serving.current_log import Log
from pipeline.serving.event_lists import SECOND
from pipeline.serving.pyfunc import Recommender
from pipeline.serving.request import Request
from pipeline.tracking import registry
from pipeline.tracking.client import client_at, fluent
from pipeline.tracking.queries import find_run
from pipeline.tracking.record import RunRecord
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import BUNDLE_DIGEST, absolute_uri, artifact_root
from pipeline.tracking.tracker import Tracker
from tests.factories import small_bundle
from tests.interpreter import python

ROOT = Path(__file__).resolve().parents[3]
NAME = "lookback-small"
NUM_ITEMS = 7
SMALL = EncoderSettings(dim=4, num_blocks=1, num_heads=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def uri(place: Path) -> str:
    return absolute_uri(f"sqlite:///{place}/mlruns/mlflow.db")


@pytest.fixture(scope="module")
def digest(place: Path) -> str:
    return small_bundle(place / "bundle")


@pytest.fixture(scope="module")
def run_id(place: Path, uri: str) -> str:
    """A finished run to publish from."""
    tracker, link = Tracker(uri, "small", artifact_root(uri)), place / "link.json"
    RunRecord().save(place)
    tracker.replay(
        stage="publish", fingerprint="f", run_name="publish", tags={}, folder=place, link_file=link
    )
    found = tracker.linked_run(link)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def published(place: Path, uri: str, digest: str, run_id: str) -> Registry:
    """A registry whose version 1 is the bundle, and champion."""
    own = Registry(uri)
    assert own.champion(NAME) is None
    with pytest.raises(LookbackError, match="no such model"):
        own.resolve(NAME)
    example = {"user_id": [10, 20]}
    version = own.register(
        NAME, place / "bundle", digest, run_id, "# A small model", example, {"lookback.protocol": "temporal"}
    )
    assert (version.name, version.version, version.bundle_digest, version.run_id) == (NAME, 1, digest, run_id)
    client_at(own.uri).set_registered_model_alias(NAME, "champion", "1")
    return own


def test_frame_of_histories_or_users(place: Path, digest: str):
    assert digest
    model = _load_pyfunc(str(place / "bundle"))
    bundle = Bundle.open(place / "bundle")
    by_user = model.predict(pd.DataFrame({"user_id": [20, 99, 10]}), {"k": 3})
    assert by_user["user_id"].tolist() == [20, 99, 10]
    assert by_user["item_id"][1] == ["i6", "i7", "i1"], "a stranger gets what is popular"
    assert "i4" not in by_user["item_id"][0]
    by_history = model.predict(pd.DataFrame({"history": [["i4"], [], ["i1", "i2", "i3"]]}), {"k": 3})
    for column in ("item_id", "score"):
        assert by_history[column].tolist() == by_user[column].tolist(), "the same histories, the same answers"
    assert list(by_history.columns) == ["item_id", "score"]
    ids, scores = bundle.recommend_users([20], 3)[0]
    assert by_user["item_id"][0] == ids
    assert by_user["score"][0] == pytest.approx(scores, rel=1e-5)
    everything = model.predict(pd.DataFrame({"user_id": [20]}), {"exclude_seen": False})
    assert len(everything["item_id"][0]) == NUM_ITEMS, "10 asked for, the catalogue has 7"


def test_asked_at_the_newest_event_of_the_log(tmp_path: Path):
    small_bundle(tmp_path)
    assert Bundle.open(tmp_path).newest == 5, "an older bundle knows the newest one on an item of its own"
    newest = 1_700_000_000 * SECOND
    seal(tmp_path, {"name": "small", "event_types": [], "newest": newest})
    bundle = Bundle.open(tmp_path)
    asked = bundle.known_histories.request_time
    assert asked is not None
    assert asked.tolist() == 3 * [newest]
    histories, unknown = bundle.from_ids([["i1", "new", "i2", "i3"], [], ["i4"]])
    assert unknown == 1
    assert histories.item_index.tolist() == [1, 2, 3, 4]
    assert histories.time.tolist() == [newest - 2 * SECOND, newest - SECOND, newest, newest]
    assert histories.request_time is not None
    assert histories.request_time.tolist() == 3 * [newest]


def test_what_is_served_equals_what_is_scored_at_the_newest_event(tmp_path: Path):
    hour = 3600 * SECOND
    items = np.array([1, 2, 3, 4, 5, 6, 8], np.int32)  # the last of them nobody had when the bundle was made
    kinds, values = np.zeros(7, np.int16), np.zeros(7, np.float32)
    histories = JaggedHistories(np.array([0, 3, 4, 7]), items, hour * np.arange(7), kinds, values)
    numbers = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0], np.int32)
    asked = replace(SMALL, calendar=True, request_time=True)
    for settings in (SMALL, asked):
        folder = tmp_path / str(settings.request_time)
        small_bundle(folder, settings=settings)
        seal(folder, {"name": "small", "event_types": [], "newest": 6 * hour})
        bundle = Bundle.open(folder)
        known = histories.item_index[:6], histories.time[:6], kinds[:6], values[:6]
        shutil.rmtree(folder / "histories")
        (folder / "histories").mkdir()
        JaggedHistories(np.array([0, 3, 4, 6]), *known).save(folder / "histories")
        dataset = Dataset(tmp_path, histories, mock.sentinel.split)
        dataset.__dict__["users"] = pl.DataFrame({"user_id": [10, 20, 30]})
        log = Log(dataset, numbers, np.zeros(1, np.int16), Request.of(None, 6 * hour, timed=True))
        job = Job(folder, tmp_path, tmp_path, tmp_path, ScoreConfig(k=3, because=False), seed=0)
        users = Users(log.users, np.arange(3), 0)
        scorer = Scorer(job, bundle, log, users, Rules(), {}, np.zeros(3, np.int64))
        lists = scorer.batch(np.arange(3))
        assert lists.counts["unknown_items"] == 1
        served = bundle.recommend_users([10, 20, 30], 3)
        assert lists.table["item_id"].to_pylist() == [item for ids, _ in served for item in ids]
        served_scores = [score for _, scores in served for score in scores]
        assert lists.table["score"].to_pylist() == pytest.approx(served_scores, rel=1e-6)


def test_frame_without_users_or_histories_is_refused(place: Path, digest: str):
    assert digest
    model = Recommender(Bundle.open(place / "bundle"))
    with pytest.raises(ValueError, match=r"received columns \['item'\], expected user_id or history"):
        model.predict(pd.DataFrame({"item": [1]}))
    with pytest.raises(ValueError, match="received 'abc', expected a list of item ids"):
        model.predict(pd.DataFrame({"history": ["abc"]}))
    with pytest.raises(ValueError, match="received k = 0, expected a whole number from 1 "):
        model.predict(pd.DataFrame({"user_id": [1]}), {"k": 0})


def test_a_missing_history_is_an_empty_one(place: Path, digest: str):
    assert digest
    model = Recommender(Bundle.open(place / "bundle"))
    (empty, *missing) = model.predict(pd.DataFrame({"history": [[], None, float("nan")]}))["item_id"]
    assert missing == [empty, empty]
    assert len(empty) > 0


def test_a_bundle_of_the_format_before_still_recommends_but_cannot_be_compared(tmp_path: Path):
    small_bundle(tmp_path / "old")
    description = json.loads((tmp_path / "old" / "bundle.json").read_text())
    for version, opens in ((1, True), (2, True), (3, True), (4, True), (5, False)):
        write_json(tmp_path / "old" / "bundle.json", description | {"format_version": version})
        if opens:
            assert len(Bundle.open(tmp_path / "old").recommend_users([20], 3)[0][0]) == 3
        else:
            with pytest.raises(DamagedArtifact, match="received bundle format 5, expected 1 or 2 or 3 or 4"):
                Bundle.open(tmp_path / "old")
    write_json(tmp_path / "old" / "bundle.json", description | {"format_version": 1})
    with pytest.raises(
        DamagedArtifact, match="received bundle format 1, expected 2 or 3 or 4; publish again"
    ):
        EvaluatedModel.open(tmp_path / "old")


def test_bundle_is_registered_once(published: Registry, place: Path, digest: str, run_id: str):
    again = published.register(NAME, place / "bundle", digest, run_id)
    assert again.version == 1
    assert [version.version for version in published.versions(NAME)] == [1]
    assert find_run(published.uri, run_id).status == "FINISHED"
    details = client_at(published.uri).get_model_version(NAME, "1")
    assert details.description == "# A small model"
    assert details.tags == {BUNDLE_DIGEST: digest, "lookback.protocol": "temporal"}


def test_versions_are_found_by_name_number_and_alias(published: Registry):
    champion = published.champion(NAME)
    assert champion is not None
    for text in (NAME, f"models:/{NAME}/1", f"models:/{NAME}@champion"):
        assert published.resolve(text) == champion
    assert published.resolve(f"models:/{NAME}/latest") == champion
    for missing in (f"models:/{NAME}/2", f"models:/{NAME}@challenger"):
        with pytest.raises(
            LookbackError, match=rf"no such version on .* has 1; models:/{NAME}/1 is the champion"
        ):
            published.resolve(missing)
    with pytest.raises(LookbackError, match="no such model"):
        published.resolve("models:/other/1")
    with pytest.raises(LookbackError, match="expected models:/NAME/VERSION"):
        published.resolve("models:/a/b/c")
    client = client_at(published.uri)
    client.create_registered_model("foreign")
    with fluent(published.uri):
        client.create_model_version("foreign", champion.source)
    with pytest.raises(LookbackError, match="was not published by lookback"):
        published.resolve("models:/foreign/1")


def test_bundle_comes_back_as_it_was(published: Registry, digest: str, tmp_path: Path):
    version = published.resolve(NAME)
    folder = published.download_bundle(version, tmp_path / "bundles" / digest)
    assert Bundle.open(folder).digest == digest
    assert [path.name for path in folder.parent.iterdir()] == [digest]
    assert published.download_bundle(version, folder) == folder


def test_new_version_becomes_champion_when_told_and_old_ones_go(
    published: Registry, place: Path, run_id: str
):
    digest = small_bundle(place / "second", seed=1)
    second = published.register(NAME, place / "second", digest, run_id)
    assert second.version == 2
    assert published.resolve(NAME).version == 1
    client_at(published.uri).set_registered_model_alias(NAME, "champion", "2")
    assert published.resolve(NAME).bundle_digest == digest
    client_at(published.uri).set_registered_model_alias(NAME, "champion", "1")
    files = place / "mlruns" / "artifacts" / "models"
    assert len(list(files.glob("*/artifacts/MLmodel"))) == 2
    published.delete_version(NAME, 2)
    assert len(list(files.glob("*/artifacts/MLmodel"))) == 1
    assert [version.version for version in published.versions(NAME)] == [1]
    with pytest.raises(LookbackError, match="no such version"):
        published.resolve(f"models:/{NAME}/2")


@pytest.mark.slow
def test_pyfunc_predicts_in_a_fresh_process_elsewhere(published: Registry, place: Path, tmp_path: Path):
    code = f"""
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
print(model.predict(pd.DataFrame({{"user_id": [20, 99]}}), params={{"k": 3}}).to_json(orient="records"))
print(model.predict(pd.DataFrame({{"history": [["i4"], []]}}), params={{"k": 3}})["item_id"].tolist())
import sys
import features, models, pipeline
print(features.WHOSE, models.WHOSE, pipeline.WHOSE, "numpy" in sys.modules)
print([module.__file__ for name, module in sys.modules.items() if name.endswith(".pipeline.serving.bundle")][0])
"""
    for name in ("features", "models", "pipeline"):  # packages of the application
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'the application'\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": published.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = python(code, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    by_user, by_history, whose, where = done.stdout.splitlines()
    expected = Recommender(Bundle.open(place / "bundle")).predict(
        pd.DataFrame({"user_id": [20, 99]}), {"k": 3}
    )
    assert json.loads(by_user) == json.loads(expected.to_json(orient="records"))
    assert by_history == str(expected["item_id"].tolist())
    assert whose == "the application " * 3 + "True"
    assert where.startswith(str(place / "mlruns" / "artifacts")), "the code that was logged with the model"
    pickles = [
        path
        for path in (place / "mlruns" / "artifacts").rglob("*")
        if path.suffix in (".pkl", ".pickle", ".pth")
    ]
    assert pickles == []


def test_serving_needs_no_more_than_its_requirements(place: Path, digest: str):
    assert digest
    listed = {requirement.partition("==")[0] for requirement in registry.requirements(place / "bundle")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[=<>]", requirement)[0] for requirement in project["dependencies"]}
    absent = {name.replace("-", "_").replace("scikit_learn", "sklearn") for name in declared - listed}
    assert {"click", "pydantic", "sklearn", "jaxtyping"} <= absent
    code = f"""
import sys
sys.modules |= dict.fromkeys({sorted(absent)!r})
from pipeline.serving import _load_pyfunc
import pandas as pd
print(_load_pyfunc("bundle").predict(pd.DataFrame({{"user_id": [99]}}), {{"k": 2}})["item_id"][0])
"""
    done = python(code, place, os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.stderr, done.stdout) == ("", "['i6', 'i7']\n")
