"""The stage monitor on a small log: figures as plain polars has them, incremental, without the erased, never twice."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.__main__ import cli
from pipeline.commands.erase import prune_excluded
from pipeline.commands.prune import prune
from pipeline.errors import ConfigError, LookbackError
from pipeline.monitoring import night_run
from pipeline.monitoring.outcome_files import OutcomeFiles
from pipeline.serving.assignment import Assignment
from pipeline.tracking.record import RunRecord
from tests.pipeline.monitoring.nights import DAY, USERS, Nights, event_days, some_lists


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """A log of four days."""
    made = Nights(tmp_path, event_days(14))
    made.show(4)
    return made


def expected(
    nights: Nights, lists: Mapping[int, Sequence[int]], log_time: int, days: int, *, unseen: bool = False
) -> dict[str, float]:
    """Metrics by plain polars and arithmetic: of users with an event in the window and a list."""
    log = pl.concat(nights.days[: nights.shown]).with_columns(time=pl.col("at") * 1_000_000)
    window = log.filter((pl.col("time") > log_time) & (pl.col("time") <= log_time + days * DAY))
    if unseen:
        window = window.join(log.filter(pl.col("time") <= log_time), on=["user", "item"], how="anti")
    taken = window.group_by("user").agg(pl.col("item").unique())
    rows = []
    for user, items in taken.iter_rows():
        if user not in lists:
            continue
        ranks = [rank for rank, item in enumerate(lists[user], 1) if item in items]
        ideal = sum(1 / np.log2(place + 1) for place in range(1, min(len(items), 3) + 1))
        row = {
            "hit_rate@3": float(bool(ranks)),
            "ndcg@3": sum(1 / np.log2(rank + 1) for rank in ranks) / ideal,
            "recall@3": len(ranks) / len(items),
            "mrr@3": 1 / ranks[0] if ranks else 0.0,
        }
        rows.append(row | {f"place@{place}": float(place in ranks) for place in (1, 2, 3)})
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    listed = {item for items in lists.values() for item in items}
    catalogue = log["item"].n_unique()
    return means | {"reached": len(rows) / len(taken), "coverage@3": len(listed) / catalogue}


def realised(
    table: pl.DataFrame, days: int, system: str = "delivered", segment: str | None = None
) -> dict[int, dict[str, float]]:
    """Night to metric to value."""
    own = table.filter(
        (pl.col("system") == system)
        & (pl.col("window_days") == days)
        & pl.col("segment").eq_missing(pl.lit(segment))
    )
    by_night: dict[int, dict[str, float]] = {}
    for night, metric, value in own.select(
        pl.col("log_time").dt.timestamp("us"), "metric", "value"
    ).iter_rows():
        by_night.setdefault(night, {})[metric] = value
    return by_night


@pytest.mark.slow
def test_realised_figures_are_those_of_plain_polars(nights: Nights) -> None:
    """One delivery to half of the users, with a shadow; both windows; a night more later."""
    lists, shadow = some_lists(1, range(1, 21)), some_lists(2)
    nights.deliver(lists, name="a" * 16, shadows={"popularity": shadow})
    first = nights.log_time()
    assert nights.table("nights.parquet").is_empty(), "no window lies within the log yet"
    nights.show(1)
    table = nights.table("nights.parquet")
    assert realised(table, 1) == {first: pytest.approx(expected(nights, lists, first, 1))}
    assert realised(table, 1, "popularity") == {first: pytest.approx(expected(nights, shadow, first, 1))}
    assert realised(table, 7) == {}
    one = table.filter((pl.col("metric") == "ndcg@3") & (pl.col("system") == "delivered")).row(0, named=True)
    assert one["low"] < one["value"] < one["high"]
    before = realised(table, 1)[first]
    nights.deliver(some_lists(3), name="b" * 16)
    second = nights.log_time()
    nights.show(6)
    table = nights.table("nights.parquet")
    assert realised(table, 1)[second] == pytest.approx(expected(nights, some_lists(3), second, 1))
    assert realised(table, 1)[first] == before
    assert realised(table, 7) == {first: pytest.approx(expected(nights, lists, first, 7))}


@pytest.mark.slow
def test_a_damaged_night_is_judged_again(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """Its outcomes come back from the lists; those of another night stay a link."""
    for name in "ab":
        nights.deliver(some_lists(ord(name)), name=name * 16)
        nights.show(1)
    whole = nights.table("outcomes.parquet")
    first, second = OutcomeFiles(Path(nights.run()["folder"])).folder.iterdir()
    before = second.stat().st_ino
    first.write_bytes(first.read_bytes()[:-10] + b"0123456789")
    nights.show(1)
    nights.deliver(some_lists(3), name="c" * 16)
    nights.show(1)
    after = Path(nights.run()["folder"]) / "outcomes.parquet"
    assert (
        "outcomes within 1 days are damaged, and judged again if the lists are there"
        in capsys.readouterr().err
    )
    assert (after / second.name).stat().st_ino == before
    assert (
        pl.read_parquet([after / first.name, after / second.name])
        .sort("log_time")
        .equals(whole.sort("log_time"))
    )
    assert nights.run(force=True)["summary"].startswith("3 nights judged")
    assert len(list(after.iterdir())) == 3


@pytest.mark.slow
def test_a_damaged_night_without_lists_keeps_its_figures(
    nights: Nights, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = nights.deliver(some_lists(1), name="a" * 16)
    nights.show(1)
    before = nights.table("nights.parquet")
    (damaged,) = OutcomeFiles(Path(nights.run()["folder"])).folder.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-10] + b"0123456789")
    shutil.rmtree(artifact.folder)
    nights.show(1)
    assert nights.table("nights.parquet").equals(before)
    assert "are damaged, and judged again if the lists are there" in capsys.readouterr().err
    assert nights.table("outcomes.parquet").is_empty()


@pytest.mark.slow
def test_seen_items_do_not_count_where_lists_exclude_them(nights: Nights) -> None:
    lists = some_lists(1)
    nights.deliver(lists, name="a" * 16, exclude_seen=True)
    night = nights.log_time()
    nights.show(1)
    own = realised(nights.table("nights.parquet"), 1)[night]
    assert own == pytest.approx(expected(nights, lists, night, 1, unseen=True))
    assert own["hit_rate@3"] != pytest.approx(expected(nights, lists, night, 1)["hit_rate@3"])


@pytest.mark.slow
def test_the_last_list_of_a_night_counts(nights: Nights) -> None:
    nights.deliver(some_lists(1), name="a" * 16)
    again = some_lists(2, range(1, 11))
    nights.deliver(again, name="b" * 16, created_utc="2026-04-02T00:00:00+00:00")
    night = nights.log_time()
    nights.show(1)
    own = realised(nights.table("nights.parquet"), 1)[night]
    right = expected(nights, some_lists(1) | again, night, 1)
    assert own["ndcg@3"] == pytest.approx(right["ndcg@3"])
    assert len(nights.table("outcomes.parquet").unique(["user_id", "window_days", "system"])) == len(
        nights.table("outcomes.parquet")
    )


def test_differences_from_shadows_are_paired_and_adjusted(nights: Nights) -> None:
    lists = some_lists(1)
    shadows = {"popularity": some_lists(2), "previous": some_lists(3)}
    nights.deliver(lists, name="a" * 16, shadows=shadows)
    night = nights.log_time()
    nights.show(1)
    rows = [row for row in nights.record()["differences"] if row["metric"] == "ndcg@3"]
    assert [row["shadow"] for row in rows] == ["popularity", "previous"]
    own = expected(nights, lists, night, 1)["ndcg@3"]
    for row in rows:
        other = expected(nights, shadows[row["shadow"]], night, 1)["ndcg@3"]
        assert row["difference"] == pytest.approx(own - other)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["p_holm"] <= 1


@pytest.mark.slow
def test_charts_columns_and_metrics_of_the_night_s_run_are_those_of_the_series(nights: Nights) -> None:
    day_before = nights.log_time() - DAY
    lists = nights.deliver(some_lists(1), name="a" * 16, model_time=day_before, model_version=4)
    nights.show(1)
    folder = Path(nights.run()["folder"])
    night = "2026-03-04T23:59:59+00:00"
    record = json.loads((folder / "monitor.json").read_text())
    assert record["models"] == [{"night": night, "model_version": 4, "age_days": 1.0}]
    drawn = {
        chart["name"]: chart["figure"]["data"] for chart in json.loads((folder / "charts.json").read_text())
    }
    table = pl.read_parquet(folder / "nights.parquet").filter(pl.col("metric") == "ndcg@3")
    assert [trace["y"] for trace in drawn["nights"]] == [table["value"].to_list()]
    assert [trace["x"] for trace in drawn["model_age"]] == [[1.0]]
    assert "Realised NDCG@3 by night" in (folder / "nights.html").read_text()
    folders = {"monitor": folder, "score": lists.folder}
    one = table.row(0, named=True)
    assert night_run.texts_of(nights.config("score.k=3"), folders) == {
        "lookback.night": "2026-03-04 23:59",
        "lookback.realised": f"{one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f}): "
        "NDCG@3 within 1 day of the lists of 2026-03-04 23:59",
    }
    points = {point.name: (point.value, point.step) for point in RunRecord.load(folder).parent_points}
    name = "realised/delivered/ndcg_at_3/1d"
    assert set(points) == {name, "realised/delivered/hit_rate_at_3/1d"}
    assert points[name] == (one["value"], nights.log_time() // DAY - 1), "the day of the lists"


def test_what_is_up_to_date_stays_so(nights: Nights) -> None:
    """Lists made from this very log cannot be judged by it: the ledger's new row makes nothing out of date."""
    nights.deliver(some_lists(1), name="a" * 16)
    first = nights.run()
    nights.deliver(some_lists(2), name="b" * 16)
    again = nights.run()
    assert again["up_to_date"]
    assert again["fingerprint"] == first["fingerprint"]
    nights.show(1)
    later = nights.run()
    assert not later["up_to_date"]
    assert nights.run()["up_to_date"]
    manifest = json.loads((Path(later["folder"]) / "manifest.json").read_text())
    assert manifest["inputs"]["predecessor"] == first["fingerprint"]


@pytest.mark.slow
def test_what_was_pruned_stays_in_the_series_and_open_lists_stay(nights: Nights) -> None:
    lists = some_lists(1)
    nights.deliver(lists, name="a" * 16)
    night = nights.log_time()
    nights.show(1)
    nights.run()
    nights.deliver(some_lists(2), name="b" * 16)
    prune(nights.config(), keep=1, dry_run=False)
    assert (nights.score / ("a" * 16)).exists(), "its seven days are not over"
    nights.show(8)
    nights.deliver(some_lists(3), name="c" * 16)
    nights.run()
    prune(nights.config(), keep=1, dry_run=False)
    assert not (nights.score / ("a" * 16)).exists()
    assert not (nights.score / ("b" * 16)).exists()
    nights.show(1)
    table = nights.table("nights.parquet")
    assert realised(table, 1)[night] == pytest.approx(expected(nights, lists, night, 1))
    assert realised(table, 7)[night] == pytest.approx(expected(nights, lists, night, 7))
    ledger_rows = pl.read_parquet(nights.score / "deliveries.parquet")
    assert ledger_rows["folder"].to_list() == ["a" * 16, "b" * 16, "c" * 16]


@pytest.mark.slow
def test_lists_gone_before_their_window_was_over_are_named_once(
    nights: Nights, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = nights.deliver(some_lists(1), name="a" * 16)
    shutil.rmtree(artifact.folder)
    nights.show(1)
    nights.run()
    assert capsys.readouterr().err.count("were pruned before their 1 days were over") == 1
    nights.show(1)
    nights.run()
    assert "were pruned" not in capsys.readouterr().err


@pytest.mark.slow
def test_erased_users_leave_the_series(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    lists = some_lists(1)
    nights.deliver(lists, name="a" * 16)
    night = nights.log_time()
    nights.show(1)
    nights.run()
    pl.DataFrame({"user_id": [1, 2, 3]}).write_parquet(nights.folder / "forget.parquet")
    setting = f"events.exclude_users={nights.folder}/forget.parquet"
    with pytest.raises(LookbackError, match="realised outcomes of all nights: run `lookback run monitor`"):
        prune_excluded(nights.config(setting), dry_run=False)
    outcomes = nights.table("outcomes.parquet", setting)
    assert not set(outcomes["user_id"]) & {1, 2, 3}
    own = realised(nights.table("nights.parquet", setting), 1)[night]
    nights.days = [day.filter(~pl.col("user").is_in([1, 2, 3])) for day in nights.days]
    right = expected(nights, {user: items for user, items in lists.items() if user > 3}, night, 1)
    assert own["ndcg@3"] == pytest.approx(right["ndcg@3"])
    assert own["reached"] == 1
    prune_excluded(nights.config(setting), dry_run=False)
    kept = [path.name for path in (nights.folder / "data" / "log" / "monitor").glob("[0-9a-f]*")]
    assert kept == [Path(nights.run(setting)["folder"]).name]


@pytest.mark.slow
def test_a_damaged_ledger_costs_one_delivery(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    nights.deliver(some_lists(1), name="a" * 16)
    nights.deliver(some_lists(2), name="b" * 16)
    (nights.score / ".deliveries" / f"{'a' * 16}.json").write_text("{")
    (nights.score / "deliveries.parquet").write_bytes(b"no table")
    night = nights.log_time()
    nights.show(1)
    table = nights.table("nights.parquet")
    errors = capsys.readouterr().err
    assert (
        errors.count("is damaged, and its delivery left out; it is entered again by: lookback run score") == 1
    )
    assert errors.count("deliveries.parquet: is missing or damaged: written anew") == 1
    assert realised(table, 1)[night] == pytest.approx(expected(nights, some_lists(2), night, 1))
    assert pl.read_parquet(nights.score / "deliveries.parquet")["folder"].to_list() == ["b" * 16]


@pytest.mark.slow
def test_lists_of_another_log_are_left_out(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = nights.deliver(some_lists(1), name="a" * 16)
    part = artifact.folder / "recommendations" / "part-00000.parquet"
    pl.read_parquet(part).with_columns(pl.col("item_id").cast(pl.String)).write_parquet(part)
    nights.show(1)
    assert nights.table("nights.parquet").is_empty()
    assert "have ids of another type than the log" in capsys.readouterr().err
    for number, name in enumerate(("user_id", "item_id"), 1):
        artifact = nights.deliver(some_lists(1), name=f"{number:016x}")
        part = artifact.folder / "recommendations" / "part-00000.parquet"
        pl.read_parquet(part).with_columns(pl.col(name) + 1000).write_parquet(part)
    nights.show(1)
    assert nights.table("nights.parquet").is_empty()
    assert capsys.readouterr().err.count("or none of its users or items: left out") == 2


def test_late_events_are_history(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten events of the day before the lists come with those of the day after."""
    whole, lists = nights.days[3], some_lists(1)
    nights.days[3] = whole.head(60)
    nights.shown = 3
    nights.show(1)
    log = pl.concat(nights.days[:4])
    nights.deliver(lists, name="a" * 16, events_before_request=len(log))
    night = nights.log_time()
    late = whole.filter(pl.col("at") * 1_000_000 < night).head(10)
    nights.days[4] = pl.concat([late.with_columns(item=pl.lit(1, pl.Int64)), nights.days[4]])
    nights.show(1)
    own = realised(nights.table("nights.parquet"), 1)[night]
    assert "10 events of before came after them" in capsys.readouterr().err
    nights.days[4] = nights.days[4].tail(-10)
    assert own == pytest.approx(expected(nights, lists, night, 1))


@pytest.mark.slow
def test_a_day_without_any_event_is_said(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    nights.deliver(some_lists(1), name="a" * 16)
    nights.days[4] = nights.days[4].clear()
    nights.show(1)
    nights.run()
    assert "judged" not in capsys.readouterr().err, "the log did not grow: the window is open"
    nights.show(1)
    nights.run()
    assert capsys.readouterr().err.count("nobody took anything in the 1 days after") == 1


@pytest.mark.slow
def test_segments_are_figures_of_their_own(nights: Nights) -> None:
    rows = {
        "user_id": range(1, USERS + 1),
        "plan": ["free" if user % 2 else "paid" for user in range(1, USERS + 1)],
    }
    pl.DataFrame(rows).write_csv(nights.folder / "users.csv")
    users = (f"users.path={nights.folder}/users.csv", 'users.columns={ user_id = "user_id", plan = "plan" }')
    lists = some_lists(1)
    nights.deliver(lists, name="a" * 16)
    night = nights.log_time()
    nights.show(1)
    table = nights.table("nights.parquet", *users)
    whole = nights.days
    for plan, rest in (("free", 1), ("paid", 0)):
        nights.days = [day.filter(pl.col("user") % 2 == rest) for day in whole]
        right = expected(nights, {user: own for user, own in lists.items() if user % 2 == rest}, night, 1)
        own = realised(table, 1, segment=plan)[night]
        assert own == pytest.approx({name: right[name] for name in own})
    assert table.filter(pl.col("metric") == "coverage@3")["value"].to_list() == [1.0]


def test_the_rate_of_dislikes_is_of_all_lists_delivered_and_of_every_shadow(nights: Nights) -> None:
    """Of every user's list, with or without an event afterwards: the share of its items disliked in the window."""
    systems = {"delivered": some_lists(1), "popularity": some_lists(2, range(1, 31))}
    nights.deliver(systems["delivered"], name="a" * 16, shadows={"popularity": systems["popularity"]})
    night = nights.log_time()
    nights.show(2)
    table = nights.table("nights.parquet", "events.types={ view = 1.0, like = -1.0 }")
    log = pl.concat(nights.days[: nights.shown]).filter(pl.col("type") == "like")
    disliked = set(
        log.filter(pl.col("at") * 1_000_000 > night)
        .filter(pl.col("at") * 1_000_000 <= night + DAY)
        .select("user", "item")
        .rows()
    )
    rows = table.filter(pl.col("metric").str.starts_with("dislike_rate"))
    assert rows["system"].to_list() == list(systems)
    for system, value, low, high, users in rows.select("system", "value", "low", "high", "users").iter_rows():
        shares = [
            sum((user, item) in disliked for item in items) / 3 for user, items in systems[system].items()
        ]
        assert value == pytest.approx(np.mean(shares))
        assert 0 < low < value < high
        assert users == len(shares)


def test_the_utility_that_lists_brought(nights: Nights) -> None:
    """Of every user's list: half a point for an item viewed in the window, two for one liked."""
    systems = {"delivered": some_lists(1), "popularity": some_lists(2, range(1, 31))}
    nights.deliver(systems["delivered"], name="a" * 16, shadows={"popularity": systems["popularity"]})
    night = nights.log_time()
    nights.show(2)
    settings = ('outcomes.types=["view", "like"]', "utility={ view = 0.5, like = 2.0 }")
    table = nights.table("nights.parquet", *settings).filter(pl.col("metric") == "utility@3")
    log = pl.concat(nights.days[: nights.shown]).filter(pl.col("at") * 1_000_000 > night)
    done = set(log.filter(pl.col("at") * 1_000_000 <= night + DAY).select("user", "item", "type").rows())
    assert table["system"].to_list() == list(systems)
    for system, value, low, high, users in table.select(
        "system", "value", "low", "high", "users"
    ).iter_rows():
        worth = [
            sum(0.5 * ((user, item, "view") in done) + 2 * ((user, item, "like") in done) for item in items)
            for user, items in systems[system].items()
        ]
        assert value == pytest.approx(np.mean(worth))
        assert 0 < low < value < high
        assert users == len(worth)


def test_alerts_end_with_exit_code_3_where_asked_for(
    nights: Nights, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lists are days old by the clock, and no event came since."""
    nights.deliver(some_lists(1), name="a" * 16)
    nights.config()
    command = ["run", "monitor", "--config", str(nights.folder / "log.toml")]
    cli(command, standalone_mode=False)
    assert capsys.readouterr().err.count("alert: idle_log: no event newer than") == 1
    with pytest.raises(SystemExit) as ended:
        cli([*command, "--fail-on-alert"], standalone_mode=False)
    assert ended.value.code == 3
    cli([*command, "--fail-on-alert", "--set", "monitor.alerts=false"], standalone_mode=False)
    with pytest.raises(ConfigError, match="expected the stage monitor among the stages"):
        cli(["run", "ingest", "--fail-on-alert", *command[2:]], standalone_mode=False)


EXPERIMENT = (
    "experiment.name=e experiment.salt=s experiment.start=2026-03-01",
    "experiment.arms={ champion = 0.5, challenger = 0.5 }",
)
ARMS = Assignment("s", {"champion": 0.5, "challenger": 0.5})
BY_ARM = {
    "name": "e",
    "salt": "s",
    "arms": [
        {"name": name, "share": 0.5, "model_version": version, "bundle_digest": f"d{version}", "users": 20}
        for version, name in enumerate(ARMS.shares, 1)
    ],
}


def hits(nights: Nights, lists: Mapping[int, Sequence[int]], log_time: int) -> pl.DataFrame:
    """Users active in the day after a night, their arm, and whether they took an item of their list."""
    log = pl.concat(nights.days[: nights.shown]).with_columns(time=pl.col("at") * 1_000_000)
    window = log.filter((pl.col("time") > log_time) & (pl.col("time") <= log_time + DAY))
    rows = window.group_by("user").agg(pl.col("item")).sort("user")
    hit = [float(bool(set(items) & set(lists.get(user, ())))) for user, items in rows.iter_rows()]
    return rows.select("user", ARMS.names_of(rows["user"]), pl.Series("hit", hit))


@pytest.mark.slow
def test_an_experiment_is_read_out_by_arm(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """User 1 has no list: 0 in the read-out, not reached in the series. Nights without arms are not of the experiment."""
    nights.deliver(some_lists(0), name="9" * 16)
    nights.show(1)
    assert nights.record(*EXPERIMENT)["experiment"] is None
    parts, lists = [], {}
    for number in (1, 2):
        lists = some_lists(number, range(2, USERS + 1))
        nights.deliver(lists, name=f"{number}" * 16, experiment=BY_ARM)
        night = nights.log_time()
        nights.show(1)
        parts.append(hits(nights, lists, night))
        found = nights.record(*EXPERIMENT)["experiment"]
        assert found["nights"] == number
    assert found["versions"] == {"champion": [1], "challenger": [2]}
    assert found["plan"]["nights_before"] == 0
    assert "no number of nights shows a difference of" in found["sentence"], "with 40 users"
    values = dict(pl.concat(parts).group_by("arm").agg(pl.col("hit").mean()).iter_rows())
    users = dict(pl.concat(parts).group_by("arm").agg(pl.col("user").n_unique()).iter_rows())
    champion, challenger = (row for row in found["rows"] if row["metric"] == "hit_rate@3")
    for row in (champion, challenger):
        assert row["value"] == pytest.approx(values[row["arm"]])
        assert row["users"] == users[row["arm"]]
        assert row["verdict"] is None
    assert challenger["difference"] == pytest.approx(values["challenger"] - values["champion"])
    assert challenger["difference_low"] <= challenger["difference"] <= challenger["difference_high"]
    table = nights.table("nights.parquet", *EXPERIMENT)
    own = table.filter((pl.col("log_time").dt.timestamp("us") == night) & pl.col("segment").is_null())
    for arm, rows in (("champion", parts[1]), ("challenger", parts[1])):
        listed = rows.filter((pl.col("arm") == arm) & (pl.col("user") > 1))
        value = own.filter((pl.col("arm") == arm) & (pl.col("metric") == "hit_rate@3"))["value"]
        assert value.to_list() == pytest.approx([listed["hit"].mean()])
    pooled = realised(table.filter(pl.col("arm").is_null()), 1)[night]
    assert pooled == pytest.approx(expected(nights, lists, night, 1))
    assert "; experiment 'e': no verdict: with " in nights.run(*EXPERIMENT, force=True)["summary"]
    capsys.readouterr()


@pytest.mark.slow
def test_arms_that_lost_users_are_an_alert(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """Events of all but one of the challenger's users are missing."""
    gone = [user for user in range(1, USERS + 1) if ARMS.names_of(pl.Series([user]))[0] == "challenger"][1:]
    nights.days = [
        day.filter(~pl.col("user").is_in(gone)) if number >= 4 else day
        for number, day in enumerate(nights.days)
    ]
    nights.deliver(some_lists(1), name="a" * 16, experiment=BY_ARM)
    nights.show(1)
    nights.run(*EXPERIMENT)
    assert (
        capsys.readouterr().err.count("alert: sample_ratio: the arms of 'e' have active users champion ") == 1
    )
    (alert,) = (alert for alert in nights.record(*EXPERIMENT)["alerts"] if alert["rule"] == "sample_ratio")
    assert alert["value"] < alert["threshold"] == 0.001
