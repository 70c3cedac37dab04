from pathlib import Path

import pytest

from pipeline.artifacts.class_source import source_of
from pipeline.errors import ConfigError

KEY = "evaluate.baselines"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory on the path, restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_class_is_located_without_being_imported(here: Path):
    (here / "shop_a" / "inner").mkdir(parents=True)
    (here / "shop_a" / "__init__.py").write_text("raise RuntimeError('imported')")
    (here / "shop_a" / "inner" / "__init__.py").write_text("class Whole: ...")
    path = here / "shop_a" / "inner" / "lists.py"
    path.write_text("raise RuntimeError('imported')\nclass Mine: ...\n")
    assert source_of(KEY, "shop_a.inner.lists:Mine") == path
    assert source_of(KEY, "shop_a.inner:Whole") == here / "shop_a" / "inner" / "__init__.py"


@pytest.mark.parametrize(
    "text",
    [
        "from elsewhere import Mine",
        "import x as Mine",
        "Mine = make()",
        "from elsewhere import *",
        "try:\n    import fast\n    class Mine: ...\nexcept ImportError:\n    Mine = None",
    ],
)
def test_a_name_bound_in_any_way_is_there(here: Path, text: str):
    (here / "shop_b.py").write_text(text)
    assert source_of(KEY, "shop_b:Mine") == here / "shop_b.py"


def test_what_is_missing_is_named(here: Path):
    (here / "shop_c.py").write_text("class Other:\n    class Mine: ...\n")
    for module in (
        "nowhere_at_all",
        "shop_c.inner",
        "nowhere.inner.most",
        "math",
        "json.nowhere",
    ):
        with pytest.raises(ConfigError, match=f"{KEY}: received '{module}:Mine', but there is no module"):
            source_of(KEY, f"{module}:Mine")
    with pytest.raises(ConfigError, match=r"shop_c\.py has no 'Mine'"):
        source_of(KEY, "shop_c:Mine")
    (here / "shop_c.py").write_text("class Mine(:\n")
    with pytest.raises(ConfigError, match=r"shop_c\.py is not valid Python"):
        source_of(KEY, "shop_c:Mine")
