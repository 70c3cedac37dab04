"""The link `score/live`: moved by lists of the champion for all users, and by nothing else."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features.settings import iso_microseconds
from pipeline.__main__ import cli
from pipeline.artifacts.store import Artifact, linked
from pipeline.config import Config, load_config
from pipeline.release import live_lists
from pipeline.tracking.client import client_at, tracking_uri
from pipeline.tracking.decisions import Decision
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import BUNDLE_DIGEST, Version
from tests.workdir import with_database

NAME = "lookback-shop"


@dataclass
class Shop:
    """A working directory with a registry, and score artifacts."""

    config: Config
    num_lists: int = 0

    @property
    def registry(self) -> Registry:
        return Registry.from_config(self.config)

    def publish(self, number: int, outcome: Any = None) -> Version:
        """Register a version, and decide about it."""
        client = client_at(tracking_uri(self.config))
        if not client.search_registered_models(f"name='{NAME}'"):
            client.create_registered_model(NAME)
        client.create_model_version(NAME, "file:///nowhere", tags={BUNDLE_DIGEST: f"digest {number}"})
        version = self.registry.resolve(f"models:/{NAME}/{number}")
        if outcome is not None:
            self.registry.record(
                version, Decision(outcome, "so it was measured"), self.registry.champion(NAME)
            )
        return self.registry.resolve(version.uri)

    def lists(self, version: int, created: str = "2026-01-01T04:00:00", **more: object) -> Artifact:
        """Lists made with a version's bundle; more: of the manifest."""
        self.num_lists += 1
        artifact = Artifact(self.config.folder / "score", f"{self.num_lists:016x}")
        artifact.prepare(resume=False)
        artifact.commit(
            {
                "created_utc": created,
                "inputs": {},
                "bundle_digest": f"digest {version}",
                "model_version": version,
            }
            | more
        )
        return artifact

    def live(self) -> str | None:
        folder = linked(self.config.folder / "score").get("live")
        return None if folder is None else folder.name


@pytest.fixture
def shop(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    with_database(tmp_path, empty_database)
    columns = 'columns = { user_id = "u", item_id = "i", timestamp = "t" }'
    Path("shop.toml").write_text(f'name = "shop"\n[events]\npath = "log.csv"\n{columns}\n')
    return Shop(load_config("shop.toml"))


def commands(message: str) -> list[list[str]]:
    """Every command line in a message, without the program's name."""
    return [
        shlex.split(found)[1:]
        for found in re.findall(r"lookback [^,;]* --config .*?(?=, then |; |$)", message)
    ]


def test_a_refused_version_leaves_the_live_lists_until_its_remedy_is_followed(shop: Shop) -> None:
    first, second = shop.publish(1, "first"), shop.publish(2, "refused")
    good, bad = shop.lists(1), shop.lists(2)
    live = live_lists.point(shop.config, good, first)
    assert (live.is_live, shop.live()) == (True, good.name)
    assert live.sentence == "live: data/shop/score/live, by the champion, version 1"
    refused = live_lists.point(shop.config, bad, second)
    assert (refused.is_live, shop.live()) == (False, good.name)
    promote, score = commands(refused.sentence)
    assert refused.sentence == (
        "not live: version 1 is the champion, not version 2, refused: so it was measured; to make it champion: "
        "lookback promote 2 --config shop.toml, then lookback run score --config shop.toml; "
        "data/shop/score/live stays: version 1, 2026-01-01T04:00Z"
    )
    assert score == ["run", "score", "--config", "shop.toml"]
    cli.main(promote, standalone_mode=False)
    assert live_lists.point(shop.config, bad, second).is_live
    assert shop.live() == bad.name


def test_a_rollback_makes_lists_of_an_earlier_run_live_again_whatever_the_clocks_say(shop: Shop) -> None:
    versions = [shop.publish(1, "first"), shop.publish(2, "passed")]
    made = [shop.lists(1), shop.lists(2, created="2099-01-01T04:00:00")]
    assert live_lists.point(shop.config, made[1], versions[1]).is_live
    for at, words in enumerate(("1", f"models:/{NAME}/latest", f"models:/{NAME}/1")):
        cli.main(["promote", words, "--config", "shop.toml"], standalone_mode=False)
        made[at % 2].point_latest()
        assert live_lists.point(shop.config, made[at % 2], versions[at % 2]).is_live
        now = linked(shop.config.folder / "score")
        assert now == {"latest": made[at % 2].folder, "live": made[at % 2].folder}


def test_lists_of_some_users_are_not_live(shop: Shop) -> None:
    first = shop.publish(1, "first")
    some = load_config("shop.toml", ["score.users=2099-01-01"])
    said = live_lists.point(some, shop.lists(1), first)
    assert not said.is_live
    assert said.sentence == (
        "not live: score.users is '2099-01-01', not all; there is no data/shop/score/live yet"
    )
    assert shop.live() is None


def test_without_a_champion_the_version_that_waits_is_named(shop: Shop) -> None:
    assert commands(live_lists.point(shop.config, shop.lists(1), None).sentence) == [
        ["run", "publish", "--config", "shop.toml"]
    ]
    first = shop.publish(1, "refused")
    lists = shop.lists(1)
    said = live_lists.point(shop.config, lists, first)
    assert "there is no champion: version 1 waits, refused: so it was measured" in said.sentence
    promote, score = commands(said.sentence)
    assert score == ["run", "score", "--config", "shop.toml"]
    cli.main(promote, standalone_mode=False)
    assert live_lists.point(shop.config, lists, first).is_live
    client_at(tracking_uri(shop.config)).delete_registered_model_alias(NAME, "champion")
    removed = live_lists.point(shop.config, lists, first).sentence
    assert "version 1 was champion once (by hand: " in removed
    assert "the alias is gone" in removed
    cli.main(commands(removed)[0], standalone_mode=False)
    assert live_lists.point(shop.config, lists, first).is_live


def test_an_unregistered_bundle_and_another_model_are_not_live(shop: Shop) -> None:
    shop.publish(1, "first")
    unknown = live_lists.point(shop.config, shop.lists(7), None)
    assert "the scored bundle is not registered; lookback run publish" in unknown.sentence
    other = Version("lookback-other", 3, "digest 7", "", "")
    assert (
        "models:/lookback-other/3 is of another model"
        in live_lists.point(shop.config, shop.lists(7), other).sentence
    )
    assert shop.live() is None


def test_without_tracking_or_a_server_nothing_is_live(shop: Shop) -> None:
    off = load_config("shop.toml", ["tracking.enabled=false"])
    assert live_lists.point(off, shop.lists(1), None).sentence.startswith(
        "not live: tracking.enabled is false, so there is no champion"
    )
    away = load_config("shop.toml", ["tracking.uri=http://127.0.0.1:9"])
    said = live_lists.point(away, shop.lists(1), None).sentence
    assert said.startswith("not live: the champion is unknown (")
    assert "run again: lookback run score --config shop.toml --set tracking.uri=http://127.0.0.1:9" in said


EXPERIMENT = (
    "experiment.name=e experiment.salt=s experiment.start=2026-02-01",
    "experiment.arms={ champion = 0.5, challenger = 0.3, popularity = 0.2 }",
)


def of_experiment(shop: Shop, day: str, *arms: tuple[str, int | None]) -> Artifact:
    """Lists made by version 1 on a day of the log, or by arms (name, version)."""
    rows = [{"name": name, "model_version": version} for name, version in arms]
    experiment = {"name": "e", "arms": rows} if arms else None
    return shop.lists(1, request_time=iso_microseconds(day), experiment=experiment)


def test_lists_by_arm_are_live_and_those_without_in_an_experiment_s_time_are_not(shop: Shop) -> None:
    first = shop.publish(1, "first")
    run, night = (load_config("shop.toml", [*EXPERIMENT, *more]) for more in ([], ["score.model=champion"]))
    before, during = of_experiment(shop, "2026-01-31"), of_experiment(shop, "2026-02-01")
    assert live_lists.point(run, before, first).is_live
    refused = live_lists.point(run, during, first)
    assert not refused.is_live
    assert refused.sentence == (
        "not live: experiment 'e' runs, and these lists are not by its arms; make those with lookback run score "
        "--config shop.toml --set 'experiment.name=e experiment.salt=s experiment.start=2026-02-01' --set "
        "'experiment.arms={ champion = 0.5, challenger = 0.3, popularity = 0.2 }' "
        "--set score.model=champion; data/shop/score/live stays: version 1, 2026-01-01T04:00Z"
    )
    assert live_lists.point(night, during, first).is_live, "not applied, as was said"
    arms = ("champion", 1), ("challenger", 3), ("popularity", None)
    live = live_lists.point(night, of_experiment(shop, "2026-02-01", *arms), first)
    assert live.sentence == (
        "live: data/shop/score/live, by the arms of experiment 'e': champion (version 1), challenger (version 3), popularity"
    )
