"""Own lists that count as shown before a request: what a scoring with `score.max_shown` reads besides the exposure log."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from features.settings import iso_microseconds
from pipeline.artifacts.files import fingerprint
from pipeline.artifacts.store import Artifact, read_manifest
from pipeline.config import Config
from pipeline.errors import DamagedArtifact
from pipeline.monitoring import ledger
from pipeline.monitoring.ledger import Delivery

if TYPE_CHECKING:
    import polars as pl

    from pipeline.serving.shown_items import NotAgain

_LISTS = "recommendations"


def delivered_before(config: Config, features: str) -> list[Delivery]:
    """Deliveries before a request to a features artifact, by time and then delivery; empty where nothing is left out.

    Before its end come those that other features made, so that lists of the same night made anew have the same inputs.
    """
    score, at = config.folder / "score", config.score.at
    if not config.score.max_shown:
        return []
    if at is None:
        entered = ledger.preceding(score, features)
    else:
        moment = iso_microseconds(at, config.events.timezone)
        entered = [delivery for delivery in ledger.deliveries(score) if delivery.log_time < moment]
    return sorted(
        (delivery for delivery in entered if delivery.timed), key=lambda delivery: delivery.log_time
    )


def digest(entered: list[Delivery]) -> str:
    """Digest of the deliveries' lists."""
    return fingerprint([[delivery.folder, delivery.log_time, delivery.before] for delivery in entered])


def not_again(config: Config, features: Path) -> "NotAgain | None":
    """The rule of `score.max_shown` with the lists that it reads, for the request to a features artifact; None where it is off.

    Lists within the time of the exposure log count for users without events alone, whom that log does not have. Lists that are
    gone, damaged or of another type of user ids are named on stderr.
    """
    settings = config.score
    if not settings.max_shown:
        return None
    from pipeline.dataset.dataset import Dataset
    from pipeline.serving.request import Request
    from pipeline.serving.shown_items import NotAgain, ShownList

    dataset = Dataset.open(features)
    request = Request.of(settings.at, dataset.facts.now, timed=True, timezone=config.events.timezone)
    since, logged = request.time - round(settings.shown_days * ledger.DAY), dataset.exposure_span
    lists = []
    for delivery in delivered_before(config, features.name):
        if not since <= delivery.log_time < request.time:
            continue
        is_logged = logged is not None and logged[0] <= delivery.log_time < logged[1]
        artifact = Artifact(config.folder / "score", delivery.folder)
        obstacle = _obstacle(artifact, dataset.users["user_id"].dtype)
        if obstacle is None:
            lists.append(ShownList(artifact.folder / _LISTS, delivery.log_time, delivery.before, is_logged))
        else:
            text = f"score.max_shown: the lists of {delivery.night} ({delivery.folder}) {obstacle}, and do not count as shown"
            print(text, file=sys.stderr, flush=True)
    return NotAgain(settings.max_shown, settings.shown_days, tuple(lists))


def _obstacle(lists: Artifact, kind: "pl.DataType") -> str | None:
    """Reason why lists cannot be read by users with ids of a type; None where they can."""
    import polars as pl

    try:
        names = [name for name in read_manifest(lists.folder)["files"] if name.startswith(f"{_LISTS}/")]
        lists.verify(names)
        if pl.read_parquet_schema(lists.folder / names[0])["user_id"] != kind:
            return "have user ids of another type than the log"
    except (OSError, DamagedArtifact, KeyError, IndexError, pl.exceptions.PolarsError):
        return "are damaged" if lists.folder.exists() else "are gone"
    return None
