"""`lookback deliver`: the live lists to the table of `[deliver]`."""

import datetime

import polars as pl

from pipeline.artifacts.store import LIVE, Artifact, linked, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, LookbackError
from pipeline.monitoring import ledger
from pipeline.release.list_table import Lists, write


def deliver(config: Config) -> str:
    """Write the live lists to the table of `[deliver]`, unless it has them already; returns that in one line.

    Raises ConfigError without `[deliver]`; LookbackError without live lists, or where the database does not take them.
    """
    settings, stage_folder = config.deliver, config.folder / "score"
    if settings is None:
        raise ConfigError(
            "deliver: received a configuration without [deliver], expected where to write the lists: "
            'database = "postgresql://db.example.com/shop" and table = "recommendations"'
        )
    live = linked(stage_folder).get(LIVE)
    if live is None:
        night = config.command(
            "run", "ingest", "features", "monitor", "score", settings=["score.model=champion"]
        )
        raise LookbackError(
            f"deliver: there are no live lists yet ({stage_folder / LIVE}); make them with: {night}"
        )
    lists = Artifact(stage_folder, live.name)
    lists.verify()
    made = ledger.of_manifest(config, lists.name, read_manifest(lists.folder))
    time = pl.Datetime("us", "UTC")
    facts = {
        "delivered_utc": pl.lit(datetime.datetime.fromisoformat(made.delivered_utc)).cast(time),
        "log_time": pl.lit(made.log_time if made.timed else None).cast(time),
        "model_version": pl.lit(made.model_version, pl.Int32),
    }
    shards = sorted((lists.folder / "recommendations").glob("*.parquet"))
    again = f"the lists stay in {stage_folder / LIVE}; to deliver them again: {config.command('deliver')}"
    try:
        rows = write(settings, Lists(shards, lists.name, facts))
    except (ValueError, LookbackError) as error:
        raise LookbackError(f"{error}; {again}") from None
    of = f"the lists of {made.night[:16]}" if made.timed else "the live lists"
    if rows is None:
        return f"delivered: table {settings.table} has {of} already"
    how = "beside the earlier ones" if settings.mode == "append" else "in place of the earlier ones"
    return f"delivered: {rows:,} rows, {of}, to table {settings.table}, {how}"
