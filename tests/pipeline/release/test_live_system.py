"""Which system goes live, by pencil: intervals of the paired differences are .05 to either side."""

import pytest

from pipeline.errors import LookbackError
from pipeline.release.live_system import choose
from tests.evaluation_reports import evaluation_report


def chosen(setting: str, **values: float) -> tuple[str, str]:
    metrics = {name: {"ndcg@10": value} for name, value in values.items()}
    report = evaluation_report(
        metrics, not_applicable={"own_recent": "items already seen are not recommended"}
    )
    live = choose(report, setting, "ndcg@10")
    return live.name, live.sentence


@pytest.mark.parametrize(
    ("values", "name", "said"),
    [
        ({"lookback": 0.3, "ease": 0.2}, "lookback", "it is better than ease, the best baseline, ndcg@10 +0.1000"),
        ({"lookback": 0.3, "ease": 0.26}, "lookback", "it is not shown to be worse than ease"),
        ({"lookback": 0.2, "ease": 0.24}, "lookback", "it is not shown to be worse than ease"),
        ({"lookback": 0.2, "als": 0.27, "ease": 0.3}, "ease", "the published system is ease: it is better than the model"),
        ({"lookback": 0.2, "gru": 0.4, "ease": 0.3}, "ease", "; gru has a higher value, but cannot be published"),
        ({"lookback": 0.2, "gru": 0.4}, "lookback", "no baseline that can be published was evaluated; gru has a higher value"),
        ({"lookback": 0.2}, "lookback", "the published system is the model: no baseline that can be published was evaluated"),
    ],
)  # fmt: skip
def test_a_baseline_goes_live_only_where_it_is_shown_to_be_better(
    values: dict[str, float], name: str, said: str
):
    system, sentence = chosen("auto", **values)
    assert system == name
    assert said in sentence


def test_a_named_system_goes_live_whatever_it_is_worth():
    assert chosen("ease", lookback=0.3, ease=0.1) == (
        "ease",
        "the published system is ease: publish.system is 'ease'",
    )
    assert chosen("lookback", lookback=0.1, ease=0.3)[0] == "lookback"
    with pytest.raises(
        LookbackError, match=r"received 'own_recent', but items already seen are not recommended"
    ):
        chosen("own_recent", lookback=0.1, ease=0.3)


def test_without_the_gates_metric_the_shortest_ndcg_decides():
    report = evaluation_report({"lookback": {"ndcg@5": 0.1}, "ease": {"ndcg@5": 0.3}})
    assert choose(report, "auto", "ndcg@10").name == "ease"
