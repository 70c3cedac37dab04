"""Names of metrics in the tracking server."""

from pipeline.evaluation.tracked_metrics import beside_the_model
from tests.evaluation_reports import evaluation_report, off_policy


def test_off_policy_estimates_are_logged_where_there_is_a_number() -> None:
    metrics = {"lookback": {"ndcg@10": 0.5}, "popularity": {"ndcg@10": 0.25}}
    logged = beside_the_model(evaluation_report(metrics, **off_policy()))
    assert logged["off_policy/snips_place"] == logged["popularity/off_policy/dm"] == 0.5
    assert "off_policy/snips_list" not in logged
    assert not [name for name in beside_the_model(evaluation_report(metrics)) if "off_policy" in name]
