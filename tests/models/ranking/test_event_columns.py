"""Columns of events in the ranker: values of requests, affinities by pencil, and what is learned from them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.histories import Histories, histories_from_lists
from models.ranking.column_choice import choose_columns, importances
from models.ranking.columns import ColumnEmbeddings, ColumnPlaces, ColumnTables
from models.ranking.event_columns import PRIOR_EVENTS, EventTables, PairCounts
from models.ranking.ranker import SecondStage
from models.ranking.training import RankerFit, Retrieved, fit_ranker
from tests.models.conftest import NUM_ITEMS
from tests.models.ranking.test_ranker import SETTINGS, a_log, a_stage, candidates

PHONE, TV, NONE = 3, 4, 1
"""Values of the first column; the second one has 5 (none), 7 and 8."""


def counts() -> PairCounts:
    """Six events of items 1 and 2, in two blocks; most of item 1 on phones."""
    own = PairCounts(num_items=2, num_values=9)
    own.add(np.array([1, 1, 2, 1], np.int32), np.array([[PHONE, 7], [PHONE, 8], [TV, 7], [TV, 7]], np.int32))
    own.add(np.array([1, 2], np.int32), np.array([[PHONE, 7], [NONE, 7]], np.int32))
    return own


VALUE = np.array([[NONE, PHONE, TV], [5, 7, 8]], np.int32)


def test_affinities_by_pencil() -> None:
    tables = counts().tables(np.array([0, 1], np.int32), VALUE)
    assert tables.of_item.tolist() == [0, 4, 2, 0]
    assert tables.of_value.tolist() == [0, 1, 0, 3, 2, 0, 0, 5, 1]
    values = np.array([[PHONE, 8], [NONE, 5]], np.int32)
    found = tables.affinity(values, np.array([[1, 2, 0], [2, 3, 1]], np.int32))
    pairs: list[list[list[tuple[int, float]]]] = [  # events, and as many as by chance
        [[(3, 4 * 3 / 6), (1, 4 * 1 / 6)], [(0, 2 * 3 / 6), (0, 2 * 1 / 6)], [(0, 0), (0, 0)]],
        [[(1, 2 * 1 / 6), (0, 0)], [(0, 0), (0, 0)], [(0, 4 * 1 / 6), (0, 0)]],
    ]
    taken, by_chance = np.moveaxis(np.array(pairs), -1, 0)
    expected = np.log((taken + PRIOR_EVENTS) / (by_chance + PRIOR_EVENTS))
    assert found == pytest.approx(expected, abs=1e-6)


def test_new_items_have_no_affinity_and_no_events_at_all_none() -> None:
    tables = counts().tables(np.array([0, 1], np.int32), VALUE).extended(2)
    items = np.array([[3, 4, 5]], np.int32)
    assert not tables.affinity(np.array([[PHONE, 7]], np.int32), items).any()
    empty = PairCounts(num_items=2, num_values=9).tables(np.array([0, 1], np.int32), VALUE)
    assert not empty.affinity(np.array([[PHONE, 7]], np.int32), np.array([[1, 2]], np.int32)).any()


def test_a_request_has_the_values_of_its_context() -> None:
    tables = counts().tables(np.array([1, -1], np.int32), VALUE)
    rows = replace(histories_from_lists([[1], [2]]), context=np.array([[9, 2], [9, 0]], np.int32))
    assert tables.values(rows).tolist() == [[TV, 5], [NONE, 5]], "the log lacks the second column"
    assert tables.values(replace(rows, context=None)).tolist() == [[NONE, 5], [NONE, 5]]
    assert tables.values(rows.select(np.array([1]))).tolist() == [[NONE, 5]]
    later = tables.reading(np.array([0, 1], np.int32), VALUE[:, ::-1])
    assert later.number.tolist() == tables.number.tolist()
    assert later.values(replace(rows, context=np.array([[0, 0], [2, 2]]))).tolist() == [[TV, 8], [NONE, 5]]


def test_context_stays_with_its_row() -> None:
    rows = replace(histories_from_lists([[1, 2], [2], [1]]), context=np.array([[1], [2], [3]], np.int32))
    changed = rows.translate(np.array([0, 1, 0], np.int32)).compact().without_dislikes().last(1)
    assert changed.context is not None
    assert changed.context.tolist() == [[1], [2], [3]], "also of a row whose last item is unknown"
    emptied = changed.emptied(np.array([True, False, False]))
    assert (emptied.context.tolist(), emptied.lengths.tolist()) == ([[0], [2], [3]], [0, 0, 1])  # type: ignore[union-attr]
    assert changed.select(np.array([2, 0])).context.tolist() == [[3], [1]]  # type: ignore[union-attr]


def test_shuffling_moves_one_column() -> None:
    tables = counts().tables(np.array([1, -1], np.int32), VALUE)
    context = np.arange(40, dtype=np.int32).reshape(20, 2)
    rows = replace(histories_from_lists([[1]] * 20), context=context)
    shuffled = tables.shuffled(rows, 0, 0).context
    assert shuffled is not None
    assert shuffled[:, 0].tolist() == context[:, 0].tolist()
    assert sorted(shuffled[:, 1]) == context[:, 1].tolist()
    assert shuffled[:, 1].tolist() != context[:, 1].tolist()
    assert tables.shuffled(rows, 1, 0) is rows, "a column that the log lacks"


def embeddings(num_features: int, num_of_events: int) -> ColumnEmbeddings:
    """Of seven values of events and none of users and items."""
    unseen = torch.tensor([0, *[1] * 8], dtype=torch.int32)
    return ColumnEmbeddings(unseen, torch.zeros(1, dtype=torch.int32), num_features, num_of_events)


def reading(stage: SecondStage, events: EventTables) -> SecondStage:
    """The stage with columns of events alone."""
    users, items = np.zeros((NUM_LISTS + 1, 0), np.int32), np.zeros((NUM_ITEMS + 2, 0), np.int32)
    ranker = stage.ranker.reading(embeddings(len(stage.ranker.features), len(events.place)))
    return SecondStage(ranker, stage.statistics, stage.own, ColumnTables(users, items, events))


# --- planted ---

NUM_LISTS = 400
PLACES = (
    ColumnPlaces("events.device", "events", slice(0, 1)),
    ColumnPlaces("events.noise", "events", slice(1, 2)),
)


def planted(seed: int = 0) -> tuple[Retrieved, EventTables]:
    """On each device users take other items: by the training events, and at the requests. Histories and scores say nothing."""
    random = np.random.default_rng(seed)
    fits = random.integers(1, 3, NUM_ITEMS + 1)  # device on which an item is taken
    item = random.integers(1, NUM_ITEMS + 1, 4000).astype(np.int32)
    device, noise = fits[item] + 2, random.integers(7, 9, len(item))
    own = PairCounts(NUM_ITEMS, num_values=9)
    own.add(item, np.stack([device, noise], 1).astype(np.int32))
    tables = own.tables(np.array([0, 1], np.int32), VALUE)
    context = random.integers(1, 3, (NUM_LISTS, 2)).astype(np.int32)
    users = np.arange(NUM_LISTS)
    log = replace(a_log(NUM_LISTS, seed), user=users, context=context)
    items, scores = candidates(NUM_LISTS, seed=seed)
    likely = np.where(fits[items] == context[:, :1], random.random(items.shape), -1)
    target = items[users, likely.argmax(1)]
    return Retrieved.of(log, items, 0 * scores, target, users, users), tables


def fits_on(retrieved: Retrieved, tables: EventTables) -> Callable[[Sequence[str]], RankerFit]:
    """Trains a ranker with the columns of some labels."""
    settings = replace(SETTINGS, hidden=0, learning_rate=0.02, epochs=8, item_vectors=False)

    def fit(labels: Sequence[str]) -> RankerFit:
        stage = a_stage(loud=False, settings=settings)
        if labels:
            rows = [row for row, place in enumerate(PLACES) if place.label in labels]
            torch.manual_seed(1)
            stage = reading(stage, tables.reading(tables.place[rows], tables.value[rows]))
        return fit_ranker(stage, retrieved, 0)

    return fit


def test_the_device_is_taken() -> None:
    retrieved, tables = planted()
    choice = choose_columns(fits_on(retrieved, tables), PLACES, retrieved, 0)
    assert choice.gain is not None
    assert choice.gain.low > 0.05
    assert "events.device" in choice.taken
    assert choice.importance["events.device"] > 0.05 > choice.importance["events.noise"]


def test_noise_alone_is_not_taken() -> None:
    retrieved, tables = planted()
    fit = fits_on(retrieved, tables)
    noise = (replace(PLACES[1], places=slice(0, 1)),)
    choice = choose_columns(fit, noise, retrieved, 0)
    assert choice.taken == ()
    assert choice.fit.stage.columns is None
    assert importances(fit(["events.noise"]), noise, retrieved, 0)["events.noise"] < 0.05


def test_save_and_load_change_nothing(tmp_path: Path) -> None:
    retrieved, tables = planted()
    stage = reading(a_stage(), tables)
    assert stage.columns is not None
    lists = retrieved.histories, retrieved.items, retrieved.scores
    with torch.no_grad():
        stage.ranker.last.weight.normal_()
    checkpoint.save_ranker(stage.ranker, tmp_path)
    stage.columns.save(tmp_path)
    again = SecondStage(
        checkpoint.load_ranker(tmp_path), stage.statistics, stage.own, ColumnTables.load(tmp_path)
    )
    expected = stage.score(*lists)
    assert again.score(*lists).tolist() == expected.tolist()
    without: Histories = replace(retrieved.histories, context=None)
    assert not np.allclose(again.score(without, *lists[1:]), expected)
