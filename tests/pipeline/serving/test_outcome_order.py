"""Outcomes of a bundle: their columns in the recommendations, and lists in the order of expected utility."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from models import checkpoint
from models.ranking.calibration import Calibration
from models.ranking.features import ItemStatistics
from models.ranking.ranker import Ranker
from models.settings.outcomes import Utilities
from models.settings.ranker import RankerSettings
from pipeline.artifacts.files import write_json
from pipeline.errors import LookbackError
from pipeline.modelling.second_stage import DESCRIPTION
from pipeline.sections import ScoreConfig
from pipeline.serving import bundle_ranker, outcome_order, output_table
from pipeline.serving.batch import Job, Scorer
from pipeline.serving.bundle import Bundle, seal
from tests.factories import small_baseline_bundle, small_bundle
from tests.models.ranking.test_outcomes import planted
from tests.pipeline.serving.test_bundle_baseline import a_log

UTILITIES: Utilities = {"click": 0.5, "buy": 2.0}
LOG = [[(0, 1), (1, 2), (2, 3)], [(3, 4)], [(4, 5), (5, 6)]]
"""Events of `small_bundle`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle with a ranker of random weights and heads of two outcomes, and the features of its log beside it."""
    root = tmp_path_factory.mktemp("outcomes")
    folder = root / "bundle"
    small_bundle(folder)
    own = folder / bundle_ranker.FOLDER
    own.mkdir()
    torch.manual_seed(1)
    ranker = Ranker(RankerSettings(dim=4, num_heads=1, candidates=4, popular=0), torch.randn(8, 4), 0)
    points = np.linspace(-9, 9, 50)
    logistic = Calibration(points, 1 / (1 + np.exp(-points)))
    ranker.add_outcomes(["click", "buy"], (), (logistic, logistic))
    assert ranker.heads is not None
    with torch.no_grad():
        ranker.linear.normal_()
        ranker.heads.weight.normal_(std=0.3)
    checkpoint.save_ranker(ranker, own)
    write_json(own / DESCRIPTION, {"calibration": logistic.as_dict()})
    bundle_ranker.write_statistics(
        folder / "deployed", ItemStatistics.of(planted(3).histories, 29), np.arange(8, dtype=np.int32)
    )
    seal(folder, {"name": "small", "event_types": []})
    a_log(root / "log", LOG, [f"i{number}" for number in range(1, 8)])
    return folder


def scored(folder: Path, out: Path, order: str, utilities: Utilities | None) -> pl.DataFrame:
    out.mkdir()
    settings = ScoreConfig.model_validate({"k": 6, "order": order, "exclude_seen": False, "new_items": False})
    job = Job(folder, folder.parent / "log", folder, out, settings, 0, utilities=utilities)
    Scorer.open(job).score(0, lambda _: None)
    return pl.read_parquet(out / "part-*.parquet")


def test_recommendations_have_the_outcomes_and_the_order_of_their_utility(
    folder: Path, tmp_path: Path
) -> None:
    plain, known, ordered = (
        scored(folder, tmp_path / str(number), order, utilities)
        for number, (order, utilities) in enumerate(
            [("next", None), ("next", UTILITIES), ("utility", UTILITIES)]
        )
    )
    assert plain.columns[-2:] == ["p_click", "p_buy"]
    assert known.drop("expected_value").equals(plain), (
        "utilities change no list in the order of the next item"
    )
    for table in (known, ordered):
        of_ranked = table.filter(pl.col("rank") <= 4)
        worth = 0.5 * of_ranked["p_click"] + 2 * of_ranked["p_buy"]
        assert of_ranked["expected_value"].to_numpy() == pytest.approx(worth.to_numpy(), rel=1e-5)
        behind = table.filter(pl.col("rank") > 4)
        assert len(behind)
        assert behind.select(pl.col("p_click", "p_buy", "expected_value", "probability").is_null().all()).row(
            0
        ) == 4 * (True,)
    for _, own in ordered.filter(pl.col("rank") <= 4).group_by("user_id"):
        assert own.sort("rank")["expected_value"].is_sorted(descending=True)
    keys = ["user_id", "item_id"]
    assert not ordered.select(keys).equals(known.select(keys))
    both = known.join(ordered, on=keys, suffix="_other").drop_nulls("p_click")
    for name in ("p_click", "p_buy", "probability"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_other"].to_numpy(), rel=1e-5), name


def test_an_order_needs_an_outcome_that_the_model_predicts(folder: Path, tmp_path: Path) -> None:
    bundle = outcome_order.with_utility(Bundle.open(folder), "utility", UTILITIES)
    assert outcome_order.types_of(bundle) == ("click", "buy")
    outcome_order.check_order(bundle, "utility", UTILITIES)
    outcome_order.check_order(bundle, "next", {"like": 1.0})
    with pytest.raises(
        LookbackError, match=r"\(like\) the published model predicts none \(outcomes learned: click, buy\)"
    ):
        outcome_order.check_order(bundle, "utility", {"like": 1.0})
    small_bundle(tmp_path / "plain")
    plain = Bundle.open(tmp_path / "plain")
    assert outcome_order.with_utility(plain, "utility", UTILITIES) is plain
    with pytest.raises(LookbackError, match=r"outcomes learned: none, it has no ranker"):
        outcome_order.check_order(plain, "utility", UTILITIES)


def test_a_worth_of_the_value_needs_its_head(folder: Path) -> None:
    bundle = Bundle.open(folder)
    utilities: Utilities = {"click": 0.5, "buy": "value", "like": 1.0}
    assert outcome_order.not_predicted(bundle, utilities) == ["buy", "like"]
    outcome_order.check_order(bundle, "utility", utilities)
    with pytest.raises(LookbackError, match=r"learned: click, buy; without the value of buy\)"):
        outcome_order.check_order(bundle, "utility", {"click": 0.0, "buy": "value"})


def test_a_published_baseline_keeps_its_own_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_baseline_bundle(tmp_path / "bundle", "popularity", {})
    bundle = Bundle.open(tmp_path / "bundle")
    outcome_order.check_order(bundle, "utility", UTILITIES)
    (line,) = capsys.readouterr().err.splitlines()
    assert "popularity is published" in line
    assert "publish.system = 'lookback'" in line
    assert [outcome_order.order_of(bundle, order) for order in ("next", "utility")] == ["next", "next"]
    assert outcome_order.not_predicted(bundle, UTILITIES) == ["click", "buy"]
    outcome_order.check_order(bundle, "next", UTILITIES)
    assert not capsys.readouterr().err


def test_a_table_without_a_column_has_nulls() -> None:
    schema = pa.schema({"a": pa.int64(), "p_click": pa.float32()})
    fitted = output_table.fitted(pa.table({"b": [1, 2], "a": [3, 4]}), schema)
    assert fitted.schema == schema
    assert fitted.to_pydict() == {"a": [3, 4], "p_click": [None, None]}
