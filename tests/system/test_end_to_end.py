"""The whole pipeline by its command line, on the tiny simulated log."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.device import scoring_precision
from pipeline.orchestration.graph import ALL
from tests.workdir import Workdir


def test_every_stage_left_what_the_contract_says(finished: Workdir) -> None:
    expected = {
        "ingest": ["items.parquet"],
        "features": [
            "offsets.npy",
            "item_index.npy",
            "time.npy",
            "event_type.npy",
            "users.parquet",
            "items.parquet",
        ],
        "train": ["model.safetensors", "config.json", "history.parquet", "checkpoints"],
        "index": ["recall.json"],
        "rank": ["ranker.json"],
        "evaluate": ["metrics.json", "targets.parquet", "per_user.parquet", "segments.parquet"],
        "publish": ["bundle"],
        "score": ["recommendations", "_SUCCESS"],
        "report": ["report.html"],
    }
    keys = {
        "stage",
        "fingerprint",
        "inputs",
        "settings",
        "rows_in",
        "rows_out",
        "rows_left_out",
        "seconds",
        "peak_bytes",
    }
    for stage, names in expected.items():
        folder = finished.artifact(stage)
        manifest = finished.manifest(stage)
        assert keys | {"created_utc", "versions"} <= set(manifest)
        assert (manifest["stage"], manifest["fingerprint"]) == (stage, folder.name)
        assert all((folder / name).exists() for name in names), stage
        assert (folder.parent / "latest").resolve() == folder.resolve()


def test_every_row_is_accounted_for(finished: Workdir) -> None:
    manifest = finished.manifest("ingest")
    folder = finished.artifact("ingest")
    with (finished.folder / "data" / "tiny" / "raw" / "events.csv").open() as file:
        num_lines = sum(1 for line in file if line.strip()) - 1
    events = pl.scan_parquet(folder / "events" / "*.parquet").select(pl.len()).collect().item()
    refused = pl.scan_parquet(folder / "quarantine" / "*.parquet").select(pl.len()).collect().item()
    assert refused > 0
    assert manifest["rows_in"] == num_lines
    assert manifest["rows_in"] == manifest["rows_out"] + sum(manifest["rows_left_out"].values())
    assert manifest["rows_out"] == events


def test_recommendations_are_the_contract_s(finished: Workdir) -> None:
    scored = pl.read_parquet(finished.artifact("score") / "recommendations" / "*.parquet")
    assert scored.columns == ["user_id", "item_id", "rank", "score", "because", "probability", "propensity"]
    assert scored.schema["rank"] == pl.Int32
    assert scored.schema["score"] == pl.Float32
    assert scored.schema["because"] == pl.List(
        pl.Struct({"item_id": scored.schema["item_id"], "weight": pl.Float32})
    )
    users = pl.read_parquet(finished.artifact("features") / "users.parquet")
    assert sorted(scored["user_id"].unique()) == sorted(users["user_id"])  # every user in the log
    assert scored.equals(scored.sort("user_id", "rank", maintain_order=True))
    steps = scored.select(pl.col("score").diff().over("user_id"))["score"].drop_nulls().to_numpy()
    assert (steps <= 0).all()
    events = (
        pl.read_parquet(finished.artifact("ingest") / "events" / "*.parquet")
        .select("user_id", "item_id")
        .unique()
    )
    assert scored.join(events, on=["user_id", "item_id"]).is_empty()  # nothing already seen
    because = scored.select("user_id", "because").explode("because", empty_as_null=False).unnest("because")
    assert because.join(
        events, on=["user_id", "item_id"], how="anti"
    ).is_empty()  # only what is in the history
    assert len(because) > len(scored)
    counts = finished.manifest("score")
    assert counts["users"] == len(users)
    assert counts["users_per_second"] > 0
    assert (counts["precision"], counts["precision_reason"]) == scoring_precision("auto")


def test_metrics_are_the_contract_s(finished: Workdir) -> None:
    metrics = json.loads((finished.artifact("evaluate") / "metrics.json").read_text())
    assert {"protocol", "users", "targets", "metrics", "intervals", "index"} <= set(metrics)
    assert {"lookback", "popularity", "recent_popularity", "co_visitation"} <= set(metrics["metrics"])
    for system, values in metrics["metrics"].items():
        low, high = metrics["intervals"][system]["ndcg@10"]
        assert low <= values["ndcg@10"] <= high
        assert {"ndcg@10", "ndcg@200", "hit_rate@10", "mrr@10", "user_ndcg@10", "coverage@10"} <= set(values)
    targets = pl.read_parquet(finished.artifact("evaluate") / "targets.parquet")
    assert {"system", "user_id", "item_id", "timestamp", "rank", "history_length"} <= set(targets.columns)
    assert targets.schema["rank"] == pl.Float64
    ranks = targets.filter(pl.col("system") == "lookback")["rank"].to_numpy()
    by_hand = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()
    assert metrics["metrics"]["lookback"]["ndcg@10"] == pytest.approx(by_hand)


def test_up_to_date_reads_nothing_and_loads_no_heavy_library(finished: Workdir) -> None:
    raw = finished.folder / "data" / "tiny" / "raw" / "events.csv"
    before = {path: path.stat().st_atime_ns for path in finished.folder.rglob("*.npy")} | {
        raw: raw.stat().st_atime_ns
    }
    (finished.folder / "traced.py").write_text(TRACED)
    done = subprocess.run(
        [sys.executable, "traced.py", "run", "all", "--json", "--config", finished.config],
        cwd=finished.folder,
        env=finished.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    *_, summary, loaded = map(json.loads, done.stdout.splitlines())
    assert not {"torch", "mlflow", "polars", "sklearn", "scipy", "faiss", "matplotlib"} & set(loaded)
    assert all(stage["up_to_date"] for stage in summary["stages"])
    assert [stage["stage"] for stage in summary["stages"]] == list(ALL)
    assert {path: path.stat().st_atime_ns for path in before} == before


TRACED = """
import atexit, json, runpy, sys
atexit.register(lambda: print(json.dumps([name for name in sys.modules if "." not in name])))
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""


def test_a_second_configuration_shares_what_it_can(copied: Workdir) -> None:
    summary = copied.run("train", "--set", "model.dim=8")
    assert [stage["up_to_date"] for stage in summary["stages"]] == [True, True, False]
    again = copied.run("train")
    assert again["up_to_date"]
    assert copied.artifact("train") != copied.artifact("train", "--set", "model.dim=8")


def test_a_path_that_is_not_there_says_how_to_make_it(workdir: Workdir) -> None:
    result = workdir("path", "train")
    assert result.code == 1
    assert "lookback run train" in result.err


def test_a_damaged_artifact_is_named_and_rebuilt_by_force(copied: Workdir) -> None:
    folder = copied.artifact("features")
    content = bytearray((folder / "item_index.npy").read_bytes())
    content[-1] ^= 1
    (folder / "item_index.npy").write_bytes(content)
    result = copied("run", "train", "--set", "model.dim=8")
    assert result.code == 1
    assert "item_index.npy" in result.err
    assert "--force" in result.err
    copied.run("features", "--force")
    copied.run("train", "--set", "model.dim=8")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_rebuilt_by_force(copied: Workdir) -> None:
    result = copied("run", "train", "--set", "model.dim=8", "--set", "train.epochs=1")
    assert result.code == 0
    folder = copied.artifact("train", "--set", "model.dim=8", "--set", "train.epochs=1")
    workspace = folder.parent / f".building-{folder.name}"
    shutil.rmtree(folder)
    (workspace / "checkpoints").mkdir(parents=True)
    (workspace / "checkpoints" / "selection.pt").write_bytes(b"not a checkpoint")
    result = copied("run", "train", "--set", "model.dim=8", "--set", "train.epochs=1")
    assert result.code == 1
    assert "selection.pt" in result.err
    result = copied("run", "train", "--force", "--set", "model.dim=8", "--set", "train.epochs=1")
    assert result.code == 0


def test_recommend_for_a_user_and_for_a_history(finished: Workdir) -> None:
    user = pl.read_parquet(finished.artifact("features") / "users.parquet")["user_id"][0]
    known = finished("recommend", "--user", str(user), "-k", "5", "--json").json
    scored = pl.read_parquet(finished.artifact("score") / "recommendations" / "*.parquet").filter(
        pl.col("user_id") == user
    )
    assert [row["item_id"] for row in known["recommendations"]] == scored["item_id"][:5].to_list()
    assert known["recommendations"][0]["because"]
    items = pl.read_parquet(finished.artifact("features") / "items.parquet")["item_id"][:2].to_list()
    typed = finished("recommend", "--history", ",".join(map(str, items)), "--json").json
    assert len(typed["recommendations"]) == 10
    assert not {row["item_id"] for row in typed["recommendations"]} & set(items)
    for form in (
        json.dumps(items),
        json.dumps([str(item) for item in items]),
        "no-such, {}, {} ".format(*items),
    ):
        same = finished("recommend", "--history", form, "--json").json
        assert same["recommendations"] == typed["recommendations"]
        assert same["unknown_items"] == form.startswith("no-such")
    text = finished("recommend", "--user", str(user)).out
    assert "because of" in text


def test_recommend_beside_the_list_of_a_changed_history(finished: Workdir) -> None:
    items = pl.read_parquet(finished.artifact("features") / "items.parquet")["item_id"][:4].cast(pl.String)
    typed = ("recommend", "--history", ",".join(items[:3]), "-k", "5")
    change = ("--without", items[0], "--with", items[3])
    answer = finished(*typed, *change, "--json").json
    other = finished("recommend", "--history", ",".join(items[1:]), "-k", "5", "--json").json
    assert answer["recommendations"] == finished(*typed, "--json").json["recommendations"]
    changed = answer["changed"]
    now, then = ([row["item_id"] for row in found["recommendations"]] for found in (answer, changed))
    assert then == [row["item_id"] for row in other["recommendations"]], "the same as typed in"
    assert changed["entered"] == [item for item in then if item not in now]
    text = finished(*typed, *change).out
    assert f"without {items[0]}, with {items[3]}" in text
    refused = finished(*typed, "--without", "no-such")
    assert refused.code == 1
    assert "--without: received 'no-such'" in refused.err


@pytest.mark.slow
def test_proven_reasons_of_both_stages(copied: Workdir) -> None:
    """The same in one shard or many, by `recommend` too; the manifest counts them, and a second scoring copies nothing wrong."""
    proven = ("--set", "score.because_method=proven")
    copied.run("report", *proven)
    folder = copied.artifact("score", *proven)
    lists = pl.read_parquet(sorted((folder / "recommendations").glob("*.parquet")))
    shares = json.loads((folder / "manifest.json").read_text())["proven"]
    sizes = lists.select(pl.when("proven").then(pl.col("because").list.len())).to_series()
    assert shares["none"] == pytest.approx(sizes.null_count() / len(lists), abs=1e-6)
    for size in (1, 2, 3):
        assert shares[str(size)] == pytest.approx((sizes == size).sum() / len(lists), abs=1e-6)
    assert 0.1 < shares["none"] < 0.9
    small = (*proven, "--set", "score.shard_users=13", "--set", "score.batch_users=2")
    copied.run("score", *small)
    others = sorted((copied.artifact("score", *small) / "recommendations").glob("*.parquet"))
    decided = ["user_id", "item_id", "proven"]
    assert pl.read_parquet(others).select(decided).equals(lists.select(decided))
    assert "not recommended without" in (copied.artifact("report", *proven) / "report.html").read_text()
    own = lists.filter(pl.col("user_id") == lists["user_id"][0])
    shown = copied("recommend", *proven, "--user", str(own["user_id"][0]), "--json").json["recommendations"]
    assert [row["proven"] for row in shown] == own["proven"].to_list()
    refused = copied("run", "score", *proven, "--set", "publish.system=popularity")
    assert refused.code != 0
    assert "received 'proven', but popularity is published" in refused.err


def test_recommend_after_one_interaction_beyond_the_ranker_s_candidates(finished: Workdir) -> None:
    """The ranker of the configuration orders 20 candidates, and a few popular ones; the log has 100 items."""
    events = pl.read_parquet(finished.artifact("ingest") / "events" / "*.parquet").sort("timestamp")
    times = events.group_by("user_id").agg(
        pl.col("item_id").first(), at=pl.col("timestamp").unique().sort().get(1, null_on_oob=True)
    )
    user, item, at = times.drop_nulls().sort("at").row(-1)
    for asked in (("--history", str(item)), ("--user", str(user), "--at", at.isoformat())):
        answer = finished("recommend", *asked, "-k", "1000", "--json").json
        assert answer["history_length"] == 1
        items = [row["item_id"] for row in answer["recommendations"]]
        assert 50 < len(items) == len(set(items)) < 100
        assert item not in items
        assert {reason["item_id"] for row in answer["recommendations"] for reason in row["because"]} == {item}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("recommend", "--user", "nobody"), 1, "nobody"),
        (("recommend", "--history", "no-such-item"), 1, "no-such-item"),
        (("recommend",), 2, "--user and --history"),
        (("run", "trian"), 2, "trian"),
        (("run", "train", "--set", "train.epohs=3"), 2, "train.epochs"),
        (("run", "ingest", "--set", "events.path=absent.csv"), 1, "absent.csv"),
        (("run", "ingest", "--set", "events.columns.user_id=person"), 1, "person"),
        (("run", "features", "--set", "split.test_from=2036-01-01"), 1, "test part is empty"),
        (("run", "features", "--set", "history.min_item_events=100000"), 1, "history.min_"),
        (("run", "score", "--set", "score.users=someday"), 2, "someday"),
        (("run", "features", "--set", "events.timezone=Mars/X"), 2, "events.timezone"),
        (("run", "score", "--set", "score.users=tiny.toml.parquet"), 1, "tiny.toml.parquet"),
        (("run", "score", "--set", "score.model=models:/nothing/7"), 1, "models:/nothing/7"),
    ],
)
def test_what_goes_wrong_is_one_message(
    copied: Workdir, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = copied(*arguments)
    assert result.code == code, result.err
    assert message in result.err
    assert len(result.err.strip().splitlines()) <= 12


def test_an_unwritable_folder_is_one_message(workdir: Workdir) -> None:
    result = workdir("run", "ingest", "--set", "data_dir=/proc/nowhere")
    assert result.code == 1
    assert "/proc/nowhere" in result.err


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_leaves_nothing_half(log_workdir: Callable[..., Workdir]) -> None:
    """A limit on the size of the process's files stands for the full disk."""
    random.seed(0)
    times = (random.randrange(10**9, 1_700_000_000) for _ in range(100_000))
    rows = "\n".join(f"u{number % 50},i{number % 40},{time}" for number, time in enumerate(times))
    workdir = log_workdir("user_id,item_id,timestamp\n" + rows + "\n")
    words = " ".join(workdir.command("run", "ingest", "--config", workdir.config))
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; ulimit -f 100; exec {words}"],
        cwd=workdir.folder,
        env=workdir.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "lookback:" in done.stderr
    assert not list((workdir.folder / "data" / "tiny" / "ingest").glob("*/manifest.json"))
    assert workdir("run", "ingest").code == 0


def test_scored_users_are_those_asked_for(copied: Workdir) -> None:
    known = pl.read_parquet(copied.artifact("features") / "users.parquet")["user_id"][:2].to_list()
    pl.DataFrame({"user_id": [*known, "stranger", None]}).write_parquet(copied.folder / "asked.parquet")
    summary = copied.run("score", "--set", "score.users=asked.parquet")
    scored = pl.read_parquet(Path(copied.folder / summary["folder"]) / "recommendations" / "*.parquet")
    assert scored["user_id"].unique().sort().to_list() == sorted(known)
    assert summary["rows_left_out"] == {"user_not_in_log": 1}
    nobody = copied.run("score", "--set", "score.users=2099-01-01")
    empty = pl.read_parquet(Path(copied.folder / nobody["folder"]) / "recommendations" / "*.parquet")
    assert empty.schema == scored.schema
    assert empty.is_empty()
    (copied.folder / "junk.parquet").write_text("no table")
    result = copied("run", "score", "--set", "score.users=junk.parquet")
    assert result.code == 1
    assert "junk.parquet" in result.err


@pytest.mark.slow
def test_prune_keeps_what_is_in_use(copied: Workdir) -> None:
    copied.run("all", "--set", "model.dim=8", "--set", "evaluate.gate=true")
    copied.run("train", "--set", "model.dim=4")
    before = {
        stage: len(list((copied.folder / "data" / "tiny" / stage).glob("*/manifest.json"))) for stage in ALL
    }
    said = copied("prune", "--keep", "1", "--dry-run").out
    assert "would remove" in said
    assert before["train"] == 4 or before["train"] == 3 + 1  # `latest` is listed too
    assert copied("prune", "--keep", "1").code == 0
    champion = copied.artifact("publish")  # the first version is the champion: its lineage stays
    assert champion.exists()
    assert copied("run", "all").code == 0
    assert os.path.lexists(champion.parent / "latest")


@pytest.mark.slow
def test_bad_logs(log_workdir: Callable[..., Workdir], tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp\n"
    for text, message in [
        ("", "empty"),
        (header, "no "),
        (header.replace(",", ";") + "a;b;1600000000\n", "user_id"),
        (header + "a,b,1600000000\na,c,1600000001\n", "fewer than"),
        (header + "a,b,soon\nb,c,later\n", "timestamp"),
    ]:
        result = log_workdir(text)("run", "ingest")
        assert result.code == 1, (text, result.out, result.err)
        assert message in result.err.lower() or "expected" in result.err, result.err
        assert not list((tmp_path / "data" / "tiny" / "ingest").glob("*/manifest.json"))
