"""The graph of the stages: what each digests, the order, the inputs, the earlier cuts."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts.files import write_json
from pipeline.config import Config, key_types, load_config
from pipeline.errors import ConfigError, LookbackError
from pipeline.orchestration import graph
from pipeline.orchestration.graph import ALL, STAGES, earlier_cuts, for_lists, order, resolve
from pipeline.tracking import registry
from pipeline.tracking.registry import ModelSource

TABLES = ("events", "items", "users", "exposures")
READ_BY_NO_STAGE = {
    "data_dir": "where artifacts lie does not shape them",
    "events.path": "the content is an input, wherever it lies",
    "events.exclude_users": "the content is an input",
    "items.path": "the content is an input",
    "users.path": "the content is an input",
    "exposures.path": "the content is an input",
    **{
        f"{table}.{key}": "what a read delivers is an input"
        for table in TABLES
        for key in ("database", "query")
    },
    "train.checkpoint_seconds": "a resumed training gives the same bits",
    "train.start": "its bundle's digest is an input",
    "train.replay": "read beside a start version alone",
    "train.full_every_days": "chooses what `lookback update` runs",
    "score.model": "its bundle's digest is an input",
    "score.engine": "either engine writes the same shards",
    "score.workers": "the number of processes changes no shard",
    "score.precision": "both values are fp32",
    **{key: "a table shapes no artifact" for key in key_types() if key.startswith("deliver.")},
    **{key: "logging shapes no artifact" for key in key_types() if key.startswith("tracking.")},
    **{key: "the generated log's content is an input" for key in key_types() if key.startswith("simulate.")},
    **{key: "the downloaded files' content is an input" for key in key_types() if key.startswith("data.")},
    **{key: "an input of score and monitor" for key in key_types() if key.startswith("experiment.")},
    **{key: "a search is no stage; its study digests them" for key in key_types() if key.startswith("tune.")},
}
LOG = "u,i,t\n1,a,1\n1,b,2\n2,a,3\n2,c,4\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The configuration of a tiny log in an empty working directory, with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text("item_id,title\na,Tea\nb,Pot\n")
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\n[events]\npath = "log.csv"\ncolumns = { user_id = "u", item_id = "i", timestamp = "t" }\n'
        '[items]\npath = "items.csv"\n'
    )
    return lambda *overrides: load_config("tiny.toml", overrides)


def fingerprints(config: Config) -> dict[str, str]:
    return {name: node.artifact.name for name, node in resolve(config, list(STAGES)).nodes.items()}


def changed(one: Config, other: Config) -> set[str]:
    before, after = fingerprints(one), fingerprints(other)
    return {name for name in STAGES if before[name] != after[name]}


def reads(key: str) -> set[str]:
    """The stages that read a key themselves."""
    names = {key, key.partition(".")[0]}
    resolved = {"exclude_seen"} if key in ("evaluate.exclude_seen", "score.exclude_seen") else set()
    return {stage.name for stage in STAGES.values() if (names | resolved) & set(stage.keys)}


def downstream(names: set[str]) -> set[str]:
    """The named stages and all that need them."""
    for stage in STAGES.values():  # in the order in which they run
        if set(stage.needs) & names:
            names = names | {stage.name}
    return names


def test_every_key_is_read_by_a_stage_or_listed_with_the_reason_why_not() -> None:
    unread = {key for key in key_types() if not reads(key)}
    assert unread == set(READ_BY_NO_STAGE)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_a_stage_names_keys_that_exist_and_each_once(stage: graph.Stage) -> None:
    unread = {f"{section}.{name}" for section, names in stage.sections.items() for name in names}
    assert unread <= set(key_types())
    assert set(stage.single_keys) - {"exclude_seen"} <= set(key_types())
    assert not {key.partition(".")[0] for key in stage.single_keys if "." in key} & {
        section for section, names in stage.sections.items() if not names
    }
    assert len(set(stage.keys)) == len(stage.keys)
    assert not unread & set(stage.keys)


def test_a_new_key_of_a_section_is_read_without_anything_being_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "key_types", lambda: {**key_types(), "split.new": int})
    assert [stage.name for stage in STAGES.values() if "split.new" in stage.keys] == ["features"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("events.earliest=1980-01-01", "events.earliest"),
        ("items.text_dim=8", "items.text_dim"),
        ("history.max_length=7", "history.max_length"),
        ("history.min_item_events=2", "history.min_item_events"),
        ("split.test_fraction=0.2", "split.test_fraction"),
        ("model.dim=32", "model.dim"),
        ("train.epochs=3", "train.epochs"),
        ("train.predict=visit", "train.predict"),
        ("history.session_minutes=30", "history.session_minutes"),
        ("split.ties=strict", "split.ties"),
        ("train.refit=false", "train.refit"),
        ("index.target_recall=0.9", "index.target_recall"),
        ("ranker.use=never", "ranker.use"),
        ("evaluate.gru_epochs=2", "evaluate.gru_epochs"),
        ("evaluate.cold_users=true", "evaluate.cold_users"),
        ("evaluate.gate_margin=0.1", "evaluate.gate_margin"),
        ("score.diversity=0.5", "score.diversity"),
        ("score.exclude_seen=false", "score.exclude_seen"),
        ("report.num_users=3", "report.num_users"),
        ("seed=1", "seed"),
    ],
)
def test_a_key_changes_the_stages_that_read_it_and_those_after_them(
    load: Callable[..., Config], override: str, key: str
) -> None:
    assert reads(key)
    assert changed(load(), load(override)) == downstream(reads(key))


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoint_seconds=5",
        "score.engine=ray",
        "score.workers=7",
        "score.precision=fp32",
        "tracking.enabled=false",
        "tune.max_seconds=5",
        "data.folder=elsewhere",
    ],
)
def test_a_key_that_shapes_nothing_changes_no_stage(load: Callable[..., Config], override: str) -> None:
    assert changed(load(), load(override)) == set()


def test_masking_as_in_scoring_is_what_the_stages_read(load: Callable[..., Config]) -> None:
    same = load("evaluate.exclude_seen=auto")  # score.exclude_seen is auto by default
    assert changed(load(), same) == set()
    other = load("evaluate.exclude_seen=false")
    assert changed(same, other) == downstream({"train", "rank", "baselines", "evaluate"})
    settings = graph.resolve(other, ["train"]).nodes["train"].settings
    assert settings["exclude_seen"] is False


def test_a_section_that_is_not_there_is_digested_as_nothing(load: Callable[..., Config]) -> None:
    settings = resolve(load(), ["ingest"]).nodes["ingest"].settings
    assert settings["users.columns"] is None
    assert settings["items.category_separator"] == "|"
    assert "items.text_dim" not in settings


def test_the_content_of_sources_counts_and_not_their_names(
    load: Callable[..., Config], tmp_path: Path
) -> None:
    before = fingerprints(load())
    (tmp_path / "log.csv").rename(tmp_path / "renamed.csv")
    assert fingerprints(load("events.path=renamed.csv")) == before
    (tmp_path / "log.csv").write_text(LOG + "3,a,5\n")
    after = fingerprints(load())
    assert all(before[name] != after[name] for name in STAGES)


def test_the_order_of_item_files_counts_as_the_first_row_of_an_item_does(
    load: Callable[..., Config], tmp_path: Path
) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}1.csv").write_text("item_id,title\na,One\n")
        (tmp_path / f"{name}2.csv").write_text("item_id,title\na,Two\n")
    (tmp_path / "y1.csv").rename(tmp_path / "y3.csv")
    there, swapped = load("items.path=x*.csv"), load("items.path=y*.csv")
    assert changed(there, swapped) == set(STAGES)


def test_files_of_scoring_count_by_their_content(load: Callable[..., Config], tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a"]}).write_parquet(tmp_path / "deny.parquet")
    denied = load("score.deny=deny.parquet")
    before = resolve(denied, ["score"]).nodes["score"]
    pl.DataFrame({"item_id": ["b"]}).write_parquet(tmp_path / "deny.parquet")
    after = resolve(denied, ["score"]).nodes["score"]
    assert before.settings == after.settings
    assert before.inputs["deny"] != after.inputs["deny"]
    assert before.artifact.name != after.artifact.name
    assert resolve(denied, ["similar"]).nodes["similar"].inputs["deny"] == after.inputs["deny"]


def test_lists_of_similar_items_are_made_on_request_and_read_no_rules_of_users(
    load: Callable[..., Config],
) -> None:
    assert set(STAGES) - set(ALL) == {"similar"}
    assert changed(load(), load("similar.k=5")) == {"similar"}
    assert changed(load(), load('score.deny=["b"]')) == {"score", "report", "similar"}
    assert changed(load(), load("score.k=5", "score.diversity=0.5")) == {"score", "report"}
    pl.DataFrame({"user_id": [1], "item_id": ["a"]}).write_parquet("exclude.parquet")
    inputs = resolve(load("score.exclude=exclude.parquet"), ["score", "similar"]).nodes
    assert "exclude" in inputs["score"].inputs
    assert "exclude" not in inputs["similar"].inputs


def test_the_order_puts_every_stage_after_what_it_needs(load: Callable[..., Config]) -> None:
    assert order(load(), list(reversed(ALL))) == list(ALL)
    assert order(load(), ["index"]) == ["ingest", "features", "train", "index"]
    assert order(load(), ["baselines", "features"]) == ["ingest", "features", "baselines"]


def test_scoring_with_a_registered_model_needs_no_training(load: Callable[..., Config]) -> None:
    for stage in ("score", "similar"):
        assert order(load("score.model=champion"), [stage]) == ["ingest", "features", stage]
    assert "train" in order(load(), ["score"])


def test_an_update_is_published_without_an_evaluation(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start version counts by its digest, `train.replay` beside it alone; what measures on the test is refused."""
    digests = {"models:/m/1": "a", "models:/m/2": "b", "champion": "b"}
    monkeypatch.setattr(registry, "source_of", lambda _, uri: ModelSource(1, digests[uri], uri))
    monkeypatch.setattr(registry, "model_name", lambda _: "champion")

    def nodes(*settings: str) -> dict[str, str]:
        return {
            name: node.artifact.name for name, node in resolve(load(*settings), ["publish"]).nodes.items()
        }

    start = "train.start=models:/m/{}"
    first, second = nodes(start.format(1)), nodes(start.format(2))
    assert list(first) == ["ingest", "features", "train", "publish"]
    assert first["train"] != second["train"] != nodes()["train"]
    assert second == nodes("train.start=champion")
    assert first["train"] != nodes(start.format(1), "train.replay=0.1")["train"]
    assert nodes() == nodes("train.replay=0.1", "train.full_every_days=3")
    for stage in ("rank", "evaluate", "report"):
        with pytest.raises(ConfigError, match=f"with the stage {stage}, expected 'scratch'"):
            order(load("train.start=champion"), [stage])


def test_a_stage_that_is_none_is_refused(load: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="stage 'trian': no such stage; expected one of ingest"):
        order(load(), ["trian"])


def test_a_node_is_made_of_its_settings_and_the_fingerprints_of_what_it_needs(
    load: Callable[..., Config],
) -> None:
    config = load()
    nodes = resolve(config, ["train"]).nodes
    assert list(nodes) == ["ingest", "features", "train"]
    assert nodes["train"].inputs == {"features": nodes["features"].artifact.name}
    assert nodes["train"].settings["model"] == config.get("model")
    assert nodes["train"].artifact.folder == config.folder / "train" / nodes["train"].artifact.name
    assert set(nodes["ingest"].inputs) == {"events", "items"}


def test_the_evaluation_needs_that_of_every_earlier_cut(load: Callable[..., Config]) -> None:
    config = load("split.cuts=3")
    cuts = earlier_cuts(config)
    assert [cut.split.held_back for cut in cuts] == [0.2, 0.1]
    assert {cut.split.cuts for cut in cuts} == {1}
    pipeline = resolve(config, ["evaluate"])
    assert list(pipeline.earlier_cuts) == ["evaluate cut 1", "evaluate cut 2"]
    inputs = pipeline.nodes["evaluate"].inputs
    for name, cut in pipeline.earlier_cuts.items():
        assert inputs[name] == cut.nodes["evaluate"].artifact.name
        assert cut.nodes["ingest"].artifact.name == pipeline.nodes["ingest"].artifact.name
        assert cut.nodes["features"].artifact.name != pipeline.nodes["features"].artifact.name
    assert len(set(inputs.values())) == len(inputs)


def test_one_cut_and_stages_before_the_evaluation_have_no_earlier_ones(load: Callable[..., Config]) -> None:
    assert resolve(load(), ["evaluate"]).earlier_cuts == {}
    assert resolve(load("split.cuts=3"), ["train"]).earlier_cuts == {}


def test_lists_wait_for_the_baselines_that_can_be_published(load: Callable[..., Config]) -> None:
    """What is published and scored is the same artifact, whatever else is evaluated."""
    config = load('evaluate.baselines=["popularity", "ease", "gru"]')
    lists, everything = resolve(config, ["score"]), resolve(config, list(STAGES))
    assert lists.config.evaluate.baseline_names == ("popularity", "ease")
    assert everything.config is config
    for name in ("train", "publish", "score"):
        assert lists.nodes[name].artifact.name == everything.nodes[name].artifact.name
    fewer = {name: lists.nodes[name].artifact for name in ("baselines", "evaluate")}
    for name, artifact in fewer.items():
        assert artifact.name != everything.nodes[name].artifact.name
    assert lists.nodes["publish"].inputs["evaluate"] == fewer["evaluate"].name
    evaluated = everything.nodes["evaluate"].artifact
    assert everything.nodes["publish"].inputs["evaluate"] == evaluated.name, "it reads what there is"
    taken_over = everything.nodes["baselines"].with_fewer
    assert taken_over is not None
    assert taken_over.name == fewer["baselines"].name
    for asked in (["evaluate"], ["baselines"], ["score", "report"]):
        assert resolve(config, asked).config is config
    evaluated.folder.mkdir(parents=True)
    write_json(evaluated.folder / "manifest.json", {"files": {}})
    assert resolve(config, ["score"]).config is config, "there is an evaluation with all of them"


def test_baselines_that_publishing_waits_for_can_be_named(load: Callable[..., Config]) -> None:
    evaluated = 'evaluate.baselines=["popularity", "item_knn", "ease", "gru"]'
    few = load(evaluated, 'publish.baselines=["popularity"]', "publish.system=ease")
    assert for_lists(few).evaluate.baseline_names == ("popularity", "ease"), "and the published one"
    every = load(evaluated, 'publish.baselines=["popularity", "item_knn", "ease", "gru"]')
    assert for_lists(every) is every
    assert resolve(every, ["score"]).config is every
    with pytest.raises(
        ConfigError, match=r"publish.baselines: received als, expected auto, or some of .* ease"
    ):
        load('evaluate.baselines=["ease"]', 'publish.baselines=["als"]')


def test_a_changed_class_of_ones_own_runs_the_baselines_again(
    load: Callable[..., Config], tmp_path: Path
) -> None:
    own, text = tmp_path / "my_graph_shop.py", "class Mine:\n    rate = {}\n"
    own.write_text(text.format(1))
    config = load('evaluate.baselines=["popularity", "my_graph_shop:Mine"]')
    before = fingerprints(config)
    assert "my_graph_shop:Mine" in resolve(config, ["baselines"]).nodes["baselines"].inputs
    own.write_text(text.format(25))
    after = fingerprints(config)
    assert {name for name in STAGES if before[name] != after[name]} == downstream({"baselines"})
    own.write_text("rate = 3\n")
    with pytest.raises(ConfigError, match=r"evaluate\.baselines: .* has no 'Mine'"):
        resolve(config, ["baselines"])
    assert resolve(config, ["train"])


def test_shadows_are_inputs_of_score_and_one_without_a_model_is_left_out(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a registered model alone; baselines are counted from the log, so they are no input."""

    def source_of(config: Config, uri: str) -> ModelSource:
        if "challenger" in uri:
            raise LookbackError("there is no challenger")
        return ModelSource(1, "same" if uri.endswith("/7") else "other", uri)

    monkeypatch.setattr(registry, "source_of", source_of)
    monkeypatch.setattr(graph, "_model_source", lambda _: ModelSource(2, "same", "models:/own/2"))
    names = '["popularity", "previous", "challenger", "models:/other/3", "models:/own/7"]'
    night = resolve(load(f"score.shadows={names}", "score.model=champion"), ["score"])
    inputs = night.nodes["score"].inputs
    assert {name: digest for name, digest in inputs.items() if name.startswith("shadow")} == {
        "shadow models:/other/3": "other"
    }
    assert night.shadows.left_out == {
        "previous": "no lists of another model were delivered before",
        "challenger": "there is no challenger",
        "models:/own/7": "models:/own/7 is the delivered model",
    }
    with pytest.raises(
        ConfigError, match=r"score\.shadows: received 'ease', expected previous, challenger, popularity"
    ):
        load("score.shadows=['ease']")


EXPERIMENT = (
    "experiment.name=e experiment.salt=s experiment.start=2020-01-01",
    'experiment.arms={ champion = 0.5, challenger = 0.3, "models:/own/7" = 0.1, popularity = 0.1 }',
)


def test_the_arms_of_an_experiment_are_inputs_of_the_champion_s_lists_alone(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"models:/lookback-tiny@challenger": "c", "models:/own/7": "seven"}
    monkeypatch.setattr(registry, "source_of", lambda _, uri: ModelSource(9, sources[uri], uri))
    champion = ModelSource(2, "digest", "models:/own/2")
    monkeypatch.setattr(
        graph, "_model_source", lambda config: None if config.score.model == "run" else champion
    )
    night = "score.model=champion"
    score = resolve(load(night, *EXPERIMENT), ["score"]).nodes["score"]
    plain = resolve(load(night), ["score"]).nodes["score"]
    assert {name: own for name, own in score.inputs.items() if name not in plain.inputs} == {
        "experiment": score.inputs["experiment"],
        "arm champion": "digest",
        "arm challenger": "c",
        "arm models:/own/7": "seven",
    }
    turned = load(night, *EXPERIMENT, "experiment.arms={ popularity = 0.5, champion = 0.5 }")
    same = load(night, *EXPERIMENT, "experiment.arms={ champion = 0.5, popularity = 0.5 }")
    others = {resolve(config, ["score"]).nodes["score"].artifact.name for config in (turned, same)}
    assert len(others | {score.artifact.name}) == 3, "the order of the arms counts"
    effect = load(night, *EXPERIMENT, "experiment.smallest_effect=0.2")
    assert resolve(effect, ["score"]).nodes["score"].artifact.name == score.artifact.name
    monitors = [
        resolve(config, ["monitor"]).nodes["monitor"].artifact.name for config in (effect, load(*EXPERIMENT))
    ]
    assert monitors[0] != monitors[1]
    run = (resolve(load(*more), ["score"]).nodes["score"].artifact.name for more in (EXPERIMENT, ()))
    assert next(run) == next(run), "of the present run: without arms"


def test_with_an_arm_that_is_not_there_the_lists_are_the_champion_s(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def source_of(config: Config, uri: str) -> ModelSource:
        if "challenger" in uri:
            raise LookbackError("there is no challenger")
        return ModelSource(9, "seven", uri)

    monkeypatch.setattr(registry, "source_of", source_of)
    monkeypatch.setattr(graph, "_model_source", lambda _: ModelSource(2, "digest", "models:/own/2"))
    night = resolve(load("score.model=champion", *EXPERIMENT), ["score"])
    assert night.arms.left_out == {"challenger": "there is no challenger"}
    plain = resolve(load("score.model=champion"), ["score"])
    assert night.nodes["score"].artifact.name == plain.nodes["score"].artifact.name


def test_a_utility_evaluates_and_scores_anew_and_outcomes_train_the_ranker(
    load: Callable[..., Config],
) -> None:
    column, types = "events.columns.event_type=e", 'outcomes.types=["buy"]'
    plain, learned, worth, dearer = (
        fingerprints(load(column, *settings))
        for settings in ([], [types], [types, "utility.buy=1.0"], [types, "utility.buy=2.0"])
    )
    changed = {name for name in STAGES if plain[name] != learned[name]}
    assert changed == {"rank", "evaluate", "publish", "score", "report", "similar"}
    for one, other in ((learned, worth), (worth, dearer)):
        anew = {name for name in STAGES if one[name] != other[name]}
        assert anew == {"evaluate", "publish", "score", "monitor", "report", "similar"}
    node = resolve(load(), ["score"]).nodes
    assert not {"outcomes", "utility"} & {key for stage in node.values() for key in stage.settings}


def test_candidates_are_evaluated_where_an_evaluation_is_asked_for(load: Callable[..., Config]) -> None:
    """What is published is the same artifact; lists take the evaluation that there is."""
    plain = load()
    pl.DataFrame({"user_id": [1], "item_id": ["a"]}).write_parquet("candidates.parquet")
    config = load("score.candidates=candidates.parquet")
    evaluated, lists = resolve(config, ["evaluate"]), resolve(config, ["score"])
    artifact = evaluated.nodes["evaluate"].artifact
    assert "candidates" in evaluated.nodes["evaluate"].inputs
    assert lists.nodes["evaluate"].artifact.name == resolve(plain, ["score"]).nodes["evaluate"].artifact.name
    assert "candidates" in lists.nodes["score"].inputs
    everything = fingerprints(config)
    assert everything["evaluate"] == artifact.name
    assert everything["publish"] == fingerprints(plain)["publish"] == lists.nodes["publish"].artifact.name
    assert everything["score"] == lists.nodes["score"].artifact.name != fingerprints(plain)["score"]
    pl.DataFrame({"user_id": [1], "item_id": ["b"]}).write_parquet("candidates.parquet")
    after = fingerprints(config)
    assert {name for name in STAGES if everything[name] != after[name]} == {"evaluate", "score", "report"}
    again = resolve(config, ["evaluate"]).nodes["evaluate"].artifact
    again.folder.mkdir(parents=True)
    write_json(again.folder / "manifest.json", {"files": {}})
    assert resolve(config, ["score"]).nodes["evaluate"].artifact.name == again.name
