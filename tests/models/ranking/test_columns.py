"""Columns in the ranker: tables, embeddings by pencil, what is learned from them, and which of them are taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.histories import Histories, histories_from_lists
from models.ranking.column_choice import choose_columns, given_columns, importances
from models.ranking.columns import DIM, ColumnEmbeddings, ColumnPlaces, ColumnTables, column_values
from models.ranking.ranker import SecondStage
from models.ranking.training import RankerFit, Retrieved, fit_ranker
from models.settings.ranker import RankerSettings
from tests.models.conftest import NUM_ITEMS
from tests.models.ranking.test_ranker import SETTINGS, a_log, a_stage, candidates

NUM_USERS = 13


def some_tables(seed: int = 0) -> ColumnTables:
    """Two values of each user from 1..4, one of each item from 1..3."""
    random = np.random.default_rng(seed)
    users = random.integers(1, 5, (NUM_USERS + 1, 2)).astype(np.int32)
    items = random.integers(1, 4, (NUM_ITEMS + 2, 1)).astype(np.int32)
    items[0] = 0
    return ColumnTables(users, items)


def embeddings(num_features: int, users: int = 5, items: int = 4) -> ColumnEmbeddings:
    unseen_user, unseen_item = (
        torch.tensor([0, *[1] * (number - 1)], dtype=torch.int32) for number in (users, items)
    )
    return ColumnEmbeddings(unseen_user, unseen_item, num_features)


def with_columns(stage: SecondStage, tables: ColumnTables, users: int = 5, items: int = 4) -> SecondStage:
    ranker = stage.ranker.reading(embeddings(len(stage.ranker.features), users, items))
    return SecondStage(ranker, stage.statistics, stage.own, tables)


def loud(stage: SecondStage) -> SecondStage:
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in stage.ranker.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return stage


def of_users(log: Histories, users: list[int] | None = None) -> Histories:
    return replace(log, user=np.arange(len(log)) if users is None else np.array(users))


def test_values_are_those_of_rows_candidates_and_past_items() -> None:
    tables = ColumnTables(
        np.array([[1, 2], [3, 4], [9, 9]], np.int32), np.array([[0], [5], [6], [8]], np.int32)
    )
    rows = of_users(histories_from_lists([[1], [2], [1]]), [1, 0, -1])
    items, past = np.array([[2, 0], [1, 2], [0, 0]], np.int32), np.array([[1], [2], [0]])
    user, candidate, history, affinity = column_values(tables, rows, items, past)
    assert user.tolist() == [[3, 4], [1, 2], [9, 9]], "the last one is of unknown users"
    assert candidate[..., 0].tolist() == [[6, 0], [5, 6], [0, 0]]
    assert history[..., 0].tolist() == [[5], [6], [0]]
    assert affinity.shape == (3, 2, 0), "of no columns of events"
    anonymous, *_ = column_values(tables, replace(rows, user=None), items, past)
    assert anonymous.tolist() == [[9, 9]] * 3
    grown = tables.extended(2)
    assert grown.items[:, 0].tolist() == [0, 5, 6, 8, 8, 8]
    assert [part.shape for part in column_values(None, rows, items, past)] == [
        (3, 0),
        (3, 2, 0),
        (3, 1, 0),
        (3, 2, 0),
    ]


def test_shuffling_moves_one_column_of_the_given_rows() -> None:
    tables = ColumnTables(np.arange(20, dtype=np.int32).reshape(10, 2), np.zeros((3, 1), np.int32))
    rows = np.arange(7)
    shuffled = tables.permuted("users", slice(1, 2), rows, 0)
    assert shuffled.users[:, 0].tolist() == tables.users[:, 0].tolist()
    assert shuffled.users[7:].tolist() == tables.users[7:].tolist()
    assert sorted(shuffled.users[rows, 1]) == sorted(tables.users[rows, 1])
    assert shuffled.users[rows, 1].tolist() != tables.users[rows, 1].tolist()


def test_the_five_parts_by_pencil() -> None:
    columns = embeddings(2).eval()
    with torch.no_grad():
        columns.of_user.weight.copy_(torch.arange(5.0)[:, None].expand(-1, DIM))
        columns.of_item.weight.copy_(10 * torch.arange(4.0)[:, None].expand(-1, DIM))
        columns.of_features.weight.fill_(1.0)
    found = columns(
        torch.tensor([[1, 3]], dtype=torch.int32),
        torch.tensor([[[2], [0]]], dtype=torch.int32),
        torch.tensor([[[1], [3], [0]]], dtype=torch.int32),
        torch.tensor([[[1.0, 0.5, 0.0]]]),
        torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]),
        torch.zeros(1, 2, 0),
    )
    assert sum(part.shape[-1] for part in found) == columns.width
    user, item, past, of_user, of_past = (part[0, :, 0].tolist() for part in found[:5])
    assert (user, item) == ([4, 4], [20, 0])
    assert past == pytest.approx([50 / 3] * 2), "(10 + 0.5 * 30) / 1.5"
    assert of_user == [4 * 23, 4 * -1]
    assert of_past == pytest.approx([1000 / 3, 0])


def test_training_hides_some_values_behind_the_rare_one() -> None:
    columns = embeddings(1).train()
    with torch.no_grad():
        columns.of_user.weight.copy_(torch.arange(5.0)[:, None].expand(-1, DIM))
    values = torch.full((4000, 1), 4, dtype=torch.int32)
    torch.manual_seed(0)
    found = columns._sum(columns.of_user, columns.unseen_user, values)[:, 0]
    assert set(found.tolist()) == {1.0, 4.0}
    assert 0.03 < float((found == 1).float().mean()) < 0.07
    assert not columns._sum(columns.of_user, columns.unseen_user, 0 * values).any()


def test_it_begins_as_the_retrievers_order() -> None:
    stage, (items, scores) = with_columns(a_stage(loud=False), some_tables()), candidates(NUM_USERS)
    assert (np.diff(stage.score(of_users(a_log(NUM_USERS)), items, scores), axis=1) <= 0).all()


def test_a_row_is_scored_by_its_own_user_alone_and_in_company() -> None:
    stage, (items, scores) = loud(with_columns(a_stage(), some_tables())), candidates(NUM_USERS)
    log = of_users(a_log(NUM_USERS))
    together = stage.score(log, items, scores)
    for row in range(NUM_USERS):
        here = slice(row, row + 1)
        alone = stage.score(log.select(here), items[here], scores[here])
        assert alone[0] == pytest.approx(together[row], abs=1e-4)
    assert not np.allclose(stage.score(replace(log, user=None), items, scores), together, atol=1e-3)


def test_an_absent_interaction_is_none_in_the_columns_too() -> None:
    """Presence 0 is the history without it, in all that reads the history by columns."""
    stage, (items, scores) = loud(with_columns(a_stage(), some_tables())), candidates(1)
    assert stage.ranker.columns is not None
    lists = stage.lists(of_users(histories_from_lists([[3, 4, 5]])), items, scores)
    shorter = stage.lists(of_users(histories_from_lists([[4, 5]])), items, scores)
    features = torch.zeros_like(lists.features)
    gone = stage.ranker._known(stage.ranker.columns, lists, features, torch.tensor([[[1.0, 1.0, 0.0]]]))
    expected = stage.ranker._known(stage.ranker.columns, shorter, features, None)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(gone, expected, strict=True))


def test_save_and_load_change_nothing(tmp_path: Path) -> None:
    stage, (items, scores) = loud(with_columns(a_stage(), some_tables())), candidates(NUM_USERS)
    log = of_users(a_log(NUM_USERS))
    assert stage.columns is not None
    checkpoint.save_ranker(stage.ranker, tmp_path)
    stage.columns.save(tmp_path)
    again = SecondStage(
        checkpoint.load_ranker(tmp_path), stage.statistics, stage.own, ColumnTables.load(tmp_path)
    )
    assert again.score(log, items, scores).tolist() == stage.score(log, items, scores).tolist()


# --- planted ---

PLACES = (
    ColumnPlaces("users.taste", "users", slice(0, 1)),
    ColumnPlaces("users.noise", "users", slice(1, 2)),
    ColumnPlaces("items.kind", "items", slice(0, 1)),
)
NUM_LISTS = 400


def planted(seed: int = 0) -> tuple[Retrieved, ColumnTables]:
    """Users of two tastes take an item of their kind; histories and scores say nothing."""
    random = np.random.default_rng(seed)
    taste, kind = random.integers(2, 4, NUM_LISTS + 1), random.integers(2, 4, NUM_ITEMS + 2)
    kind[1:3] = 2, 3
    kind[0] = 0
    noise = random.integers(5, 7, NUM_LISTS + 1)
    log = replace(a_log(NUM_LISTS, seed), user=np.arange(NUM_LISTS))
    items, scores = candidates(NUM_LISTS, seed=seed)
    fits = np.where(kind[items] == taste[:NUM_LISTS, None], random.random(items.shape), -1)
    target = items[np.arange(NUM_LISTS), fits.argmax(1)]
    users = np.arange(NUM_LISTS)
    retrieved = Retrieved.of(log, items, 0 * scores, target, users, users)
    tables = ColumnTables(np.stack([taste, noise], 1).astype(np.int32), kind[:, None].astype(np.int32))
    return retrieved, tables


def fit_on(
    retrieved: Retrieved, tables: ColumnTables, settings: RankerSettings, asked: list[tuple[str, ...]]
):
    def fit(labels: tuple[str, ...]) -> RankerFit:
        asked.append(tuple(labels))
        stage = a_stage(loud=False, settings=settings)
        if labels:
            kept = [
                [place for place in PLACES if place.label in labels and place.table == table]
                for table in ("users", "items")
            ]
            users, items = (
                part[:, [place.places.start for place in own]]
                for part, own in zip((tables.users, tables.items), kept, strict=True)
            )
            torch.manual_seed(1)
            stage = with_columns(stage, ColumnTables(users, items), 7, 4)
        return fit_ranker(stage, retrieved, 0)

    return fit


@pytest.mark.parametrize("hidden", [0, 16])
def test_what_tells_is_taken_and_noise_is_not(hidden: int) -> None:
    settings = replace(SETTINGS, hidden=hidden, learning_rate=0.02, epochs=8, item_vectors=False)
    retrieved, tables = planted()
    asked = list[tuple[str, ...]]()
    choice = choose_columns(fit_on(retrieved, tables, settings, asked), PLACES, retrieved, 0)
    assert choice.gain is not None
    assert choice.gain.low > 0.05
    assert {"users.taste", "items.kind"} <= set(choice.taken)
    assert choice.importance["users.taste"] > 0.05 > choice.importance["users.noise"]
    assert asked[:2] == [(), tuple(place.label for place in PLACES)]
    assert len(asked) <= 3
    assert choice.ndcg == pytest.approx(choice.fit.history[choice.fit.best_epoch].ndcg)


def test_noise_alone_is_not_taken_unless_it_is_named() -> None:
    settings = replace(SETTINGS, epochs=2, item_vectors=False)
    retrieved, tables = planted()
    asked = list[tuple[str, ...]]()
    fit = fit_on(retrieved, tables, settings, asked)
    choice = choose_columns(fit, PLACES[1:2], retrieved, 0)
    assert choice.taken == ()
    assert choice.fit.stage.columns is None
    assert choice.gain is not None
    assert choice.gain.low <= 0
    named = given_columns(fit, PLACES[1:2], retrieved, 0)
    assert named.taken == ("users.noise",)
    assert named.gain is None
    assert asked == [(), ("users.noise",), ("users.noise",)]
    assert importances(named.fit, (), retrieved, 0) == {}
    assert choose_columns(fit, (), retrieved, 0).taken == ()


def test_lists_of_idle_users_do_not_dilute_the_choice() -> None:
    """With heads of outcomes lists without anything taken choose the epoch too; NDCG is over the others."""
    retrieved, tables = planted()
    fit = fit_on(retrieved, tables, replace(SETTINGS, epochs=1, item_vectors=False), [])
    idle = np.arange(NUM_LISTS) % 2 == 0
    some = replace(retrieved, num_relevant=np.where(idle, 0, 1), relevant=retrieved.relevant & ~idle[:, None])
    given = given_columns(
        lambda labels: replace(fit(labels), chooses=np.ones(NUM_LISTS, bool)), PLACES, some, 0
    )
    own = given_columns(lambda labels: replace(fit(labels), chooses=~idle), PLACES, some, 0)
    assert given.ndcg == pytest.approx(own.ndcg)
    assert given.importance == pytest.approx(own.importance)
