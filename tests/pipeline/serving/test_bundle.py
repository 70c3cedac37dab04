"""The bundle: sealed, opened, damage named, ids and event types translated, recommendations by user and by history."""

from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from pipeline.artifacts.files import digest_file, read_json, write_json
from pipeline.errors import DamagedArtifact
from pipeline.serving.bundle import (
    DESCRIPTION,
    FORMAT_VERSION,
    Bundle,
    read_description,
    seal,
    translation,
    type_translation,
)
from pipeline.serving.event_lists import SECOND
from pipeline.serving.pyfunc import Recommender
from tests.factories import small_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    folder = tmp_path_factory.mktemp("bundle")
    small_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


def test_seal_lists_every_file_and_its_digest_follows_from_the_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "data.txt").write_text("x")
    digest = seal(tmp_path / "one", {"name": "a"})
    description = read_json(tmp_path / "one" / DESCRIPTION)
    assert description == {
        "format_version": FORMAT_VERSION,
        "name": "a",
        "files": {"sub/data.txt": digest_file(tmp_path / "one" / "sub" / "data.txt")},
        "digest": digest,
    }
    assert seal(tmp_path / "one", {"name": "a"}) == digest, "a second seal leaves bundle.json out"
    assert seal(tmp_path / "two", {"name": "a"}) == digest, "neither folder nor time enters"
    assert seal(tmp_path / "two", {"name": "b"}) != digest
    (tmp_path / "two" / "sub" / "data.txt").write_text("y")
    assert seal(tmp_path / "two", {"name": "a"}) != digest


def test_an_opened_bundle_has_what_was_sealed(bundle: Bundle) -> None:
    assert bundle.items.ids.to_list() == ["i1", "i2", "i3", "i4", "i5", "i6", "i7"]
    assert bundle.num_events.tolist() == [0, 1, 1, 1, 1, 1, 9, 5]
    assert bundle.users.ids.to_list() == [10, 20, 30]
    assert bundle.digest == bundle.description["digest"]
    assert (bundle.num_added, bundle.has_other_index, bundle.second_stage, bundle.probability) == (
        0,
        False,
        None,
        None,
    )
    known = bundle.known_histories
    assert known.item_index.tolist() == [1, 2, 3, 4, 5, 6]
    assert (known.ends - known.starts).tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "name", ["items.parquet", "deployed/model.safetensors", "index/items.faiss", "histories/offsets.npy"]
)
def test_open_names_a_damaged_or_missing_file(tmp_path: Path, name: str) -> None:
    small_bundle(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedArtifact, match=rf"{name}: is missing or damaged.*--force"):
        Bundle.open(tmp_path)
    assert read_description(tmp_path, verify=False)["name"] == "small"
    (tmp_path / name).unlink()
    with pytest.raises(DamagedArtifact, match=rf"{name}: is missing or damaged.*--force"):
        Bundle.open(tmp_path)


def test_open_refuses_an_unknown_format_and_parts_of_two_bundles(tmp_path: Path) -> None:
    small_bundle(tmp_path)
    table = pl.read_parquet(tmp_path / "items.parquet")
    table.head(6).write_parquet(tmp_path / "items.parquet")
    seal(tmp_path, {"name": "small", "event_types": []})
    with pytest.raises(
        DamagedArtifact, match=r"6 items in the vocabulary, 7 in the model, 7 in the index; publish again"
    ):
        Bundle.open(tmp_path)
    description = read_json(tmp_path / DESCRIPTION)
    write_json(tmp_path / DESCRIPTION, description | {"format_version": 99})
    with pytest.raises(
        DamagedArtifact, match=r"received bundle format 99, expected 1 or 2 or 3 or 4; publish again"
    ):
        Bundle.open(tmp_path)
    (tmp_path / DESCRIPTION).unlink()
    with pytest.raises((DamagedArtifact, FileNotFoundError), match=r"bundle\.json"):
        Bundle.open(tmp_path)


def test_ids_of_another_log_are_translated_and_unknown_ones_counted(bundle: Bundle) -> None:
    mapping, unknown = bundle.item_mapping(pl.Series(["i5", "new", "i1"]))
    assert (mapping.tolist(), unknown) == ([0, 5, 0, 1], 1)
    mapping, unknown = translation(bundle.items, pl.Series([], dtype=pl.String))
    assert (mapping.tolist(), unknown) == ([0], 0)
    assert type_translation(["view", "like"], ["like", "share", "view"]).tolist() == [0, 2, 0, 1]
    assert bundle.type_mapping(["view"]).tolist() == [0, 0], "a bundle without event types knows none"


def test_from_ids_drops_and_counts_unknown_items_and_spaces_events_a_second_apart(bundle: Bundle) -> None:
    histories, unknown = bundle.from_ids([["i3", "new", "i1"], [], ["i4"]])
    assert unknown == 1
    assert histories.item_index.tolist() == [3, 1, 4]
    assert (histories.ends - histories.starts).tolist() == [2, 0, 1]
    assert histories.time.tolist() == [5 - SECOND, 5, 5]
    assert histories.request_time is not None
    assert set(histories.request_time.tolist()) == {bundle.newest} == {5}
    assert len(bundle.from_ids([])[0]) == 0


def test_a_user_gets_the_list_of_the_same_history_and_an_unknown_user_popular_items(bundle: Bundle) -> None:
    (known, unknown), (typed,) = (
        bundle.recommend_users([30, 99], 4),
        bundle.recommend_item_lists([["i5", "i6"]], 4),
    )
    assert known[0] == typed[0]
    assert np.allclose(known[1], typed[1])
    assert not {"i5", "i6"} & set(known[0])
    assert known[1] == sorted(known[1], reverse=True)
    assert unknown[0] == ["i6", "i7", "i1", "i2"], "by number of events, then by index"


def test_a_list_ends_where_the_catalogue_does(bundle: Bundle) -> None:
    ((ids, scores),) = bundle.recommend_users([10], 10)
    assert sorted(ids) == ["i4", "i5", "i6", "i7"]
    assert len(scores) == 4
    ((ids, _),) = bundle.recommend_users([10], 10, exclude_seen=False)
    assert sorted(ids) == [f"i{number}" for number in range(1, 8)]


def test_seen_items_are_as_the_bundle_recorded_where_nothing_else_is_asked(tmp_path: Path) -> None:
    small_bundle(tmp_path)
    every = [f"i{number}" for number in range(1, 8)]
    for recorded, expected in (
        ({}, every[3:]),
        ({"exclude_seen": True}, every[3:]),
        ({"exclude_seen": False}, every),
    ):
        seal(tmp_path, {"name": "small", "event_types": [], **recorded})
        served = Recommender(Bundle.open(tmp_path)).predict(pd.DataFrame({"user_id": [10]}))
        assert sorted(served["item_id"][0]) == expected
        assert sorted(Bundle.open(tmp_path).recommend_item_lists([every[:3]], 10)[0][0]) == expected
    asked = Recommender(Bundle.open(tmp_path)).predict(
        pd.DataFrame({"user_id": [10]}), {"exclude_seen": True}
    )
    assert sorted(asked["item_id"][0]) == every[3:]


def test_what_a_probability_is_about(tmp_path: Path) -> None:
    small_bundle(tmp_path)
    assert Bundle.open(tmp_path).probability_of == "the item is the next one"
    for days, expected in (
        (0.0, "the item is the next one"),
        (1.0, "within 1 day of"),
        (7.0, "within 7 days of"),
    ):
        seal(tmp_path, {"name": "small", "event_types": [], "horizon_days": days})
        assert expected in Bundle.open(tmp_path).probability_of


def test_histories_end_with_the_newest_regular_event(tmp_path: Path) -> None:
    """Events at the times 0 to 5; those after 4 have a wrong clock."""
    small_bundle(tmp_path)
    seal(tmp_path, {"name": "small", "event_types": [], "newest": 4})
    known = Bundle.open(tmp_path).known_histories
    assert known.lengths.tolist() == [3, 1, 1]
    assert known.request_time is not None
    assert known.request_time.tolist() == [4, 4, 4]
