import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.baselines.base import FittedOn
from models.evaluation.ranks import WithoutDislikes
from models.histories import histories_from_lists
from pipeline.errors import ConfigError, LookbackError
from pipeline.modelling.recommenders import BUILT_IN, kind_of
from pipeline.sections import BASELINES

README = Path(__file__).resolve().parents[3] / "models" / "README.md"
LOG = histories_from_lists([[1, 2, 3, 2], [3, 3], []])
COUNTER = """
import numpy as np
class Mine:
    def __init__(self, n, factor): self.n, self.factor = n, factor
    @classmethod
    def fit(cls, histories, num_items, factor=1): return cls(num_items, factor)
    def score_items(self, histories):
        return self.factor * np.tile(np.arange(self.n + 1.0), (len(histories), 1))
    def save(self, folder): np.save(folder / "mine.npy", [self.n, self.factor])
    @classmethod
    def load(cls, folder): return cls(*np.load(folder / "mine.npy").tolist())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write the text as the module of one's own; returns the name of its class Mine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> str:
        (tmp_path / "my_module.py").write_text(text)
        sys.modules.pop("my_module", None)
        return "my_module:Mine"

    return write


def test_every_baseline_but_the_trained_one_is_a_kind():
    assert {*BUILT_IN, "gru"} == set(BASELINES)
    kind = kind_of("own_frequent")
    assert (kind.needs_seen, kind.moves, kind.is_custom) == (True, True, False)
    assert kind.grid[0] == {"days": 30.0}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_kind_fits_saves_and_loads(name: str, tmp_path: Path):
    kind = kind_of(name)
    system = kind.fit(LOG, 3, kind.grid[0])
    system.save(tmp_path)
    assert (kind.load(tmp_path).score_items(LOG) == system.score_items(LOG)).all()


def test_a_class_of_ones_own_is_a_recommender_like_any_other(module: Callable[[str], str], tmp_path: Path):
    kind = kind_of(module(COUNTER))
    assert (kind.name, kind.grid, kind.needs_seen, kind.moves) == ("my_module:Mine", ({},), False, False)
    system = kind.fit(LOG, 3, {"factor": 2})
    assert system.fitted_on == FittedOn.of(LOG)
    assert system.score_items(LOG)[0].tolist() == [-np.inf, 2, 4, 6]
    assert system.recommend(LOG, 3)[0].tolist() == [[0, 0, 0], [2, 1, 0], [3, 2, 1]]
    folder = tmp_path / "saved"
    folder.mkdir()
    system.save(folder)
    loaded = kind.load(folder)
    assert (loaded.num_items, loaded.fitted_on) == (3, system.fitted_on)
    assert (loaded.score_items(LOG) == system.score_items(LOG)).all()
    with pytest.raises(ValueError, match="not a saved my_module:Mine"):
        kind.load(tmp_path)


def test_the_example_in_the_documentation(module: Callable[[str], str], tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    name = module(code).replace("Mine", "LastItems")
    kind = kind_of(name)
    assert (kind.needs_seen, len(kind.grid)) == (True, 2)
    system = kind.fit(LOG, 4, {"length": 2})
    items, _ = system.recommend(histories_from_lists([[1, 4, 1, 2], [], [4]]), 4, exclude_seen=False)
    assert items.tolist() == [[2, 1, 3, 4], [3, 2, 1, 4], [4, 3, 2, 1]]
    system.save(tmp_path)
    (tmp_path / "custom").mkdir(exist_ok=True)
    assert (kind.load(tmp_path).score_items(LOG) == system.score_items(LOG)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nowhere_at_all",
            "importing my_module failed: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("1 / 0", "importing my_module failed: ZeroDivisionError"),
        ("Mine = 3", "my_module has no class 'Mine'"),
        ("Other = 3", "my_module has no class 'Mine'"),
        (
            "class Mine:\n    fit = score_items = print",
            "my_module:Mine has no save, load; expected the methods fit",
        ),
        (
            "from models.baselines.base import Baseline\nclass Mine(Baseline):\n    fit = print",
            "my_module:Mine leaves score_items abstract",
        ),
        (COUNTER + "    GRID = {'factor': 1}", "my_module:Mine.GRID is {'factor': 1}, expected settings"),
        (COUNTER + "    GRID = ()", r"my_module:Mine.GRID is \(\), expected settings"),
    ],
)
def test_a_class_that_does_not_answer_the_contract(module: Callable[[str], str], text: str, message: str):
    with pytest.raises(ConfigError, match=f"evaluate.baselines: .*{message}"):
        kind_of(module(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "return np.zeros((len(histories), self.n))",
            r"score_items returned the shape \(3, 3\), expected \(3, 4\)",
        ),
        ("return np.zeros(4)", r"score_items returned the shape \(4,\), expected \(3, 4\)"),
        (
            "return np.where(np.arange(4) == 2, np.nan, np.zeros((3, 1)))",
            "score_items returned nan for item 2 of a history with 4",
        ),
        (
            "return np.where(np.arange(4) == 3, np.inf, np.zeros((3, 1)))",
            r"score_items returned inf for item 3 .*\(3 such scores",
        ),
    ],
)
def test_scores_are_checked(module: Callable[[str], str], text: str, message: str):
    name = module(COUNTER.replace("return self.factor * np", f"{text}\n        return np"))
    with pytest.raises(LookbackError, match=f"evaluate.baselines: my_module:Mine.{message}"):
        kind_of(name).fit(LOG, 3, {}).score_items(LOG)


def test_what_fit_returns_is_checked(module: Callable[[str], str]):
    fit = "def fit(cls, histories, num_items, factor=1): "
    name = module(COUNTER.replace(f"{fit}return cls(num_items, factor)", f"{fit}return {{}}"))
    with pytest.raises(LookbackError, match=r"Mine\.fit returned a dict without score_items, save"):
        kind_of(name).fit(LOG, 3, {})
    name = module(COUNTER.replace("self.n, self.factor =", "self.num_items = 9; self.n, self.factor ="))
    with pytest.raises(
        LookbackError, match="received num_items=3 and returned a recommender with num_items=9"
    ):
        kind_of(name).fit(LOG, 3, {})


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_baseline_counts_or_reads_dislikes(name: str) -> None:
    random = np.random.default_rng(0)
    liked = histories_from_lists([random.integers(1, 6, 8).tolist() for _ in range(12)])
    type_of = (random.random(len(liked.time)) < 0.3).astype(np.int16)
    log = replace(liked, event_type=type_of, dislikes=np.array([0, 1], np.float32))
    kind, plain = kind_of(name), log.without_dislikes()
    settings = {"factors": 2, "seed": 0} if name == "als" else kind.grid[0]
    system, expected = kind.fit(log, 5, settings), kind.fit(plain, 5, settings)
    assert system.fitted_on == expected.fitted_on == FittedOn.of(plain)
    scores = WithoutDislikes(system).score_items(log)
    assert scores == pytest.approx(expected.score_items(plain), rel=1e-6)
    items, _ = WithoutDislikes(system).recommend(log, 5)
    assert not any(
        set(row[row > 0]) & set(log.item_index[start:end])
        for row, start, end in zip(items, log.starts, log.ends, strict=True)
    ), "dislikes are seen"
