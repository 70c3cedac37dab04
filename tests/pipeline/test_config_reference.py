"""The reference of the configuration keys: complete, from the docstrings, and the same as the file in pipeline/configs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EXPERT_KEYS, key_types, sections
from pipeline.config_reference import print_reference
from pipeline.errors import ConfigError

README = Path(__file__).parents[2] / "pipeline" / "configs" / "README.md"
FILLER = ("what ", "whether ", "how ", "of ", "the ", "a ", "an ")


def markdown(capsys: pytest.CaptureFixture[str], section: str | None = None, *, experts: bool = False) -> str:
    print_reference(section, include_experts=experts, as_json=False)
    return capsys.readouterr().out


def keys(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    print_reference(None, include_experts=True, as_json=True)
    return {key["key"]: key for key in json.loads(capsys.readouterr().out)}


def test_the_file_beside_the_configurations_is_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert README.read_text(encoding="utf-8") == markdown(capsys), (
        "write it anew: lookback config > pipeline/configs/README.md"
    )


def test_every_key_is_described_with_its_noun_first(capsys: pytest.CaptureFixture[str]) -> None:
    described = keys(capsys)
    assert list(described) == ["extends", *key_types()]
    for key, facts in described.items():
        meaning = facts["meaning"]
        assert meaning, key
        assert not meaning.lower().startswith(FILLER), key
        assert facts["type"], key
        assert "at most" not in meaning, key
        first = re.split(r"[.;:] ", meaning)[0]
        assert len(first.split()) <= 22, key


def test_a_default_a_unit_and_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    described = keys(capsys)
    length = described["history.max_length"]
    assert (length["type"], length["unit"], length["default"]) == ("integer", "events", 200)
    assert described["train.patience"]["unit"] == "epochs"
    assert described["index.max_bytes"]["unit"] == "bytes"
    assert described["model.window"]["unit"] == "events"
    assert described["model.dropout"]["unit"] == ""
    assert described["items.text_dim"]["default"] == 64  # of a base class
    assert described["evaluate.k"]["type"] == "list of integer"
    assert described["score.allow"]["type"] == "text or list of text"
    assert described["model.score"]["type"].endswith("concat or auto")
    assert described["items.columns"]["default"] == {}
    required = {key for key, facts in described.items() if facts["required"]}
    assert required == {
        "name",
        "events.columns",
        "users.columns",
        "exposures.columns",
        "outcomes.types",
        "data.folder",
        "deliver.database",
        "deliver.table",
        *(f"experiment.{name}" for name in ("name", "arms", "salt", "start")),
    }


def test_expert_keys_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(key_types()) >= EXPERT_KEYS
    assert {key for key, facts in keys(capsys).items() if facts["expert"]} == EXPERT_KEYS
    short, long = markdown(capsys), markdown(capsys, experts=True)
    for key in key_types():
        assert f"| `{key}` " in long, key
        assert (f"| `{key}` " in short) == (key not in EXPERT_KEYS), key


def test_one_section_alone(capsys: pytest.CaptureFixture[str]) -> None:
    table = markdown(capsys, "items")
    assert table.startswith("## [items]\n\nItem table and its content.\n\n| Key ")
    assert '| `"\\|"` ' in table  # a bar would end the cell
    assert "`events." not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({re.sub(r"\\\|", "  ", row).split("|", 5)[:5].__len__() for row in rows}) == 1
    assert len({len(row) - len(row.split(" | ", 4)[4]) for row in rows}) == 1  # aligned


@pytest.mark.parametrize(
    ("wrong", "near"), [("modle", "model"), ("Train", "train"), ("events.path", "events")]
)
def test_an_unknown_section_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{near}'") as error:
        print_reference(wrong, include_experts=False, as_json=False)
    assert repr(wrong) in str(error.value)
    assert all(section in str(error.value) for section in sections())
    assert error.value.exit_code == 2
