"""Typed configuration: a TOML file, its bases (`extends`), overrides by `--set`."""

import dataclasses
import datetime
import difflib
import functools
import glob
import re
import tomllib
import types
import typing
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pydantic
from pydantic import BaseModel, Field

from features.attribute_settings import attribute_columns
from features.exposure_settings import ExposureSettings
from features.settings import EventSettings, HistorySettings, ItemSettings, SplitSettings, UserSettings
from features.simulation_settings import SimulationSettings
from models.settings.encoder import EncoderSettings
from models.settings.index import IndexSettings
from models.settings.outcomes import OutcomeSettings, check_order, check_outcomes
from models.settings.ranker import RankerSettings
from models.settings.training import TrainSettings, check_together
from pipeline.budgets_section import BudgetsConfig, check_budgets
from pipeline.deliver_section import DeliverConfig
from pipeline.errors import ConfigError, command_line
from pipeline.experiment_section import ExperimentConfig
from pipeline.sections import (
    MODEL,
    UNPUBLISHED,
    DataConfig,
    EvaluateConfig,
    MonitorConfig,
    PublishConfig,
    ReportConfig,
    ScoreConfig,
    Section,
    SimilarConfig,
    TrackingConfig,
    TuneConfig,
)

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_PAIR_MARKS = re.compile(
    r"""(?P<quoted>"[^"]*"|'[^']*')|(?P<opening>[\[{])|(?P<closing>[\]}])|(?P<blank>\s+(?=[\w-]+(?:\.[\w-]+)*\s*=))"""
)
"""Marks at which `_pairs` looks: a blank before `key=` outside quotes and brackets ends a pair."""
_WITHOUT_TIMES: dict[str, tuple[tuple[Any, ...], str]] = {
    "split.protocol": (
        ("leave_one_out",),
        "'leave_one_out': without timestamps there is no common time to split at",
    ),
    "train.predict": (
        ("next", "visit"),
        "'next' or 'visit': window without times has no horizon; or name their column (events.columns, events.timestamp_unit)",
    ),
    "train.start": (("scratch",), "'scratch': without timestamps no event is newer than a version"),
    "history.session_minutes": ((0,), "0: without timestamps every event is a visit"),
    "score.max_shown": ((0,), "0: without timestamps nothing is shown within days"),
}
"""Keys of a log without times: the values that they may have, and what is expected, in words."""


class Config(Section):
    """Configuration of one pipeline."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the pipeline: artifacts go to `<data_dir>/<name>/`, runs to the MLflow experiment of this name."""
    data_dir: str = "data"
    """Artifacts folder, relative to the working directory."""
    seed: int = Field(0, ge=0)
    """Random seed."""
    events: EventSettings
    items: ItemSettings | None = None
    users: UserSettings | None = None
    exposures: ExposureSettings | None = None
    history: HistorySettings = HistorySettings()
    split: SplitSettings = SplitSettings()
    model: EncoderSettings = EncoderSettings()
    train: TrainSettings = TrainSettings()
    index: IndexSettings = IndexSettings()
    ranker: RankerSettings = RankerSettings()
    outcomes: OutcomeSettings | None = None
    utility: dict[str, float | Literal["value"]] | None = None
    """Worth of each outcome, as a number, or "value": the expected value of its events; a table such as { click = 0.1 }."""
    evaluate: EvaluateConfig = EvaluateConfig()
    publish: PublishConfig = PublishConfig()
    score: ScoreConfig = ScoreConfig()
    budgets: BudgetsConfig | None = None
    similar: SimilarConfig = SimilarConfig()
    monitor: MonitorConfig = MonitorConfig()
    experiment: ExperimentConfig | None = None
    deliver: DeliverConfig | None = None
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    simulate: SimulationSettings | None = None
    data: DataConfig | None = None
    tune: TuneConfig = TuneConfig()
    _options: tuple[str, ...] = ("--config", "FILE")
    """Options of the command line that load this configuration: the context of its validation."""

    def model_post_init(self, context: Any) -> None:
        """Keep the options of the command line."""
        self._options = context or self._options

    @pydantic.model_validator(mode="after")
    def _position_logs_have_no_time(self) -> "Config":
        for key, (allowed, expected) in _WITHOUT_TIMES.items():
            received = attrgetter(key)(self)
            if self.events.timestamp_unit == "position" and received not in allowed:
                raise ValueError(
                    f"{key}: received {received!r} with events.timestamp_unit 'position', expected {expected}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _exposures_fit_the_log(self) -> "Config":
        if self.exposures is not None:
            self.exposures.log(self.events)  # checks itself
        elif self.train.exposure_weighting != "off":
            raise ValueError(
                f"train.exposure_weighting: received {self.train.exposure_weighting!r} without [exposures], expected a section "
                "with the log of what was shown; without one, 'off'"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _ranker_fits_the_log(self) -> "Config":
        attribute_columns(self.users, self.items, self.events, self.ranker.columns)
        columns = {*self.events.columns, *self.events.table.filled_by_pattern}
        check_outcomes(self.outcomes, self.utility, columns, self.events.types or {})
        check_order(self.score.order, self.utility, self.ranker.use, self.publish.system)
        return self

    @pydantic.model_validator(mode="after")
    def _model_fits_the_log(self) -> "Config":
        check_together(self.model, self.train)
        has_times = self.events.timestamp_unit != "position"
        needed = {
            "time_bias": (has_times, "a log with times (events.timestamp_unit)"),
            "calendar": (has_times, "a log with times (events.timestamp_unit)"),
            "value": ("value" in self.events.columns, "a column for value in events.columns"),
            "item_content": (self.items is not None, "a section [items] with the content"),
        }
        for key, (is_met, requirement) in needed.items():
            if getattr(self.model, key) and not is_met:
                raise ValueError(f"model.{key}: received true, expected {requirement}; without it, false")
        return self

    @pydantic.model_validator(mode="after")
    def _published_system_is_evaluated(self) -> "Config":
        baselines = [name for name in self.evaluate.baseline_names if name not in UNPUBLISHED]
        if self.publish.system not in ("auto", MODEL, *baselines):
            raise ValueError(
                f"publish.system: received {self.publish.system!r}, expected auto, {MODEL}, or one of evaluate.baselines: "
                + ", ".join(baselines)
            )
        unknown = set(self.publish.baselines) - {*self.evaluate.baseline_names}
        if self.publish.baselines != "auto" and unknown:
            raise ValueError(
                f"publish.baselines: received {', '.join(sorted(unknown))}, expected auto, or some of evaluate.baselines: "
                + ", ".join(self.evaluate.baseline_names)
            )
        return self

    @pydantic.model_validator(mode="after")
    def _experiment_has_nights_and_all_users(self) -> "Config":
        check_budgets(self.score, self.budgets, self.experiment)
        if self.experiment is not None and self.events.timestamp_unit == "position":
            raise ValueError(
                "experiment: received a section with events.timestamp_unit 'position', expected a log with times: lists by arm "
                "are judged by the days after them; name the column of the times, or remove [experiment]"
            )
        if self.experiment is not None and self.score.users != "all":
            raise ValueError(
                f"score.users: received {self.score.users!r} beside [experiment], expected all: its arms share all users; remove "
                "one of the two"
            )
        return self

    def publishes_after(self, baseline: str) -> bool:
        """Whether publishing waits for a baseline (`publish.baselines`)."""
        named = self.publish.baselines
        is_chosen = baseline not in UNPUBLISHED if named == "auto" else baseline in named
        return is_chosen or baseline == self.publish.system

    @property
    def exclude_seen(self) -> bool | Literal["auto"]:
        """Whether evaluation masks items of the history; auto: see `Protocol`."""
        return self.score.exclude_seen if self.evaluate.exclude_seen is None else self.evaluate.exclude_seen

    @property
    def folder(self) -> Path:
        """Folder of this pipeline's artifacts."""
        return Path(self.data_dir) / self.name

    def command(self, *words: str, settings: typing.Sequence[str] = ()) -> str:
        """Command line `lookback WORDS` for this configuration, with further `key=value` settings."""
        return command_line([*words, *self._options, *_as_options(settings)])

    def get(self, key: str) -> Any:
        """Plain value (number, string, list, dictionary) of a dotted key such as `train.epochs`."""
        value: Any = self.model_dump(mode="json")
        for part in key.split("."):
            value = None if value is None else value[part]
        return value


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Load a TOML file over the file it extends, with `key=value` overrides.

    Raises ConfigError for a missing or invalid file, circular `extends`, an unknown key (naming the nearest valid one), a
    value of the wrong type or out of range.
    """
    files: list[Path] = []
    tree = _read(Path(path), files)
    where = " extends ".join(map(str, files))
    for override in overrides:
        for pair in _pairs(override):
            _set(tree, pair)
    _refuse_unknown(tree, where)
    _fill_paths(tree)
    try:
        return Config.model_validate(tree, context=("--config", str(path), *_as_options(overrides)))
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, tree, where)) from None


def _as_options(overrides: typing.Sequence[str]) -> list[str]:
    """Overrides as options of the command line."""
    return [word for override in overrides for word in ("--set", override)]


def _read(path: Path, files: list[Path]) -> dict[str, Any]:
    """Tree of a file merged over the file it extends; files: paths read so far, extended in place."""
    where = f"{path} (extended by {files[-1]})" if files else str(path)
    tree = _parse(path, where)
    base = tree.pop("extends", None)
    if files:
        _refuse_unknown(tree, where)
    files.append(path)
    if base is None:
        return tree
    base_path = path.parent / str(base)
    if not isinstance(base, str) or not base_path.is_file():
        near = difflib.get_close_matches(
            Path(str(base)).name, [file.name for file in base_path.parent.glob("*.toml")], 1
        )
        hint = f"did you mean {near[0]!r}?" if near else "correct or remove the line"
        raise ConfigError(
            f"{where}: extends: received {base!r}, but there is no file {base_path}; expected a TOML file, relative to {path}; "
            + hint
        )
    if base_path.resolve() in [file.resolve() for file in files]:
        circle = " extends ".join(map(str, (*files, base_path)))
        raise ConfigError(
            f"{where}: extends: received {base!r}, but {circle}: a circle; expected a file that does not extend this one; "
            "remove one of these lines"
        )
    return _merged(_read(base_path, files), tree)


def _merged(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Merge a tree into its base: tables key by key, other values replaced."""
    tables = {
        key: _merged(base[key], value)
        for key, value in tree.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | tree | tables


def _parse(path: Path, where: str) -> dict[str, Any]:
    try:
        return _dates_as_text(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"configuration {where}: no such file; expected a TOML file (see pipeline/configs/)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {where}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {where}: not valid TOML: {error}") from None


def _dates_as_text(tree: dict[str, Any]) -> dict[str, Any]:
    """Convert TOML dates and times to ISO text, the type of the keys."""
    return {key: _date_as_text(value) for key, value in tree.items()}


def _date_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return _dates_as_text(value)
    if isinstance(value, list):
        return [_date_as_text(element) for element in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _pairs(override: str) -> list[str]:
    """Pairs `key=value` of one override, separated by blanks; blanks in values stay: `evaluate.k=[10, 50] seed=1`."""
    pairs, start, depth = [], 0, 0
    for mark in _PAIR_MARKS.finditer(override):
        depth += (mark.lastgroup == "opening") - (mark.lastgroup == "closing")
        if mark.lastgroup == "blank" and depth <= 0:
            pairs.append(override[start : mark.start()])
            start = mark.end()
    return [pair for pair in (*pairs, override[start:]) if pair.strip() or not pairs]


def _set(tree: dict[str, Any], override: str) -> None:
    """Write one `section.key=value` into the tree; a value that is not TOML is a string."""
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


def _options(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, or the type itself."""
    is_union = get_origin(annotation) in (types.UnionType, typing.Union)
    return get_args(annotation) if is_union else (annotation,)


@functools.cache
def sections() -> dict[str, type]:
    """Class of every section, by name."""
    return {
        name: option
        for name, field in Config.model_fields.items()
        for option in _options(field.annotation)
        if isinstance(option, type) and (dataclasses.is_dataclass(option) or issubclass(option, BaseModel))
    }


@functools.cache
def key_types() -> dict[str, Any]:
    """Annotation of every dotted key."""
    keys: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        section: Any = sections().get(name)
        if section is None:
            keys[name] = field.annotation
        elif dataclasses.is_dataclass(section):
            keys |= {f"{name}.{part.name}": part.type for part in dataclasses.fields(section)}
        else:
            keys |= {f"{name}.{key}": part.annotation for key, part in section.model_fields.items()}
    return keys


def type_name(annotation: Any) -> str:
    """Type of a key in words: "integer or list of integer", or its choices."""
    plain = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any value"}
    options = [option for option in _options(annotation) if option is not types.NoneType]
    if len(options) > 1:
        return " or ".join(map(type_name, options))
    (only,) = options
    if get_origin(only) is Literal:
        return ", ".join(map(str, get_args(only)))
    if get_origin(only) is list:
        return f"list of {type_name(get_args(only)[0])}"
    return plain.get(only, "table")


def _refuse_unknown(tree: dict[str, Any], where: str, prefix: str = "") -> None:
    for name, value in tree.items():
        key = prefix + name
        if not prefix and name in sections():
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key}: received {value!r}, expected a section [{key}]")
            _refuse_unknown(value, where, f"{key}.")
        elif key not in key_types():
            raise ConfigError(f"{where}: unknown key {key!r}; {_nearest(key, prefix)}")
        else:
            _refuse_booleans(value, key_types()[key], f"{where}: {key}")


def _refuse_booleans(value: Any, annotation: Any, where: str) -> None:
    """Raise ConfigError for true or false where another type is expected, in a table too."""
    options = _options(annotation)
    if isinstance(value, bool) and not {bool, Any} & set(options):
        raise ConfigError(f"{where}: received {str(value).lower()}, expected {type_name(annotation)}")
    inner = [get_args(option)[-1] for option in options if get_origin(option) is dict]
    for name, part in value.items() if isinstance(value, dict) and inner else ():
        _refuse_booleans(part, inner[0], f"{where}.{name}")


def _nearest(key: str, prefix: str) -> str:
    """Question after the nearest valid key, in the same section first; the keys of the section where none is near."""
    siblings = (
        [known for known in key_types() if known.startswith(prefix)] if prefix else list(Config.model_fields)
    )
    everywhere = [*siblings, *(known for known in key_types() if known not in siblings)]
    for keys in (siblings, everywhere):
        by_leaf = {known.rpartition(".")[2]: known for known in reversed(keys)}
        near = difflib.get_close_matches(key.removeprefix(prefix), by_leaf, 1, 0.6)
        if near:
            return f"did you mean {by_leaf[near[0]]!r}?"
    section = f"of [{prefix[:-1]}]" if prefix else "at the top of the file"
    return f"expected a key {section}: {', '.join(known.removeprefix(prefix) for known in siblings)}"


def _fill_paths(tree: dict[str, Any]) -> None:
    """Replace {data_dir} and {name} in paths; in a glob the folder's own characters are none of its pattern."""
    data_dir, name = str(tree.get("data_dir", "data")), str(tree.get("name", ""))

    def fill(path: Any) -> Any:
        if isinstance(path, list):
            return [fill(part) for part in path]
        if not isinstance(path, str):
            return path
        is_glob = glob.has_magic(path.replace("{data_dir}", "").replace("{name}", ""))
        folder = glob.escape(data_dir) if is_glob else data_dir
        return path.replace("{data_dir}", folder).replace("{name}", name)

    for section in ("events", "items", "users", "exposures"):
        if isinstance(tree.get(section), dict) and "path" in tree[section]:
            tree[section]["path"] = fill(tree[section]["path"])


def _explain(error: pydantic.ValidationError, tree: dict[str, Any], where: str) -> str:
    """One line per refused key: the validators' own message, or the value received and what is expected."""
    lines: list[str] = []
    whole: list[str] = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path[: 2 if path[:1] and path[0] in sections() else 1])
        if problem["type"] in ("value_error", "assertion_error"):
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            lines.append(message if not path or path[0] in message else f"{key}: {message}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing; expected {_expected(key, key_types().get(key), problem)}")
        else:
            lines.append(_refused(key, problem, tree))
        whole += [f"{key}: received "] if lines[-1].startswith(f"{key}.") else []
    # the wrong key within a table says enough
    lines = [line for line in lines if not line.startswith(tuple(whole))]
    return "\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))


def _refused(key: str, problem: "ErrorDetails", tree: dict[str, Any]) -> str:
    """Message for a value of the wrong type or out of range, at its place within lists and tables."""
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    annotation, place = key_types().get(key), key
    for step in problem["loc"][len(key.split(".")) :]:
        container = dict if isinstance(value, dict) else list
        inner = [get_args(option)[-1] for option in _options(annotation) if get_origin(option) is container]
        places = (
            value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        )
        for option in _options(annotation):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                inner += [part.type for part in dataclasses.fields(option) if part.name == step]
        if inner and step in places:  # other steps name a member of a union
            value, annotation, place = value[step], inner[0], f"{place}.{step}"
    hint = ""
    if isinstance(value, str) and value[:1] in "[{" and value:
        hint = '; in lists and tables text has quotes, such as ["a", "b"]'
    return f"{place}: received {_as_toml(value)}, expected {_expected(key, annotation, problem)}{hint}"


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _expected(key: str, annotation: Any, problem: "ErrorDetails") -> str:
    """Values allowed: the choices or the type, and the bound that a value exceeds."""
    if problem["type"] == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-', beginning with a letter or digit"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{word} {problem['ctx'][name]:g}" for name, word in words.items() if name in problem.get("ctx", {})
    ]
    if key in sections():
        return f"a section [{key}]"
    return ", ".join([type_name(annotation), *bounds])
