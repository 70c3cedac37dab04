"""Configuration sections of the pipeline itself, as frozen pydantic models."""

import math
import re
from pathlib import PurePosixPath
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from features.settings import check_iso
from models.settings.exploration import Exploration

MODEL = "lookback"
"""Name of the model in metrics.json and targets.parquet."""
DELIVERED = "delivered"
"""System of the lists that users received, in realised outcomes; the others are shadows, by name."""
BASELINES = (
    *("popularity", "recent_popularity", "own_frequent", "own_recent"),
    *("co_visitation", "item_knn", "tifu_knn", "ease", "als", "gru"),
)
COUNTED_BASELINES = ("popularity", "recent_popularity", "own_frequent", "own_recent", "co_visitation")
"""Baselines that only count events, made anew from the log at every scoring."""
REGISTERED_SHADOWS = ("previous", "challenger")
"""Names in `score.shadows` of registered models, beside URIs."""
UNPUBLISHED = ("gru",)
"""Baselines that are evaluated but cannot be published: trainings of their own."""
CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""package.module:Class."""
MODEL_URI = re.compile(r"models:/([^/@]+)(?:/(\d+|latest)|@([^/@]+))")
"""models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS; groups: name, version, alias."""
TargetKind = Literal["auto", "nightly", "successive", "first"]
GATE_METRICS = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map")


class Section(BaseModel):
    """Frozen part of the configuration."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=()
    )


class EvaluateConfig(Section):
    """Evaluation of the model and the gate: the `[evaluate]` section."""

    k: list[int] = [10, 200]
    """Lengths of the evaluated lists, in items."""
    exclude_seen: Literal["auto"] | bool | None = None
    """Masking of items already in the history; by default as `score.exclude_seen`."""
    targets: TargetKind | list[TargetKind] = "auto"
    """Held-out targets, or a list whose first decides everything and whose others are measured beside it. nightly: what a user
    takes within `horizon_days` of each night, from the history up to it; successive: every event, each after the ones before
    it; first: each user's first event. auto: nightly where the test holds 3 nights and 500 user-nights, else successive."""
    horizon_days: Literal["auto"] | float = "auto"
    """nightly: time after each night in which events count, in days; auto: 7, or an eighth of the test period, whole days."""
    every_days: Literal["auto"] | float = "auto"
    """nightly: distance of the nights, in days; auto: `horizon_days`."""
    stale_days: list[float] = []
    """nightly: days after the first night of the test, such as [1, 7, 14], at which the frozen model and the frozen lists of that
    night are evaluated; 0 is always among them. Each age costs two rankings of a night's users."""
    target_types: list[str] | None = None
    """Event types of validation and test targets; all by default. `events.types` concerns training."""
    max_requests: int = Field(200_000, ge=1)
    """Maximum test, in user-nights or held-out events: beyond it, those of random users, fixed by the seed."""
    cold_users: bool = False
    """Targets without any history in the metrics. They are reported separately in either case."""
    cold_items: bool = False
    """Targets on items unseen in training in the metrics: misses, except for systems that know them by content
    (`model.item_content`). They are reported separately in either case."""
    baselines: Literal["all"] | list[str] = "all"
    """Baselines beside the model: all, or a list of names, all among them. package.module:Class is a recommender of one's own
    (models/README.md), its module in the working directory or installed."""
    recent_days: float | list[float] = [1.0, 3.0, 7.0, 30.0]
    """Windows of recent popularity, in days, up to the end of the training data; validation chooses among several."""
    gru_dim: int = Field(64, ge=1)
    """Embedding dimension of the baseline `gru`, in components."""
    gru_epochs: int = Field(30, ge=1)
    """Maximum passes of the baseline `gru` over the training histories; validation chooses the epoch."""
    gru_patience: int = Field(3, ge=1)
    """Early-stopping patience of the baseline `gru`, in epochs, by validation NDCG@10."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap size per interval, in resamples of the users."""
    min_effective_sample: float = Field(100.0, ge=1)
    """Smallest effective sample of an off-policy estimate, in lists; below it there is a reason instead of a number."""
    training_fractions: list[float] = []
    """Learning curve: shares of the training users, such as [0.1, 0.3], each with a training of its own."""
    gate: bool = True
    """Paired test before the alias champion moves."""
    gate_metric: str = "ndcg@10"
    """Metric that the gate compares over targets; its list length must be among `k`."""
    gate_margin: float = Field(0.005, ge=0)
    """Tolerated loss against the champion at the interval's lower end, in the metric's unit."""

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """Baselines in the order of `BASELINES`, then classes of one's own."""
        chosen = [self.baselines] if isinstance(self.baselines, str) else self.baselines
        return (*(name for name in BASELINES if name in chosen or "all" in chosen), *self.custom_baselines)

    @property
    def custom_baselines(self) -> tuple[str, ...]:
        """Classes of one's own among the baselines, each once."""
        return tuple(dict.fromkeys(name for name in self.baselines if ":" in name))

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
            if name not in ("all", *BASELINES) and not CLASS_PATH.fullmatch(name):
                raise ValueError(
                    f"evaluate.baselines: received {name!r}, expected all, names among {', '.join(BASELINES)}, "
                    "or package.module:Class"
                )
        return names

    @pydantic.field_validator("recent_days", "training_fractions")
    @classmethod
    def _positive_numbers(
        cls, value: float | list[float], about: pydantic.ValidationInfo
    ) -> float | list[float]:
        numbers = value if isinstance(value, list) else [value]
        most, limit = (1.0, ", 1 at most") if about.field_name == "training_fractions" else (math.inf, "")
        is_empty = about.field_name == "recent_days" and not numbers
        if is_empty or not all(0 < number <= most for number in numbers):
            raise ValueError(
                f"evaluate.{about.field_name}: received {value}, expected numbers above 0{limit}"
            )
        return value

    @pydantic.field_validator("stale_days")
    @classmethod
    def _ages(cls, days: list[float]) -> list[float]:
        if not all(0 <= day < math.inf for day in days):
            raise ValueError(f"evaluate.stale_days: received {days}, expected days of at least 0")
        return sorted({0.0, *days}) if days else days

    @pydantic.field_validator("targets")
    @classmethod
    def _distinct_kinds(cls, targets: str | list[str]) -> str | list[str]:
        if not targets or (isinstance(targets, list) and len(set(targets)) < len(targets)):
            raise ValueError(
                f"evaluate.targets: received {targets}, expected one kind, or a list of different ones"
            )
        return targets

    @pydantic.field_validator("horizon_days", "every_days")
    @classmethod
    def _positive_days(cls, days: str | float, about: pydantic.ValidationInfo) -> str | float:
        if not isinstance(days, str) and not days > 0:
            raise ValueError(f"evaluate.{about.field_name}: received {days}, expected auto, or days above 0")
        return days

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


class PublishConfig(Section):
    """Choice of the published system: the `[publish]` section."""

    system: str = "auto"
    """System that goes live. lookback: the model; the name of an evaluated baseline (all but gru); auto: the model, unless the
    best baseline is shown to be better by `evaluate.gate_metric`."""
    baselines: Literal["auto"] | list[str] = "auto"
    """Baselines of `evaluate.baselines` from which the system is chosen, and which lists wait for: a run that asks for no
    evaluation or report leaves the others out. auto: all that can be published, which is all but gru."""


class ScoreConfig(Section):
    """Recommendations for users in batch: the `[score]` section."""

    model: str = "run"
    """Model to score with. run: published by this configuration; champion, models:/NAME/VERSION, models:/NAME/latest or
    models:/NAME@ALIAS: trains nothing."""
    k: int = Field(10, ge=1)
    """List length per user, in items."""
    users: str = "all"
    """Users to score: all, a Parquet file with `user_id`, or an ISO date (users active since)."""
    exclude_seen: Literal["auto"] | bool = "auto"
    """Exclusion of items already in the user's history. auto: unless over 5 % of the log's events repeat an earlier item."""
    allow: str | list[str] | None = None
    """Allowlist, the only items recommended: a Parquet file with `item_id`, or a list of ids; all by default."""
    deny: str | list[str] | None = None
    """Denylist, items never recommended: a Parquet file with `item_id`, or a list of ids. Unknown ids are counted."""
    availability: str | None = None
    """Availability windows: a Parquet file with `item_id`, `available_from`, `available_until` (in
    `events.timezone` without a zone; null: no limit). Items not in the file are always available."""
    exclude: str | None = None
    """Items that lists of single users leave out: a Parquet file with `user_id`, `item_id`."""
    candidates: str | None = None
    """Items that lists of single users may have, no others: a Parquet file with `user_id`, `item_id`. Users who are not in the
    file have the whole catalogue. `evaluate` adds metrics among them (`among_candidates`)."""
    pin: str | None = None
    """Items at fixed ranks of lists: a Parquet file with `user_id` (null: all users), `item_id`, `rank` (from 1 to `k`). A pin
    that a filter forbids is dropped and counted."""
    at: str | None = None
    """Time of the request, as an ISO time: histories hold the events before it, and model, popularity and `availability` take it
    as the present. By default that of the log's newest regular event, the newest with a tenth of a median day's events in the
    24 hours before; in a log without times only `availability` follows it."""
    max_per_category: int = Field(0, ge=0)
    """Maximum per category and user, in items; 0: any number."""
    diversity: float = Field(0.0, ge=0, lt=1)
    """Weight of dissimilarity to the items higher in the list, in [0, 1): 1 - lambda of maximal marginal relevance; 0: off."""
    popularity_damping: float = Field(0.0, ge=0)
    """Penalty of the most popular item, where 1 is the score range of a user's candidates; 0: off."""
    exploration: float | Exploration = 0.0
    """Share of the k places, the last ones, drawn from the candidates beyond them; 0: off. { share, kind, temperature }: kind
    uniform, or softmax (exp of the score on the scale of `popularity_damping`, over temperature), see the column `propensity`."""
    order: Literal["next", "utility"] = "next"
    """Order of a list. next: what the user takes next; utility: the expected utility of the outcomes (`utility`)."""
    second_stage_share: float = Field(1.0, ge=0, le=1)
    """Share of the users with a history whose lists the second stage ranks: those of the greatest gain on validation by length of
    history. The others' lists are in the order of retrieval."""
    max_shown: int = Field(0, ge=0)
    """Times an item is shown to a user within `shown_days` without a reaction before it is left out; 0: any number."""
    shown_days: float = Field(14.0, gt=0)
    """Time before the request in which exposures and earlier lists count as shown, in days."""
    new_items: bool = True
    """Recommendation of items added after training: those with content, and by a ranker of nights all others with events."""
    shadows: list[str] = []
    """Systems whose lists for the same users are kept in `shadows/` and never delivered: counting baselines, and beside a
    registered `model` also previous (the model of the lists before), challenger, or models:/…"""
    max_item_age_days: float = Field(0.0, ge=0)
    """Longest time since an item's last event, in days: older items and those gone from the items table are left out; 0: off."""
    segment: str = "auto"
    """Column of the users' table with segments: users without a known interaction get popular items of their segment. auto: the
    first column with 2 to 20 values; none."""
    because: bool = True
    """Reasons of each recommendation, as past interactions."""
    because_method: Literal["fast", "balanced", "exact", "proven"] = "balanced"
    """Attribution method. exact: a pass without each interaction; fast: gradients alone; balanced: exact along the last
    position's own path, gradients beside it; proven: by balanced, up to three events without which the item is not in the
    list."""
    because_items: int = Field(3, ge=1)
    """Maximum reasons per recommendation, in past interactions."""
    precision: Literal["auto", "fp32"] = "auto"
    """Numeric precision of the encoder. Both are fp32, since nothing lower scored a tenth faster; the manifest has the reason."""
    batch_users: int = Field(1024, ge=1)
    """Users per row group; those of eight are encoded from one pool, by length."""
    shard_users: int = Field(50_000, ge=1)
    """Users per Parquet file, the unit in which an interrupted run resumes."""
    engine: Literal["local", "ray"] = "local"
    """Engine. local: this process; ray: a Ray task per shard (extra `ray`), in a cluster (RAY_ADDRESS) or on this machine."""
    workers: int = Field(2, ge=1)
    """ray: processes on this machine, where there is no cluster."""

    @pydantic.field_validator("exploration")
    @classmethod
    def _a_share_is_checked(cls, value: float | Exploration) -> float | Exploration:
        return value if isinstance(value, Exploration) else Exploration(value).share

    @pydantic.model_validator(mode="after")
    def _proofs_follow_from_histories(self) -> "ScoreConfig":
        if self.because and self.because_method == "proven":
            share = self.exploration.share if isinstance(self.exploration, Exploration) else self.exploration
            for is_set, key in ((share > 0, "exploration"), (self.pin is not None, "pin")):
                if is_set:
                    raise ValueError(
                        f"score.because_method: received 'proven' with score.{key}, expected lists that follow from histories "
                        f"alone: remove score.{key}, or set score.because_method = 'balanced'"
                    )
        return self

    @pydantic.field_validator("users")
    @classmethod
    def _known_users(cls, users: str) -> str:
        if users != "all" and not users.endswith(".parquet"):
            check_iso("score.users", users, "all, a .parquet file with user_id, or ")
        return users

    @pydantic.field_validator("at")
    @classmethod
    def _known_time(cls, at: str | None) -> str | None:
        if at is not None:
            check_iso("score.at", at)
        return at

    @pydantic.field_validator("allow", "deny", "availability", "exclude", "candidates", "pin")
    @classmethod
    def _a_parquet_file(
        cls, items: str | list[str] | None, about: pydantic.ValidationInfo
    ) -> str | list[str] | None:
        if isinstance(items, str) and not items.endswith(".parquet"):
            more = ", or a list of ids" if about.field_name in ("allow", "deny") else ""
            user = "user_id, " if about.field_name in ("exclude", "candidates", "pin") else ""
            expected = (
                f"a .parquet file with {user}item_id{', rank' if about.field_name == 'pin' else ''}{more}"
            )
            raise ValueError(f"score.{about.field_name}: received {items!r}, expected {expected}")
        return items

    @pydantic.field_validator("shadows")
    @classmethod
    def _known_shadows(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in (*REGISTERED_SHADOWS, *COUNTED_BASELINES) and not MODEL_URI.fullmatch(name):
                expected = ", ".join((*REGISTERED_SHADOWS, *COUNTED_BASELINES))
                raise ValueError(
                    f"score.shadows: received {name!r}, expected {expected}, or models:/NAME/VERSION"
                )
        return list(dict.fromkeys(names))

    @pydantic.field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        if model in ("run", "champion") or MODEL_URI.fullmatch(model):
            return model
        expected = "run, champion, models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS"
        raise ValueError(f"score.model: received {model!r}, expected {expected}")


class SimilarConfig(Section):
    """Lists of similar items: the `[similar]` section."""

    k: int = Field(20, ge=1)
    """List length per item, in items."""


class MonitorConfig(Section):
    """Outcomes of delivered lists, and alerts: the `[monitor]` section."""

    days: list[float] = [1.0, 7.0]
    """Windows after each delivery in which outcomes count, in days."""
    alerts: bool = True
    """Rules that compare the nights with what is usual or promised. The keys below are their thresholds."""
    promise_level: float = Field(0.98, gt=0, lt=1)
    """below_promise: level of the interval for one night by the nights of the evaluation; below its lower end two nights in a
    row is an alert."""
    usual_level: float = Field(0.99, gt=0, lt=1)
    """population_drift, unknown_items, unknown_users: level of the interval for one day by the days before; above its upper end,
    and above their median by the next two keys, two days in a row is an alert."""
    population_drift: float = Field(0.35, gt=0)
    """population_drift: stability index of the day's items above the median of the days before."""
    unknown_rise: float = Field(0.1, gt=0)
    """unknown_items: share of the day's events on new items above the median of the days before; unknown_users: of new users."""
    cold_users_rise: float = Field(0.1, gt=0)
    """cold_users: share of users without a known history above the median of the last nights."""
    short_lists_rise: float = Field(0.05, gt=0)
    """short_lists: share of short lists above the median of the last nights."""
    unchanged_lists: float = Field(0.999, gt=0)
    """unchanged_lists: mean overlap with the lists before, two nights in a row; above 1: off."""
    vanished_type_events: float = Field(10.0, gt=0)
    """vanished_type: events a day of a type that is missing in the last day, in events."""
    idle_hours: float = Field(20.0, gt=0)
    """idle_log: time since the last lists without a newer event, in hours."""

    @pydantic.field_validator("days")
    @classmethod
    def _positive_windows(cls, days: list[float]) -> list[float]:
        if not days or min(days) <= 0:
            raise ValueError(f"monitor.days: received {days}, expected windows above 0 days")
        return sorted(set(days))


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


class TrackingConfig(Section):
    """MLflow: the `[tracking]` section."""

    enabled: bool = True
    """Logging of runs to MLflow."""
    uri: str | None = None
    """Tracking server; by default MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db."""
    port: int = Field(5000, ge=1, le=65535)
    """Port of `make ui`, on 127.0.0.1."""
    system_seconds: float = Field(10.0, ge=0)
    """Sampling interval of processor, memory, disk, network and GPU during a stage, in seconds; 0: none."""


class ReportConfig(Section):
    """HTML page: the `[report]` section."""

    num_users: int = Field(20, ge=1)
    """Example users with their history and recommendations."""


class DataConfig(Section):
    """Download of the public data set: the `[data]` section."""

    url: str | None = None
    """Address of the archive; without one, see `instructions`."""
    digest: str | None = None
    """Pinned digest of the archive: md5:… or sha256:…"""
    member: str = ""
    """Folder inside the archive with the files."""
    folder: str
    """Destination of the files, relative to the working directory."""
    files: list[str] = []
    """Files that must exist afterwards, below `folder`."""
    instructions: str = ""
    """Manual steps where there is no address."""

    @pydantic.field_validator("files")
    @classmethod
    def _below_the_folder(cls, files: list[str]) -> list[str]:
        for name in files:
            parts = PurePosixPath(name).parts
            if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
                raise ValueError(
                    f"data.files: received {name!r}, expected names below data.folder, such as ratings.dat"
                )
        return files


class TuneConfig(Section):
    """Hyper-parameter search: the `[tune]` section."""

    space: dict[str, dict[str, float | int | bool] | list[Any]] = {
        "train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True},
        "model.dropout": {"low": 0.1, "high": 0.5},
        "model.dim": [32, 64, 128],
        "model.num_blocks": [1, 2, 3],
    }
    """Search space: a key to {low, high, log} or to a list of choices."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Pruner of trials, by validation NDCG@10. median: best epoch below the median of finished trials at the same epoch;
    halving: not among the best third after `warmup_epochs`, and 3, 9, … times as many."""
    warmup_epochs: int = Field(5, ge=1)
    """Minimum training of every trial, in epochs."""
    warmup_trials: int = Field(5, ge=1)
    """median: completed trials before the first is pruned."""
    max_seconds: float = Field(0, ge=0)
    """Time budget of the search, in seconds, after which no further trial begins; 0: none."""

    @pydantic.field_validator("space", mode="before")
    @classmethod
    def _keys_without_quotes(cls, space: Any) -> Any:
        """Flatten nested tables: an unquoted TOML key `train.dropout = …` is a table in a table."""
        if not isinstance(space, dict):
            return space
        flat: dict[str, Any] = {}
        for key, values in space.items():
            is_section = isinstance(values, dict) and "." not in key and not {"low", "high"} & set(values)
            flat |= (
                {f"{key}.{name}": entry for name, entry in values.items()} if is_section else {key: values}
            )
        return flat
