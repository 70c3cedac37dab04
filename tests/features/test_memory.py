"""Memory that this process may use."""

import resource
from pathlib import Path

import pytest

from features import memory


def test_the_lowest_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    none, limit = tmp_path / "none", tmp_path / "limit"
    none.write_text("max\n")
    limit.write_text("70000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(memory, "_CONTROL_GROUP", (none, tmp_path / "absent"))
    assert memory.usable_bytes() > 1 << 28  # the machine's
    monkeypatch.setattr(memory, "_CONTROL_GROUP", (none, limit))
    assert memory.usable_bytes() == 70_000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (50_000 + kind, 90_000))
    assert memory.usable_bytes() == 50_000 + min(resource.RLIMIT_AS, resource.RLIMIT_DATA)
