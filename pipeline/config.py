"""The typed configuration tree: one TOML file, overrides by `--set`, every key with its unit and default."""

import dataclasses
import datetime
import difflib
import tomllib
import types
import typing
import zoneinfo
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from models.settings.encoder import EncoderSettings
from models.settings.index import IndexSettings
from models.settings.ranker import RankerSettings
from models.settings.training import TrainSettings, check_together
from pipeline.errors import ConfigError

FileFormat = Literal["csv", "jsonl", "parquet", "json"]
Column = str | int
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "value", "event_type")
TIMESTAMP_UNITS = ("s", "ms", "us", "ns", "iso", "position")
MODEL = "lookback"
"""What the model is called beside the baselines, in metrics.json and targets.parquet."""
BASELINES = ("popularity", "recent_popularity", "co_visitation", "item_knn", "ease", "als", "gru")
GATE_METRICS = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")
ITEM_COLUMNS = ("item_id", "title", "categories", "text", "embedding")


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are refused before it is built."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=()
    )


class Table(Section):
    """Where a table of the log lies and what form it has."""

    path: str | list[str]
    """A file, folder, glob, or a list of them, relative to the working directory or in an object store (`s3://`, `gs://`,
    `az://`); `{data_dir}` and `{name}` are filled in."""
    format: FileFormat | None = None
    """csv, jsonl, parquet (json for an object from item to attributes); default: by the extension."""
    separator: str = Field(",", min_length=1)
    """csv: what stands between fields, any number of characters."""
    header: bool = True
    """csv: whether the first line names the columns."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """csv, jsonl: how bytes become text."""
    columns: dict[str, Column] = {}
    """Our name for a column to the source's name, or its position from 1."""

    @pydantic.field_validator("path")
    @classmethod
    def _some_path(cls, path: str | list[str]) -> str | list[str]:
        if not path or (isinstance(path, list) and "" in path):
            raise ValueError(f"received {path!r}, expected a file, folder or glob, or a list of them")
        return path

    @pydantic.field_validator("separator")
    @classmethod
    def _no_quotes(cls, separator: str) -> str:
        if set(separator) & set('"\r\n'):
            raise ValueError(f"received {separator!r}, expected text without quotes and line ends")
        return separator

    @pydantic.field_validator("columns")
    @classmethod
    def _positions_from_one(cls, columns: dict[str, Column]) -> dict[str, Column]:
        for ours, theirs in columns.items():
            if isinstance(theirs, int) and theirs < 1:
                raise ValueError(f"column {ours!r}: received position {theirs}, expected a position from 1")
        return columns


class EventsConfig(Table):
    """`[events]`: the behaviour log, one row per event."""

    timestamp_unit: str = "s"
    """s, ms, us, ns, iso, a strftime pattern, or position (only each user's order is known)."""
    timezone: str = "UTC"
    """Time zone of timestamps that carry none, as in the IANA database."""
    types: dict[str, float] | None = None
    """Event types that count, with their weight in training; others are left out and counted. Default: all, weight 1."""
    min_value: float | None = None
    """Events with a smaller value are left out and counted, in the log's own unit."""
    id_types: Literal["auto", "int64", "string"] = "auto"
    """Type of user and item ids; auto: int64 if every accepted id of the column is a canonical int64, else string.

    What auto found for a log holds: a later file with text among int64 ids stops (set string, or int64, which refuses such
    rows); `--force` decides anew.
    """
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to exact repeats of user, item, timestamp and type; drop reads the whole log every time."""
    max_refused_fraction: float = Field(0.05, ge=0, le=1)
    """Share of rows in quarantine above which ingest stops, in a file of which hardly a row is good after a million."""
    exclude_users: str | None = None
    """A Parquet file with `user_id`: users to leave out of everything from now on; `prune --excluded` removes what holds them.

    Rows that cannot be parsed have no user: those stay in quarantine.
    """
    earliest: str = "1990-01-01"
    """ISO date; events before it have an impossible time."""
    max_days_ahead: float = Field(1.0, ge=0)
    """Days after now beyond which an event's time is impossible."""

    @pydantic.model_validator(mode="after")
    def _required_columns(self) -> "EventsConfig":
        _check_columns("events", self.columns, EVENT_COLUMNS, ("user_id", "item_id", "timestamp"))
        if self.types is not None and "event_type" not in self.columns:
            raise ValueError(
                "events.types: received types, but events.columns names no event_type; expected a column for it"
            )
        if self.types is not None and (not self.types or min(self.types.values()) < 0):
            raise ValueError(
                f"events.types: received {self.types}, expected at least one type and no negative weight"
            )
        if self.min_value is not None and "value" not in self.columns:
            raise ValueError(
                "events.min_value: received a value, but events.columns names no value; expected a column for it"
            )
        if self.timestamp_unit not in TIMESTAMP_UNITS and "%" not in self.timestamp_unit:
            raise ValueError(
                f"events.timestamp_unit: received {self.timestamp_unit!r}, expected {', '.join(TIMESTAMP_UNITS)} or a strftime "
                "pattern such as '%d/%m/%Y %H:%M'"
            )
        _check_iso("events.earliest", self.earliest)
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"events.timezone: received {self.timezone!r}, expected an IANA name such as Europe/Berlin"
            ) from None
        return self


class ItemsConfig(Table):
    """`[items]`: what is known about items."""

    category_separator: str = Field("|", min_length=1)
    """What stands between the categories of one item."""
    text_dim: int = Field(64, ge=0)
    """Width of the vectors that title and text become, in components; 0: text is not used."""
    text_max_words: int = Field(50_000, ge=1)
    """Words of titles and texts that count, the most frequent ones, at most."""
    text_min_items: int = Field(2, ge=1)
    """Items that a word must be in to count."""

    @pydantic.model_validator(mode="after")
    def _known_columns(self) -> "ItemsConfig":
        if self.columns:
            _check_columns("items", self.columns, ITEM_COLUMNS, ("item_id",))
        return self


class UsersConfig(Table):
    """`[users]`: what is known about users; besides `user_id`, any attribute under any name."""

    @pydantic.model_validator(mode="after")
    def _has_user(self) -> "UsersConfig":
        if "user_id" not in self.columns:
            raise ValueError(f"users.columns: received {sorted(self.columns)}, expected a column for user_id")
        return self


class HistoryConfig(Section):
    """`[history]`: what the model looks back over."""

    max_length: int = Field(200, ge=1)
    """Events that the model looks back over, at most."""
    min_user_events: int = Field(1, ge=1)
    """Core filter: events a user must have, repeated with the next until stable."""
    min_item_events: int = Field(1, ge=1)
    """Core filter: events an item must have."""
    repeats: Literal["keep", "drop_consecutive"] = "keep"
    """Whether an event on the same item as the user's previous one stays in the history."""


class SplitConfig(Section):
    """`[split]`: what is held out to judge the model."""

    protocol: Literal["temporal", "leave_one_out"] = "temporal"
    """temporal: the last events by time; leave_one_out: each user's last event."""
    test_fraction: float = Field(0.1, gt=0, lt=1)
    """temporal: share of events, the last by time, that are the test."""
    test_from: str | None = None
    """temporal: ISO time at which the test begins, instead of `test_fraction`."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """temporal: share of events before the test that are validation."""
    ties: Literal["order", "strict"] = "order"
    """order: (timestamp, source file, source row) decides; strict: events at the target's own time are not in its history."""
    cuts: int = Field(1, ge=1)
    """temporal: how many times the log is cut, each time `test_fraction` earlier: the rolling protocol; 1: once, at its end."""
    held_back: float = Field(0.0, ge=0, lt=1)
    """temporal: share of events, the last by time, that are in no part: the log as it was some time ago."""

    @pydantic.model_validator(mode="after")
    def _something_to_train_on(self) -> "SplitConfig":
        if self.test_from is not None:
            _check_iso("split.test_from", self.test_from)
        if (self.cuts > 1 or self.held_back) and (self.test_from is not None or self.protocol != "temporal"):
            raise ValueError(
                f"split: received cuts {self.cuts} and held_back {self.held_back} with protocol {self.protocol!r} and test_from "
                f"{self.test_from!r}, expected protocol 'temporal' with test_fraction: cuts are shares of the log by time"
            )
        taken = self.cuts * self.test_fraction + self.validation_fraction + self.held_back
        if self.test_from is None and taken >= 1:
            raise ValueError(
                f"split: received test_fraction {self.test_fraction} x cuts {self.cuts} + validation_fraction "
                f"{self.validation_fraction} + held_back {self.held_back}, expected less than 1 together, so that something is "
                "left to train on"
            )
        return self


class EvaluateConfig(Section):
    """`[evaluate]`: how the model is judged."""

    k: list[int] = [10, 200]
    """Lengths of the lists that metrics look at."""
    exclude_seen: bool | None = None
    """Whether items already in the history are masked; default: as `score.exclude_seen`."""
    targets: Literal["successive", "first"] = "successive"
    """successive: each of a user's held-out events, one after the other; first: the first of them alone."""
    target_types: list[str] | None = None
    """Event types whose held-out events are targets of validation and test; default: all. `events.types` is about training."""
    cold_users: bool = False
    """Whether targets without any history count in the metrics; they are reported apart all the same."""
    cold_items: bool = False
    """Whether targets on items unseen in training count in the metrics: as misses, but for systems that know them by content
    (`model.item_content`), which rank them; they are reported apart all the same."""
    baselines: Literal["all"] | list[str] = "all"
    """Which baselines stand beside the model: all, or a list of names."""
    recent_days: float | list[float] = [1.0, 3.0, 7.0, 30.0]
    """Days before the end of the training data that count as recent popularity; of several, validation chooses."""
    gru_dim: int = Field(64, ge=1)
    """Width of the baseline `gru`, in components."""
    gru_epochs: int = Field(30, ge=1)
    """Passes over the training histories of the baseline `gru`, at most; validation chooses the epoch."""
    gru_patience: int = Field(3, ge=1)
    """Epochs without a better validation NDCG@10 before the baseline `gru` stops."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of users behind each interval."""
    training_fractions: list[float] = []
    """Shares of the training users on which the model is trained once more, such as [0.1, 0.3], to see what more data brings."""
    gate: bool = True
    """Whether the alias champion moves only on a paired test."""
    gate_metric: str = "ndcg@10"
    """Metric over targets that the gate compares; its list length must be among `k`."""
    gate_margin: float = Field(0.005, ge=0)
    """How much worse than the champion a challenger may turn out at the interval's lower end, in the metric's unit."""

    @pydantic.field_validator("k")
    @classmethod
    def _positive(cls, k: list[int]) -> list[int]:
        if not k or min(k) < 1:
            raise ValueError(f"evaluate.k: received {k}, expected list lengths of at least 1")
        return sorted(set(k))

    @pydantic.field_validator("baselines")
    @classmethod
    def _known_baselines(cls, names: str | list[str]) -> str | list[str]:
        for name in names if isinstance(names, list) else []:
            if name not in BASELINES:
                raise ValueError(
                    f"evaluate.baselines: received {name!r}, expected names among {', '.join(BASELINES)}"
                )
        return names

    @pydantic.field_validator("recent_days", "training_fractions")
    @classmethod
    def _positive_numbers(
        cls, value: float | list[float], about: pydantic.ValidationInfo
    ) -> float | list[float]:
        numbers = value if isinstance(value, list) else [value]
        most = 1.0 if about.field_name == "training_fractions" else float("inf")
        if not all(0 < number <= most for number in numbers) or (
            about.field_name == "recent_days" and not numbers
        ):
            raise ValueError(
                f"evaluate.{about.field_name}: received {value}, expected numbers above 0"
                + (", 1 at most" if most == 1 else "")
            )
        return value

    @pydantic.model_validator(mode="after")
    def _gate_can_be_measured(self) -> "EvaluateConfig":
        measured = [f"{metric}@{k}" for k in self.k for metric in GATE_METRICS]
        if self.gate and self.gate_metric not in measured:
            if "gate_metric" in self.model_fields_set:
                raise ValueError(
                    f"evaluate.gate_metric: received {self.gate_metric!r}, expected one of {', '.join(measured)}"
                )
            object.__setattr__(self, "gate_metric", f"ndcg@{self.k[0]}")
        return self


class ScoreConfig(Section):
    """`[score]`: recommendations for users in batch."""

    model: str = "run"
    """run: what this configuration published; champion; or models:/NAME/VERSION. The last two train nothing."""
    k: int = Field(10, ge=1)
    """Recommendations per user."""
    users: str = "all"
    """all, a Parquet file with `user_id`, or an ISO date (users active since)."""
    exclude_seen: bool = True
    """Whether items already in the user's history are left out."""
    allow: str | list[str] | None = None
    """The only items to recommend: a Parquet file with `item_id`, or a list of ids; default: all."""
    deny: str | list[str] | None = None
    """Items never to recommend, in the same form; ids that are not known are counted."""
    availability: str | None = None
    """A Parquet file with `item_id`, `available_from`, `available_until` (dates or times, UTC where they carry no zone; null: no
    limit): an item is recommended from the one until before the other; one that is not in the file, always."""
    at: str | None = None
    """ISO time at which recommendations are shown, for `availability`; default: the time of the log's newest event."""
    max_per_category: int = Field(0, ge=0)
    """Items of one category per user, at most; 0: any number."""
    diversity: float = Field(0.0, ge=0, lt=1)
    """Weight of being unlike the items higher in the list, in [0, 1): 1 - lambda of maximal marginal relevance; 0: off."""
    popularity_damping: float = Field(0.0, ge=0)
    """What the most popular item loses, where 1 is the range of the scores of a user's candidates; 0: off."""
    exploration: float = Field(0.0, ge=0, le=1)
    """Share of the k places, the last ones, that are drawn from the candidates beyond them; 0: off."""
    new_items: bool = True
    """Whether items that came after training and about which something is said are recommended."""
    segment: str = "auto"
    """Column of the users' table whose values are segments: users without a known interaction get what was popular of late in
    theirs. auto: the first column with 2 to 20 values; none."""
    because: bool = True
    """Whether each recommendation says what in the history it is based on."""
    because_method: Literal["fast", "balanced", "exact"] = "balanced"
    """exact: leave each interaction out and score again, a pass for each; balanced: so on the last position's own way, beside it
    by slopes; fast: slopes alone. Both leave the last one out as exact does, are alike for gru, and are as exact where a layer
    neither attends nor is a gru, looks both ways, or a readout averages or looks for each candidate."""
    because_items: int = Field(3, ge=1)
    """Past interactions named per recommendation, at most."""
    batch_users: int = Field(1024, ge=1)
    """Users encoded and searched at a time."""
    shard_users: int = Field(50_000, ge=1)
    """Users per Parquet file, the unit in which an interrupted run continues."""
    engine: Literal["local", "ray"] = "local"
    """local: this process; ray: tasks of Ray (the extra `ray`), a shard each, in a cluster (RAY_ADDRESS) or on this machine."""
    workers: int = Field(2, ge=1)
    """ray: processes on this machine, where there is no cluster."""

    @pydantic.field_validator("users")
    @classmethod
    def _known_users(cls, users: str) -> str:
        if users != "all" and not users.endswith(".parquet"):
            _check_iso("score.users", users, "all, a .parquet file with user_id, or ")
        return users

    @pydantic.field_validator("at")
    @classmethod
    def _known_time(cls, at: str | None) -> str | None:
        if at is not None:
            _check_iso("score.at", at)
        return at

    @pydantic.field_validator("allow", "deny", "availability")
    @classmethod
    def _a_parquet_file(
        cls, items: str | list[str] | None, about: pydantic.ValidationInfo
    ) -> str | list[str] | None:
        if isinstance(items, str) and not items.endswith(".parquet"):
            raise ValueError(
                f"score.{about.field_name}: received {items!r}, expected a .parquet file with item_id"
                + ("" if about.field_name == "availability" else ", or a list of ids")
            )
        return items

    @pydantic.field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        if model in ("run", "champion") or (model.startswith("models:/") and model.count("/") == 2):
            return model
        raise ValueError(f"score.model: received {model!r}, expected run, champion, or models:/NAME/VERSION")


class TrackingConfig(Section):
    """`[tracking]`: MLflow."""

    enabled: bool = True
    """Whether runs are logged."""
    uri: str | None = None
    """Tracking server; default: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db."""
    port: int = Field(5000, ge=1, le=65535)
    """Port on which `make ui` serves, on 127.0.0.1."""
    system_seconds: float = Field(10.0, ge=0)
    """Seconds between samples of processor, memory, disk, network and GPU while a stage runs; one more at its end. 0: none."""


class ReportConfig(Section):
    """`[report]`: the HTML page."""

    num_users: int = Field(20, ge=1)
    """Example users shown with their history and recommendations."""


class SimulateConfig(Section):
    """`[simulate]`: the demo log is generated before it is read."""

    num_users: int = Field(5000, ge=10)
    """Users."""
    num_items: int = Field(2000, ge=50)
    """Items in the catalogue."""
    num_events: int = Field(200_000, ge=100)
    """Events, about."""
    num_days: int = Field(90, ge=2)
    """Days that the log covers."""
    noise_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of events that have nothing to do with the user's tastes."""
    bad_row_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of rows that are bad in various ways."""


class DataConfig(Section):
    """`[data]`: where the public data set can be downloaded."""

    url: str | None = None
    """Address of the archive; without one `instructions` say where it is to be had."""
    digest: str | None = None
    """Pinned digest of the archive: md5:… or sha256:…"""
    member: str = ""
    """Folder inside the archive that holds the files."""
    folder: str
    """Where the files go, relative to the working directory."""
    files: list[str] = []
    """Files that must be there afterwards."""
    instructions: str = ""
    """What to do by hand where there is no address."""


class TuneConfig(Section):
    """`[tune]`: hyper-parameter search."""

    space: dict[str, dict[str, float | int | bool] | list[Any]] = {
        "train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True},
        "model.dropout": {"low": 0.1, "high": 0.5},
        "model.dim": [32, 64, 128],
        "model.num_blocks": [1, 2, 3],
    }
    """A key to {low, high, log} or to a list of choices."""
    pruner: Literal["median", "halving", "none"] = "median"
    """What ends a trial early, by validation NDCG@10. median: its best epoch so far is below the median of finished trials at the
    same epoch; halving: after `warmup_epochs`, 3, 9, … times as many, it is not among the best third that came so far."""
    warmup_epochs: int = Field(5, ge=1)
    """Epochs that every trial gets."""
    warmup_trials: int = Field(5, ge=1)
    """median: trials that must have ended by themselves before one is pruned."""
    max_seconds: float = Field(0, ge=0)
    """No further trial begins after so long; 0: no limit."""

    @pydantic.field_validator("space", mode="before")
    @classmethod
    def _keys_without_quotes(cls, space: Any) -> Any:
        """In TOML `train.dropout = …` without quotes is a table in a table."""
        if not isinstance(space, dict):
            return space
        flat: dict[str, Any] = {}
        for key, what in space.items():
            is_section = isinstance(what, dict) and "." not in key and not {"low", "high"} & set(what)
            flat |= {f"{key}.{name}": each for name, each in what.items()} if is_section else {key: what}
        return flat


class Config(Section):
    """The whole configuration of one pipeline."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Artifacts go to <data_dir>/<name>/; the MLflow experiment has this name."""
    data_dir: str = "data"
    """Folder for artifacts, relative to the working directory."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    events: EventsConfig
    items: ItemsConfig | None = None
    users: UsersConfig | None = None
    history: HistoryConfig = HistoryConfig()
    split: SplitConfig = SplitConfig()
    model: EncoderSettings = EncoderSettings()
    train: TrainSettings = TrainSettings()
    index: IndexSettings = IndexSettings()
    ranker: RankerSettings = RankerSettings()
    evaluate: EvaluateConfig = EvaluateConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    simulate: SimulateConfig | None = None
    data: DataConfig | None = None
    tune: TuneConfig = TuneConfig()

    @pydantic.model_validator(mode="after")
    def _position_logs_have_no_time(self) -> "Config":
        if self.events.timestamp_unit == "position" and self.split.protocol == "temporal":
            raise ValueError(
                "split.protocol: received 'temporal' with events.timestamp_unit 'position', expected 'leave_one_out': "
                "where only each user's order is known there is no common time to split at"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _model_fits_the_log(self) -> "Config":
        check_together(self.model, self.train)
        needed = {
            "time_bias": (
                self.events.timestamp_unit != "position",
                "a log with times (events.timestamp_unit)",
            ),
            "calendar": (
                self.events.timestamp_unit != "position",
                "a log with times (events.timestamp_unit)",
            ),
            "value": ("value" in self.events.columns, "a column for value in events.columns"),
            "item_content": (self.items is not None, "a section [items] that says where the content is"),
        }
        for key, (is_there, what) in needed.items():
            if getattr(self.model, key) and not is_there:
                raise ValueError(f"model.{key}: received true, expected {what}; without it, false")
        return self

    @property
    def exclude_seen(self) -> bool:
        """Whether evaluation masks items already in the history."""
        return self.score.exclude_seen if self.evaluate.exclude_seen is None else self.evaluate.exclude_seen

    @property
    def folder(self) -> Path:
        """Where this pipeline's artifacts lie."""
        return Path(self.data_dir) / self.name

    def get(self, key: str) -> Any:
        """The plain value (numbers, strings, lists, dictionaries) at a dotted key such as `train.epochs`."""
        value: Any = self.model_dump(mode="json")
        for part in key.split("."):
            value = None if value is None else value[part]
        return value


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration in a TOML file, with `key=value` overrides.

    Raises ConfigError for a file that is not there or not TOML, an unknown key (the nearest valid one is named),
    a value of the wrong type or out of range.
    """
    tree = _read(Path(path))
    for override in overrides:
        _set(tree, override)
    _refuse_unknown(tree, Config, "", str(path))
    _fill_paths(tree)
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, path)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return _dates_as_text(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"configuration {path}: no such file; expected a TOML file (see pipeline/configs/)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path}: not valid TOML: {error}") from None


def _dates_as_text(tree: dict[str, Any]) -> dict[str, Any]:
    """Bare TOML dates and times as ISO text, which is what the keys hold."""
    return {
        key: _dates_as_text(value)
        if isinstance(value, dict)
        else value.isoformat()
        if isinstance(value, datetime.date | datetime.time)
        else value
        for key, value in tree.items()
    }


def _set(tree: dict[str, Any], override: str) -> None:
    """Write one `section.key=value` into the tree; the value is TOML, or else a plain string."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected key=value, such as train.epochs=3")
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    node[parts[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if isinstance(value, datetime.date | datetime.time) else value


def _fields(owner: Any) -> dict[str, Any] | None:
    """Field name to annotation of a section, or None where the type is not a section."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    if dataclasses.is_dataclass(owner):
        return typing.get_type_hints(owner)
    return None


def _options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return (
        get_args(annotation) if get_origin(annotation) in (types.UnionType, typing.Union) else (annotation,)
    )


def _refuse_unknown(tree: dict[str, Any], owner: Any, prefix: str, where: str) -> None:
    fields = _fields(owner) or {}
    for key, value in tree.items():
        if key not in fields:
            near = _nearest(f"{prefix}{key}", key, [prefix + name for name in fields])
            raise ConfigError(f"{where}: unknown key {prefix + key!r}; did you mean {near!r}?")
        options = _options(fields[key])
        section = next((option for option in options if _fields(option) is not None), None)
        if section is not None and isinstance(value, dict):
            _refuse_unknown(value, section, f"{prefix}{key}.", where)
        elif section is not None:
            raise ConfigError(
                f"{where}: {prefix + key}: received {value!r}, expected a section [{prefix + key}]"
            )
        elif isinstance(value, bool) and bool not in options and Any not in options:
            raise ConfigError(
                f"{where}: {prefix + key}: received {str(value).lower()}, expected {fields[key]}"
            )


def _nearest(full: str, key: str, siblings: list[str]) -> str:
    """The nearest valid key: among the siblings first, then anywhere in the tree."""
    everywhere = siblings + [name for name in all_keys() if name not in siblings]
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(everywhere)}
    for near in (
        difflib.get_close_matches(full, siblings, 1, 0.6),
        difflib.get_close_matches(key, by_leaf, 1, 0.6),
    ):
        if near:
            return by_leaf.get(near[0], near[0])
    return difflib.get_close_matches(full, everywhere, 1, 0.0)[0]


def all_keys(owner: Any = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    keys = []
    for name, annotation in (_fields(owner) or {}).items():
        section = next((option for option in _options(annotation) if _fields(option) is not None), None)
        keys += all_keys(section, f"{prefix}{name}.") if section is not None else [prefix + name]
    return keys


def _fill_paths(tree: dict[str, Any]) -> None:
    """Put data_dir and name into the paths that ask for them."""
    names = {"data_dir": str(tree.get("data_dir", "data")), "name": str(tree.get("name", ""))}

    def fill(path: Any) -> Any:
        if isinstance(path, list):
            return [fill(each) for each in path]
        return (
            path.replace("{data_dir}", names["data_dir"]).replace("{name}", names["name"])
            if isinstance(path, str)
            else path
        )

    for section in ("events", "items", "users"):
        if isinstance(tree.get(section), dict) and "path" in tree[section]:
            tree[section]["path"] = fill(tree[section]["path"])


def _explain(error: pydantic.ValidationError, path: str | Path) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(
                f"{path}: {key} is missing; expected it to be set ([events] needs path and columns, and name is required)"
            )
        elif problem["type"] in ("value_error", "assertion_error"):
            lines.append(
                f"{path}: {message}" if key.split(".")[0] in message else f"{path}: {key}: {message}"
            )
        else:
            lines.append(f"{path}: {key}: received {problem['input']!r}: {message[0].lower()}{message[1:]}")
    return "\n".join(dict.fromkeys(lines))


def _check_iso(key: str, text: str, otherwise: str = "") -> None:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{key}: received {text!r}, expected {otherwise}an ISO date such as 2026-01-31"
        ) from None


def _check_columns(
    section: str, columns: dict[str, Column], known: tuple[str, ...], required: tuple[str, ...]
) -> None:
    for ours in columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, known, 1, 0.0)[0]
            raise ValueError(
                f"unknown key '{section}.columns.{ours}'; did you mean '{section}.columns.{near}'?"
            )
    missing = [name for name in required if name not in columns]
    if missing:
        raise ValueError(
            f"{section}.columns: received {sorted(columns)}, expected a column for {', '.join(missing)} too"
        )
