"""Changes of lists as text, JSON and HTML."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import polars as pl

from features.printable import printable
from features.schema import ITEM_ID, PROVIDER
from models.evaluation.bootstrap import NO_DIFFERENCE
from models.evaluation.rank_overlap import PERSISTENCE
from pipeline.config import Config
from pipeline.evaluation.comparison import PHRASES, interval_text
from pipeline.evaluation.list_changes import (
    ListChanges,
    PlaceChange,
    Recommended,
    WhereListsDiffer,
    compare_lists,
    where_lists_differ,
)
from pipeline.evaluation.metric_names import display_name
from pipeline.reporting import templates
from pipeline.reporting.text_table import aligned
from pipeline.serving import popularity_fallback, scored_lists
from pipeline.serving.scored_lists import ScoredLists

MAX_TEXT = 160
"""Characters of a title on a page."""


@dataclass(frozen=True)
class ListComparison:
    """Comparison of the lists of two scorings, and of their models where the evaluated lists differ."""

    before: str
    after: str
    """Labels."""
    other_reasons: Sequence[str]
    """Reasons other than the model why lists may differ."""
    changes: ListChanges
    metric: WhereListsDiffer | None
    """None where an evaluation is gone, or nothing is common or differs."""

    @classmethod
    def of(cls, config: Config, before: ScoredLists, after: ScoredLists) -> "ListComparison":
        """Compare two scorings; titles, categories, providers and segments as of the later one."""
        items = _items(after)
        segment, table = None, after.ingest / "users.parquet"
        column = popularity_fallback.segment_column(config, table)
        if column is not None:
            users = after.scan().select("user_id").unique().collect()["user_id"]
            segment = pl.DataFrame(
                {"user_id": users, "segment": popularity_fallback.segment_of(table, column, users)}
            )
        first, second = before.evaluation, after.evaluation
        settings = config.evaluate
        metric = (
            where_lists_differ(first, second, settings.gate_metric, settings.resamples, config.seed)
            if first is not None and second is not None
            else None
        )
        return cls(
            before.label,
            after.label,
            scored_lists.differing(before, after),
            compare_lists(before.scan(), after.scan(), items, segment),
            metric,
        )

    @property
    def sentences(self) -> list[str]:
        """Users, overlap, other reasons and the metric, a sentence each."""
        changes = self.changes
        low, middle, high = changes.overlap_quantiles.values()
        others = f"{changes.other_items:,} of them other items"
        spread = f"median {middle:.3f}, a tenth of the users below {low:.3f}, a tenth above {high:.3f}"
        lines = [
            f"{changes.changed:,} of {changes.users:,} users get another list ({changes.changed / changes.users:.1%}), {others}.",
            f"Rank-biased overlap (p = {PERSISTENCE}, 1: the same list): mean {changes.overlap:.3f}, {spread}.",
        ]
        if changes.only_before or changes.only_after:
            lines.append(
                f"Not compared: {changes.only_before:,} users with a list of {self.before} alone, "
                f"{changes.only_after:,} of {self.after} alone."
            )
        if self.other_reasons:
            lines.append(f"Not only the model differs, but also {', '.join(self.other_reasons)}.")
        return [*lines, self._of_metric()]

    def _of_metric(self) -> str:
        metric = self.metric
        if metric is None:
            return (
                "The models have no common test targets with different lists, so the metric is not compared."
            )
        paired = metric.difference
        verdict = PHRASES[paired.verdict]
        shows = f"shows {verdict}" if paired.verdict == NO_DIFFERENCE else f"is {verdict}"
        return (
            f"Where the evaluated lists differ ({metric.differing:,} of {metric.requests:,} test requests that both evaluated, "
            f"{metric.users:,} users), {self.after} {shows} {self.before}: {display_name(metric.metric)} {metric.after:.4f} "
            f"against {metric.before:.4f}, difference {paired.difference:+.4f} "
            f"(95 % interval {interval_text(paired.low, paired.high, '+.4f')})."
        )

    def as_text(self) -> str:
        """Text for the terminal."""
        parts = [f"{self.before} -> {self.after}", *self.sentences]
        for kind, places in self.changes.places.items():
            rows = [[f"{kind}: gains places", self.before, self.after], *map(_row, places.gained)]
            rows += [[f"{kind}: loses places", "", ""], *map(_row, places.lost)]
            parts += ["", aligned(rows)]
        if self.changes.segments:
            rows = [["segment of users", "users", "other list", "overlap"]]
            rows += [
                [own.value, f"{own.users:,}", f"{own.changed:,}", f"{own.overlap:.3f}"]
                for own in self.changes.segments
            ]
            parts += ["", aligned(rows)]
        for user in self.changes.side_by_side:
            width = max(len(user.before), len(user.after))
            before, after = (
                [*map(_entry, own), *[""] * (width - len(own))] for own in (user.before, user.after)
            )
            head = [f"user {user.user_id}, overlap {user.overlap:.3f}: {self.before}", self.after]
            parts += ["", aligned([head, *zip(before, after, strict=True)])]
        return "\n".join(parts)

    def as_tree(self) -> dict[str, Any]:
        """JSON tree of --json."""
        return asdict(self)

    def as_page(self) -> str:
        """Self-contained HTML page."""
        return templates.template("list_page", short=partial(printable, limit=MAX_TEXT)).render(
            lists=self, made=datetime.datetime.now(datetime.UTC)
        )


def _items(lists: ScoredLists) -> pl.DataFrame:
    """Items of a scoring's log, with providers where its items table has them."""
    items, table = pl.read_parquet(lists.features / "items.parquet"), lists.ingest / "items.parquet"
    if not table.exists() or PROVIDER not in pl.read_parquet_schema(table):
        return items
    providers = pl.read_parquet(table, columns=[ITEM_ID, PROVIDER])
    return items.join(providers, on=ITEM_ID, how="left", maintain_order="left")


def _row(change: PlaceChange) -> list[str]:
    return [f"  {change.value}", f"{change.before:,}", f"{change.after:,}"]


def _entry(recommended: Recommended) -> str:
    because = f" ({', '.join(recommended.because)})" if recommended.because else ""
    return f"{recommended.title}{because}"
