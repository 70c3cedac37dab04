"""The rolling protocol: each cut a pipeline of its own, mean and spread over them."""

import json
from statistics import mean, stdev

import pytest

from pipeline.artifacts.files import read_json
from tests.workdir import Workdir

SETTINGS = ("--set", "split.cuts=2", "--set", "train.epochs=1", "--set", 'evaluate.baselines=["popularity"]')


@pytest.mark.slow
def test_each_cut_is_judged_and_the_mean_is_theirs(workdir: Workdir) -> None:
    done = workdir("run", "evaluate", *SETTINGS)
    assert done.code == 0, done.err
    assert "evaluate cut 1" in done.out
    assert "spread" in done.out
    report = read_json(workdir.artifact("evaluate", *SETTINGS) / "metrics.json")
    first, last = report["rolling"]["cuts"]
    assert first["test_from"] < last["test_from"] == report["test_from"]
    assert last["metrics"] == report["metrics"]
    for system in ("lookback", "popularity"):
        values = [cut["metrics"][system]["ndcg@10"] for cut in (first, last)]
        assert report["rolling"]["mean"][system]["ndcg@10"] == pytest.approx(mean(values))
        assert report["rolling"]["spread"][system]["ndcg@10"] == pytest.approx(stdev(values))

    again = workdir("run", "evaluate", *SETTINGS, "--json")
    assert json.loads(again.out.splitlines()[-1])["up_to_date"]
    kept = {path.parent for path in (workdir.folder / "data" / "tiny").glob("*/*/manifest.json")}
    assert workdir("prune", "--keep", "1", *SETTINGS).code == 0
    manifest = read_json(workdir.artifact("evaluate", *SETTINGS) / "manifest.json")
    cut = workdir.folder / "data" / "tiny" / "evaluate" / manifest["inputs"]["evaluate cut 1"]
    assert cut in kept
    assert (cut / "manifest.json").exists()  # what the newest evaluation was made from stays


def test_cuts_are_refused_where_they_make_no_sense(workdir: Workdir) -> None:
    refused = workdir("run", "evaluate", "--set", "split.cuts=2", "--set", "split.protocol=leave_one_out")
    assert refused.code == 2
    assert "split: received cuts 2" in refused.err
