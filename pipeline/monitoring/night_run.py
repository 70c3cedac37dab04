"""Nights among the tracked runs: the columns and description of one, and the saved view of all."""

from collections.abc import Mapping
from pathlib import Path

from features.printable import markdown
from pipeline.artifacts.store import read_manifest
from pipeline.config import Config
from pipeline.evaluation.comparison import interval_text
from pipeline.evaluation.metric_names import display_name
from pipeline.monitoring import ledger
from pipeline.monitoring.night_table import NightTable
from pipeline.sections import DELIVERED
from pipeline.tracking.record import allowed
from pipeline.tracking.ui import View

NIGHT, REALISED, ALERTS = "lookback.night", "lookback.realised", "lookback.alerts"
"""Tags of a night's run: time of the request, realised metric of the newest judged lists with its promise, alerts."""
HEADLINE, LOGGED_NIGHTS = ("ndcg", "hit_rate"), 90
"""Metrics of the series in a night's own run, and the newest nights of it, by which a run's size is bounded."""


def metric_of(config: Config) -> str:
    """Headline of a night: realised NDCG of the delivered lists in the shortest window."""
    return f"realised/{DELIVERED}/ndcg@{config.score.k}/{config.monitor.days[0]:g}d"


def view_of(config: Config) -> View:
    """List of all nights, the newest first."""
    return View(
        key="nights",
        name="Nights",
        run_filter=f"tags.`lookback.stage` = 'run' AND tags.`{NIGHT}` LIKE '%'",
        metrics=[allowed(metric_of(config))],
        tags=[NIGHT, REALISED, ALERTS, "lookback.model_version"],
        newest_first=True,
    )


def texts_of(config: Config, folders: Mapping[str, Path]) -> dict[str, str]:
    """Columns of a night's run, by the folders of its stages."""
    lists = ledger.of_manifest(config, folders["score"].name, read_manifest(folders["score"]))
    night = lists.night[:16].replace("T", " ") if lists.timed else f"position {lists.log_time}"
    return {NIGHT: night, REALISED: _realised(config, folders.get("monitor"))}


def _realised(config: Config, monitor: Path | None) -> str:
    days = config.monitor.days[0]
    rows = [] if monitor is None else NightTable.load(monitor).rows
    own = [
        row for row in rows if row.system == DELIVERED and row.window_days == days and row.ndcg is not None
    ]
    if not own:
        return "no lists are judged yet"
    newest = own[-1]
    name = f"{display_name(f'ndcg@{config.score.k}')} within {days:g} day{'' if days == 1 else 's'}"
    ends = "" if newest.low is None or newest.high is None else f" ({interval_text(newest.low, newest.high)})"
    promised = "" if newest.promised is None else f", promised {interval_text(*newest.promised)}"
    return f"{newest.ndcg:.4f}{ends}{promised}: {name} of the lists of {newest.night}"


def description(texts: Mapping[str, str], alerts: str) -> str:
    """Description of a night's run in Markdown."""
    return (
        f"Lists of {texts[NIGHT]}. **Realised**: {markdown(texts[REALISED])}. **Alerts**: {markdown(alerts)}."
    )
