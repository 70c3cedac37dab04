"""What the report says of the model that was live before, from a real earlier champion."""

import json
import re
from typing import Any

import pytest

from pipeline.tracking.client import client_at
from tests.pipeline.stages.test_report import Page
from tests.workdir import Workdir

CHANGED = ("--set", "model.dim=24", "--set", "train.epochs=4", "--set", "evaluate.gate=true")


def section(workdir: Workdir) -> str:
    """What the report of the changed model says since the champion."""
    page = Page((workdir.artifact("report", *CHANGED) / "report.html").read_text(encoding="utf-8"))
    return page.text.split("Since the champion")[1].split("The lists")[0]


def metrics_of(workdir: Workdir, *settings: str) -> dict[str, float]:
    """The model's metrics of an evaluation."""
    report = json.loads((workdir.artifact("evaluate", *settings) / "metrics.json").read_text())
    found: dict[str, float] = report["metrics"]["lookback"]
    return found


def signed(text: str) -> str:
    """A tag's figure as the report writes a difference."""
    return f"{float(text):+.4f}".replace("-", "−")


@pytest.mark.slow
def test_what_changed_since_a_real_champion(copied: Workdir) -> None:
    copied.run("report", *CHANGED)
    said = section(copied)
    client = client_at(f"sqlite:///{copied.folder}/mlruns/mlflow.db")
    tags: dict[str, Any] = client.get_model_version("lookback-tiny", "2").tags
    decision = {key.removeprefix("lookback.gate."): value for key, value in tags.items()}
    assert tags["lookback.gate"] == "refused", "ItemKNN is better on so small a log"

    assert "This model is version 2 of lookback-tiny." in said
    assert "It does not go live : version 1 stays the champion, the live version." in said
    verdict = (
        "is better than"
        if float(decision["low"]) > 0
        else "is worse than"
        if float(decision["high"]) < 0
        else "shows no significant difference from"
    )
    was, now = metrics_of(copied), metrics_of(copied, *CHANGED)
    assert (
        f"It {verdict} version 1 on {decision['targets']} held-out events of {decision['users']} users that neither version"
        f" was trained on: NDCG@10 {now['ndcg@10']:.4f} against {was['ndcg@10']:.4f}, difference"
        f" {signed(decision['difference'])} (95 % interval {signed(decision['low'])} to {signed(decision['high'])})."
    ) in said
    assert re.search(
        r"It is worse than ItemKNN , the best baseline: .* To go live, it must be better\.", said
    )
    for metric, name in (
        ("ndcg@10", "NDCG@10"),
        ("hit_rate@10", "hit rate@10"),
        ("coverage@10", "coverage@10"),
    ):
        assert f"{name} {was[metric]:.4f} {now[metric]:.4f}" in said
    assert "Both were measured on the same held-out events." in said
    settings = dict(re.findall(r"setting (\S+) (\S+ \S+)", said))
    assert settings == {"model.dim": "16 24", "train.epochs": "3 4"}
    assert re.search(r"\d+ of 150 users get another list", said)
    assert re.search(
        r"Where the evaluated lists differ \(\d+ of \d+ test requests that both evaluated, \d+ users\), version 2",
        said,
    )
    compared = copied("compare", "1", "2", "--lists", "--json")
    assert compared.code == 0, compared.err
    assert compared.json["other_reasons"] == []
    assert len(compared.json["changes"]["side_by_side"]) == 10

    assert copied("promote", "2").code == 0
    copied.run("report", "--force", *CHANGED)
    said = section(copied)
    assert "It is the new champion , the live version, in place of version 1." in said
    assert "It was made champion by hand" in said
