"""Reference of the configuration keys (`lookback config`), from the docstrings below their declarations."""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.config import Config, key_types, sections, type_name
from pipeline.errors import ConfigError

INTRODUCTION = """\
# Configuration keys

The output of `lookback config`; `lookback config SECTION` prints one section, `--all` the expert keys too, `--json` JSON.

A configuration is one TOML file. `--set section.key=value` (`SET="…"` with make) overrides a key. Unknown keys are refused
with the nearest valid one named. Only `name`, `events.columns` and `events.path` (or `database` and `query`) are
required; the sections `[items]`, `[users]`, `[exposures]`, `[outcomes]`, `[utility]`, `[budgets]`, `[experiment]`, `[deliver]`,
`[simulate]` and `[data]` are optional as a whole.
"""

EXPERT_KEYS = frozenset(
    f"{section}.{name}"
    for section, names in {
        "model": "gumbel_start gumbel_end gumbel_hard learned_temperature kernel",
        "train": "refit_from gbce_calibration beta1 beta2",
        "ranker": "favourites popular item_vectors dim num_heads hidden dropout loss train_fraction patience batch_lists "
        "learning_rate weight_decay",
        "evaluate": "gru_dim gru_epochs gru_patience",
        "score": "precision batch_users shard_users workers",
        "monitor": "promise_level usual_level population_drift unknown_rise cold_users_rise short_lists_rise unchanged_lists "
        "vanished_type_events idle_hours",
        "tune": "warmup_epochs warmup_trials",
    }.items()
    for name in names.split()
)
"""Keys that rarely need a change: shown by `lookback config --all` alone."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Configuration key."""

    key: str
    type: str
    unit: str
    default: Any
    """None for no default; a required key has none."""
    required: bool
    meaning: str
    expert: bool

    @property
    def section(self) -> str:
        """Section; empty for keys at the top of the file."""
        return self.key.rpartition(".")[0]

    def cells(self) -> tuple[str, ...]:
        """Table cells: key, type, unit, default, meaning."""
        default = json.dumps(self.default, ensure_ascii=False)
        if isinstance(self.default, dict):
            default = ", ".join(self.default)
        shown = "required" if self.required else "none" if self.default is None else f"`{default or '{}'}`"
        cells = (f"`{self.key}`", self.type, self.unit, shown, self.meaning)
        return tuple(cell.replace("|", "\\|") for cell in cells)


_EXTENDS = Key(
    *("extends", "text", "", None),
    required=False,
    meaning="Base configuration, a TOML file relative to this one: its tables are merged key by key, and this file's values win.",
    expert=False,
)


def print_reference(section: str | None, *, include_experts: bool, as_json: bool) -> None:
    """Print the keys of one section or all; raises ConfigError for an unknown section, naming the nearest."""
    if section is not None and section not in sections():
        near = difflib.get_close_matches(section, sections(), 1, 0.0)[0]
        raise ConfigError(
            f"config: received section {section!r}, expected one of {', '.join(sections())}; did you mean {near!r}?"
        )
    keys = [
        key
        for key in (_EXTENDS, *map(_key, key_types()))
        if section in (None, key.section) and (include_experts or not key.expert)
    ]
    if as_json:
        print(json.dumps([dataclasses.asdict(key) for key in keys], ensure_ascii=False, indent=2))
    else:
        print(as_markdown(keys, INTRODUCTION if section is None else ""), end="")


def as_markdown(keys: Sequence[Key], introduction: str = "") -> str:
    """Markdown table per section, its columns aligned except the last."""
    parts = [introduction] if introduction else []
    for section in dict.fromkeys(key.section for key in keys):
        rows = [key.cells() for key in keys if key.section == section]
        rows = [("Key", "Type", "Unit", "Default", "Meaning"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        rows.insert(1, tuple("-" * width for width in (*widths, 7)))
        lines = ["| " + " | ".join([*map(str.ljust, row[:4], widths), row[4]]) + " |" for row in rows]
        title = f"## [{section}]\n\n{_title(sections()[section])}" if section else "## At the top of the file"
        parts.append("\n".join((title, "", *lines, "")))
    return "\n".join(parts)


def _key(key: str) -> Key:
    section, _, name = key.rpartition(".")
    owner: Any = sections().get(section, Config)
    default = _default(owner, name)
    meaning, unit = _meaning(owner, name)
    required = default is dataclasses.MISSING
    return Key(
        key,
        type_name(key_types()[key]),
        unit,
        None if required else default,
        required,
        meaning,
        key in EXPERT_KEYS,
    )


def _default(owner: Any, name: str) -> Any:
    """Default of a field; MISSING where it is required, as for the columns of a log and of users."""
    if not dataclasses.is_dataclass(owner):
        model_field = owner.model_fields[name]
        return dataclasses.MISSING if model_field.is_required() else model_field.default
    if name == "columns" and getattr(owner, "section", "") in ("events", "users", "exposures"):
        return dataclasses.MISSING
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _meaning(owner: type, name: str) -> tuple[str, str]:
    """Docstring of a field, and its unit: the words after ", in" in its first clause."""
    text = next(
        (
            text
            for base in owner.__mro__
            if (text := _docstrings(base.__module__).get(f"{base.__name__}.{name}"))
        ),
        "",
    )
    unit = re.match(r"[^.;(]*?, in ([a-z][a-z ]*)(?=[.;,:])", text)
    return text, unit.group(1) if unit else ""


def _title(owner: type) -> str:
    """First line of a section's docstring without the section's name."""
    return (owner.__doc__ or "").partition("\n")[0].partition(": the `[")[0] + "."


@functools.cache
def _docstrings(module: str) -> dict[str, str]:
    """Docstring below each `Class.field` in a module's source."""
    if module in ("builtins", "pydantic.main"):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        f"{node.name}.{ast.unparse(field.target)}": " ".join(inspect.cleandoc(text.value.value).split())
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
