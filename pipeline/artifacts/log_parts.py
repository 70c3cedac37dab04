"""Parts of one log: what is known about each, their files in an artifact, duplicates across them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features import schema
from features.events.parquet_parts import Description, find_duplicates, write_without
from features.events.row_counts import Counts
from pipeline.artifacts import event_parts
from pipeline.artifacts.source_changes import Source


@dataclass(frozen=True)
class Part:
    """Typed events (or exposures) and quarantine of one source."""

    source: Source
    folder: Path
    """Folder with events.parquet (or exposures.parquet), quarantine.parquet, part.json."""
    record: event_parts.Record

    @property
    def file_name(self) -> str:
        """File name in the artifact."""
        return f"{self.folder.name}.parquet"

    @property
    def counts(self) -> Counts:
        """Row counts; examples carry the present path of the file."""
        counts = Counts.from_json(self.record.facts["counts"])
        counts.examples = [row | {schema.SOURCE_PATH: self.source.path} for row in counts.examples]
        return counts

    @property
    def description(self) -> Description:
        """Statistics of the events."""
        return Description(**self.record.facts["description"])


def repeats(log: Sequence[Part], num_rows: int, *, drop: bool) -> pl.DataFrame:
    """Duplicates to drop: source_file, source_row."""
    if not drop or not num_rows:
        return pl.DataFrame(schema={schema.SOURCE_FILE: pl.String, schema.SOURCE_ROW: pl.Int64})
    return find_duplicates([part.folder / "events.parquet" for part in log], num_rows)


def place(
    folder: Path, log: Sequence[Part], repeated: pl.DataFrame | None = None, *, role: str = "events"
) -> dict[str, str]:
    """Link parts of events or exposures into the folder of an artifact, those with duplicates without them.

    repeated: `repeats`; default: none. Returns relative path to sha256 of the links.
    """
    (folder / role).mkdir(parents=True)
    (folder / "quarantine").mkdir(exist_ok=True)
    by_file = () if repeated is None else repeated.group_by(schema.SOURCE_FILE)
    rows = {source: frame[schema.SOURCE_ROW] for (source,), frame in by_file}
    digests: dict[str, str] = {}
    for part in log:
        if part.source.source_file in rows:
            target = folder / "events" / part.file_name
            write_without(part.folder / "events.parquet", rows[part.source.source_file], target)
        else:
            digests |= _link(folder, part, role)
        if part.record.facts["path"] == part.source.path:
            digests |= _link(folder, part, "quarantine")
        else:  # the file was renamed
            refused = schema.read(part.folder / "quarantine.parquet", schema.QUARANTINE)
            named = refused.with_columns(pl.lit(part.source.path).alias(schema.SOURCE_PATH))
            named.write_parquet(folder / "quarantine" / part.file_name)
    return digests


def _link(folder: Path, part: Part, name: str) -> dict[str, str]:
    target = f"{name}/{part.file_name}"
    is_linked = event_parts.link(part.folder / f"{name}.parquet", folder / target)
    return {target: part.record.digests[f"{name}.parquet"]} if is_linked else {}


@dataclass(frozen=True)
class SourceSummary:
    """A source in the manifest; counts before duplicates across parts are dropped."""

    paths: list[str]
    digest: str
    folders: str
    part: str
    rows_in: int
    rows_out: int
    rows_left_out: dict[str, int]
    values_left_out: dict[str, int]
    earliest: str | None
    latest: str | None
    events_by_type: dict[str, int]

    @classmethod
    def of(cls, part: Part) -> "SourceSummary":
        """Summary of a part."""
        counts, events = part.counts, part.description
        return cls(
            list(part.source.paths),
            part.source.digest,
            part.source.folders,
            part.file_name,
            counts.rows_in,
            counts.rows_out,
            counts.reasons(),
            dict(sorted(counts.values_left_out.items())),
            _iso(events.earliest),
            _iso(events.latest),
            events.events_by_type,
        )


def _iso(microseconds: int | None) -> str | None:
    return None if microseconds is None else f"{np.datetime64(microseconds, 'us')}Z"
