"""A fortnight of updates by real commands: candidates judged and promoted, an erasure, a killed night, a drift.

The series and the number of user-nights before a promotion are worked out again by plain polars, as in test_fortnight.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.dataset.protocol import MIN_USER_NIGHTS
from tests.system.test_erase import holding
from tests.system.test_fortnight import (
    ERASED,
    KILLED,
    NIGHTS,
    Fortnight,
    K,
    check_series,
    erase,
    figures,
    project,
)
from tests.system.test_nightly import SMALL
from tests.workdir import Workdir

SETTINGS = SMALL.replace("gate = false", "gate = true\ngate_margin = 0.5").replace('["popularity"]', "[]")
SETTINGS = SETTINGS.replace("epochs = 2", "epochs = 1\nfull_every_days = 0", 1)


@dataclass(frozen=True)
class Night:
    """What a night delivered and trained."""

    moment: int
    champion: int
    digest: str
    candidate: int | None
    start: str | None
    """Digest of the version that the candidate is an update of"""


@pytest.fixture
def fortnight(tmp_path: Path, empty_database: Path) -> Fortnight:
    made = project(tmp_path, empty_database, SETTINGS + "[score]\nexclude_seen = true\n", num_users=500)
    made.command = ("update",)
    return made


def night(fortnight: Fortnight, number: int) -> tuple[Night, dict[str, Any]]:
    """Run a night; returns its lists' record and the stages that it ran, by name."""
    stages = {stage["stage"]: stage for stage in fortnight.night(number)["stages"]}
    manifest = json.loads(
        (fortnight.workdir.folder / stages["score"]["folder"] / "manifest.json").read_text()
    )
    candidate = manifest.get("shadows", {}).get("challenger", {})
    return Night(
        manifest["request_time"],
        manifest["model_version"],
        manifest["bundle_digest"],
        candidate.get("model_version"),
        candidate.get("start"),
    ), stages


def user_nights(fortnight: Fortnight, nights: list[Night], number: int) -> int:
    """User-nights over by now with the lists of a champion and of an update of it."""
    champion, log = nights[-1].champion, fortnight.log(number)
    moments = {each.moment for each in nights if each.champion == champion and each.start == each.digest}
    return sum(
        figures(log, lists, moment, days)[f"ndcg@{K}"][1]
        for (moment, days, system), lists in fortnight.judged.items()
        if (days, system) == (1.0, "challenger") and moment in moments
    )


def is_training(workdir: Workdir) -> bool:
    """Whether an update is in the middle of its training."""
    return any((workdir.folder / "data" / "tiny" / "train").glob(".building-*/checkpoints/update.pt"))


@pytest.mark.slow
def test_a_fortnight_of_updates(fortnight: Fortnight) -> None:
    workdir, user = fortnight.workdir, ""
    first, stages = night(fortnight, 0)
    assert "evaluate" in stages, "a training from scratch"
    nights, promoted = [first], 0
    for number in range(1, NIGHTS + 1):
        fortnight.show(number)
        if number == ERASED:
            user = erase(fortnight)
        if number == KILLED:
            fortnight.expect(number)
            assert workdir.killed(lambda: is_training(workdir), *fortnight.command).code == -9
        new, stages = night(fortnight, number)
        before = nights[-1]
        is_promoted = (
            before.candidate is not None and user_nights(fortnight, nights, number) >= MIN_USER_NIGHTS
        )
        promoted += is_promoted
        nights.append(new)
        if number == ERASED:
            assert "evaluate" in stages, "the champion has learned from the erased user"
            assert (new.champion, new.candidate) == (number + 1, None)
            assert not list(holding(workdir.folder / stages["publish"]["folder"], user))
            continue
        assert "evaluate" not in stages
        assert new.champion == (before.candidate if is_promoted else before.champion)
        assert (new.candidate, new.start) == (number + 1, new.digest), "an update of tonight's champion"
    assert promoted
    check_series(
        fortnight, workdir.folder / "data" / "tiny" / "monitor" / "latest", user, {"delivered", "challenger"}
    )
    deliveries = pl.read_parquet(fortnight.score / "deliveries.parquet").filter(pl.col("shadow").is_null())
    assert deliveries["model_version"].to_list() == [each.champion for each in nights]
