"""Stages index and evaluate on a small log, every number checked against a plain computation."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features import content
from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.leaks import LeakError
from features.histories.log_facts import LogFacts
from features.histories.numbering import ItemNumbering
from features.profiling import profile
from features.settings import ContentSettings, EventSettings, ItemSettings, SplitSettings
from models import checkpoint
from models.baselines import ease
from models.baselines.base import FittedOn
from models.baselines.popularity import Popularity
from models.encoder.encoder import AttentionRecommender, Encoder, with_request_time
from models.evaluation import ranks
from models.evaluation.comparison import SystemComparison
from models.evaluation.ranks import Renumbered
from models.histories import Histories, histories_from_lists
from models.settings.encoder import EncoderSettings
from models.settings.index import IndexSettings
from models.settings.training import TrainSettings
from models.topk import row_chunks
from pipeline.artifacts.files import digest_file, files_below, read_json, write_json
from pipeline.artifacts.store import MANIFEST
from pipeline.config import Config
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.evaluation_targets import targets_of
from pipeline.dataset.item_features import of_model
from pipeline.dataset.targets import RankedTargets
from pipeline.errors import LookbackError
from pipeline.modelling import item_index
from pipeline.modelling.recommenders import BUILT_IN, kind_of
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.sections import BASELINES, MODEL, EvaluateConfig
from pipeline.stages import baselines, evaluate, index
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord
from tests.evaluation_reports import nightly_report

NUM_USERS, NUM_ITEMS = 61, 31
QUICK: dict[str, Any] = {"k": [3, 10], "resamples": 100, "gru_dim": 8, "gru_epochs": 2}
FEW = ["popularity", "recent_popularity", "co_visitation"]
COLUMNS: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}


def log() -> JaggedHistories:
    """Items are visited around a circle, so what follows what can be learned; the last user has two new items."""
    random = np.random.default_rng(0)
    rows = [
        (np.arange(random.integers(5, 12)) + random.integers(0, NUM_ITEMS)) % (NUM_ITEMS - 1) + 1
        for _ in range(NUM_USERS)
    ]
    rows[-1] = np.array([1, 2, NUM_ITEMS])
    lengths = [len(row) for row in rows]
    time = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64) * 3_600_000_000
    return JaggedHistories(
        np.cumsum([0, *lengths]).astype(np.int64),
        np.concatenate(rows).astype(np.int32),
        time,
        np.zeros(len(time), np.int16),
        np.zeros(len(time), np.float32),
    )


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Folders of features and of a training that learned nothing."""
    return made_below(tmp_path)


def made_below(parent: Path) -> dict[str, Path]:
    folders = {stage: parent / stage for stage in ("ingest", "features", "train", "index", "rank")}
    for folder in folders.values():
        folder.mkdir()
    histories, features = log(), folders["features"]
    split = splits.leave_one_out(histories, NUM_ITEMS)
    histories.save(features)
    split.save(features / "split")
    LogFacts.of(histories).save(features)
    users = pl.DataFrame(
        {
            "user_index": np.arange(NUM_USERS, dtype=np.int32),
            "user_id": [f"u{row}" for row in range(NUM_USERS)],
        }
    )
    users.write_parquet(features / "users.parquet")
    items = pl.DataFrame(
        {"item_index": np.arange(1, NUM_ITEMS + 1, dtype=np.int32), "item_id": np.arange(NUM_ITEMS) * 10}
    )
    items.write_parquet(features / "items.parquet")
    (features / "event_types.json").write_text("[]")
    profile.profile(histories, [], NUM_ITEMS, timed=True).save(features / "profile.json")
    dataset = Dataset(features, histories, split)
    training = dataset.training_rows(with_validation=False)
    mapping = ItemNumbering.of_known(dataset.occurring(training)).new
    np.save(folders["train"] / "items.npy", mapping)
    TrainingFacts(1, 10, 1, {}, {}, fitted_on=FittedOn.of(training)).save(folders["train"])
    epoch = pl.DataFrame({"epoch": [1], "loss": [1.0], "validation_ndcg@10": [0.0]})
    epoch.write_parquet(folders["train"] / "history.parquet")
    write_json(folders["rank"] / "ranker.json", {"trained": False, "reason": "none here"})
    torch.manual_seed(0)
    checkpoint.save_model(Encoder(EncoderSettings(dim=8), int(mapping.max()), 0, 6), folders["train"])
    return folders


def with_content(inputs: dict[str, Path]) -> None:
    """Let the model know items by a category each: the one that nobody had in training, too."""
    features, histories = inputs["features"], log()
    table = pl.DataFrame({"categories": [["odd" if number % 2 else "even"] for number in range(NUM_ITEMS)]})
    content.build(features, table, np.ones(NUM_ITEMS, bool), ContentSettings())
    split = splits.Split.load(features / "split")
    dataset = Dataset(features, histories, split)
    trained = dataset.occurring(dataset.training_rows(with_validation=False))
    mapping = np.arange(NUM_ITEMS + 1, dtype=np.int32)
    np.save(inputs["train"] / "items.npy", mapping)
    torch.manual_seed(0)
    content_of = of_model(dataset, ItemNumbering(mapping), trained)
    encoder = Encoder(EncoderSettings(dim=8, item_content=True), NUM_ITEMS, 0, 6, content=content_of)
    checkpoint.save_model(encoder, inputs["train"])


def build(
    stage: Any,
    inputs: dict[str, Path],
    folder: Path,
    unit: str = "s",
    previous: Path | None = None,
    **settings: Any,
) -> Context:
    """Run one stage's build in a folder of its own."""
    reads_content = (inputs["features"] / "content").exists()
    folder.mkdir(exist_ok=True)
    config = Config(
        name="tiny",
        events=EventSettings(path="log.csv", columns=COLUMNS, timestamp_unit=unit),
        split=SplitSettings(protocol="leave_one_out"),
        items=ItemSettings(path="items.csv"),
        model=EncoderSettings(item_content=reads_content),
        index=IndexSettings(recall_queries=13),
        evaluate=EvaluateConfig(**QUICK | settings),
        train=TrainSettings(epochs=2, precision="fp32", compile="off"),
    )
    unseen = LiveRun(None, lambda _: None, lambda _: None)
    context = Context(
        config,
        folder,
        inputs,
        {},
        None,
        RunRecord(),
        unseen,
        folder.parent,
        show_progress=False,
        previous=previous,
    )
    stage.build(context)
    return context


def judge(inputs: dict[str, Path], folder: Path, unit: str = "s", **settings: Any) -> Context:
    """Run the stages index, baselines and evaluate."""
    build(index, inputs, inputs["index"])
    settings = {"baselines": FEW} | settings
    with_them = inputs | {"baselines": folder.with_name(f"{folder.name}_baselines")}
    build(baselines, inputs, with_them["baselines"], unit, **settings)
    return build(evaluate, with_them, folder, unit, **settings)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Three baselines beside the model; tests only read it."""
    folder = tmp_path_factory.mktemp("evaluated")
    return judge(made_below(folder), folder / "evaluate")


def test_index_holds_every_item_and_finds_the_exact_best(inputs: dict[str, Path]):
    context = build(index, inputs, inputs["index"])
    found = read_json(context.folder / "recall.json")
    assert {name: found[name] for name in ("num_items", "queries", "recall@10", "recall@100", "type")} == {
        "num_items": 30, "queries": 13, "recall@10": 1.0, "recall@100": 1.0, "type": "exact",
    }  # fmt: skip
    assert set(read_json(context.folder / "speed.json")) == {
        "build_seconds", "queries_per_second", "exact_queries_per_second",
    }  # fmt: skip
    vectors = np.load(context.folder / "item_vectors.npy")
    encoder = checkpoint.load_model(inputs["train"])
    assert (vectors == encoder.item_vectors().detach().numpy()[1:]).all()


def test_the_index_is_asked_as_users_stand_after_validation(inputs: dict[str, Path]):
    context, encoder = build(index, inputs, inputs["index"]), checkpoint.load_model(inputs["train"])
    mapping = np.load(inputs["train"] / "items.npy")
    histories, split = log(), splits.Split.load(inputs["features"] / "split")
    ends = np.asarray(split.validation_end)
    expected = []
    for user in np.flatnonzero(ends > np.asarray(split.train_end)):
        items = mapping[histories.item_index[histories.offsets[user] : ends[user]]]
        asked = with_request_time(histories_from_lists([items[items > 0].tolist()]), 0)
        expected.append(AttentionRecommender(encoder).encode(asked)[0])
    chosen = np.linspace(0, len(expected) - 1, 13).astype(int)
    found = item_index.user_vectors(context.config.index, context.dataset, encoder, ItemNumbering(mapping))
    assert found == pytest.approx(np.array(expected)[chosen], abs=1e-5)


def test_metrics_have_the_form_of_the_contract(evaluated: Context):
    report = read_json(evaluated.folder / "metrics.json")
    systems = {"lookback", "popularity", "recent_popularity", "co_visitation"}
    assert report["protocol"] == "leave_one_out"
    assert (report["users"], report["targets"]) == (NUM_USERS - 1, NUM_USERS - 1)
    assert report["targets_left_out"] == {
        "under_core": 0,
        "not_first": 0,
        "already_seen": 0,
        "no_history": 0,
        "unknown_item": 1,
    }
    assert set(report["metrics"]) == set(report["intervals"]) == systems
    for name in ("ndcg@3", "hit_rate@10", "mrr@10", "user_ndcg@10"):
        for system in systems:
            low, high = report["intervals"][system][name]
            assert low <= report["metrics"][system][name] <= high
    assert set(report["paired"]) == systems - {"lookback"}
    assert report["index"]["recall@100"] == 1.0
    assert evaluated.manifest == {"rows_in": 61, "rows_out": 60, "rows_left_out": report["targets_left_out"]}


def test_what_was_planted_is_found(evaluated: Context):
    report = read_json(evaluated.folder / "metrics.json")
    assert report["metrics"]["co_visitation"]["hit_rate@3"] > 0.9  # the next item on the circle
    assert report["metrics"]["popularity"]["hit_rate@3"] < 0.4
    worse = report["paired"]["co_visitation"]["ndcg@10"]
    assert worse["verdict"] == "worse"
    assert worse["low"] <= worse["difference"] <= worse["high"] < 0


def test_ranks_equal_a_plain_computation(evaluated: Context, inputs: dict[str, Path]):
    table = pl.read_parquet(evaluated.folder / "targets.parquet").filter(pl.col("system") == "lookback")
    assert table.schema["rank"] == pl.Float64
    assert table.schema["timestamp"] == pl.Datetime("us", "UTC")
    histories = log()
    model = AttentionRecommender(checkpoint.load_model(inputs["train"]))
    for user, row in enumerate(table.iter_rows(named=True)):
        whole = histories.item_index[histories.offsets[user] : histories.offsets[user + 1]].tolist()
        assert (row["user_id"], row["item_id"], row["history_length"]) == (
            f"u{user}",
            (whole[-1] - 1) * 10,
            len(whole) - 1,
        )
        scores = model.score_items(histories_from_lists([whole[:-1]]))[0]
        others = [scores[item] for item in range(1, NUM_ITEMS) if item not in whole]
        assert row["rank"] == 1 + sum(score > scores[whole[-1]] for score in others)


def test_tables_agree_with_the_metrics(evaluated: Context):
    report = read_json(evaluated.folder / "metrics.json")
    users = pl.read_parquet(evaluated.folder / "per_user.parquet").filter(pl.col("system") == "popularity")
    assert users["ndcg@10"].mean() == pytest.approx(report["metrics"]["popularity"]["user_ndcg@10"])
    segments = pl.read_parquet(evaluated.folder / "segments.parquet").filter(pl.col("system") == "popularity")
    for segment in ("history_length", "item_popularity"):
        part = segments.filter(pl.col("segment") == segment)
        assert part["targets"].sum() == report["targets"]
        mean = (part["ndcg@3"] * part["targets"]).sum() / report["targets"]
        assert mean == pytest.approx(report["metrics"]["popularity"]["ndcg@3"])
        assert (part["ndcg@3_low"] <= part["ndcg@3"]).all()


def test_coverage_by_pencil(inputs: dict[str, Path], tmp_path: Path):
    judge(inputs, tmp_path / "evaluate", k=[30])
    report = read_json(tmp_path / "evaluate" / "metrics.json")
    assert report["metrics"]["popularity"]["coverage@30"] == 1.0


@pytest.mark.slow
def test_chunks_and_another_run_change_no_byte(
    evaluated: Context, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judge(inputs, tmp_path / "again")
    for name in ("metrics.json", "targets.parquet", "per_user.parquet", "segments.parquet"):
        assert (evaluated.folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first, second = (read_json(folder / "charts.json") for folder in (evaluated.folder, tmp_path / "again"))
    assert "index" in {chart["name"] for chart in first}, "its speed is measured, the rest is computed"
    assert [chart for chart in first if chart["name"] != "index"] == [
        chart for chart in second if chart["name"] != "index"
    ]
    monkeypatch.setattr(ranks, "row_chunks", lambda rows, items: row_chunks(rows, items, cells=7 * 31))
    judge(inputs, tmp_path / "chunks")
    one, other = (
        pl.read_parquet(folder / "targets.parquet") for folder in (evaluated.folder, tmp_path / "chunks")
    )
    assert one.equals(other)


@pytest.mark.slow
def test_a_log_without_times_has_no_recent_popularity(inputs: dict[str, Path], tmp_path: Path):
    context = judge(inputs, tmp_path / "evaluate", unit="position")
    report = read_json(context.folder / "metrics.json")
    assert set(report["metrics"]) == {"lookback", "popularity", "co_visitation"}
    assert report["not_applicable"] == {"recent_popularity": "the log has no times, only each user's order"}


def test_seconds_of_every_baseline_and_of_every_setting_tried(inputs: dict[str, Path], tmp_path: Path):
    context = build(baselines, inputs, tmp_path / "timed", baselines=["popularity", "item_knn"])
    num_settings = {name: len(kind_of(name).grid) for name in ("popularity", "item_knn")}
    laps = context.manifest["seconds_of_settings"]
    assert {name: len(seconds) or 1 for name, seconds in laps.items()} == num_settings
    assert num_settings["item_knn"] > 1
    tried = ", ".join([r"\d+\.\d"] * num_settings["item_knn"])
    expected = rf"popularity \d+\.\d s, item_knn \d+\.\d s \({tried}\) on [\d,]+ targets"
    assert re.fullmatch(expected, context.summary_line)
    assert context.manifest["seconds_of_systems"]["item_knn"] >= sum(laps["item_knn"])
    assert context.progress == "popularity, test", "the shortest is the last"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)}


def test_baselines_side_by_side_have_the_bytes_of_one_after_the_other(
    inputs: dict[str, Path], tmp_path: Path
):
    names = ["popularity", "co_visitation", "item_knn", "ease", "als", "gru"]
    build(baselines, inputs, tmp_path / "one", baselines=names)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        context = build(baselines, inputs, tmp_path / "three", baselines=names)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(num_threads)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert set(context.manifest["seconds_of_systems"]) == set(names)
    assert context.summary_line.startswith("popularity ")


def test_baselines_of_an_artifact_with_fewer_are_taken_over(inputs: dict[str, Path], tmp_path: Path):
    fewer = build(baselines, inputs, tmp_path / "fewer", baselines=FEW).folder
    files = {
        path.relative_to(fewer).as_posix(): [path.stat().st_size, digest_file(path)]
        for path in files_below(fewer)
    }
    write_json(fewer / MANIFEST, {"files": files})
    more = build(baselines, inputs, tmp_path / "more", previous=fewer, baselines=[*FEW, "item_knn"])
    assert list(more.manifest["seconds_of_systems"]) == ["item_knn"]
    anew = build(baselines, inputs, tmp_path / "anew", baselines=[*FEW, "item_knn"])
    assert files_of(more.folder) == files_of(anew.folder)


def test_the_chosen_fit_is_not_fitted_again(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fits: list[int] = []
    inverted = ease._weights

    def counted(gram: Any) -> Any:
        fits.append(1)
        return inverted(gram)

    monkeypatch.setattr(ease, "_weights", counted)
    build(baselines, inputs, tmp_path / "tuned", baselines=["ease"])
    assert len(fits) == len(BUILT_IN["ease"].GRID)


def test_only_the_baselines_asked_for(inputs: dict[str, Path], tmp_path: Path):
    judge(inputs, tmp_path / "none", baselines=[])
    report = read_json(tmp_path / "none" / "metrics.json")
    assert set(report["metrics"]) == {"lookback"}
    assert report["paired"] == {}


def test_no_target_left_is_one_message(inputs: dict[str, Path], tmp_path: Path):
    histories = log()
    everything = JaggedHistories(**{**vars(histories), "item_index": np.ones_like(histories.item_index)})
    everything.save(inputs["features"])  # whoever saw one item has seen all
    np.save(inputs["train"] / "items.npy", np.array([0, 1] + [0] * (NUM_ITEMS - 1), np.int32))
    with pytest.raises(
        LookbackError, match=r"no target is left.*left out: 61 events on items already in the history"
    ):
        judge(inputs, tmp_path / "evaluate", baselines=[])


def test_numbers_are_logged_on_the_run_and_on_the_training(evaluated: Context):
    points = {point.name: point.value for point in evaluated.track.points}
    report = read_json(evaluated.folder / "metrics.json")
    assert points["test/ndcg_at_10"] == report["metrics"]["lookback"]["ndcg@10"]
    assert points["popularity/hit_rate_at_3"] == report["metrics"]["popularity"]["hit_rate@3"]
    assert "test/ndcg_at_10" in {point.name for point in evaluated.track.parent_points}
    assert ("targets.parquet", "evaluate") in evaluated.track.artifacts


def test_nights_are_logged_with_their_parts_reasons_and_cautions(tmp_path: Path):
    metrics = {"lookback": {"ndcg@10": 0.5, "user_ndcg@10": 0.5}, "als": {"ndcg@10": 0.25}}
    config = Config(
        name="tiny", events=EventSettings(path="log.csv", columns=COLUMNS), evaluate=EvaluateConfig(k=[10])
    )
    unseen = LiveRun(None, lambda _: None, lambda _: None)
    context = Context(
        config, tmp_path, {"features": tmp_path}, {}, None, RunRecord(), unseen, tmp_path, show_progress=False
    )
    evaluate._log(context, nightly_report(metrics, differences={}))
    assert context.summary_line == (
        "ndcg@10 lookback 0.5000, als 0.2500 on 5 user-nights of 3 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each "
        "(left out: 7 user-nights with nothing taken in the horizon, 2 events on an item taken before in the same horizon); "
        "ranker.use is never; caution: only 5 user-nights of 3 users"
    )
    assert context.manifest == {"rows_in": 12, "rows_out": 5, "rows_left_out": {"nothing_taken": 7}}
    points = {point.name: point.value for point in context.track.points}
    beside = {name: value for name, value in points.items() if "repeats" in name or "new" in name}
    assert beside == {
        "repeats/ndcg_at_10": 0.25,
        "new/ndcg_at_10": 0.125,
        "als/repeats/ndcg_at_10": 0.125,
        "als/new/ndcg_at_10": 0.0625,
    }
    assert (points["successive/ndcg_at_10"], points["als/successive/ndcg_at_10"]) == (0.25, 0.125)
    assert not any("nightly" in name for name in points), "the headline is under test/"
    assert context.track.tags["lookback.targets"] == "nightly"
    assert context.track.tags["lookback.cautions"].startswith("only 5 user-nights of 3 users: intervals are")


def test_every_metric_and_every_baseline_stands_in_the_table(inputs: dict[str, Path], tmp_path: Path):
    context = judge(inputs, tmp_path / "all", baselines="all")
    report = read_json(context.folder / "metrics.json")
    applicable = [name for name in BASELINES if name not in BUILT_IN or not BUILT_IN[name].needs_seen]
    assert set(report["metrics"]) == {MODEL, *applicable}
    assert set(read_json(context.inputs["baselines"] / "baselines.json")["not_applicable"]) == {
        *("own_frequent", "own_recent", "tifu_knn")
    }
    of_ranks = [
        f"{name}@{k}" for name in ("ndcg", "hit_rate", "recall", "precision", "mrr", "map") for k in (3, 10)
    ]
    of_ranks += [
        f"{name}@{k}"
        for name in ("debiased_ndcg", "pessimistic_ndcg", "pessimistic_hit_rate")
        for k in (3, 10)
    ]
    of_lists = [
        f"{name}@3" for name in ("novelty", "popularity_share", "serendipity", "full_lists", "repeats")
    ]
    wanted = {
        *of_ranks,
        *of_lists,
        "coverage@3",
        "gini@3",
        *(f"user_{name}" for name in (*of_ranks, *of_lists)),
    }
    for system, values in report["metrics"].items():
        assert set(values) == wanted == set(report["intervals"][system])
        assert all(low <= high for low, high in report["intervals"][system].values())
    for other in applicable:
        assert set(report["paired"][other]["ndcg@3"]) >= {
            "difference",
            "low",
            "high",
            "p_value",
            "p_holm",
            "verdict",
        }
    tuned = report["baselines"]
    assert set(tuned) == set(applicable)
    assert tuned["item_knn"]["settings"] in [
        {key: value for key, value in point.items() if key != "ndcg@10"}
        for point in tuned["item_knn"]["grid"]
    ]


def test_metrics_follow_from_the_table_of_targets(evaluated: Context):
    report = read_json(evaluated.folder / "metrics.json")
    table = pl.read_parquet(evaluated.folder / "targets.parquet")
    for system, values in report["metrics"].items():
        own = table.filter(pl.col("system") == system)
        hits = (own["rank"] <= 10).mean()
        gains = own.select(pl.when(pl.col("rank") <= 10).then(1 / (pl.col("rank") + 1).log(2)).otherwise(0))
        worst = own.select(pl.when(pl.col("pessimistic_rank") <= 3).then(1).otherwise(0))
        assert hits == pytest.approx(values["hit_rate@10"])
        assert gains.to_series().mean() == pytest.approx(values["ndcg@10"])
        assert worst.to_series().mean() == pytest.approx(values["pessimistic_hit_rate@3"])
        shown = own["recommended"].explode()
        assert shown.n_unique() / report["num_items"] == pytest.approx(values["coverage@3"])
        assert (own["recommended"].list.len() == 3).mean() == pytest.approx(values["full_lists@3"])


def test_a_popularity_that_counted_the_test_stops_the_run(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def everything(dataset: Dataset, *, with_validation: bool) -> Histories:
        return dataset.all_rows()

    monkeypatch.setattr(Dataset, "training_rows", everything)
    with pytest.raises(LeakError, match=r"popularity was fitted on .* events up to"):
        judge(inputs, tmp_path / "leaking", baselines=["popularity"])


def test_a_model_that_learned_from_the_test_stops_the_run(inputs: dict[str, Path], tmp_path: Path):
    facts = read_json(inputs["train"] / "training.json")
    facts["fitted_on"]["num_events"] += 1
    write_json(inputs["train"] / "training.json", facts)
    with pytest.raises(LeakError, match="lookback was fitted on"):
        judge(inputs, tmp_path / "leaking", baselines=[])


def test_a_future_event_in_a_history_stops_the_run(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def with_the_future(*arguments: Any, **settings: Any) -> RankedTargets:
        targets = targets_of(*arguments, **settings)
        longer = replace(targets.histories, ends=targets.histories.ends + (np.arange(len(targets)) == 5))
        return replace(targets, histories=longer)

    monkeypatch.setattr(evaluate, "targets_of", with_the_future)
    with pytest.raises(LeakError, match="at or after the target"):
        judge(inputs, tmp_path / "leaking", baselines=[])


@pytest.mark.slow
def test_targets_on_unseen_items_count_as_misses_where_asked_for(inputs: dict[str, Path], tmp_path: Path):
    one = read_json(judge(inputs, tmp_path / "apart").folder / "metrics.json")
    other = read_json(judge(inputs, tmp_path / "counted", cold_items=True).folder / "metrics.json")
    assert (one["targets"], other["targets"]) == (NUM_USERS - 1, NUM_USERS)
    assert one["apart"]["unknown_item"]["targets"] == 1
    for system, values in one["metrics"].items():
        expected = values["ndcg@10"] * (NUM_USERS - 1) / NUM_USERS
        assert other["metrics"][system]["ndcg@10"] == pytest.approx(expected)
        assert one["apart"]["unknown_item"]["metrics_with_them"][system]["ndcg@10"] == pytest.approx(expected)


@pytest.mark.slow
def test_targets_on_items_known_by_content_are_ranked(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_content(inputs)
    monkeypatch.setattr(
        SystemComparison, "compared", lambda *_: {}
    )  # which takes scipy half a minute for so few users
    settings: dict[str, Any] = {"baselines": ["popularity", "gru"], "k": [3, 29]}
    one = read_json(judge(inputs, tmp_path / "apart", **settings).folder / "metrics.json")
    other = read_json(
        judge(inputs, tmp_path / "counted", cold_items=True, **settings).folder / "metrics.json"
    )
    unseen = one["apart"]["unknown_item"]
    assert (one["targets"], other["targets"], unseen["targets"]) == (NUM_USERS - 1, NUM_USERS, 1)
    # of 31 items two are in the history; 28 were trained on: behind them stands item 31 at 0 events, and at -inf with those two
    assert unseen["metrics"]["popularity"]["mrr@29"] == pytest.approx(1 / 29)
    assert unseen["metrics"]["gru"]["hit_rate@29"] == 0
    model = AttentionRecommender(checkpoint.load_model(inputs["train"]))
    scores = model.score_items(histories_from_lists([[1, 2]]))[0]
    rank = 1 + (scores[3:NUM_ITEMS] > scores[NUM_ITEMS]).sum()
    assert unseen["metrics"][MODEL]["mrr@29"] == pytest.approx(1 / rank)
    for system, values in one["metrics"].items():
        for metric in ("mrr@29", "ndcg@3"):
            expected = (values[metric] * (NUM_USERS - 1) + unseen["metrics"][system][metric]) / NUM_USERS
            assert unseen["metrics_with_them"][system][metric] == pytest.approx(expected)
            assert other["metrics"][system][metric] == pytest.approx(expected)


def test_a_recommender_of_some_items_in_a_numbering_of_all():
    system = Renumbered(Popularity(np.array([0, 2, 5], np.float32)), np.array([0, 2, 0, 1], np.int32))
    histories = histories_from_lists([[2, 3], [1]])
    assert system.score_items(histories).tolist() == 2 * [[-np.inf, 5, -np.inf, 2]]
    items, scores = system.recommend(histories, 3)
    assert items.tolist() == [[1, 0, 0], [3, 0, 0]]
    assert scores[:, 0].tolist() == [5, 2]


def test_the_learning_curve_ends_with_the_model_itself(inputs: dict[str, Path], tmp_path: Path):
    context = judge(inputs, tmp_path / "curve", baselines=[], training_fractions=[0.5])
    report = read_json(context.folder / "metrics.json")
    half, whole = report["learning_curve"]
    assert (half["fraction"], whole["fraction"]) == (0.5, 1.0)
    assert half["users"] == round(0.5 * whole["users"])
    assert whole["metrics"] == {name: report["metrics"][MODEL][name] for name in whole["metrics"]}
    assert set(half["metrics"]) <= set(whole["metrics"])
    assert not (context.folder / "checkpoints").exists()


def test_a_recommender_of_ones_own_stands_in_the_table(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A copy of popularity has its ranks, its metrics, and no difference from it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_table_shop.py").write_text(
        "from models.baselines.popularity import Popularity\nclass Mine(Popularity):\n    GRID = ({},)\n"
    )
    own = "my_table_shop:Mine"
    context = judge(inputs, tmp_path / "own", baselines=[own, "popularity"])
    report = read_json(context.folder / "metrics.json")
    assert set(report["metrics"]) == {MODEL, "popularity", own}
    assert report["metrics"][own] == report["metrics"]["popularity"]
    assert report["baselines"][own]["settings"] == {}
    points = {point.name: point.value for point in context.track.points}
    assert points[f"{own}/hit_rate_at_3"] == points["popularity/hit_rate_at_3"]
