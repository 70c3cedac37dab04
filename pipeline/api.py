"""Python interface for notebooks: run stages, read their results.

    from pipeline import api

    run = api.run("shop.toml", ["all"])
    run.recommendations.head()

Relative paths (configurations, logs, `data_dir`) start at the working directory, as on the command line.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, load_config
from pipeline.configs import find
from pipeline.errors import ConfigError
from pipeline.orchestration.graph import ALL, finished_folder

if TYPE_CHECKING:
    import polars as pl


class Run:
    """Finished run of one configuration: folders, tables, metrics, report.

    Every property raises LookbackError, naming the command to run, where its stage has no up-to-date artifact or a file of it
    differs from its digest.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._folders: dict[str, Path] = {}

    def folder(self, stage: str) -> Path:
        """Folder of a stage's up-to-date artifact, resolved once, so that later changes of the log have no effect.

        Raises ConfigError for an unknown stage.
        """
        if stage not in self._folders:
            self._folders[stage] = finished_folder(self.config, stage).absolute()
        return self._folders[stage]

    def _verified(self, stage: str) -> Path:
        """Folder of a stage, each file checked against its digest, once per process."""
        from pipeline.artifacts.store import Artifact

        folder = self.folder(stage)
        Artifact(folder.parent, folder.name).verify()
        return folder

    def manifest(self, stage: str) -> dict[str, Any]:
        """Inputs, settings, row counts, seconds, peak memory and versions of a stage, from its manifest.json."""
        from pipeline.artifacts.store import read_manifest

        return read_manifest(self.folder(stage))

    @property
    def events(self) -> "pl.LazyFrame":
        """Accepted events of the log: user_id, item_id, timestamp, event_type, value, source_file, source_row."""
        import polars as pl

        return pl.scan_parquet(self._verified("ingest") / "events" / "*.parquet")

    @property
    def recommendations(self) -> "pl.DataFrame":
        """Recommendations of every user: user_id, item_id, rank, score, because, and proven with proven reasons."""
        import polars as pl

        return pl.read_parquet(self._verified("score") / "recommendations" / "*.parquet")

    @property
    def metrics(self) -> "pl.DataFrame":
        """Metrics on the test targets, a row per system and metric: system, metric, value, low, high.

        low, high: ends of the 95 % interval, or null.
        """
        import polars as pl

        from pipeline.evaluation.report import EvaluationReport

        report = EvaluationReport.load(self._verified("evaluate"))
        rows = [
            (system, metric, *report.value(system, metric))
            for system, values in report.metrics.items()
            for metric in values
        ]
        text, number = pl.String, pl.Float64
        schema = {"system": text, "metric": text, "value": number, "low": number, "high": number}
        return pl.DataFrame(rows, schema, orient="row")

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self._verified("report") / "report.html"

    def recommend(
        self, user_id: object = None, *, history: Sequence[object] | None = None, k: int = 10
    ) -> "pl.DataFrame":
        """Recommend k items for a user of the log, or for a history of item ids, oldest first, by the rules of `[score]`.

        Columns: rank, item_id, title, score, probability (with a calibrated ranker), columns of outcomes, because (and proven).
        Raises ConfigError unless exactly one of user_id and history is given; LookbackError for a missing model, an
        unknown user, or a history without a known item.
        """
        import polars as pl

        from pipeline.commands.recommend import recommend

        if (user_id is None) == (history is None):
            raise ConfigError("recommend: expected one of user_id and history")
        user = None if user_id is None else str(user_id)
        items = None if history is None else [str(item) for item in history]
        return pl.DataFrame(recommend(self.config, user, items, k).recommendations)


def run(
    config: str | Path | Config,
    stages: Sequence[str] = ("all",),
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (the command line's --set)
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Run:
    """Bring stages and their inputs up to date, as `lookback run` does; `all` is every stage but similar.

    config: path of a TOML file, name of a shipped configuration, or a Config; set: dotted key to value, over the file;
    force: rebuild the named stages even if up to date; say: receives one line per stage.
    Raises ConfigError for a wrong setting or stage, LookbackError for bad data or a failed stage.
    """
    from pipeline.orchestration.runner import bring_up_to_date, read_databases

    loaded = _load(config, set)
    names = [name for stage in stages for name in (ALL if stage == "all" else (stage,))]
    read_databases(loaded, names, force=force)
    bring_up_to_date(loaded, names, force=force, show_progress=sys.stderr.isatty(), say=say)
    return Run(loaded)


def open(  # noqa: A001  (api.open, as gzip.open)
    config: str | Path | Config,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (the command line's --set)
) -> Run:
    """Open the finished run of a configuration; nothing is built.

    config, set: as for `run`. Raises ConfigError for a wrong setting.
    """
    return Run(_load(config, set))


def _load(config: str | Path | Config, settings: Mapping[str, Any] | None) -> Config:
    """Load a configuration with overrides."""
    if isinstance(config, Config):
        if settings:
            raise ConfigError("set: received with a Config, expected with a file; change the Config itself")
        return config
    overrides = [f"{key}={_as_toml(key, value)}" for key, value in (settings or {}).items()]
    return load_config(find(config), overrides)


def _as_toml(key: str, value: Any) -> str:
    """Convert a value to TOML; raises ConfigError for an unsupported type."""
    if isinstance(value, Mapping):
        pairs = (
            f"{json.dumps(str(name), ensure_ascii=False)} = {_as_toml(key, entry)}"
            for name, entry in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_toml(key, entry) for entry in value)}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, bool | int | float):
        return repr(value).lower()
    raise ConfigError(
        f"set: {key}: received {value!r}, expected text, a number, a boolean, a list or a mapping"
    )
