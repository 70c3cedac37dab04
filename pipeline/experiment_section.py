"""Configuration section of an experiment on users."""

import math

import pydantic
from pydantic import Field

from features.settings import check_iso
from pipeline.sections import COUNTED_BASELINES, MODEL_URI, Section


class ExperimentConfig(Section):
    """Experiment on users, whose lists are made by arm every night: the `[experiment]` section."""

    name: str = Field(min_length=1)
    """Name; another experiment has another name."""
    arms: dict[str, float]
    """Arms, as shares of the users by system: champion, challenger, models:/NAME/VERSION, or a counting baseline. The others are
    compared with the first."""
    salt: str
    """Text of 1 to 64 bytes that is hashed with the user id into the user's arm; another salt draws anew."""
    start: str
    """First day of the log with lists by arm, as an ISO date or time (in `events.timezone`)."""
    smallest_effect: float = Field(0.05, gt=0)
    """Smallest difference to be shown with 80 % power, as a share of the first arm's NDCG: it plans the number of nights before
    which there is no verdict."""

    @pydantic.field_validator("arms")
    @classmethod
    def _shares_of_known_systems(cls, arms: dict[str, float]) -> dict[str, float]:
        example = "such as { champion = 0.9, challenger = 0.1 }"
        if len(arms) < 2:
            raise ValueError(f"experiment.arms: received {len(arms)} arms, expected at least two, {example}")
        for name, share in arms.items():
            if name not in ("champion", "challenger", *COUNTED_BASELINES) and not MODEL_URI.fullmatch(name):
                expected = f"champion, challenger, {', '.join(COUNTED_BASELINES)}, or models:/NAME/VERSION"
                raise ValueError(f"experiment.arms: received {name!r}, expected {expected}")
            if not share > 0:
                raise ValueError(
                    f"experiment.arms: received {name} = {share:g}, expected a share above 0, or no such arm"
                )
        if not math.isclose(total := math.fsum(arms.values()), 1, abs_tol=1e-9):
            raise ValueError(
                f"experiment.arms: received shares that add up to {total:g}, expected 1, {example}"
            )
        return arms

    @pydantic.field_validator("salt")
    @classmethod
    def _hashable(cls, salt: str) -> str:
        if not 1 <= len(salt.encode()) <= 64:
            raise ValueError(f"experiment.salt: received {len(salt.encode())} bytes, expected 1 to 64")
        return salt

    @pydantic.field_validator("start")
    @classmethod
    def _known_start(cls, start: str) -> str:
        check_iso("experiment.start", start)
        return start
