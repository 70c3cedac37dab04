"""Prequential test of updates: champion and candidate are compared on the events after both, before an update learns from them.

Each night's candidate is an update of the champion, scored beside it as the shadow `challenger`; the monitor has the outcomes of
both. Nights are pooled over the candidates of one champion. Source: Gama et al. 2013, On evaluating stream learning algorithms.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.artifacts.store import Artifact
from pipeline.config import Config
from pipeline.monitoring import ledger
from pipeline.monitoring.ledger import Delivery
from pipeline.tracking.decisions import WAITING, Decision
from pipeline.tracking.registry import CHALLENGER, Registry, model_name
from pipeline.tracking.server import Version

if TYPE_CHECKING:
    from pipeline.monitoring.outcome_files import OutcomeFiles


def decide(config: Config, monitor: Artifact) -> str | None:
    """Make the waiting update champion where its nights allow; returns the decision in one line, None without such an update."""
    if not (config.tracking.enabled and config.evaluate.gate):
        return None
    registry, name = Registry.from_config(config), model_name(config)
    champion, candidate = registry.champion(name), registry.challenger(name)
    if candidate is None or champion is None or candidate.gate != WAITING:
        return None
    nights = list(nights_of(ledger.deliveries(config.folder / "score"), champion))
    if not any(night.shadows[CHALLENGER].bundle_digest == candidate.bundle_digest for night in nights):
        return None
    from pipeline.monitoring.outcome_files import OutcomeFiles

    decision = compare(config, nights, OutcomeFiles(monitor.folder), champion)
    if decision.moves:
        registry.record(candidate, decision, champion)
    return f"gate: {name} version {candidate.version} is {decision.text(champion)}"


def compare(config: Config, nights: Sequence[Delivery], files: "OutcomeFiles", champion: Version) -> Decision:
    """Decision about the candidates of a champion by the gate's rule, over nights with the lists of both.

    The metric is that of the gate where lists are compared by it, else NDCG, at the length of the lists; the window is the
    shortest of `monitor.days`. passed: at least MIN_USER_NIGHTS, and the lower end of candidate minus champion is not below
    -`evaluate.gate_margin`; waiting otherwise.
    """
    from pipeline.dataset.protocol import MIN_USER_NIGHTS
    from pipeline.monitoring.series import COMPARED, Bootstrap
    from pipeline.monitoring.shadow_differences import PairedSums

    sums = PairedSums.of_deliveries(files, nights, min(config.monitor.days), CHALLENGER)
    number = 0 if sums is None else int(sums.table["nights"].sum())
    if sums is None or number < MIN_USER_NIGHTS:
        reason = (
            f"{number:,} of {MIN_USER_NIGHTS} user-nights with lists of both it and the champion are over"
        )
        return Decision(WAITING, reason)
    settings = config.evaluate
    kind = settings.gate_metric.partition("@")[0]
    metric = f"{kind if kind in COMPARED else 'ndcg'}@{sums.k}"
    compared = sums.differences(Bootstrap(settings.resamples, config.seed))
    paired = next(each for each in compared if each.metric == metric)
    difference, low, high = -paired.difference, -paired.high, -paired.low
    passed = low >= -settings.gate_margin
    reason = (
        f"{'not worse' if passed else 'not shown to be no worse'} than version {champion.version}, the champion, by more than "
        f"{settings.gate_margin:g}: {metric} {difference:+.4f} [{low:+.4f}, {high:+.4f}] on {number:,} user-nights of "
        f"{paired.users:,} users in {paired.nights:,} nights that neither had seen"
    )
    figures: dict[str, float | str] = {
        "metric": metric,
        "margin": settings.gate_margin,
        "user_nights": number,
    }
    figures |= {
        "users": paired.users,
        "nights": paired.nights,
        "difference": difference,
        "low": low,
        "high": high,
    }
    return Decision("passed" if passed else WAITING, reason, figures)


def nights_of(entered: Sequence[Delivery], champion: Version) -> Iterator[Delivery]:
    """Deliveries of a champion to all users beside those of its updates, all made of events up to the lists."""
    for delivery in entered:
        shadow = delivery.shadows.get(CHALLENGER)
        if shadow is None or delivery.experiment is not None or not delivery.timed:
            continue
        is_update = delivery.bundle_digest == champion.bundle_digest == shadow.start
        known = (delivery.model_time, shadow.model_time)
        if is_update and all(time is not None and time < delivery.before for time in known):
            yield delivery
