"""Rules for single users: items that their lists leave out, the only ones that they may have, and pinned ones.

The files of `score.exclude`, `score.candidates` and `score.pin` are read once a scoring, into a folder that every process of the
scoring opens (`UserFile`).
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from models.histories import Histories, Int32, Int64, ItemSets, Shortlists
from models.recommendation.answer import Answer
from models.recommendation.pins import REASONS, Pins, pinned
from models.recommendation.rules import Rules
from pipeline.errors import LookbackError
from pipeline.serving import user_files
from pipeline.serving.user_files import UserFile

if TYPE_CHECKING:
    from pipeline.sections import ScoreConfig

FOLDER = "user_rules"
KEYS = ("exclude", "candidates", "pin")
"""Keys of `score` with a file."""
PLACED, MOVED = "pins_placed", "pins_moved_up"


@dataclass(frozen=True)
class _Listed:
    """A file's pairs in a bundle's numbering of items."""

    file: UserFile
    numbers: Int32
    """[items of the file] the bundle's item, 0: unknown"""

    @classmethod
    def open(cls, folder: Path, items: Vocabulary) -> "_Listed | None":
        if not folder.exists():
            return None
        file = UserFile.open(folder)
        return cls(file, file.numbers(items))

    @property
    def num_known(self) -> int:
        """Rows of scored users with known items."""
        return int(self.file.rows_of_item[self.numbers > 0].sum())

    def counts(self, key: str) -> dict[str, int]:
        """Rows that apply, and those of users without a list and of unknown items."""
        unknown = int(self.file.rows_of_item.sum()) - self.num_known
        return {
            f"{key}_rows": self.num_known,
            f"{key}_unknown_users": self.file.num_unknown_users,
            f"{key}_unknown_items": unknown,
        }

    def sets(self, users: Int64) -> ItemSets:
        """Known items of each of some scored users."""
        row, position = self.file.of_users(users)
        item = self.numbers[self.file.item[position]]
        width = int(item.max(initial=0)) + 1
        pair = np.sort((row * width + item)[item > 0])
        pair = pair[np.diff(pair, prepend=-1) > 0]  # faster than `np.unique`
        return ItemSets.of(pair // width, pair % width, len(users))

    def pins(self, users: Int64) -> Pins:
        """Pins of some scored users, their own and those for all."""
        row, position = self.file.of_users(users)
        of_all = self.file.of_users(np.array([self.file.num_users]))[1]
        row = np.concatenate((row, np.repeat(np.arange(len(users)), len(of_all))))
        is_own = np.arange(len(row)) < len(position)
        position = np.concatenate((position, np.tile(of_all, len(users))))
        return Pins(
            row, self.numbers[self.file.item[position]], self.file.rank[position].astype(np.int64), is_own
        )


@dataclass(frozen=True)
class UserRules:
    """Rules of single users, by their number among the scored ones."""

    exclude: _Listed | None
    candidates: _Listed | None
    pin: _Listed | None

    @classmethod
    def open(cls, folder: Path, items: Vocabulary) -> "UserRules":
        """Rules that `prepare` wrote, in the numbering of a bundle's items."""
        return cls(*(_Listed.open(folder / key, items) for key in KEYS))

    def applied(self, users: Int64, known: Histories) -> Histories:
        """Histories of some scored users with the items that lists leave out besides, and with shortlists."""
        if self.exclude is not None:
            excluded = self.exclude.sets(users)
            known = replace(
                known, left_out=excluded if known.left_out is None else excluded.union(known.left_out)
            )
        if self.candidates is not None:
            sets, is_limited = self.candidates.sets(users), self.candidates.file.has_any(users)
            known = replace(known, shortlist=Shortlists(sets.item_index, sets.starts, sets.ends, is_limited))
        return known

    def pinned(
        self, users: Int64, known: Histories, answer: Answer, rules: Rules
    ) -> tuple[Answer, dict[str, int]]:
        """Lists of some scored users with their pins, and counts of those placed, moved up and dropped."""
        if self.pin is None:
            return answer, {}
        pins, dropped = self.pin.pins(users).allowed(known, rules)
        answer, num_moved = pinned(answer, pins)
        counts = {PLACED: len(pins), MOVED: num_moved}
        return answer, counts | {f"pins_{reason}": number for reason, number in dropped.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each file that apply, and those of unknown users and items; with candidates also the users who have any.

        Raises LookbackError where no user has a known candidate.
        """
        counts: dict[str, int] = {}
        for key in KEYS:
            if (listed := getattr(self, key)) is not None:
                counts |= listed.counts(key)
        if (listed := self.candidates) is not None:
            if not listed.num_known:
                raise LookbackError(
                    f"score.candidates: no user has a known candidate ({counts['candidates_unknown_users']:,} rows of users "
                    f"without a list, {counts['candidates_unknown_items']:,} of unknown items); expected ids of the log"
                )
            offsets = listed.file.offsets[:-1]
            counts["users_with_candidates"] = int(np.count_nonzero(np.diff(offsets)))
        return counts


def prepare(settings: "ScoreConfig", users: pl.Series, folder: Path) -> Path | None:
    """Write the files of the settings into a folder, for scored users; None, and no folder, without any.

    What an interrupted run left there is written anew. Raises LookbackError as `user_files.write` does.
    """
    shutil.rmtree(folder, ignore_errors=True)
    paths = {key: getattr(settings, key) for key in KEYS}
    for key, path in paths.items():
        if path is not None:
            max_rank = settings.k if key == "pin" else None
            user_files.write(f"score.{key}", Path(path), users, folder / key, max_rank)
    return folder if any(path is not None for path in paths.values()) else None


def of_user(settings: "ScoreConfig", user: str, items: Vocabulary) -> UserRules:
    """Rules of one user, in the numbering of a bundle's items; raises LookbackError as `prepare` does."""
    with TemporaryDirectory() as folder:
        prepare(settings, pl.Series([user]), Path(folder) / FOLDER)
        return UserRules.open(Path(folder) / FOLDER, items)


def pin_counts(settings: "ScoreConfig") -> tuple[str, ...]:
    """Names of the counts of pins, where there is a file of them."""
    names = (PLACED, MOVED, *(f"pins_{reason}" for reason in REASONS))
    return names if settings.pin is not None else ()


def sentence(counts: Mapping[str, int]) -> str:
    """Counts of the rules, for the summary line."""
    parts = []
    if "exclude_rows" in counts:
        parts.append(f"{counts['exclude_rows']:,} rows of score.exclude{_unknown(counts, 'exclude')}")
    if "candidates_rows" in counts:
        users = counts["users_with_candidates"]
        parts.append(
            f"{counts['candidates_rows']:,} candidates of {users:,} users{_unknown(counts, 'candidates')}"
        )
    if "pin_rows" in counts:
        dropped = {reason.replace("_", " "): counts[f"pins_{reason}"] for reason in REASONS}
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
        moved = f", {counts[MOVED]:,} of them moved up" if counts[MOVED] else ""
        without = f", dropped: {reasons}" if reasons else ""
        parts.append(f"{counts[PLACED]:,} pins{moved}{without}{_unknown(counts, 'pin')}")
    return "".join(f", {part}" for part in parts)


def _unknown(counts: Mapping[str, int], key: str) -> str:
    users, items = counts[f"{key}_unknown_users"], counts[f"{key}_unknown_items"]
    named = [
        f"{number:,} {text}"
        for number, text in ((users, "of users without a list"), (items, "of unknown items"))
        if number
    ]
    return f" (besides {' and '.join(named)})" if named else ""
