"""Three nights by real commands: the second night's lists and shadows are judged by the third night's file."""

import datetime
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from features import simulate
from features.simulation_settings import SimulationSettings
from pipeline.config import load_config
from pipeline.orchestration.saved_views import saved_views
from tests.system.test_nightly import SIMULATED, SMALL
from tests.workdir import TINY, Workdir, with_database

NIGHT = ("ingest", "features", "monitor", "score", "--set", "score.model=champion")
SHADOWS = ("--set", 'score.shadows=["popularity", "previous"]')
DAY = datetime.timedelta(days=1)


def hit_rate(log: pl.DataFrame, lists: pl.DataFrame, night: datetime.datetime) -> float:
    """Share of users with a list and a new item within a day of the night who took a listed one."""
    before = log.filter(pl.col("timestamp") <= night).select("user_id", "item_id").unique()
    window = log.filter((pl.col("timestamp") > night) & (pl.col("timestamp") <= night + DAY))
    taken = window.select("user_id", "item_id").unique().join(before, on=["user_id", "item_id"], how="anti")
    active = taken.join(lists, on="user_id", how="semi")["user_id"].n_unique()
    return taken.join(lists, on=["user_id", "item_id"], how="semi")["user_id"].n_unique() / active


@pytest.mark.slow
def test_what_became_of_a_nights_lists(tmp_path: Path, empty_database: Path) -> None:
    with_database(tmp_path, empty_database)
    (tmp_path / "logs").mkdir()
    toml = (
        TINY.split("[simulate]")[0]
        + '[events]\npath = "logs"\ncolumns = { user_id = "user_id", item_id = "item_id", '
    )
    toml += f'timestamp = "timestamp", event_type = "event_type" }}\n{SIMULATED}{SMALL}[score]\nexclude_seen = true\n'
    (tmp_path / "tiny.toml").write_text(toml)
    workdir = Workdir(tmp_path)
    events = simulate.simulate(SimulationSettings(num_users=150, num_items=100, num_events=4000), 0).events
    events = events.select("user_id", "item_id", "timestamp", "event_type")
    day = events["timestamp"].dt.truncate("1d")
    first, second = day.max() - 3 * DAY, day.max() - 2 * DAY  # type: ignore[operator]
    events.filter(day < first).write_csv(tmp_path / "logs" / "day-1.csv")
    workdir.run("all")
    events.filter(day == first).write_csv(tmp_path / "logs" / "day-2.csv")
    night = workdir("run", *NIGHT, *SHADOWS)
    assert night.code == 0, night.err
    assert "shadow previous: left out, no lists of another model were delivered before" in night.err
    lists = workdir.artifact("score", *NIGHT[-2:], *SHADOWS)
    assert all(stage["up_to_date"] for stage in workdir.run(*NIGHT, *SHADOWS)["stages"])
    events.filter(day >= second).write_csv(tmp_path / "logs" / "day-3.csv")
    workdir.run(*NIGHT, *SHADOWS)
    monitor = workdir.artifact("monitor", *NIGHT[-2:], *SHADOWS)

    def table_of(metric: str) -> pl.DataFrame:
        of_metric = (pl.col("metric") == metric) & (pl.col("window_days") == 1) & pl.col("segment").is_null()
        return pl.read_parquet(monitor / "nights.parquet").filter(of_metric)

    table = table_of("hit_rate@10")
    log = pl.read_parquet(workdir.artifact("ingest") / "events" / "*.parquet")
    moment = log.filter(pl.col("timestamp") < second)["timestamp"].max()
    assert isinstance(moment, datetime.datetime)
    own = table.filter(pl.col("log_time") == moment)
    for system, folder in (
        ("delivered", lists / "recommendations"),
        ("popularity", lists / "shadows" / "popularity"),
    ):
        (value,) = own.filter(pl.col("system") == system)["value"]
        assert value == pytest.approx(hit_rate(log, pl.read_parquet(folder / "*.parquet"), moment))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    tag = f"tags.`lookback.fingerprint` = '{monitor.name}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    history = client.get_metric_history(run.info.run_id, "realised/delivered/hit_rate_at_10/1d")
    step = int(moment.timestamp()) // 86_400
    (logged,) = (point.value for point in history if point.step == step)
    assert logged == pytest.approx(own.filter(pl.col("system") == "delivered")["value"][0])
    assert "lookback.alerts" in run.data.tags
    trainings, nights = saved_views(
        load_config(tmp_path / "tiny.toml", [*NIGHT[-1:], f"data_dir={tmp_path}/data"])
    ).values()
    (training,) = client.search_runs([experiment.experiment_id], trainings.run_filter)
    assert "lookback.night" not in training.data.tags
    newest, before = client.search_runs([experiment.experiment_id], nights.run_filter)
    moments = [str(when)[:16] for when in (log["timestamp"].max(), moment)]
    assert [run.data.tags["lookback.night"] for run in (newest, before)] == moments
    assert before.data.tags["lookback.realised"] == "no lists are judged yet"
    assert newest.data.tags["lookback.realised"].endswith(
        f"NDCG@10 within 1 day of the lists of {moments[1]}"
    )
    assert newest.data.tags["lookback.alerts"] == run.data.tags["lookback.alerts"]
    assert f"Lists of {moments[0]}" in newest.data.tags["mlflow.note.content"]
    series = client.get_metric_history(newest.info.run_id, nights.metrics[0])
    ndcg = table_of("ndcg@10").filter(pl.col("system") == "delivered").sort("log_time")
    days = [when.toordinal() - datetime.date(1970, 1, 1).toordinal() for when in ndcg["log_time"]]
    assert {point.step: point.value for point in series} == dict(zip(days, ndcg["value"], strict=True))
    assert [file.path for file in client.list_artifacts(newest.info.run_id, "monitor")] == [
        "monitor/nights.html"
    ]
