"""The ingest benchmark runs, and its log is accounted for row by row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_small_benchmark_accounts_for_every_row(tmp_path):
    out = tmp_path / "result.json"
    script = Path(__file__).with_name("bench_ingest.py")
    sizes = ["rows=2000", "bad-fraction=0.02", "incremental=1000", "days=5", "repeats=1", "against=polars"]
    options = [*(f"--{each}" for each in sizes), f"--folder={tmp_path}", f"--out={out}"]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    result = json.loads(out.read_text())
    (size,) = result["sizes"]
    ours, polars = size["ingest"]["lookback"], size["ingest"]["polars"]
    spoilt = {reason: number for reason, number in size["spoilt"].items() if reason != "bad_value"}
    assert ours["refused"] == sum(spoilt.values()) > 0
    assert (polars["refused"], size["left_out"]) == (0, {})
    assert ours["rows_per_second"] > 0
    assert [each["days"] for each in result["incremental"]["one_more_day"]] == [0, 1, 5]
    assert "lookback features" in done.stdout
    assert list(tmp_path.iterdir()) == [out]
