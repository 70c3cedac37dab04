"""The gate, on a log whose next item is known: users walk round a circle of items, and encoders know its order, or do not."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from models import checkpoint
from models.encoder.encoder import Encoder
from models.settings.encoder import EncoderSettings
from pipeline.artifacts.files import write_json
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config, load_config
from pipeline.dataset.dataset import Dataset, rows
from pipeline.errors import DamagedArtifact
from pipeline.evaluation.evaluated_model import NEVER, EvaluatedModel
from pipeline.evaluation.report import EvaluationReport
from pipeline.modelling.recommenders import kind_of
from pipeline.release import gate, promotion
from pipeline.serving.bundle import seal
from pipeline.stages import publish as publishing
from pipeline.tracking import registry
from pipeline.tracking.client import client_at, tracking_uri
from pipeline.tracking.decisions import Decision
from pipeline.tracking.queries import find_run
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import GATE, ServerAway, Version, absolute_uri, artifact_root
from pipeline.tracking.tracker import Tracker
from tests.evaluation_reports import evaluation_report
from tests.workdir import Workdir

NUM_ITEMS, NUM_USERS, WALK = 40, 40, 10
HOUR = 3_600_000_000
ALL = tuple(range(1, NUM_ITEMS + 1))
CIRCLE, SHUFFLED = np.arange(NUM_ITEMS), np.random.default_rng(3).permutation(NUM_ITEMS)
BETTER = {"lookback": 0.3, "popularity": 0.1, "item_knn": 0.2}


def config_of(folder: Path, name: str = "circle", **evaluate: Any) -> Config:
    columns = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp"}
    return Config.model_validate(
        {
            "name": name,
            "data_dir": str(folder / "data"),
            "events": {"path": "log.csv", "columns": columns},
            "evaluate": {"resamples": 200, **evaluate},
            "tracking": {"uri": f"sqlite:///{folder}/mlruns/mlflow.db"},
        }
    )


def walks(length: int = WALK) -> list[list[int]]:
    """The items of every user: one after the other round the circle, from a place of the user's own."""
    return [[(start + step) % NUM_ITEMS + 1 for step in range(length)] for start in range(NUM_USERS)]


def a_log(folder: Path, length: int = WALK, test_from: int = WALK - 2) -> splits.Split:
    """A features folder: all users' step i is in hour i, and the hours from `test_from` on are the test."""
    folder.mkdir(parents=True)
    flat = np.array(walks(length), np.int32).ravel()
    time = np.tile(np.arange(length), NUM_USERS) * HOUR + np.repeat(np.arange(NUM_USERS), length)
    offsets = np.arange(NUM_USERS + 1) * length
    kinds = np.ones(len(flat), np.int16)
    histories = JaggedHistories(offsets, flat, time, kinds, np.full(len(flat), np.nan, np.float32))
    histories.save(folder)
    split = splits.temporal(histories, NUM_ITEMS, test_from=test_from * HOUR)
    split.save(folder / "split")
    LogFacts.of(histories).save(folder)
    pl.DataFrame({"user_id": [f"u{user:02}" for user in range(NUM_USERS)]}).write_parquet(
        folder / "users.parquet"
    )
    pl.DataFrame({"item_id": [f"i{item:02}" for item in ALL]}).write_parquet(folder / "items.parquet")
    (folder / "event_types.json").write_text('["view"]')
    return split


def an_encoder(order: np.ndarray[Any, Any], items: tuple[int, ...]) -> Encoder:
    """Its scores fall with the distance on the circle between an item's place in `order` and the last one's."""
    encoder = Encoder(EncoderSettings(dim=4, num_blocks=1, num_heads=1), len(items), 2, WALK)
    state = encoder.state_dict()
    for name, weight in state.items():
        if "norm" not in name:
            weight.zero_()
    angle = torch.tensor(order[np.array(items) - 1] * 2 * np.pi / NUM_ITEMS)
    state["items.ids.weight"][1:] = torch.stack([angle.cos(), angle.sin(), -angle.cos(), -angle.sin()], dim=1)
    encoder.load_state_dict(state)
    return encoder


def a_bundle(
    folder: Path,
    order: np.ndarray[Any, Any] = CIRCLE,
    items: tuple[int, ...] = ALL,
    features: str = "same",
    until: int = WALK - 2,
    note: str = "",
) -> str:
    """A bundle as far as the gate and the registry look at it: trained on the hours before `until`; returns its digest."""
    (folder / "evaluated").mkdir(parents=True)
    checkpoint.save_model(an_encoder(order, items), folder / "evaluated")
    pl.DataFrame(
        {
            "item_id": [f"i{item:02}" for item in ALL],
            "evaluated_index": [items.index(item) + 1 if item in items else 0 for item in ALL],
        },
        schema_overrides={"evaluated_index": pl.Int32},
    ).write_parquet(folder / "items.parquet")
    last = [(until - 1) * HOUR + user for user in range(NUM_USERS)]
    pl.DataFrame(
        {
            "user_id": [f"u{user:02}" for user in range(NUM_USERS)],
            "trained_until": pl.Series(last).cast(pl.Datetime("us", "UTC")),
        }
    ).write_parquet(folder / "users.parquet")
    description = {
        "name": "circle",
        "note": note,
        "event_types": ["like", "view"],
        "protocol": "temporal",
        "deployed": "evaluated",
        "metrics": {"ndcg@10": 0.5},
        "features": features,
        "trained_until": until * HOUR,
    }
    return seal(folder, description)


def a_report(folder: Path, values: dict[str, float] | None = None) -> EvaluationReport:
    """An evaluation with these values of ndcg@10, each with an interval of half a width of .05."""
    values = BETTER if values is None else values
    report = evaluation_report({name: {"ndcg@10": value} for name, value in values.items()})
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder)
    return report


@dataclass(frozen=True)
class Place:
    """A features folder, an evaluation in which the model is better than both baselines, and room for bundles."""

    folder: Path

    def champion(self, *arguments: Any, **settings: Any) -> gate.Champion:
        a_bundle(self.folder / "champion", *arguments, **settings)
        return gate.Champion(7, self.folder / "champion")

    def decide(self, champion: gate.Champion | None, **evaluate: Any) -> Decision:
        config = config_of(self.folder, **evaluate)
        return gate.decide(
            config, self.folder / "features", self.folder, self.folder / "challenger", champion
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    a_log(tmp_path / "features")
    a_report(tmp_path)
    return Place(tmp_path)


# --- the best baseline ---


@pytest.mark.parametrize(
    ("values", "passed", "best", "said"),
    [
        (
            BETTER,
            True,
            "item_knn",
            "better than item_knn, the best baseline: ndcg@10 +0.1000 [+0.0500, +0.1500]",
        ),
        (
            {"lookback": 0.3, "ease": 0.26, "popularity": 0.1},
            False,
            "ease",
            "not shown to be better than ease",
        ),
        ({"lookback": 0.05, "ease": 0.0}, False, "ease", "+0.0500 [+0.0000, +0.1000]"),
        ({"lookback": 0.3}, True, "none", "no baseline was evaluated"),
    ],
)
def test_the_best_baseline_has_to_be_beaten(
    values: dict[str, float], passed: bool, best: str, said: str, tmp_path: Path
):
    test = gate.against_best_baseline(a_report(tmp_path, values), "ndcg@10")
    assert test.passed is passed
    assert test.figures["best_baseline"] == best
    assert said in test.message


def test_a_published_baseline_has_to_be_the_best(tmp_path: Path):
    report = a_report(tmp_path, {"lookback": 0.2, "ease": 0.3, "als": 0.25, "gru": 0.4})
    best = gate.against_best_baseline(report, "ndcg@10", "ease")
    assert best.passed
    assert best.message.startswith("ease is itself the best baseline: ndcg@10 of the model minus its -0.1000")
    assert best.figures == {"system": "ease", "best_baseline": "ease"}
    second = gate.against_best_baseline(report, "ndcg@10", "als")
    assert not second.passed
    assert second.message == "als is published, but ease is the best baseline by ndcg@10"
    better = gate.against_best_baseline(a_report(tmp_path), "ndcg@10", "item_knn")
    assert not better.passed
    assert better.message.startswith("the model is better than item_knn, which is published: ndcg@10 +0.1000")


@pytest.mark.parametrize("name", ["own_frequent", "item_knn"])
def test_a_published_baseline_is_compared_with_the_champion(place: Place, name: str):
    """A baseline that counts or learned the walks' own steps finds a new item less often than the oracle; the oracle leads."""
    a_report(place.folder, {"lookback": 0.1, name: 0.3})
    a_baseline_bundle(place.folder / "challenger", place.folder / "features", name)
    for targets in (["successive"], ["nightly"]):
        evaluate: dict[str, Any] = {"targets": targets, "exclude_seen": False}
        days = {"horizon_days": (HOUR + NUM_USERS) / (24 * HOUR)} if targets == ["nightly"] else {}
        refused = place.decide(gate.Champion(7, an_oracle(place.folder / targets[0])), **evaluate, **days)
        assert refused.outcome == "refused"
        assert refused.reason.startswith("not shown to be no worse than version 7")
        same = place.decide(gate.Champion(8, place.folder / "challenger"), **evaluate, **days)
        assert same.outcome == "passed"
        assert same.figures["challenger_value"] == same.figures["champion_value"]
        assert f"{name} is itself the best baseline" in same.reason


def test_of_nights_a_counting_baseline_knows_the_items_of_the_log(place: Place):
    """Its bundle knows 30 of the 40 items, the log before the night has had all of them."""
    a_baseline_bundle(place.folder / "few", place.folder / "features", "popularity", ALL[:30])
    days = (HOUR + NUM_USERS) / (24 * HOUR)
    for targets, unknown in ((["successive"], True), (["nightly"], False)):
        config = config_of(place.folder, targets=targets, horizon_days=days, exclude_seen=False)
        model = EvaluatedModel.open(place.folder / "few")
        common = gate.common_targets(config, place.folder / "features", model, model)
        assert (common.num_unknown > 0) is unknown
        rank = gate.ranks(config, place.folder / "features", model, common.targets)
        assert np.isfinite(rank).all()
        assert len(rank) == 2 * NUM_USERS - common.num_unknown


def an_oracle(folder: Path) -> Path:
    a_bundle(folder)
    return folder


def a_baseline_bundle(folder: Path, features: Path, name: str, items: tuple[int, ...] = ALL) -> None:
    """A baseline that was fitted on the training events of the first items, as far as the gate looks at its bundle."""
    a_bundle(folder, items=items, note=name)
    dataset, kind = Dataset.open(features), kind_of(name)
    known = np.where(np.arange(NUM_ITEMS + 1) <= len(items), np.arange(NUM_ITEMS + 1), 0).astype(np.int32)
    training = dataset.training_rows(with_validation=True).translate(known)
    kind.fit(training, len(items), kind.grid[0]).save(folder / "evaluated")
    facts = json.loads((folder / "bundle.json").read_text())
    facts = {key: value for key, value in facts.items() if key not in ("files", "digest", "format_version")}
    seal(folder, facts | {"system": name, "system_settings": dict(kind.grid[0])})


def test_the_first_version_needs_no_more_than_that(place: Place):
    first = place.decide(None)
    assert (first.outcome, first.moves) == ("first", True)
    assert first.figures == {
        "metric": "ndcg@10",
        "margin": 0.005,
        "best_baseline": "item_knn",
        "baseline_difference": pytest.approx(0.1),
        "baseline_low": pytest.approx(0.05),
        "baseline_high": pytest.approx(0.15),
    }
    a_report(place.folder, {"lookback": 0.3, "ease": 0.31})
    refused = place.decide(None)
    assert (refused.outcome, refused.moves) == ("refused", False)
    assert "not shown to be better than ease" in refused.reason
    a_report(place.folder, {"lookback": 0.3})
    assert place.decide(None).reason == "no baseline was evaluated"


# --- the champion ---


def test_a_better_model_passes_and_a_worse_one_does_not(place: Place):
    a_bundle(place.folder / "challenger", CIRCLE)
    passed = place.decide(place.champion(SHUFFLED))
    assert passed.outcome == "passed"
    assert passed.figures["challenger_value"] == pytest.approx(1.0), "an oracle ranks every target first"
    assert float(passed.figures["low"]) > 0.3
    assert (passed.figures["targets"], passed.figures["users"]) == (2 * NUM_USERS, NUM_USERS)
    assert "not worse than version 7, the champion" in passed.reason

    (place.folder / "challenger").rename(place.folder / "oracle")
    a_bundle(place.folder / "challenger", SHUFFLED)
    refused = place.decide(gate.Champion(7, place.folder / "oracle"))
    assert refused.outcome == "refused"
    assert refused.figures["difference"] == pytest.approx(-float(passed.figures["difference"]))
    assert refused.figures["high"] == pytest.approx(-float(passed.figures["low"]))
    assert "not shown to be no worse than version 7" in refused.reason
    assert place.decide(gate.Champion(7, place.folder / "oracle"), gate_margin=1.0).outcome == "passed"


def test_user_nights_are_counted_where_the_targets_are_of_nights(place: Place):
    """One night at the start of the test, whose horizon ends with its last event: two items of each user."""
    a_bundle(place.folder / "challenger", CIRCLE)
    whole = (HOUR + NUM_USERS) / (24 * HOUR)
    passed = place.decide(place.champion(SHUFFLED), targets=["nightly"], horizon_days=whole)
    assert passed.figures["targets"] == NUM_USERS
    assert f"on {NUM_USERS} user-nights of {NUM_USERS} users" in passed.reason
    events = place.decide(gate.Champion(7, place.folder / "champion"))
    assert f"on {2 * NUM_USERS} held-out events of {NUM_USERS} users" in events.reason


def test_equals_pass_but_not_where_a_baseline_is_better(place: Place):
    a_bundle(place.folder / "challenger", note="the same weights")
    champion = place.champion()
    passed = place.decide(champion, gate_margin=0.0)
    assert passed.outcome == "passed"
    assert (passed.figures["difference"], passed.figures["low"]) == (0, 0)
    a_report(place.folder, {"lookback": 0.3, "ease": 0.31})
    refused = place.decide(champion)
    assert refused.outcome == "refused"
    assert refused.reason.startswith("not shown to be better than ease")
    assert refused.figures["difference"] == 0, "both tests are done and kept"


def answered(items: tuple[int, ...]) -> int:
    """Targets that an oracle of these items can rank: it knows the target, and something of what came before."""
    return sum(
        walk[step] in items and bool(set(walk[:step]) & set(items))
        for walk in walks()
        for step in (WALK - 2, WALK - 1)
    )


def test_items_unknown_to_one_are_misses(place: Place):
    few = ALL[:30]
    a_bundle(place.folder / "challenger", items=few)
    champion = place.champion()
    refused = place.decide(champion)
    missed = 1 - answered(few) / (2 * NUM_USERS)
    assert missed > 0.2
    assert refused.outcome == "refused"
    assert refused.figures["difference"] == pytest.approx(-missed)
    (place.folder / "challenger").rename(place.folder / "few")
    (place.folder / "champion").rename(place.folder / "challenger")
    passed = place.decide(gate.Champion(7, place.folder / "few"))
    assert passed.outcome == "passed"
    assert passed.figures["difference"] == pytest.approx(missed)


def test_items_unknown_to_both_are_left_out_and_counted(place: Place):
    few = ALL[:30]
    a_bundle(place.folder / "challenger", items=few)
    figures = place.decide(place.champion(items=few[5:])).figures
    unanswerable = 2 * NUM_USERS - answered(few)
    assert (figures["targets"], figures["unknown_to_both"]) == (2 * NUM_USERS - unanswerable, unanswerable)
    assert figures["challenger_value"] == pytest.approx(1.0)


def test_targets_that_the_champion_could_learn_from_are_not_used(place: Place):
    """The champion was trained up to the last hour but one: of the two hours of the test one is left."""
    a_bundle(place.folder / "challenger")
    later = place.decide(place.champion(SHUFFLED, features="later", until=WALK - 1))
    assert (later.figures["targets"], later.figures["earlier_targets"]) == (NUM_USERS, NUM_USERS)
    assert later.outcome == "passed"
    none = place.decide(gate.Champion(8, a_later_champion(place.folder / "newest", WALK)))
    assert none.outcome == "refused"
    assert (
        "0 held-out events of 0 users are later than the training of both, expected at least 30 users"
        in none.reason
    )
    same = place.decide(gate.Champion(8, a_later_champion(place.folder / "own", WALK, "same")))
    assert same.figures["targets"] == NUM_USERS * 2, (
        "made from the same split, so it learned from none of them"
    )


def a_later_champion(folder: Path, until: int, features: str = "later") -> Path:
    a_bundle(folder, SHUFFLED, features=features, until=until)
    return folder


def test_without_a_boundary_each_users_own_last_event_counts(place: Place):
    """As in leave-one-out: the second half of the users had events up to the last but one, the others earlier ones."""
    config = config_of(place.folder)
    a_bundle(place.folder / "challenger")
    own = EvaluatedModel.open(place.folder / "challenger")
    users = own.users_trained_until.copy()
    users[NUM_USERS // 2 :] += HOUR
    users[0] = NEVER
    champion = EvaluatedModel(
        own.recommender, own.items, own.event_types, "other", None, own.users, users, None
    )
    common = gate.common_targets(config, place.folder / "features", own, champion)
    expected = [2] * (NUM_USERS // 2) + [1] * (NUM_USERS // 2)
    assert np.bincount(common.targets.user).tolist() == expected
    assert common.num_earlier == NUM_USERS // 2


def test_a_champion_that_cannot_be_opened_is_no_pass(place: Place):
    a_bundle(place.folder / "challenger")
    champion = place.champion()
    description = json.loads((champion.folder / "bundle.json").read_text())
    write_json(champion.folder / "bundle.json", description | {"format_version": 1})
    old = place.decide(champion)
    assert old.outcome == "refused"
    assert "received bundle format 1, expected 2" in old.reason
    write_json(champion.folder / "bundle.json", description)
    (champion.folder / "evaluated" / checkpoint.WEIGHTS).write_bytes(b"")
    assert "is missing or damaged" in place.decide(champion).reason
    (champion.folder / "bundle.json").unlink()
    assert place.decide(champion).outcome == "refused"


# --- the evaluated weights of a bundle ---


def test_evaluated_weights_translate_items_types_and_users(place: Place):
    a_bundle(place.folder / "b", items=(3, 5, 9))
    model = EvaluatedModel.open(place.folder / "b")
    assert model.items.ids.to_list() == ["i03", "i05", "i09"]
    histories = JaggedHistories.load(place.folder / "features")
    walk = rows(histories, histories.offsets[:1], histories.offsets[1:2])  # items 1..10
    ids = pl.read_parquet(place.folder / "features" / "items.parquet")["item_id"]
    found = model.translated(walk, ids, ["view"], pl.Series(["u01"]))
    assert found.user is None
    for user, expected in ((0, 1), (1, -1)):
        own = replace(walk, user=np.array([user]))
        of_user = model.translated(own, ids, ["view"], pl.Series(["u01", "nobody"]))
        assert of_user.user is not None
        assert of_user.user.tolist() == [expected], "rows of the bundle's users, -1 for others"
    assert found.item_index.tolist()[: int(found.ends[0])] == [1, 2, 3]
    assert set(found.event_type.tolist()) == {2}, "view is the second type that it knows"
    until = model.trained_until_of(pl.Series(["u01", "nobody", "u00"]))
    assert until.tolist() == [(WALK - 3) * HOUR + 1, NEVER, (WALK - 3) * HOUR]


def test_parts_that_do_not_fit_are_refused(place: Place):
    a_bundle(place.folder / "b", items=(3, 5, 9))
    a_bundle(place.folder / "c", items=(3, 5))
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        (place.folder / "c" / "evaluated" / name).replace(place.folder / "b" / "evaluated" / name)
    with pytest.raises(
        DamagedArtifact, match="3 items in the evaluated vocabulary, 2 in the evaluated model"
    ):
        EvaluatedModel.open(place.folder / "b", verify=False)


@pytest.mark.parametrize(
    "system",
    ["lookback", *(pytest.param(name, marks=pytest.mark.slow) for name in ("popularity", "item_knn"))],
)
def test_the_gate_ranks_as_the_evaluation_did(copied: Workdir, system: str, monkeypatch: pytest.MonkeyPatch):
    """The bundle's evaluated system, opened anew, puts every target where metrics.json has it from."""
    monkeypatch.chdir(copied.folder)
    config = load_config(copied.config, ())
    copied.run("publish", "--set", f"publish.system={system}")
    published = copied.artifact("publish", "--set", f"publish.system={system}")
    inputs = read_manifest(published)["inputs"]
    features, evaluate = (config.folder / stage / inputs[stage] for stage in ("features", "evaluate"))
    model = EvaluatedModel.open(published / "bundle")
    common = gate.common_targets(config, features, model, model)
    rank = gate.ranks(config, features, model, common.targets)
    expected = pl.read_parquet(evaluate / "targets.parquet").filter(pl.col("system") == system)
    assert rank.tolist() == expected["rank"].to_list()
    assert common.num_earlier == 0
    users = pl.read_parquet(published / "bundle" / "users.parquet")
    boundary = pl.Series([model.trained_until]).cast(pl.Datetime("us", "UTC"))[0]
    assert users["trained_until"].max() < boundary


# --- what publish writes for it ---


def test_published_users_say_until_when_they_were_learned_from(tmp_path: Path):
    """Two users of four events, one of a single event, which is the test, one whose events are all held back."""
    time = np.array([1, 2, 3, 4, 1, 2, 3, 4, 3, 9, 9])
    offsets = np.array([0, 4, 8, 9, 11])
    flat, kinds, values = np.arange(1, 12, dtype=np.int32), np.zeros(11, np.int16), np.zeros(11, np.float32)
    histories = JaggedHistories(offsets, flat, time, kinds, values)
    users, items = np.ones(4, bool), np.ones(12, bool)
    train_end, validation_end = np.array([1, 5, 8, 9]), np.array([2, 7, 8, 9])
    test_end = np.array([4, 8, 9, 9])
    split = splits.Split("temporal", train_end, validation_end, test_end, users, users, items, 2, 3)
    until = publishing.trained_until(Dataset(Path(), histories, split))
    assert until.dtype == pl.Datetime("us", "UTC")
    assert until.dt.timestamp("us").to_list() == [2, 3, None, None]
    LogFacts(0.0, 0.0, 9, 1).save(tmp_path)
    cut = Dataset(tmp_path, histories, split).without_held_back()
    assert cut.facts.now == 4, "the newest event that is not held back"
    kept = cut.histories
    assert kept.offsets.tolist() == [0, 4, 8, 9, 9]
    assert kept.item_index.tolist() == list(range(1, 10))
    whole = replace(split, test_end=offsets[1:])
    assert Dataset(Path(), histories, whole).without_held_back().histories is histories


# --- the registry ---


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tracking database for all; each test has a configuration, and so a registered model, of its own."""
    return tmp_path_factory.mktemp("gate")


def publish(
    root: Path,
    name: str,
    fingerprint: str,
    order: np.ndarray[Any, Any] = CIRCLE,
    values: dict[str, float] | None = None,
    **evaluate: Any,
) -> Config:
    """Publish a bundle as the stage leaves it behind, with its run; returns the configuration."""
    config = config_of(root, name, **evaluate)
    artifact = Artifact(config.folder / "publish", fingerprint)
    if not (config.folder / "features" / "same").exists():
        a_log(config.folder / "features" / "same")
    if not artifact.folder.exists():
        a_report(config.folder / "evaluate" / fingerprint, values)
        digest = a_bundle(artifact.folder / "bundle", order, note=fingerprint)
        inputs = {"features": "same", "evaluate": fingerprint}
        write_json(artifact.folder / "manifest.json", {"bundle_digest": digest, "inputs": inputs})
        write_json(artifact.run_link, {absolute_uri(str(config.tracking.uri)): a_run(config)})
    promotion.ensure_registered(config, Tracker.from_config(config), artifact)
    return config


@pytest.fixture(scope="module")
def three(root: Path) -> Config:
    """Three versions: one that knows nothing but beats its baselines, an oracle, and again one that knows nothing."""
    publish(root, "three", "a", SHUFFLED)
    publish(root, "three", "b", CIRCLE)
    return publish(root, "three", "c", SHUFFLED)


@pytest.fixture
def published(three: Config) -> Config:
    """The three versions with the oracle as champion, whatever another test did to them."""
    client_at(tracking_uri(three)).set_registered_model_alias("lookback-three", "champion", "2")
    return three


def a_run(config: Config) -> str:
    uri = tracking_uri(config)
    client = client_at(uri)
    found = client.get_experiment_by_name(config.name)
    experiment = (
        found.experiment_id
        if found is not None
        else client.create_experiment(config.name, artifact_root(uri))
    )
    run_id = str(client.create_run(experiment).info.run_id)
    client.set_terminated(run_id)
    return run_id


def champion_of(config: Config) -> Version | None:
    return Registry.from_config(config).champion(registry.model_name(config))


def tags_of(config: Config, version: int) -> dict[str, str]:
    found = Registry.from_config(config).version(registry.model_name(config), version)
    assert found is not None
    tags = Registry.from_config(config).tags(found)
    assert found.gate == tags.get(GATE, "")
    return {name.removeprefix(f"{GATE}."): value for name, value in tags.items() if name.startswith(GATE)}


def undecide(config: Config, version: int) -> None:
    """What a run leaves that was killed between registering a version and deciding about it."""
    client, name = client_at(tracking_uri(config)), registry.model_name(config)
    for tag in [GATE, *(f"{GATE}.{tag}" for tag in tags_of(config, version) if tag != GATE)]:
        client.delete_model_version_tag(name, str(version), tag)


@pytest.mark.slow
def test_first_version_that_no_baseline_fears_waits_for_a_word(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    worse = {"lookback": 0.1, "ease": 0.2}
    config = publish(root, "alone", "a", values=worse)
    assert champion_of(config) is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "version 1 is not champion (there is none); refused: not shown to be better than ease" in said[0]
    assert said[0].endswith("to make it champion: lookback promote 1 --config FILE")
    tags = tags_of(config, 1)
    assert (tags[GATE], tags["best_baseline"], tags["baseline_difference"]) == ("refused", "ease", "-0.1")
    assert (tags["metric"], tags["margin"]) == ("ndcg@10", "0.005")

    publish(root, "alone", "a", values=worse)
    publish(root, "alone", "a", values=worse, gate_margin=1.0)
    assert champion_of(config) is None, "nothing is decided twice"
    assert capsys.readouterr().err == ""
    publish(root, "alone", "a", values=worse, gate=False)
    champion = champion_of(config)
    assert champion is not None
    assert (champion.version, champion.gate) == (1, "off")
    assert "version 1 is champion; off" in capsys.readouterr().err


def test_a_later_version_passes_or_is_refused_by_the_test(three: Config):
    champion = champion_of(three)
    assert champion is not None
    assert (champion.version, champion.gate) == (2, "passed")
    assert tags_of(three, 1)[GATE] == "first"
    tags = tags_of(three, 2)
    assert (tags["champion_before"], tags["targets"], tags["users"]) == ("1", "80", "40")
    assert float(tags["low"]) > 0.3
    details = client_at(tracking_uri(three)).get_model_version(champion.name, "2")
    assert details.description is not None
    assert "| NDCG@10 | 0.3000 [0.2500, 0.3500] | 0.2000 [0.1500, 0.2500] |" in details.description
    assert "**Gate.** champion; passed: better than item_knn" in details.description
    run = find_run(Tracker.from_config(three).uri, champion.run_id)
    assert run.metrics["gate/difference"] == pytest.approx(float(tags["difference"]), rel=1e-5)
    assert (run.metrics["gate/targets"], run.tags[GATE]) == (80, "passed")
    assert (three.folder / ".bundles").is_dir(), "the champion's bundle comes from the registry"
    tags = tags_of(three, 3)
    assert (tags[GATE], tags["champion_before"]) == ("refused", "2")
    assert float(tags["high"]) < -0.3


def test_a_hand_is_recorded_and_not_overridden(root: Path, published: Config):
    said = promotion.promote(published, "1")
    assert "champion is version 1" in said
    assert said.endswith(", was version 2")
    tags = tags_of(published, 1)
    assert (tags[GATE], tags["champion_before"]) == ("by hand", "2")
    assert tags["reason"].startswith("lookback promote, was version 2; before that it was first: better than")
    assert "at" in tags
    publish(root, "three", "b")
    publish(root, "three", "b", gate=False)
    champion = champion_of(published)
    assert champion is not None
    assert champion.version == 1, "version 2 passed once; nothing moves again by itself"
    before = tags_of(published, 1)
    assert "champion is version 1" in promotion.promote(published, "1")
    assert tags_of(published, 1) == before, "nothing was moved"


def test_what_was_interrupted_is_decided_by_the_next_run(
    root: Path, published: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def away(*_: object) -> None:
        raise ServerAway("nobody answers")

    undecide(published, 3)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "bundle_folder", away)
        publish(root, "three", "c")
    assert "nobody answers" in capsys.readouterr().err
    assert tags_of(published, 3) == {}
    publish(root, "three", "c")
    assert tags_of(published, 3)[GATE] == "refused"
    undecide(published, 2)
    publish(root, "three", "b")
    assert tags_of(published, 2)[GATE] == "by hand", "it is champion already, whoever moved the alias"


def test_a_champion_that_moves_meanwhile_is_compared_again(
    root: Path, published: Config, monkeypatch: pytest.MonkeyPatch
):
    compared = []

    def decide(_config: Config, *rest: Any) -> Decision:
        champion = rest[-1]
        compared.append(champion.version)
        if len(compared) == 1:
            client_at(tracking_uri(published)).set_registered_model_alias("lookback-three", "champion", "1")
        return Decision("refused", f"as it stands against {champion.version}")

    undecide(published, 3)
    monkeypatch.setattr(gate, "decide", decide)
    publish(root, "three", "c")
    assert compared == [2, 1]
    assert tags_of(published, 3)["reason"] == "as it stands against 1"
