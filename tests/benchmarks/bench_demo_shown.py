"""Off-policy estimates of the demo against the truth, and its predicted outcomes, from finished artifacts.

    lookback run evaluate --config pipeline/configs/demo.toml
    python tests/benchmarks/bench_demo_shown.py [--config FILE] [--set key=value]…

Shelves of the demo change nothing that users do (`features/simulated_shelves.py`), so the true mean of reactions per list is
known for every system: the items of its own list that the user takes within the window. Prints Markdown tables: estimates by
place of each system beside the truth; the heads of outcomes beside their base rates; both orders of the lists.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from features.histories.numbering import ItemNumbering  # noqa: E402
from models.checkpoint import load_model  # noqa: E402
from models.encoder.encoder import AttentionRecommender  # noqa: E402
from models.histories import Int32  # noqa: E402
from pipeline.config import Config, load_config  # noqa: E402
from pipeline.dataset.dataset import Dataset  # noqa: E402
from pipeline.dataset.exposed_lists import FOLDER, ExposedLists  # noqa: E402
from pipeline.dataset.protocol import Protocol  # noqa: E402
from pipeline.evaluation import ranking  # noqa: E402
from pipeline.evaluation.report import EvaluationReport, OffPolicyValue  # noqa: E402
from pipeline.modelling import second_stage  # noqa: E402
from pipeline.sections import MODEL  # noqa: E402
from pipeline.stages import evaluate  # noqa: E402

BY_PLACE = ("dm", "ips_place", "snips_place", "dr_place")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "pipeline" / "configs" / "demo.toml"))
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args()
    config = load_config(given.config, given.set)
    report = EvaluationReport.load(artifact(config, "evaluate"))
    off_policy(config, report)
    metrics = json.loads((artifact(config, "evaluate") / "metrics.json").read_text())
    outcomes(metrics)


def artifact(config: Config, stage: str) -> Path:
    return (config.folder / stage / "latest").resolve()


def off_policy(config: Config, report: EvaluationReport) -> None:
    """Table of estimates beside the truth."""
    dataset = Dataset.open(artifact(config, "features"))
    exposed = ExposedLists.of(config, dataset)
    assert exposed is not None
    assert report.off_policy is not None
    places = exposed.item.shape[1]
    common = ItemNumbering.load(artifact(config, "baselines") / FOLDER / "items.npy")
    print(
        f"{len(exposed):,} lists of {exposed.request.max() + 1:,} requests, {exposed.is_taken.sum(1).mean():.4f} reactions each\n"
    )
    print(f"| system | truth | {' | '.join(BY_PLACE)} | effective sample |")
    print(f"|{' --- |' * (len(BY_PLACE) + 3)}")
    for system, estimates in report.off_policy.items():
        if system == second_stage.RETRIEVAL:  # the stage not in use, which no table shows
            continue
        lists = (
            own_lists(config, dataset, exposed, common, report)
            if system == MODEL
            else of_baseline(config, system)
        )
        truth = reactions(config, dataset, exposed, common.inverse().new[lists[:, :places]])
        found = [estimates[name] for name in BY_PLACE]
        cells = [
            f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]"
            if isinstance(own, OffPolicyValue)
            else "refused"
            for own in found
        ]
        last = found[-1]
        size = f"{last.effective_sample:.0f}" if isinstance(last, OffPolicyValue) else last.refused
        print(f"| {system} | {truth:.3f} | {' | '.join(cells)} | {size} |")


def of_baseline(config: Config, name: str) -> Int32:
    return ranking.load(artifact(config, "baselines") / FOLDER, name).lists


def own_lists(
    config: Config, dataset: Dataset, exposed: ExposedLists, common: ItemNumbering, report: EvaluationReport
) -> Int32:
    """[requests, k], the model's lists, made as in stage evaluate."""
    inputs = {
        stage: artifact(config, stage) for stage in ("ingest", "features", "train", "rank", "baselines")
    }
    ctx = cast(
        "Any",
        SimpleNamespace(config=config, dataset=dataset, protocol=Protocol.of(config, dataset), inputs=inputs),
    )
    train = inputs["train"]
    model = evaluate._Model(AttentionRecommender(load_model(train)), ItemNumbering.load(train / "items.npy"))
    part = evaluate._part(ctx, model, exposed.requests(dataset, common), common)
    stage = second_stage.TWO_STAGE if report.ranker.used else second_stage.RETRIEVAL
    return evaluate._stages(ctx, model, part, nightly=False, only=stage)[stage].lists


def reactions(config: Config, dataset: Dataset, exposed: ExposedLists, lists: Int32) -> float:
    """Mean over the exposed lists of the items of `lists` [requests, k], in the dataset's numbering, that the user takes."""
    assert config.exposures is not None
    histories = dataset.histories
    _, first = np.unique(exposed.request, return_index=True)
    number = np.zeros(len(first))
    for row, (user, time) in enumerate(zip(exposed.user[first], exposed.time[first], strict=True)):
        begin, end = histories.offsets[user], histories.offsets[user + 1]
        times = histories.time[begin:end]
        within = slice(*(begin + np.searchsorted(times, [time, time + config.exposures.window + 1])))
        number[row] = np.isin(lists[row], histories.item_index[within]).sum()
    return float(number[exposed.request].mean())


def outcomes(metrics: dict[str, Any]) -> None:
    """Tables of the heads and of both orders."""
    print(
        "\n| outcome | candidates | positives | AUC | log loss | base rate's | calibration error | value error | base |"
    )
    print(f"|{' --- |' * 9}")
    for name, own in (metrics.get("outcomes") or {}).items():
        values = [own[key] for key in ("auc", "log_loss", "base_log_loss", "calibration_error")]
        amounts = [
            "–" if own.get(key) is None else f"{own[key]:.2f}" for key in ("value_error", "base_value_error")
        ]
        cells = [f"{value:.5f}" for value in values] + amounts
        print(f"| {name} | {own['candidates']:,} | {own['positives']:,} | {' | '.join(cells)} |")
    print(f"\n{json.dumps(metrics.get('orders'), indent=1)}")


if __name__ == "__main__":
    main()
