"""Lists that keep budgets together: as allocated over all users, in the same bytes whatever the shards, kills or pins."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.recommendation.rules import Rules
from models.settings.encoder import EncoderSettings
from pipeline.budgets_section import BudgetsConfig, FairnessConfig
from pipeline.errors import LookbackError
from pipeline.serving import batch, night_lists, ray_batch, user_rules
from pipeline.serving.night_candidates import CandidateScorer
from pipeline.serving.night_lists import Certificate
from tests.factories import small_bundle
from tests.pipeline.serving.test_previous_lists import first_night, scored, scorer_of
from tests.pipeline.serving.test_user_rules import settings_of

FIELDS = ["field", "value", "min_places", "max_places"]
Row = tuple[str, str | None, float | None, float | None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night") / "bundle"
    small_bundle(folder, settings=EncoderSettings(dim=64, num_blocks=1, num_heads=1))
    return folder


def budgeted(
    bundle: Path,
    folder: Path,
    rows: list[Row],
    rules: Rules | None = None,
    settings: BudgetsConfig | None = None,
    **other: Any,
) -> tuple[night_lists.Plan, batch.Scorer]:
    """Plan and scorer of the first night of `test_previous_lists` under budgets."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = dict(zip(FIELDS, (pl.String, pl.String, pl.Float64, pl.Float64), strict=True))
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "budgets.parquet")
    scorer = scorer_of(bundle, first_night(), folder)
    own = scorer.job.settings.model_copy(update={"budgets": str(folder / "budgets.parquet")} | other)
    prepared = user_rules.prepare(own, scorer.users.ids, folder / user_rules.FOLDER)
    job = replace(scorer.job, settings=own, user_rules=prepared, reuse=None)
    scorer = replace(scorer, job=job, rules=rules or Rules(exclude_seen=False))
    return night_lists.prepare(settings or BudgetsConfig(), scorer, folder), scorer


def written(plan: night_lists.Plan, scorer: batch.Scorer) -> tuple[pl.DataFrame, Certificate]:
    scored(plan.scorer)
    certificate = plan.allocated()
    scored(night_lists.with_lists(scorer, plan))
    return pl.read_parquet(scorer.job.folder / "*.parquet"), certificate


def places(table: pl.DataFrame) -> dict[str, int]:
    return dict(table.group_by("item_id").len().iter_rows())


def test_without_a_budget_that_binds_lists_are_those_of_every_night(bundle: Path, tmp_path: Path) -> None:
    plain = replace(scorer_of(bundle, first_night(), tmp_path / "plain"), rules=Rules(exclude_seen=False))
    scored(plain)
    table, certificate = written(*budgeted(bundle, tmp_path / "own", [("*", None, None, 10_000)]))
    expected = pl.read_parquet(plain.job.folder / "*.parquet")
    assert table.drop("because").equals(expected.drop("because"))
    reasons = [[[own["item_id"] for own in row] for row in frame["because"]] for frame in (table, expected)]
    assert reasons[0] == reasons[1]
    assert certificate.binding == certificate.infeasible == []
    assert certificate.gap == certificate.value_lost == 0


def test_caps_and_floors_hold_and_lists_stay_full(bundle: Path, tmp_path: Path) -> None:
    rows: list[Row] = [("item_id", "i6", None, 5), ("item_id", "i2", 40, None), ("item_id", "i7", 3, 12)]
    table, certificate = written(*budgeted(bundle, tmp_path, rows))
    held = places(table)
    assert held.get("i6", 0) <= 5
    assert held["i2"] >= 40
    assert 3 <= held["i7"] <= 12
    assert (table.group_by("user_id").len()["len"] == 3).all()
    assert table.select(pl.struct("user_id", "item_id").is_unique().all()).item()
    assert certificate.gap < 1e-6
    assert certificate.value < certificate.value_without_budgets
    assert {(row["value"], row["kind"]) for row in certificate.binding} >= {("i2", "min")}
    assert not table["score"].is_nan().any()


def test_shards_and_kills_change_no_byte(bundle: Path, tmp_path: Path) -> None:
    rows: list[Row] = [("item_id", "i6", None, 9), ("item_id", "i1", 30, None)]
    table, certificate = written(*budgeted(bundle, tmp_path / "one", rows, shard_users=50, batch_users=50))
    plan, _ = budgeted(bundle, tmp_path / "small", rows)
    plan.scorer.score(1, lambda _: None)
    with (plan.store.folder / "value.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"half")  # rows of a shard without a record
    plan, scorer = budgeted(bundle, tmp_path / "small", rows)
    first = plan.store.record(1).stat().st_mtime_ns
    scored(plan.scorer)
    assert plan.store.record(1).stat().st_mtime_ns == first, "a finished shard is kept"
    plan.allocated()
    night_lists.with_lists(scorer, plan).score(2, lambda _: None)
    again, same = written(*budgeted(bundle, tmp_path / "small", rows))
    assert again.equals(table)
    assert same == certificate


def test_rules_of_users_quotas_and_filters_hold(bundle: Path, tmp_path: Path) -> None:
    exclude = [(f"u{user:02}", "i1") for user in range(0, 40, 2)]
    files = settings_of(tmp_path / "files", exclude=exclude, pin=[(None, "i4", 2), ("u03", "i5", 1)])
    rules = Rules(exclude_seen=True, allowed=np.arange(8) % 7 != 3)
    rows: list[Row] = [("item_id", "i1", 15, None), ("item_id", "i4", None, 45), ("item_id", "i2", None, 20)]
    table, _ = written(*budgeted(bundle, tmp_path / "own", rows, rules, **dict[str, Any](files)))
    held = places(table)
    assert held["i1"] >= 15
    assert held["i2"] <= 20
    assert "i3" not in held
    listed = {(row["user_id"], row["item_id"]): row["rank"] for row in table.iter_rows(named=True)}
    assert not set(exclude) & set(listed)
    seen = {user: {f"i{item}" for _, item in row} for user, row in first_night().items()}
    assert not any(item in seen[user] for user, item in listed)
    pinned = [user for user in seen if "i4" not in seen[user]]
    assert all(listed[user, "i4"] == min(2, sum(own == user for own, _ in listed)) for user in pinned)
    assert table.filter(pl.col("item_id") == "i4")["score"].null_count() == 0, "pins keep a candidate's score"


def test_pins_above_a_cap_are_refused_before_scoring(bundle: Path, tmp_path: Path) -> None:
    files = settings_of(tmp_path / "files", pin=[(None, "i4", 2)])
    with pytest.raises(
        LookbackError, match=r"score\.pin: pins take 45 places of item_id 'i4'.* is 20; expected"
    ):
        budgeted(bundle, tmp_path / "own", [("item_id", "i4", None, 20)], **dict[str, Any](files))


def test_floors_out_of_reach_stop_the_night_or_are_named(bundle: Path, tmp_path: Path) -> None:
    """All but ten users have i1 among their exclusions."""
    files = settings_of(tmp_path / "files", exclude=[(f"u{user:02}", "i1") for user in range(10, 45)])
    rows: list[Row] = [("item_id", "i1", 30, None), ("item_id", "i2", 20, None)]
    plan, _ = budgeted(bundle, tmp_path / "stop", rows, **dict[str, Any](files))
    scored(plan.scorer)
    message = r"1 floors cannot be met, the first item_id 'i1': 20 of 30 places are missing"
    with pytest.raises(LookbackError, match=message):
        plan.allocated()
    settings = BudgetsConfig(infeasible="report")
    table, certificate = written(
        *budgeted(bundle, tmp_path / "report", rows, settings=settings, **dict[str, Any](files))
    )
    assert certificate.infeasible == [{"field": "item_id", "value": "i1", "missing": 20, "min_places": 30}]
    assert places(table)["i1"] == 10
    assert places(table)["i2"] >= 20


def test_places_by_rank_and_fairness(bundle: Path, tmp_path: Path) -> None:
    by_rank = BudgetsConfig(weight_by_place=True)
    table, _ = written(*budgeted(bundle, tmp_path / "rank", [("item_id", "i6", None, 4)], settings=by_rank))
    own = table.filter(pl.col("item_id") == "i6")["rank"].to_numpy()
    assert (1 / np.log2(1 + own)).sum() <= 4 + 1e-2
    fair = BudgetsConfig(fairness=FairnessConfig(field="item_id", strength=1))
    even, certificate = written(*budgeted(bundle, tmp_path / "fair", [], settings=fair))
    plain, _ = written(*budgeted(bundle, tmp_path / "plain", []))
    least = [min(places(frame).get(f"i{item}", 0) for item in range(1, 8)) for frame in (even, plain)]
    assert least[0] > least[1]
    assert certificate.exposure is not None
    assert 0 <= certificate.exposure["gini"] < 0.3


def test_a_worker_of_ray_opens_the_same_pass(bundle: Path, tmp_path: Path) -> None:
    plan, scorer = budgeted(bundle, tmp_path, [("item_id", "i6", None, 4)])
    for own, kind in (
        (plan.scorer, CandidateScorer),
        (night_lists.with_lists(scorer, plan), night_lists.AllocatedScorer),
    ):
        plain = ray_batch._PlainJob.of(own.job, None)
        night = batch.NightPass(Path(plain.night), plain.is_allocated)
        assert type(night_lists.opened(replace(scorer, job=replace(scorer.job, night=night)))) is kind
