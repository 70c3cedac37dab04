"""The trainer of stage train, and stage publish, on a small log with event types and content written out here."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import content
from features.content import Content
from features.histories import splits
from features.histories.jagged import JaggedHistories
from features.histories.log_facts import LogFacts
from features.histories.numbering import ItemNumbering
from features.settings import ContentSettings, EventSettings, HistorySettings, ItemSettings, SplitSettings
from models import checkpoint
from models.settings.encoder import EncoderSettings
from models.settings.training import TrainSettings
from pipeline.artifacts.files import read_json
from pipeline.config import Config
from pipeline.modelling import trainer as trainer_module
from pipeline.modelling.training_facts import TrainingFacts
from pipeline.orchestration.context import Context
from pipeline.sections import EvaluateConfig
from pipeline.serving.bundle import Bundle
from pipeline.stages import publish
from pipeline.tracking.live import LiveRun
from pipeline.tracking.record import RunRecord
from tests.evaluation_reports import evaluation_report

NUM_USERS, NUM_ITEMS = 23, 11
COLUMNS: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3, "event_type": 4}
READS_CONTENT = EncoderSettings(dim=4, num_heads=1, num_blocks=1, item_content=True)


def log() -> JaggedHistories:
    """Seven events of each user on items 1 to 9, at different hours, every other one of type 1, else 2; the last user's fifth
    is on item 10, and item 11 never occurs."""
    item = np.random.default_rng(0).integers(1, 10, NUM_USERS * 7).astype(np.int32)
    item[-3] = 10
    time = np.arange(len(item), dtype=np.int64).reshape(7, -1).T.ravel() * 3_600_000_000
    kind = np.tile(np.array([1, 2], np.int16), len(item))[: len(item)]
    values = np.zeros(len(item), np.float32)
    return JaggedHistories(np.arange(NUM_USERS + 1) * 7, item, time, kind, values)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """A stage's context over the log's features, held back from its last two sevenths on where that is asked for."""
    histories, folder = log(), tmp_path / "features"

    def made(held_back: float = 0.0, **sections: Any) -> Context:
        split = splits.temporal(
            histories,
            NUM_ITEMS,
            test_fraction=0.15,
            validation_fraction=0.15,
            held_back=held_back,
            min_user_events=1,
            min_item_events=2,
        )
        for each in (folder, tmp_path / "ingest", tmp_path / "stage"):
            each.mkdir(exist_ok=True)
        histories.save(folder)
        split.save(folder / "split")
        LogFacts.of(histories).save(folder)
        ids = pl.Series("item_id", [f"i{number:02}" for number in range(1, NUM_ITEMS + 1)])
        kinds = [["odd" if number % 2 else "even"] for number in range(1, NUM_ITEMS - 1)]
        table = pl.DataFrame({"item_id": ids, "categories": [*kinds, ["even", "late"], ["late"]]})
        table.write_parquet(tmp_path / "ingest" / "items.parquet")
        known = np.arange(NUM_ITEMS) < NUM_ITEMS - 2  # those that occur, so that a category is unknown
        content.build(folder, table, known, ContentSettings())
        shown = pl.lit(None, dtype=pl.String).alias("title")
        table.with_columns(shown, item_index=pl.int_range(1, NUM_ITEMS + 1)).write_parquet(
            folder / "items.parquet"
        )
        pl.DataFrame({"user_index": range(NUM_USERS), "user_id": range(100, 100 + NUM_USERS)}).write_parquet(
            folder / "users.parquet"
        )
        (folder / "event_types.json").write_text('["ad", "view"]')
        given: dict[str, Any] = {
            "model": READS_CONTENT,
            "train": TrainSettings(epochs=1, precision="fp32", compile="off"),
            "items": ItemSettings(path="items.csv"),
        }
        events = EventSettings(path="log.csv", columns=COLUMNS, types={"ad": 0.0, "view": 1.0})
        given["history"] = HistorySettings(min_item_events=2)
        config = Config(name="tiny", events=events, **given | sections)
        inputs = {"features": folder, "ingest": tmp_path / "ingest"}
        live = LiveRun(None, lambda _: None, lambda _: None)
        return Context(
            config, tmp_path / "stage", inputs, {}, None, RunRecord(), live, tmp_path, show_progress=False
        )

    return made


@pytest.mark.parametrize("targets", ["all", "last", "random"])
def test_a_refit_on_the_same_events_takes_the_same_steps(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, targets: Any
):
    settings = TrainSettings(targets=targets, epochs=2, batch_histories=4, precision="fp32", compile="off")
    ctx = context(train=settings, model=replace(READS_CONTENT, item_content=False))
    trainer, taken = ctx.trainer(), []
    everything = ctx.dataset.all_rows()
    mapping = ItemNumbering.of_known(ctx.dataset.occurring(everything))
    mapping.new[[3, 4]] = 0
    result = trainer.fit("selection", everything, mapping)
    facts = replace(TrainingFacts.of(result), best_step=10 * result.best_step)
    monkeypatch.setattr(trainer, "fit", lambda *_, max_steps: taken.append(max_steps))
    trainer.refit("again", everything, mapping, facts)
    twice = replace(everything, starts=np.repeat(everything.starts, 2), ends=np.repeat(everything.ends, 2))
    trainer.refit("twice", twice, mapping, facts)
    assert taken == [facts.best_step, 2 * facts.best_step]
    assert facts.best_step == 10 * 2 * 6  # two epochs of 23 histories in fours


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"predict": "next"}, (None, 0)),
        ({"predict": "next", "ties": "strict"}, (90_000_000, 0)),
        ({"predict": "visit"}, (90_000_000, 0)),
        ({"predict": "window"}, (90_000_000, 7 * 86_400_000_000)),
        ({"predict": "window", "kind": "nightly", "horizon_days": 0.5}, (90_000_000, 43_200_000_000)),
    ],
)
def test_visits_and_horizon_reach_the_training(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, settings: Any, expected: Any
):
    nights = EvaluateConfig(
        targets=settings.get("kind", "successive"), horizon_days=settings.get("horizon_days", "auto")
    )
    ctx = context(
        train=TrainSettings(predict=settings["predict"], epochs=1, precision="fp32", compile="off"),
        split=SplitSettings(ties=settings.get("ties", "order")),
        history=HistorySettings(session_minutes=1.5),
        evaluate=nights,
        model=replace(READS_CONTENT, item_content=False),
    )
    passed: list[Any] = []

    class Enough(Exception):
        pass

    def stop(**arguments: Any) -> None:
        passed.append((arguments["session"], arguments["horizon"]))
        raise Enough

    monkeypatch.setattr(trainer_module, "fit", stop)
    everything = ctx.dataset.all_rows()
    with pytest.raises(Enough):
        ctx.trainer().fit("selection", everything, ItemNumbering.of_known(ctx.dataset.occurring(everything)))
    assert passed == [expected]


def test_only_a_model_that_reads_content_knows_items_by_it(context: Callable[..., Context]):
    ctx = context()
    training = ctx.dataset.training_rows(with_validation=False)
    reading = ctx.trainer()
    assert reading.numbering(training).new.tolist() == [*range(11), 0]
    gru = ctx.trainer(encoder=EncoderSettings(block="gru"))
    assert gru.numbering(training).new.tolist() == [*range(10), 0, 0]


def test_a_damaged_checkpoint_is_refused_before_the_training(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    ctx = context()
    started: list[Any] = []
    trainer = ctx.trainer()
    (ctx.folder / "checkpoints" / "selection.pt").write_bytes(b"half a")
    monkeypatch.setattr(trainer_module, "fit", started.append)
    everything = ctx.dataset.all_rows()
    with pytest.raises(ValueError, match=r"selection\.pt: cannot be read"):
        trainer.fit("selection", everything, ItemNumbering.of_known(ctx.dataset.occurring(everything)))
    assert not started


def test_a_checkpoint_of_another_version_is_left_aside(
    context: Callable[..., Context], capsys: pytest.CaptureFixture[str]
):
    ctx = context(train=TrainSettings(epochs=1, batch_histories=4, precision="fp32", compile="off"))
    expected = ctx.trainer().fit_split().result.history
    path = ctx.folder / "checkpoints" / "selection.pt"
    checkpoint.save_training({"version": 2, "model": {}}, path)
    history = ctx.trainer().fit_split().result.history
    assert [record.loss for record in history] == [record.loss for record in expected]
    assert (
        capsys.readouterr().err == f"{path}: written by another version of lookback; training starts anew\n"
    )


def test_users_of_a_step_whose_numbers_are_not_finite_are_named(context: Callable[..., Context]):
    settings = TrainSettings(
        learning_rate=1e30, max_grad_norm=0, batch_histories=4, precision="fp32", compile="off"
    )
    ctx = context(train=settings)
    some = np.arange(NUM_USERS) >= 10
    with pytest.raises(ValueError, match=r"training histories \[.*; the step's users are 1") as raised:
        ctx.trainer().fit_split(users=some)
    found = re.search(r"histories \[([\d, ]+)\].*users are ([\d, ]+)", str(raised.value))
    assert found is not None
    histories, users = ([int(each) for each in part.split(", ")] for part in found.groups())
    assert users == [110 + row for row in histories]


def test_a_bundle_of_the_log_as_it_was_reads_the_content_it_learned_from(context: Callable[..., Context]):
    held_back = context(0.25)
    features = held_back.inputs["features"]
    histories, split = log(), splits.Split.load(features / "split")
    assert (split.test_end < histories.offsets[1:]).any()
    for name in ("train", "evaluate"):
        held_back.inputs[name] = held_back.folder.with_name(name)
        held_back.inputs[name].mkdir()
    trained = held_back.trainer().fit_split()
    checkpoint.save_model(trained.result.model, held_back.inputs["train"])
    trained.numbering.save(held_back.inputs["train"] / "items.npy")
    TrainingFacts.of(trained.selection).save(held_back.inputs["train"])
    evaluation_report({"lookback": {}}, targets=0).save(held_back.inputs["evaluate"])
    publish.build(held_back)
    bundle = Bundle.open(held_back.folder / "bundle")
    # all but item 11, of which nothing is known; item 10, which was tested, is known by what is said of it
    assert bundle.items.ids.to_list() == [f"i{number:02}" for number in range(1, 11)]
    newest = int(histories.time[split.test_end - 1].max())
    assert newest < histories.time.max()
    assert bundle.newest == newest == read_json(bundle.folder / "bundle.json")["newest"]
    learned_from, written = Content.load(features / "content"), Content.load(bundle.folder / "content")
    assert written.categories == learned_from.categories == ("even", "odd")
    np.testing.assert_array_equal(written.category_index, learned_from.category_index)
