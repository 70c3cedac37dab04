"""Messages for a version that is not there: which one waits, why, and the command that goes on."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config import Config, load_config
from pipeline.tracking import missing
from pipeline.tracking.server import Version

NAME = "lookback-shop"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    columns = 'columns = { user_id = "u", item_id = "i", timestamp = "t" }'
    Path("my shop.toml").write_text(f'name = "shop"\n[events]\npath = "log.csv"\n{columns}\n')
    return load_config("my shop.toml", ["train.epochs=3"])


def a_version(number: int, gate: str = "", reason: str = "") -> Version:
    return Version(NAME, number, "digest", "run", "source", gate, reason)


PROMOTE = "lookback promote {} --config 'my shop.toml' --set train.epochs=3"
REFUSED = a_version(2, "refused", "worse than ease"), a_version(1, "refused", "worse than item_knn")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        (
            REFUSED,
            f"version 2 waits, refused: worse than ease; to make it champion: {PROMOTE.format(2)}",
        ),
        (
            (a_version(3, "refused", "worse"), a_version(2, "passed", "better")),
            f"version 2 was champion once (passed: better), and the alias is gone; to make it champion: {PROMOTE.format(2)}",
        ),
        ((a_version(1),), f"version 1 waits, undecided; to make it champion: {PROMOTE.format(1)}"),
    ],
)
def test_the_version_that_waits_is_named_with_its_reason(
    config: Config, versions: Sequence[Version], said: str
) -> None:
    uri = f"models:/{NAME}@champion"
    message = missing.explain(uri, "sqlite:///x", versions, None, config)
    numbers = ", ".join(str(version.version) for version in versions)
    assert message == (
        f"{uri}: no such version on sqlite:///x, which has {numbers}; there is no champion: {said}"
    )


def test_a_version_that_is_gone_points_to_the_champion(config: Config) -> None:
    uri = f"models:/{NAME}/7"
    message = missing.explain(uri, "x", REFUSED, REFUSED[0], config)
    assert (
        message == f"{uri}: no such version on x, which has 2, 1; models:/{NAME}/2 is the champion: use that"
    )


def test_without_a_version_the_command_publishes_one(config: Config) -> None:
    uri = f"models:/{NAME}@champion"
    publish = "lookback run publish --config 'my shop.toml' --set train.epochs=3"
    assert missing.explain(uri, "x", (), None, config) == (
        f"{uri}: no such model on x; nothing is published yet: {publish}"
    )
    off = load_config("my shop.toml", ["train.epochs=3", "tracking.enabled=false"])
    assert missing.unpublished(off).endswith(
        f"{publish} --set tracking.enabled=false --set tracking.enabled=true"
    )


def test_a_model_of_another_name_has_no_command(config: Config) -> None:
    message = missing.explain("models:/other/1", "x", (), None, None)
    assert message == "models:/other/1: no such model on x; expected the name of a registered model"
    assert "lookback " not in missing.explain("models:/other/9", "x", REFUSED, None, None)


def test_commands_hide_credentials(config: Config) -> None:
    secret = load_config("my shop.toml", ["tracking.uri=http://me:planted@host/"])
    assert secret.command("promote", "1").endswith("--set tracking.uri=http://***@host/")
    assert config.model_copy().command("promote", "1") == PROMOTE.format(1)
