"""Decisions about versions, interrupted at every step and finished by the next reader of the champion."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.tracking import registry
from pipeline.tracking.client import client_at
from pipeline.tracking.decisions import Decision, Intention
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import (
    BUNDLE_DIGEST,
    GATE,
    INTENTION,
    ServerAway,
    Version,
    absolute_uri,
    version_with,
)
from tests.workdir import with_database

DECISIONS = {
    "passed": Decision("passed", "not worse", {"low": 0.25, "users": 40}),
    "refused": Decision("refused", "worse – a little", {"low": -0.5}),
    "by hand": Decision("by hand", "lookback promote"),
}


class Memory:
    """The part of a registry's server and client that decisions use, in memory; interrupted before its n-th change."""

    def __init__(self) -> None:
        """Versions 1 (champion), 2 (undecided) and 3 (challenger)."""
        self.aliases = {"champion": "1", "challenger": "3"}
        self.tags = {number: {BUNDLE_DIGEST: f"digest {number}"} for number in "123"}
        self.description = dict.fromkeys("123", "# Card")
        self.num_changes_left = 1_000

    def alias(self, _name: str, alias: str) -> int | None:
        return int(self.aliases[alias]) if alias in self.aliases else None

    def version(self, name: str, version: int) -> Version:
        return version_with(name, version, self.tags[str(version)], "", "")

    def get_model_version(self, _name: str, number: str) -> SimpleNamespace:
        return SimpleNamespace(description=self.description[number])

    def set_registered_model_alias(self, _name: str, alias: str, number: str) -> None:
        self._change()
        self.aliases[alias] = number

    def delete_registered_model_alias(self, _name: str, alias: str) -> None:
        self._change()
        self.aliases.pop(alias, None)

    def set_model_version_tag(self, _name: str, number: str, tag: str, text: str) -> None:
        self._change()
        self.tags[number][tag] = text

    def delete_model_version_tag(self, _name: str, number: str, tag: str) -> None:
        self._change()
        self.tags[number].pop(tag, None)

    def update_model_version(self, _name: str, number: str, text: str) -> None:
        self._change()
        self.description[number] = text

    def _change(self) -> None:
        if not self.num_changes_left:
            raise KeyboardInterrupt
        self.num_changes_left -= 1

    def state(self) -> tuple[Any, ...]:
        """All that a decision leaves, its time apart."""
        tags = {number: {**tags, f"{GATE}.at": ""} for number, tags in self.tags.items()}
        return self.aliases, tags, self.description


Remember = Callable[[Memory], Registry]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Remember:
    """Open a registry in memory."""

    def open_registry(memory: Memory) -> Registry:
        monkeypatch.setattr(registry, "server_at", lambda _: memory)
        monkeypatch.setattr(registry, "client_at", lambda _: memory)
        monkeypatch.setattr(registry, "log_to_run", lambda *_: None)
        return Registry("memory")

    return open_registry


def record(memory: Memory, own: Registry, decision: Decision, num_changes: int = 1_000) -> bool:
    """Record a decision about version 2; returns whether it was interrupted before the n-th change."""
    memory.num_changes_left = num_changes
    try:
        own.record(own.resolve("models:/m/2"), decision, own.champion("m"))
    except KeyboardInterrupt:
        return True
    finally:
        memory.num_changes_left = 1_000
    return False


@pytest.mark.parametrize("outcome", DECISIONS)
def test_interrupted_at_any_step_the_next_reader_finishes(
    opened: Remember, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decision, whole = DECISIONS[outcome], Memory()
    assert not record(whole, opened(whole), decision)
    assert whole.aliases["champion"] == ("1" if outcome == "refused" else "2")
    assert "deciding" not in whole.aliases
    for step in itertools.count():
        memory = Memory()
        own = opened(memory)
        is_interrupted = record(memory, own, decision, step)
        champion = own.champion("m")
        assert champion is not None
        said = capsys.readouterr().err
        if step < 2:  # nothing is written down: the same command decides again
            assert (memory.state(), said) == (Memory().state(), "")
            record(memory, own, decision)
        assert memory.state() == whole.state(), step
        if not is_interrupted:
            break
    assert step >= 9


def test_a_finished_decision_is_said(opened: Remember, capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory()
    own = opened(memory)
    assert record(memory, own, DECISIONS["passed"], 6)
    own.resolve("m")
    assert capsys.readouterr().err == (
        "finished an interrupted decision: m version 2 is champion; passed: not worse\n"
    )
    own.champion("m")
    assert capsys.readouterr().err == ""


def test_a_champion_moved_by_hand_meanwhile_stays(opened: Remember) -> None:
    memory = Memory()
    own = opened(memory)
    assert record(memory, own, DECISIONS["passed"], 3)
    memory.aliases["champion"] = "3"
    champion = own.champion("m")
    assert champion is not None
    assert champion.version == 3
    assert "deciding" not in memory.aliases
    assert not {GATE, INTENTION} & memory.tags["2"].keys()


def test_a_registry_that_cannot_be_written_to_is_read(
    opened: Remember, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    own = opened(memory)
    assert record(memory, own, DECISIONS["passed"], 3)

    def refuse(*_: object) -> None:
        raise ServerAway("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(memory, "set_model_version_tag", refuse)
        champion = own.champion("m")
    assert champion is not None
    assert (champion.version, memory.aliases["deciding"]) == (1, "2")
    finished = own.champion("m")
    assert finished is not None
    assert finished.version == 2


def test_a_real_server_finishes_too(tmp_path: Path, empty_database: Path) -> None:
    with_database(tmp_path, empty_database)
    own = Registry(absolute_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db"))
    client = client_at(own.uri)
    client.create_registered_model("m")
    client.create_model_version("m", "file:///nowhere", tags={BUNDLE_DIGEST: "digest"})
    client.set_registered_model_alias("m", "deciding", "1")
    client.set_model_version_tag("m", "1", INTENTION, Intention(DECISIONS["passed"], None, "then").to_json())
    champion = own.champion("m")
    assert champion is not None
    assert (champion.gate, champion.reason, champion.intention) == ("passed", "not worse", "")
    assert client.get_registered_model("m").aliases == {"champion": 1}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"decision": {}}', '{"decision": {"outcome": "passed"}}'])
def test_a_text_that_is_no_intention_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Intention.from_json(text)


def test_an_intention_comes_back_as_it_was() -> None:
    for decision in DECISIONS.values():
        intention = Intention(decision, 1, "2026-01-01")
        assert Intention.from_json(intention.to_json()) == intention
