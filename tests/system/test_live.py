"""What applications read, `score/live`, through refusals, remedies, rollbacks, wrong clocks and runs for some users."""

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from pipeline.tracking.client import client_at
from tests.workdir import Result, Workdir

NIGHT = ("ingest", "features", "score", "--set", "score.model=champion")
OTHER = ("--set", "publish.system=popularity")
"""A second version, in seconds."""
NAME = "lookback-tiny"


def link(workdir: Workdir, name: str) -> str:
    return (workdir.folder / "data" / "tiny" / "score" / name).readlink().name


def remedies(message: str) -> list[list[str]]:
    """Every command line in a message, without the program's name and the configuration."""
    found = re.findall(r"lookback [^,;]* --config .*?(?=, then |; |$)", message, re.MULTILINE)
    assert found, message
    return [
        shlex.split(command.replace("--config tiny.toml ", "").removesuffix("--config tiny.toml"))[1:]
        for command in found
    ]


def follow(workdir: Workdir, message: str) -> Result:
    """Execute all remedies of a message; returns the last one's result."""
    for words in remedies(message):
        result = workdir(*words)
        assert result.code == 0, (words, result.err)
    return result


def test_all_ends_with_a_line_about_the_live_lists(finished: Workdir) -> None:
    assert link(finished, "live") == link(finished, "latest") == finished.artifact("score").name
    said = finished("run", "all").out.splitlines()[-1]
    assert said == "live: data/tiny/score/live, by the champion, version 1"
    assert finished.run("score")["is_live"] is True


@pytest.mark.slow
def test_live_lists_are_the_champions_of_all_users(copied: Workdir) -> None:
    first = link(copied, "live")
    pl.DataFrame({"user_id": ["u0001"]}).write_parquet(copied.folder / "three.parquet")
    pl.DataFrame({"user_id": pl.Series([], dtype=pl.String)}).write_parquet(copied.folder / "nobody.parquet")
    for users in ("three.parquet", "nobody.parquet", "2099-01-01"):
        some = copied.run("score", "--set", f"score.users={users}")
        assert (some["is_live"], link(copied, "live")) == (False, first)
        assert link(copied, "latest") == Path(some["folder"]).name

    refused = copied("run", "score", *OTHER, "--set", "evaluate.gate=true")
    said = refused.out.splitlines()[-1]
    assert said.startswith("not live: version 1 is the champion, not version 2, refused: ")
    second = link(copied, "latest")
    assert link(copied, "live") == first != second
    assert follow(copied, said).out.splitlines()[-1].startswith("live: ")
    assert link(copied, "live") == link(copied, "latest") == second

    manifest = copied.folder / "data" / "tiny" / "score" / second / "manifest.json"
    content = json.loads(manifest.read_text()) | {"created_utc": "2099-01-01T00:00:00"}
    del content["manifest_digest"]  # as in manifests of 0.6
    manifest.write_text(json.dumps(content))
    by_version: dict[str, set[str]] = {}
    for version in ("1", f"models:/{NAME}/latest", f"models:/{NAME}/1"):
        assert copied("promote", version).code == 0
        night = copied.run(*NIGHT)
        lists = Path(night["folder"]).name
        assert night["is_live"]
        assert link(copied, "live") == link(copied, "latest") == lists
        by_version.setdefault(night["live"][-1], set()).add(lists)
    assert {version: len(lists) for version, lists in by_version.items()} == {"1": 1, "2": 1}
    assert copied("prune", "--keep", "1").code == 0
    assert link(copied, "live") == link(copied, "latest") == lists
    assert (manifest.parents[1] / lists / "_SUCCESS").exists()
    assert not manifest.exists()


@pytest.mark.slow
def test_without_a_champion_the_remedy_of_the_message_works(copied: Workdir) -> None:
    client = client_at(f"sqlite:///{copied.folder}/mlruns/mlflow.db")
    client.delete_registered_model_alias(NAME, "champion")  # removed in the UI
    removed = copied("run", *NIGHT)
    assert removed.code == 1
    assert "version 1 was champion once (off: " in removed.err
    follow(copied, removed.err)
    assert copied.run(*NIGHT)["is_live"]

    client.delete_registered_model_alias(NAME, "champion")
    client.set_model_version_tag(NAME, "1", "lookback.gate", "refused")  # the first version, refused
    client.set_model_version_tag(NAME, "1", "lookback.gate.reason", "not better than ease")
    for command in (("run", *NIGHT), ("recommend", "--user", "u0001", "--set", "score.model=champion")):
        refused = copied(*command)
        assert refused.code == 1
        assert "there is no champion: version 1 waits, refused: not better than ease; " in refused.err
    follow(copied, refused.err)
    assert copied.run(*NIGHT)["is_live"]

    gone = copied("run", "score", "--set", f"score.model=models:/{NAME}/7")
    assert gone.code == 1
    assert f"which has 1; models:/{NAME}/1 is the champion: use that" in gone.err
    assert copied.run("score", "--set", f"score.model=models:/{NAME}@champion")["is_live"]

    client.delete_model_version(NAME, "1")
    unpublished = copied("run", *NIGHT)
    assert unpublished.code == 1
    assert "nothing is published yet" in unpublished.err
    (publish,) = remedies(unpublished.err)
    assert publish[:2] == ["run", "publish"]
    follow(copied, unpublished.err)
    assert copied.run(*NIGHT)["is_live"]
