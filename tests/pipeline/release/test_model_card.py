"""Model card of a version, from an evaluation of known numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.settings import EventSettings
from pipeline.config import Config
from pipeline.evaluation.report import EvaluationReport
from pipeline.release.model_card import _segment, card
from tests.evaluation_reports import evaluation_report, nightly_report

METRICS = {
    "lookback": {"ndcg@10": 0.5, "hit_rate@10": 0.75, "recall@10": 0.25, "user_ndcg@10": 0.4},
    "als": {"ndcg@10": 0.25, "hit_rate@10": 0.5, "recall@10": 0.125, "user_ndcg@10": 0.2},
}
DESCRIPTION: dict[str, Any] = {
    "name": "tiny",
    "deployed": "evaluated",
    "protocol": "temporal",
    "metrics": {"ndcg@10": 0.5},
}


def card_of(folder: Path, report: EvaluationReport | None, published: Mapping[str, Any] | None = None) -> str:
    columns: dict[str, str | int] = {"user_id": 1, "item_id": 2, "timestamp": 3}
    config = Config(name="tiny", data_dir=str(folder), events=EventSettings(path="log.csv", columns=columns))
    evaluate = config.folder / "evaluate" / "one"
    evaluate.mkdir(parents=True)
    if report is not None:
        report.save(evaluate)
    return card(config, DESCRIPTION | dict(published or {}), {"evaluate": "one"})


def test_card_of_nights(tmp_path: Path) -> None:
    text = card_of(tmp_path, nightly_report(METRICS))
    caution, protocol = text.split("\n\n")[1:3]
    assert caution == (
        "**Caution.** only 5 user-nights of 3 users: intervals are wide below 500 user-nights or 100 users."
    )
    assert protocol == (
        "**Protocol.** Temporal split; 5 user-nights of 3 users, 4 nights from 2026-01-02 to 2026-01-23, 7 days each, ranked "
        "among all 23 items; items of the history are recommended too. At each night the histories are frozen; what the user "
        "takes within the days after it is relevant. Left out: 7 user-nights with nothing taken in the horizon, 2 events on "
        "an item taken before in the same horizon."
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| metric | lookback | ALS, the best baseline |",
        "| --- | --- | --- |",
        "| NDCG@10 | 0.5000 [0.4500, 0.5500] | 0.2500 [0.2000, 0.3000] |",
        "| hit rate@10 | 0.7500 [0.7000, 0.8000] | 0.5000 [0.4500, 0.5500] |",
        "| recall@10 | 0.2500 [0.2000, 0.3000] | 0.1250 [0.0750, 0.1750] |",
        "| NDCG@10 of 6 items taken again | 0.2500 [0.2400, 0.2600] | 0.1250 [0.1150, 0.1350] |",
        "| hit rate@10 of 6 items taken again | 0.3750 [0.3650, 0.3850] | 0.2500 [0.2400, 0.2600] |",
        "| NDCG@10 of 9 items taken for the first time | 0.1250 [0.1150, 0.1350] | 0.0625 [0.0525, 0.0725] |",
        "| hit rate@10 of 9 items taken for the first time | 0.1875 [0.1775, 0.1975] | 0.1250 [0.1150, 0.1350] |",
    ]


def test_card_of_events(tmp_path: Path) -> None:
    text = card_of(tmp_path, evaluation_report(METRICS))
    assert "Temporal split; 5 held-out events of 3 users, ranked among all 23 items;" in text
    assert "Left out: 2 events on items unseen in training." in text
    assert "| user NDCG@10 |" in text
    for absent in ("Caution", "night", "recall"):
        assert absent not in text


def test_card_without_an_evaluation(tmp_path: Path) -> None:
    assert "**Protocol.** temporal split.\n\n| metric | value |" in card_of(tmp_path, None)


def test_card_of_a_published_baseline(tmp_path: Path) -> None:
    published = {
        "system": "als",
        "system_reason": "the published system is als: publish.system is 'als'",
        "system_settings": {"factors": 64, "alpha": 2.5},
        "deployed": "refit",
        "refit_steps": None,
        "max_length": 50,
    }
    text = card_of(tmp_path, evaluation_report(METRICS), published)
    first, system = text.split("\n\n")[:2]
    assert (
        first == "`tiny`: the baseline als (factors 64, alpha 2.5); deployed weights: fitted on all events."
    )
    assert system == "**System.** The published system is als: publish.system is 'als'."
    assert "| metric | lookback | ALS, the best baseline |" in text
    assert "The model reads the last" not in text


def test_names_of_the_log_are_text_in_the_card() -> None:
    row: dict[str, Any] = {"segment": "category", "value": "![x](https://evil.example/p.png)" + "y" * 3000}
    row |= {"ndcg@10": 0.1, "ndcg@10_low": 0.05, "ndcg@10_high": 0.2}
    text = _segment(row, "ndcg@10")
    assert "![x](" not in text
    assert "https:" not in text
    assert len(text) < 200
