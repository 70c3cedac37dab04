"""`lookback init`: a commented configuration for files that it looks into."""

import datetime
import glob
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import schema
from features.discovery import times
from features.discovery.reference_tables import SideTable, side_table
from features.discovery.roles import Roles, roles_of
from features.discovery.samples import Sample, look_into
from features.events import verdicts
from features.events.event_format import EventFormat
from features.printable import printable
from features.readers import sources
from features.settings import EventSettings, TableFormat, iso_microseconds
from pipeline.artifacts.source_files import extension
from pipeline.config import load_config
from pipeline.errors import LookbackError

Keys = Mapping[str, Any]
"""Keys of a section, or values of a row, in order."""
NUM_ROWS = 3
_CHECKED_ROWS = 20_000
_MAX_CHUNKS = 20
_FORM_KEYS = (
    "format", "separator", "header", "encoding", "quote", "comment", "missing", "items_separator", "clicked_suffix",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was found in the files."""

    name: str
    paths: tuple[Path, ...]
    """Files of the log."""
    sample: Sample
    roles: Roles
    tables: tuple[SideTable, ...]
    others: tuple[Path, ...]
    """Files that are neither."""

    @property
    def events(self) -> Keys:
        """Keys of the section events, in order."""
        form = replace(
            self.sample.form,
            missing=["", *self.roles.missing],
            items_separator=self.roles.items_separator or self.sample.form.items_separator,
            clicked_suffix=self.roles.clicked_suffix,
        )
        unit = self.roles.unit.unit if self.roles.unit is not None else "position"
        return {
            "path": _path(self.paths),
            "columns": self.roles.columns(self.sample),
            **_form_keys(form),
            "timestamp_unit": unit,
        }

    @property
    def notes(self) -> list[str]:
        """What is not certain."""
        others = [f"{path}: neither the log nor a table with its ids; left out" for path in self.others]
        return [*self.sample.notes, *self.roles.notes, *others]


def init(files: Sequence[Path], output: Path | None, *, as_json: bool) -> None:
    """Write a configuration for the log among `files`, with the tables that fit it.

    Raises LookbackError where no file is a log, or where the output exists.
    """
    found = find(files, output)
    target = output or Path(f"{found.name}.toml")
    if target.exists():
        raise LookbackError(
            f"init: {target} exists; choose another file (-o FILE), or move it away: nothing is overwritten"
        )
    shown, problems = _understood(found)
    text = _as_toml(found, shown, problems)
    target.write_text(text, encoding="utf-8")
    config = load_config(target, ())
    if as_json:
        content = {
            "file": str(target),
            "name": config.name,
            "events": found.events,
            "tables": {table.kind: _table_keys(table) for table in found.tables},
            "rows": shown,
            "notes": [*found.notes, *problems],
        }
        print(json.dumps(content, ensure_ascii=False, default=str))
        return
    print(printable_text(_summary(found, shown, problems)))
    print(f"wrote {target}; next: lookback run all --config {target}")


def printable_text(lines: Sequence[str]) -> str:
    """Lines for a terminal."""
    return "\n".join(printable(line, 300) for line in lines)


def find(files: Sequence[Path], output: Path | None = None) -> Found:
    """The log among files, its columns, and the tables that fit it. Raises LookbackError where none is a log.

    Its name is that of the output, else of the file.
    """
    samples = {}
    for path in files:
        if not path.is_file():
            raise LookbackError(f"init: {path}: is no file; name the files of the log and its tables")
        samples[path] = look_into(path)
    logs = {path: roles for path, sample in samples.items() if (roles := roles_of(sample)) is not None}
    if not logs:
        columns = "; ".join(
            f"{path}: {', '.join(sample.frame.columns[:20])}" for path, sample in samples.items()
        )
        raise LookbackError(
            f"init: no file has a column for users and one for items (found {columns}); write the configuration by hand: "
            "lookback config events"
        )
    first = max(logs, key=lambda path: (logs[path].time is not None, path.stat().st_size))
    form = samples[first].form
    logs[first] = _with_certain_unit(samples[first], logs[first])
    same = tuple(path for path in files if path in logs and samples[path].form == form)
    ids = _ids(samples[first], logs[first])
    tables: dict[str, SideTable] = {}
    others = []
    for path in files:
        if path in same:
            continue
        table = side_table(samples[path], ids)
        if table is None or (table.kind in tables and tables[table.kind].share >= table.share):
            others.append(path)
        else:
            tables[table.kind] = table
    name = re.sub(r"[^A-Za-z0-9]+", "-", (output or first).name.split(".")[0]).strip("-").lower() or "log"
    return Found(name, same, samples[first], logs[first], tuple(tables.values()), tuple(others))


def _with_certain_unit(sample: Sample, roles: Roles) -> Roles:
    """The roles with the unit that all times of the file show, where its first rows leave it open."""
    if roles.unit is None or roles.unit.is_certain or roles.time is None:
        return roles
    form = replace(sample.form, section="items", columns={"time": sample.form.columns[roles.time]})
    values = pl.Series("time", [], dtype=pl.String)
    for chunk in itertools.islice(sources.read(sample.path, form), _MAX_CHUNKS):
        values = pl.concat([values, chunk.frame["time"].cast(pl.String)]).unique()
    unit = times.unit_of(values)
    if unit is None:
        return roles
    notes = tuple(note for note in roles.notes if not unit.is_certain or "days and months" not in note)
    return replace(roles, unit=unit, notes=notes)


def _ids(sample: Sample, roles: Roles) -> dict[str, pl.Series]:
    """The ids of the log's first chunks: items and users."""
    form = replace(
        sample.form,
        columns={
            schema.USER_ID: sample.form.columns[roles.user],
            schema.ITEM_ID: sample.form.columns[roles.item],
        },
        items_separator=roles.items_separator or sample.form.items_separator,
        clicked_suffix=roles.clicked_suffix,
    )
    ids = {name: pl.Series([], dtype=pl.String) for name in (schema.ITEM_ID, schema.USER_ID)}
    for chunk in itertools.islice(sources.read(sample.path, form), _MAX_CHUNKS):
        for name, known in ids.items():
            ids[name] = pl.concat([known, chunk.frame[name].cast(pl.String).alias("")]).drop_nulls().unique()
    return {"items": ids[schema.ITEM_ID], "users": ids[schema.USER_ID]}


def _path(paths: Sequence[Path]) -> str | list[str]:
    """Value of `events.path`: a pattern, which later files fit too, if these are all of their kind in a folder."""
    pattern = _pattern(paths[0])
    if len(paths) > 1 and {*map(str, paths)} == {*glob.glob(pattern)}:  # noqa: PTH207
        return pattern
    return str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]


def _pattern(path: Path) -> str:
    """Pattern of a file's folder and extension."""
    return str(Path(glob.escape(str(path.parent)), f"*{extension(path.name)}"))


def _form_keys(form: TableFormat) -> Keys:
    """Keys of a table's form that differ from their defaults."""
    usual = TableFormat("items", {})
    keys = {key: getattr(form, key) for key in _FORM_KEYS}
    return {key: value for key, value in keys.items() if value != getattr(usual, key)}


def _table_keys(table: SideTable) -> Keys:
    """Keys of the section of a table."""
    theirs = table.sample.form.columns
    id_name = "item_id" if table.kind == "items" else "user_id"
    columns = {id_name: theirs[table.id]}
    if table.sample.form.format == "json" and len(theirs) == 1:
        columns = {}  # from ids to lists, which are categories
    elif table.kind == "items":
        named = {"title": table.title, "categories": table.categories}
        columns |= {ours: theirs[name] for ours, name in named.items() if name is not None}
    else:
        others = [name for name in theirs if name != table.id]
        columns |= {_attribute(name): theirs[name] for name in others if "[]" not in name}
    mapped = {"columns": columns} if columns else {}
    separator = {"category_separator": table.category_separator} if table.categories else {}
    return {"path": str(table.sample.path), **mapped, **_form_keys(table.sample.form), **separator}


def _attribute(name: str) -> str:
    text = re.sub(r"\W+", "_", name).strip("_").lower()
    return f"column_{text}" if text.isdigit() else text


def _understood(found: Found) -> tuple[list[Keys], list[str]]:
    """The first rows as events, and what is wrong with the rows that are none."""
    settings = EventSettings(**found.events)
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    form = EventFormat(settings, iso_microseconds(now.isoformat()))
    num_rows = num_refused = 0
    events: list[pl.DataFrame] = []
    kinds: dict[str, schema.IdType] = {schema.USER_ID: "string", schema.ITEM_ID: "string"}
    for chunk in sources.read(found.paths[0], settings.table):
        judged = verdicts.validate(chunk, form, kinds)
        frame, verdict = judged.events, judged.verdict
        num_rows += len(frame)
        num_refused += int(verdict.is_not_null().sum())
        events.append(frame.filter(verdict.is_null()).head(NUM_ROWS))
        if num_rows >= _CHECKED_ROWS:
            break
    rows = pl.concat(events).head(NUM_ROWS) if events else pl.DataFrame()
    is_order = settings.timestamp_unit == "position"
    if is_order and len(rows):
        rows = rows.with_columns(pl.col(schema.TIMESTAMP).to_physical())
    shown: list[Keys] = [
        {name: _shown(value) for name, value in row.items() if value is not None}
        for row in rows.rows(named=True)
    ]
    limit = settings.max_refused_fraction
    share = num_refused / num_rows if num_rows else 1.0
    problem = f"{num_refused:,} of the first {num_rows:,} rows are no events by this configuration"
    return shown, [
        f"{problem}: more than events.max_refused_fraction allows" if share > limit else problem
    ] if num_refused else []


def _shown(value: Any) -> Any:
    return value.isoformat(sep=" ") if isinstance(value, datetime.datetime) else value


def _summary(found: Found, shown: Sequence[Keys], problems: Sequence[str]) -> list[str]:
    paths = ", ".join(map(str, found.paths))
    lines = [f"log     {paths}"]
    lines += [f"        {ours} = {_toml(theirs)}" for ours, theirs in found.events["columns"].items()]
    lines += [
        f"{table.kind:7} {table.sample.path}: {table.share:.0%} of the log's ids have a row"
        for table in found.tables
    ]
    lines += [f"row     {', '.join(f'{name} {value}' for name, value in row.items())}" for row in shown]
    return lines + [f"unsure  {note}" for note in [*found.notes, *problems]]


# --- TOML ---


def _as_toml(found: Found, shown: Sequence[Keys], problems: Sequence[str]) -> str:
    """The configuration with its comments."""
    lines = [
        "# Written by `lookback init` from what the files look like: correct what is wrong.",
        "# All keys: lookback config --all",
        *(f"# Not certain: {_comment(note)}" for note in [*found.notes, *problems]),
        f"name = {_toml(found.name)}",
        "",
        "[events]",
        *_lines(found.events),
    ]
    if len(found.paths) == 1:
        lines.append(f"# With later files of the same form: path = {_toml(_pattern(found.paths[0]))}")
    if len(found.roles.types) > 1:
        lines.append(
            f"# Types in the log: {_comment(', '.join(found.roles.types))}. To weight them, or leave others out:"
        )
        lines.append(f"# types = {_toml(dict.fromkeys(found.roles.types, 1.0))}")
    if found.roles.unit is not None:
        lines.append(f"# The first rows are from {found.roles.unit.earliest} to {found.roles.unit.latest}.")
    lines.append("# Rows as they are understood:")
    lines += [f"#   {_comment(', '.join(f'{name} {value}' for name, value in row.items()))}" for row in shown]
    for table in found.tables:
        lines += [
            "",
            f"[{table.kind}]    # {table.share:.0%} of the ids in the log's first rows have a row here",
        ]
        lines += _lines(_table_keys(table))
    if found.roles.unit is None:
        lines += [
            "",
            "[split]",
            'protocol = "leave_one_out"    # without times there is no common time to split at',
        ]
    return "\n".join(lines) + "\n"


def _lines(keys: Keys) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in keys.items()]


def _comment(text: str) -> str:
    return printable(text, 300)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, np.generic | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
