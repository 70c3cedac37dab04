"""Imports between packages, one owner for every library, a command line that starts fast."""

import ast
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("features", "models", "pipeline")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "skops"}
NOT_IN = {
    "features": {"torch", "mlflow", "faiss", "models", "pipeline", "optuna"},
    "models": {"polars", "pandas", "pydantic", "pyarrow", "mlflow", "click", "features", "pipeline"},
    "pipeline": set[str](),
}
OWNER = {"mlflow": "pipeline/tracking/*.py", "faiss": "models/retrieval/*.py"}
HEAVY = {
    *("torch", "polars", "mlflow", "numpy", "pyarrow", "pandas", "faiss", "sklearn", "scipy", "plotly"),
    *("optuna", "pooch", "requests", "implicit"),
}
TOP_LEVEL = {
    *(
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    ),
    *("features", "mlruns", "models", "pipeline", "tests"),
}

MAX_UNTYPED = 40
"""Functions that may return `dict[str, Any]`."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The outermost packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import hides where it goes"
            if node.module == "pickle" and [alias.name for alias in node.names] == ["UnpicklingError"]:
                continue  # what torch.load(weights_only=True) raises for a damaged file
            found.add((node.module or "").partition(".")[0])
    return found


def modules_after(statement: str) -> set[str]:
    """The outermost packages loaded in a fresh interpreter after a statement."""
    show = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{show}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(PACKAGES)


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path in SOURCES:
        found, name = imports(path), name_of(path)
        wrong += [f"{name} imports {library}" for library in found & NOT_IN[path.relative_to(ROOT).parts[0]]]
        wrong += [f"{name} imports {library}: no pickle anywhere" for library in found & PICKLES]
        wrong += [
            f"{name} imports {library}, only {owner} may"
            for library, owner in OWNER.items()
            if library in found and not fnmatch(name, owner)
        ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled() -> None:
    """`torch.load` only with weights_only=True, `numpy.load` never with allow_pickle=True."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            weights_only = given.get("weights_only") == "True" or ast.unparse(node.func) != "torch.load"
            if given.get("allow_pickle", "False") != "False" or not weights_only:
                wrong.append(f"{name_of(path)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_models_need_no_more_than_torch_numpy_and_safetensors() -> None:
    absent = (
        "faiss",
        "sklearn",
        "scipy",
        "implicit",
        "threadpoolctl",
        "jaxtyping",
        "beartype",
        "polars",
        "pandas",
        "pyarrow",
        "pydantic",
    )
    modules = [module_of(path) for path in SOURCES if path.is_relative_to(ROOT / "models")]
    modules = [name for name in modules if name not in ("models.retrieval.index", "models.retrieval.build")]
    assert len(modules) > 50
    block = f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\n"
    modules_after(block + "\n".join(f"import {module}" for module in modules))


def test_features_load_no_torch() -> None:
    modules = [module_of(path) for path in SOURCES if path.is_relative_to(ROOT / "features")]
    assert len(modules) > 20
    assert "torch" not in modules_after("\n".join(f"import {name}" for name in modules))


def untyped_dictionaries(code: str) -> list[str]:
    """Functions that return `dict[str, Any]`, alone, within another type, or under a name of the module."""
    tree = ast.parse(code)
    names = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign) and "dict[str, Any]" in ast.unparse(statement.value)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and function.returns is not None
        and (
            "dict[str, Any]" in ast.unparse(function.returns)
            or names & {node.id for node in ast.walk(function.returns) if isinstance(node, ast.Name)}
        )
    ]


def test_few_functions_return_untyped_dictionaries() -> None:
    """JSON trees that the same module writes may stay such; what another module reads by key has a type."""
    found = [
        f"{name_of(path)}: {function}"
        for path in SOURCES
        for function in untyped_dictionaries(path.read_text(encoding="utf-8"))
    ]
    assert len(found) <= MAX_UNTYPED, "\n".join(found)


def test_untyped_dictionaries_are_found_under_other_names() -> None:
    code = """
Row = dict[str, Any]
def a() -> list[Row]: ...
def b() -> dict[str, int]: ...
class C:
    def d(self) -> dict[str, Any] | None: ...
"""
    assert sorted(untyped_dictionaries(code)) == ["a", "d"]


def test_command_line_starts_without_heavy_libraries() -> None:
    assert not modules_after("import pipeline.__main__") & HEAVY
    ask_for_help = """
import sys
sys.argv = ["lookback", "--help"]
try:
    from pipeline.__main__ import main
    main()
except SystemExit:
    pass
"""
    assert not modules_after(ask_for_help) & HEAVY


def test_top_level_is_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert top <= TOP_LEVEL, (
        f"{top - TOP_LEVEL}: a file may be added where a subject asks for one; a folder may not"
    )


def test_what_is_installed_is_pinned() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*settings["dependencies"], *settings["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {name.lower().replace("_", "-") for name in pins}
    for requirement in wanted:
        name = requirement.replace(">", "=").partition("=")[0].partition("[")[0]
        assert name in names, f"{name} is not in constraints.txt"
    assert pins["torch"] == "2.13.0", "exact, without a local suffix"
