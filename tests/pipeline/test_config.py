"""The configuration: typed, with defaults, refused where it makes no sense."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.artifacts.source_files import list_files
from pipeline.config import key_types, load_config, type_name
from pipeline.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "pipeline" / "configs").glob("*.toml"))
MINIMAL = """
name = "tiny"
[events]
path = "{data_dir}/{name}/log.csv"
columns = { user_id = "u", item_id = "i", timestamp = "t" }
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_the_contract_s(minimal: Path) -> None:
    config = load_config(minimal)
    assert (config.seed, config.data_dir, config.history.max_length) == (0, "data", 200)
    assert (config.split.protocol, config.split.test_fraction, config.split.ties) == ("temporal", 0.1, "auto")
    assert (config.evaluate.targets, config.evaluate.horizon_days, config.evaluate.every_days) == 3 * (
        "auto",
    )
    assert (config.history.session_minutes, config.train.predict, config.score.exclude_seen) == (
        0,
        "next",
        "auto",
    )
    assert (config.model.dim, config.model.num_blocks, config.model.num_heads, config.model.dropout) == (
        64,
        2,
        2,
        0.2,
    )
    assert (config.train.epochs, config.train.patience, config.train.batch_histories) == (100, 10, 128)
    assert config.evaluate.k == [10, 200]
    assert (config.score.model, config.score.k, config.score.because_items) == ("run", 10, 3)
    assert config.events.max_refused_fraction == 0.05


def test_paths_are_filled_in(minimal: Path) -> None:
    assert load_config(minimal, ["data_dir=elsewhere"]).events.path == "elsewhere/tiny/log.csv"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        ("train.refit=false", ("train.refit", False)),
        ("train.learning_rate=1", ("train.learning_rate", 1.0)),
        ("split.protocol=leave_one_out", ("split.protocol", "leave_one_out")),
        ("split.test_from=2024-01-31", ("split.test_from", "2024-01-31")),
        ("evaluate.k=[5, 20]", ("evaluate.k", [5, 20])),
        ("score.model=models:/lookback-tiny/3", ("score.model", "models:/lookback-tiny/3")),
    ],
)
def test_overrides(minimal: Path, override: str, expected: tuple[str, object]) -> None:
    assert load_config(minimal, [override]).get(expected[0]) == expected[1]


def test_bare_toml_dates_are_text(minimal: Path) -> None:
    minimal.write_text(MINIMAL + "earliest = 2001-02-03\n[split]\ntest_from = 2024-01-31T10:00:00Z\n")
    config = load_config(minimal)
    assert config.events.earliest == "2001-02-03"
    assert config.split.test_from == "2024-01-31T10:00:00+00:00"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epohs=3", "did you mean 'train.epochs'"),
        ("epochs=3", "did you mean 'train.epochs'"),
        ("events.colums={}", "did you mean 'events.columns'"),
        ("events.columns.user={}", "user"),
        ("events.columns.user=x", "did you mean 'events.columns.user_id'"),
        (
            "events.columns.evnt_type=c",
            "event_type, order or the name of a further column; did you mean 'events.columns.event_type'?",
        ),
        ("train.zzz=3", "unknown key 'train.zzz'; expected a key of [train]: loss, "),
        ("zzz=3", "expected a key at the top of the file: name, data_dir, seed, events"),
        ("train.epochs=0", "train.epochs: received 0, expected at least 1"),
        ("train.epochs=true", "received true"),
        ("train.epochs=many", "'many'"),
        ("train.learning_rate=nan", "learning_rate"),
        (
            "train.start=best",
            "train.start: received 'best', expected scratch, champion, models:/NAME/VERSION",
        ),
        ("train.replay=1", "train.replay: received 1"),
        ("train=3", "expected a section"),
        ("model.dim=63", "multiple of num_heads"),
        ("model.dropout=1.0", "model.dropout"),
        (
            "model.block=mamba",
            "model.block: received 'mamba', expected transformer, hstu, ligr, gru, lstm, conv, pooling",
        ),
        ("model.request_time=true", "model.time_bias"),
        ("model.item_content=true", "[items]"),
        ("split.test_fraction=0.95", "less than 1 together"),
        ("split.test_from=soon", "split.test_from: received"),
        ("events.earliest=foo", "events.earliest: received"),
        ("events.timezone=Mars/X", "events.timezone: received"),
        ("score.users=foo", "score.users: received"),
        ("events.types={view=1.0}", "event_type"),
        ("events.min_value=3", "value"),
        ("events.timestamp_unit=position", "leave_one_out"),
        ("events.encoding=ebcdic", "encoding"),
        ("evaluate.k=[]", "evaluate.k"),
        ("evaluate.baselines=['magic']", "magic"),
        ("score.model=the-best", "models:/NAME/VERSION"),
        ("ranker.use=sometimes", "ranker"),
        ("name=../escape", "name"),
        ("train.epochs", "key=value"),
    ],
)
def test_nonsense_is_refused(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "score.budgets=stock.xlsx",
            "score.budgets: received 'stock.xlsx', expected a .parquet, .csv or .toml file",
        ),
        (
            "budgets.infeasible=report",
            "budgets: received a section without score.budgets or budgets.fairness",
        ),
        ("budgets.fairness={field='maker',strength=2}", "budgets.fairness: received"),
        (
            "score.budgets=stock.csv score.diversity=0.1",
            "score.diversity: received beside score.budgets, which chooses all lists together",
        ),
        ("score.budgets=stock.csv score.exploration=0.1", "score.exploration: received beside score.budgets"),
        (
            "score.budgets=stock.csv score.shadows=['popularity']",
            "score.shadows: received beside score.budgets",
        ),
        (
            "budgets.fairness={field='maker',strength=1} score.popularity_damping=0.1",
            "score.popularity_damping: received beside budgets.fairness",
        ),
        (
            "score.budgets=stock.csv score.pin=pin.parquet budgets.weight_by_place=true",
            "score.pin with budgets.weight_by_place: received beside score.budgets",
        ),
    ],
)
def test_budgets_choose_all_lists_together(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "score.users=2026-01-01",
            "score.users: received '2026-01-01' beside [experiment], expected all: its arms",
        ),
        (
            "events.timestamp_unit=position split.protocol=leave_one_out",
            "experiment: received a section with events.timestamp_unit 'position', expected a log with times",
        ),
        ("experiment.salts=2", "unknown key 'experiment.salts'; did you mean 'experiment.salt'?"),
    ],
)
def test_an_experiment_is_about_all_users_and_nights(minimal: Path, override: str, message: str) -> None:
    minimal.write_text(
        f'{MINIMAL}[experiment]\nname = "e"\nsalt = 2026\nstart = 2026-11-30\n'
        'arms = { champion = 0.9, "models:/lookback-tiny/3" = 0.1 }\n'
    )
    own = load_config(minimal).experiment
    assert own is not None
    assert (own.salt, own.start, list(own.arms)) == (
        "2026",
        "2026-11-30",
        ["champion", "models:/lookback-tiny/3"],
    )
    with pytest.raises(ConfigError) as refused:
        load_config(minimal, [override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.predict=window",
            "train.predict: received 'window' with events.timestamp_unit 'position', expected",
        ),
        (
            "train.start=champion",
            "train.start: received 'champion' with events.timestamp_unit 'position', expected 'scratch'",
        ),
        (
            "history.session_minutes=30",
            "history.session_minutes: received 30.0 with events.timestamp_unit 'position'",
        ),
        (
            "score.max_shown=3",
            "score.max_shown: received 3 with events.timestamp_unit 'position', expected 0",
        ),
    ],
)
def test_a_log_of_positions_has_no_times_to_look_ahead(minimal: Path, override: str, message: str) -> None:
    positions = ["events.timestamp_unit=position", "split.protocol=leave_one_out"]
    load_config(minimal, [*positions, "train.predict=visit"])
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [*positions, override])
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["score.exploration={share=2}", "score.exploration={kind='best'}"])
def test_a_wrong_table_is_answered_by_its_wrong_key_alone(minimal: Path, override: str) -> None:
    minimal.write_text(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert "score.exploration." in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "evaluate.k=[10, many]",
            "evaluate.k: received '[10, many]', expected list of integer; in lists and tables text has",
        ),
        ('evaluate.k=[10, "many"]', "evaluate.k.1: received 'many', expected integer"),
        (
            "evaluate.exclude_seen=perhaps",
            "evaluate.exclude_seen: received 'perhaps', expected auto or true or false",
        ),
        (
            "evaluate.targets=tomorrow",
            "received 'tomorrow', expected auto, nightly, successive, first or list of",
        ),
        ("evaluate.horizon_days=[7]", "evaluate.horizon_days: received [7], expected auto or number"),
        ('events.types={view="much"}', "events.types.view: received 'much', expected number"),
        ("tune.space.train.dropout=3", "tune.space"),
        ("tracking.port=0", "tracking.port: received 0, expected integer, at least 1"),
        ("score.exploration=1.5", "score.exploration.share: received 1.5, expected from 0 to 1"),
        (
            "score.exploration={kind='best'}",
            "score.exploration.kind: received 'best', expected uniform, softmax",
        ),
        ("score.max_shown=-1", "score.max_shown: received -1, expected integer, at least 0"),
        ("score.shown_days=0", "score.shown_days: received 0, expected number, above 0"),
        ("score.diversity=1.0", "score.diversity: received 1.0, expected number, below 1"),
        (
            "score.because_method=fats",
            "score.because_method: received 'fats', expected fast, balanced, exact",
        ),
        ("name=a b", "name: received 'a b', expected letters, digits"),
        ("data.url=x", "data.folder is missing; expected text"),
        ("evaluate.k=9007199254740993.5", "evaluate.k: received"),
    ],
)
def test_values_of_a_wrong_type_are_answered_with_those_allowed(
    minimal: Path, override: str, message: str
) -> None:
    minimal.write_text(MINIMAL.replace('"t" }', '"t", event_type = "e" }'))
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert message in str(caught.value)


INNER_WORDS = re.compile(
    r"literal\[|function-|list\[|dict\[|union|Input should|valid (?:integer|number|string|boolean|list|dict)|"
    r"Field required|[Ee]rror,|less than or|greater than|pydantic|instance of|unable to parse"
)


@pytest.mark.parametrize("key", [key for key in key_types() if not key.startswith("simulate.")])
def test_no_message_about_a_value_has_the_validator_s_own_words(minimal: Path, key: str) -> None:
    for value in (
        '"§"',
        "-7.5",
        "true",
        "1e999",
        "[[]]",
        "[1.5, {}]",
        "{ x = { y = [] } }",
        '{ VIEW = "a" }',
    ):
        try:
            load_config(minimal, [f"{key}={value}"])
        except ConfigError as error:
            text = str(error).partition(": ")[2]
            assert not INNER_WORDS.search(text), (value, text)
            assert "expected" in text or "did you mean" in text, (value, text)
            assert key in text or key.partition(".")[0] in text, (value, text)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("evaluate.k=[10, 50]", ["evaluate.k=[10, 50]"]),
        ("evaluate.k=[10, 50] train.epochs=3", ["evaluate.k=[10, 50]", "train.epochs=3"]),
        ("  seed=1   model.dim = 128 ", ["seed=1", "model.dim = 128"]),
        ("events.timestamp_unit=%d/%m/%Y %H:%M seed=1", ["events.timestamp_unit=%d/%m/%Y %H:%M", "seed=1"]),
        ('events.path="a b=c" seed=1', ['events.path="a b=c"', "seed=1"]),
        (
            "tune.space.train.dropout={low = 0.1, high = 0.2} seed=1",
            ["tune.space.train.dropout={low = 0.1, high = 0.2}", "seed=1"],
        ),
        ("name=l'eau seed=1", ["name=l'eau", "seed=1"]),
        ("events.path=logs/day=1/*.csv", ["events.path=logs/day=1/*.csv"]),
    ],
)
def test_several_keys_in_one_override(minimal: Path, text: str, pairs: list[str]) -> None:
    def loaded(overrides: list[str]) -> Any:
        try:
            return load_config(minimal, overrides).model_dump()
        except ConfigError as error:
            return str(error)

    assert loaded([text]) == loaded(pairs)


def test_what_is_required_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match="name is missing"):
        load_config(path)
    path.write_text('name = "x"\n[events]\npath = "a.csv"\ncolumns = { user_id = 1 }')
    with pytest.raises(ConfigError, match="item_id, timestamp"):
        load_config(path)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")


def test_a_configuration_extends_another(minimal: Path) -> None:
    folder = minimal.parent / "sub"
    folder.mkdir()
    path = folder / "more.toml"
    path.write_text(
        'extends = "../tiny.toml"\nname = "more"\n[events]\ntimestamp_unit = "ms"\n'
        'columns = { value = "v" }\n[train]\nepochs = 3\n'
    )
    config, base = load_config(path), load_config(minimal)
    assert config.name == "more"
    assert (
        config.events.path == "data/more/log.csv"
    )  # filled in after merging, relative to the working directory
    assert config.events.timestamp_unit == "ms"
    assert config.events.columns == {**base.events.columns, "value": "v"}
    assert config.train.epochs == 3
    assert config.model == base.model
    assert load_config(path, ["train.epochs=4", "events.timestamp_unit=s"]).train.epochs == 4


def test_extending_goes_on_through_a_file_that_extends(minimal: Path) -> None:
    middle, top = minimal.parent / "middle.toml", minimal.parent / "top.toml"
    middle.write_text('extends = "tiny.toml"\nseed = 1\n[model]\ndim = 32\nnum_heads = 4\n')
    top.write_text('extends = "middle.toml"\n[model]\ndim = 16\n')
    config = load_config(top)
    assert (config.name, config.seed, config.model.dim, config.model.num_heads) == ("tiny", 1, 16, 4)


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        (
            '"tinny.toml"',
            r"received 'tinny.toml', but there is no file .*tinny.toml; .*did you mean 'tiny.toml'",
        ),
        (
            '"other/base.toml"',
            "there is no file .*base.toml; expected a TOML file, relative to .*correct or remove",
        ),
        ("3", "received 3"),
        ('["tiny.toml"]', "expected a TOML file"),
        ('"a.toml"', "a.toml extends .*a.toml: a circle; expected .*; remove"),
        ('"b.toml"', "a.toml extends .*b.toml extends .*a.toml: a circle"),
        (
            '"unknown.toml"',
            r"unknown.toml \(extended by .*a.toml\): unknown key 'train.epohs'; did you mean 'train.epochs'",
        ),
        ('"broken.toml"', r"broken.toml \(extended by .*a.toml\): not valid TOML"),
        ('"refused.toml"', "a.toml extends .*refused.toml: train.epochs: received 0"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_both_files_are_named(
    minimal: Path, extends: str, message: str
) -> None:
    folder = minimal.parent
    (folder / "a.toml").write_text(f"extends = {extends}\n")
    (folder / "b.toml").write_text('extends = "a.toml"\n')
    (folder / "unknown.toml").write_text(MINIMAL + "[train]\nepohs = 3\n")
    (folder / "broken.toml").write_text("name = ")
    (folder / "refused.toml").write_text(MINIMAL + "[train]\nepochs = 0\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(folder / "a.toml")
    assert "a.toml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_extends_is_no_key_to_set(minimal: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'extends'"):
        load_config(minimal, ["extends=tiny.toml"])


def test_every_shipped_configuration_loads() -> None:
    for path in SHIPPED:
        config = load_config(path)
        assert config.data_dir == "data", path
        assert config.seed == 0, path
    assert {"demo.toml", "ml-1m.toml", "ml-100k.toml", "beauty.toml", "deskdrop.toml"} <= {
        path.name for path in SHIPPED
    }


def test_shipped_configurations_repeat_no_table_of_what_they_extend() -> None:
    trees = {path.name: tomllib.loads(path.read_text()) for path in SHIPPED}
    extending = [name for name, tree in trees.items() if "extends" in tree]
    assert len(extending) == 9
    for name in extending:
        base = trees[trees[name]["extends"]]
        repeated = [key for key, value in trees[name].items() if base.get(key) == value]
        assert not repeated, name


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (int | None, "integer"),
        (float | list[float], "number or list of number"),
        (Literal["a", "b"] | Literal["c"], "a, b or c"),
        (dict[str, float] | None, "table"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert type_name(annotation) == words


def test_loading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.config import load_config; import pipeline.config_reference; "
        "print(sorted({'torch', 'numpy', 'polars', 'mlflow', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("system", "is_valid"), [("ease", True), ("lookback", True), ("gru", False), ("als", False)]
)
def test_only_an_evaluated_baseline_can_be_published(minimal: Path, system: str, is_valid: bool) -> None:
    overrides = ['evaluate.baselines=["ease", "gru"]', f"publish.system={system}"]
    if is_valid:
        assert load_config(minimal, overrides).publish.system == system
        return
    expected = (
        rf"publish.system: received '{system}', expected auto, lookback, or one of evaluate.baselines: ease"
    )
    with pytest.raises(ConfigError, match=expected):
        load_config(minimal, overrides)


@pytest.mark.parametrize("name", ["../x.csv", "/etc/passwd", "a/../../x", "", "..\\\\x"])
def test_file_names_of_a_data_set_stay_below_its_folder(tmp_path: Path, name: str):
    text = MINIMAL + f'[data]\nfolder = "raw"\nfiles = ["{name}"]\n'
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.files: received .* expected names below data\.folder"):
        load_config(tmp_path / "c.toml")


def test_folder_with_brackets_is_no_pattern(tmp_path: Path):
    for folder in ("data[1]", "data1"):
        (tmp_path / folder / "log").mkdir(parents=True)
        (tmp_path / folder / "log" / "a.csv").write_text("u,i,t\n")
    for pattern in ("*.csv", "a.csv"):
        text = MINIMAL.replace("{name}/log.csv", f"log/{pattern}")
        (tmp_path / "c.toml").write_text(text)
        config = load_config(tmp_path / "c.toml", [f'data_dir="{tmp_path}/data[1]"'])
        assert config.events.path is not None
        assert list_files("events.path", config.events.path) == [tmp_path / "data[1]" / "log" / "a.csv"]


def test_dates_within_lists_are_text_too(minimal: Path) -> None:
    text = minimal.read_text()
    minimal.write_text(
        text.replace("[events]", '[events]\nwhere = [{ column = "day", min = 2026-01-31 }]', 1)
    )
    assert load_config(minimal).events.where == [{"column": "day", "min": "2026-01-31"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["utility.buy=1.0"],
            "utility.buy: received the utility of an outcome that is not learned, expected a section",
        ),
        (['outcomes.types=["VIEW"]', "utility.LIKE=1"], "expected some of outcomes.types: VIEW"),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=-1"],
            "utility.VIEW: received -1.0, expected 0 or more, or 'value'",
        ),
        (['outcomes.types=["VIEW"]', "utility.VIEW=nan"], "utility.VIEW: received nan, expected 0 or more"),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=price"],
            "utility.VIEW: received 'price', expected number or value",
        ),
        (['outcomes.types=["SHARE"]'], "outcomes.types: received 'SHARE', no type of events.types"),
        (["score.order=utility"], "score.order: received 'utility' without a section [utility]"),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=1", "score.order=utility", "ranker.use=never"],
            "score.order: received 'utility' with ranker.use 'never'",
        ),
        (["score.order=worth"], "score.order: received 'worth', expected next, utility"),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=value"],
            "utility.VIEW: received 'value', but events.columns names no value",
        ),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=true"],
            "utility.VIEW: received true, expected number or value",
        ),
        (["events.types={VIEW = true}"], "events.types.VIEW: received true, expected number"),
        (
            [
                'events.columns={user_id = "a", item_id = "b", timestamp = "t"}',
                "events.types={}",
                'outcomes.types=["VIEW"]',
            ],
            "events.columns names no event_type",
        ),
        (
            ['outcomes.types=["VIEW"]', "utility.VIEW=1", "score.order=utility", "publish.system=popularity"],
            "a baseline, which predicts no outcomes; set publish.system = 'lookback' or score.order = 'next'",
        ),
    ],
)
def test_outcomes_that_make_no_sense_are_one_message(settings: list[str], message: str) -> None:
    config = next(path for path in SHIPPED if path.name == "deskdrop.toml")
    with pytest.raises(ConfigError) as refused:
        load_config(config, settings)
    (line,) = str(refused.value).splitlines()
    assert message in line
    assert ": :" not in line


def test_the_worth_of_an_outcome_may_be_typed_as_text_or_its_value() -> None:
    config = next(path for path in SHIPPED if path.name == "deskdrop.toml")
    columns = ", ".join(
        f'{name} = "{name}"' for name in ("user_id", "item_id", "timestamp", "event_type", "value")
    )
    settings = [f"events.columns={{{columns}}}", 'outcomes.types=["VIEW", "LIKE"]']
    loaded = load_config(config, [*settings, 'utility={VIEW = "0.1", LIKE = "value"}', "score.order=utility"])
    assert loaded.utility == {"VIEW": 0.1, "LIKE": "value"}
