"""Sub-packages and sizes: which may import which, no circle, one name per module, no long class, file or function."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARROWS = {
    "pipeline": (
        "__main__ api",
        "commands stages",
        "orchestration",
        "monitoring",
        "release",
        "reporting",
        "evaluation",
        "serving",
        "tracking modelling",
        "dataset",
        "artifacts",
        "config_reference configs",
        "config",
        "deliver_section budgets_section",
        "experiment_section",
        "sections",
        "background",
        "errors",
        "credentials",
    ),
    "models": (
        "allocation",
        "checkpoint recommendation",
        "explanation",
        "training ranking",
        "encoder",
        "evaluation baselines retrieval",
        "topk device",
        "recommender",
        "histories shapes settings",
    ),
    "features": (
        "profiling discovery",
        "histories",
        "events",
        "readers",
        "tables parallel content simulate exposure_settings attributes attribute_settings",
        "simulation_settings simulated_shelves",
        "simulated_exposures",
        "schema settings printable memory",
        "conditions",
    ),
}
"""Package -> its sub-packages and modules from top to bottom: each imports what stands below it, and nothing else."""
MAX_FILE, MAX_CLASS, MAX_FUNCTION = 500, 250, 60
"""Lines."""
ENDINGS = ("s", "ed", "er", "ing", "ment", "ion", "or", "al")
Source = tuple[str, str]
"""Path relative to the root, and text."""


def sources() -> list[Source]:
    """Every module of the three packages."""
    paths = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imported(text: str, modules: set[str]) -> set[str]:
    """Own modules that a text imports, anywhere in it: within functions, and for types alone, too."""
    targets = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            targets |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return targets & modules


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def against_the_arrows(files: Iterable[Source]) -> list[str]:
    """Imports of a sub-package beside or above one's own, and of one stage by another."""
    files = list(files)
    modules = {module_of(path) for path, _ in files}
    wrong = []
    for path, text in files:
        package, room = path.partition("/")[0], room_of(module_of(path))
        levels = {name: level for level, row in enumerate(ARROWS[package]) for name in row.split()}
        if room and room not in levels:
            wrong.append(f"{path}: {package}.{room} has no place among the arrows")
            continue
        for target in sorted(imported(text, modules)):
            other = room_of(target)
            if not room or not other or target.partition(".")[0] != package:
                continue
            if other == room == "stages" and target != "pipeline.stages":
                wrong.append(f"{path}: imports the stage {target}")
            elif other != room and levels.get(other, -1) <= levels[room]:
                wrong.append(f"{path}: imports {target}")
    return wrong


def circles(files: Iterable[Source]) -> list[str]:
    """Modules that import themselves over others, deferred imports counted."""
    files = list(files)
    modules = {module_of(path) for path, _ in files}
    edges = {module_of(path): imported(text, modules) - {module_of(path)} for path, text in files}
    packages = {module_of(path) for path, _ in files if path.endswith("__init__.py")}
    state: dict[str, int] = defaultdict(int)
    wrong = []

    def visit(module: str, way: tuple[str, ...]) -> None:
        state[module] = 1
        for target in sorted(edges.get(module, ())):
            if target in packages:
                continue  # imports nothing; serving's entry point for MLflow is deferred
            if state[target] == 1:
                wrong.append(" -> ".join((*way[way.index(target) :], target)))
            elif state[target] == 0:
                visit(target, (*way, target))
        state[module] = 2

    for module in sorted(edges):
        if state[module] == 0:
            visit(module, (module,))
    return wrong


def alike_names(files: Iterable[Source]) -> list[str]:
    """Module names that stand twice within a package, or differ by an ending alone; stages and settings apart."""
    names: dict[str, list[str]] = defaultdict(list)
    for path, _ in files:
        folder, _, name = path.removesuffix(".py").rpartition("/")
        if name != "__init__" and not folder.endswith(("/stages", "/settings")) and name != "settings":
            names[path.partition("/")[0]].append(name)
    wrong = []
    for package, all_names in names.items():
        wrong += [f"{package}: {name} twice" for name in set(all_names) if all_names.count(name) > 1]
        known = set(all_names)
        wrong += [
            f"{package}: {name} and {name + ending}"
            for name in known
            for ending in ENDINGS
            if name + ending in known
        ]
    return sorted(wrong)


def too_long(files: Iterable[Source]) -> Iterator[str]:
    """Files, classes and functions over their limits."""
    for path, text in files:
        if (lines := text.count("\n")) > MAX_FILE:
            yield f"{path}: {lines} lines"
        for node in ast.walk(ast.parse(text)):
            limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > limit:
                    yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_sub_packages_import_only_what_stands_below_them() -> None:
    assert len(sources()) > 150
    assert not (wrong := against_the_arrows(sources())), "\n".join(wrong)


def test_no_module_imports_itself_over_others() -> None:
    assert not (wrong := circles(sources())), "\n".join(wrong)


def test_a_module_s_name_stands_once_in_its_package() -> None:
    assert not (wrong := alike_names(sources())), "\n".join(wrong)


def test_nothing_is_long() -> None:
    assert not (wrong := list(too_long(sources()))), "\n".join(wrong)


def test_each_rule_fails_where_it_is_broken() -> None:
    """The same rules on sources with one violation each."""
    upwards = ("pipeline/serving/bundle.py", "def f():\n    from pipeline.release import gate\n")
    gate = ("pipeline/release/gate.py", "from pipeline.serving import bundle\n")
    assert against_the_arrows([upwards, gate]) == [
        "pipeline/serving/bundle.py: imports pipeline.release.gate"
    ]
    assert circles([upwards, gate]) == [
        "pipeline.release.gate -> pipeline.serving.bundle -> pipeline.release.gate"
    ]
    stages = [
        ("pipeline/stages/train.py", ""),
        ("pipeline/stages/index.py", "from pipeline.stages import train\n"),
    ]
    assert against_the_arrows(stages) == ["pipeline/stages/index.py: imports the stage pipeline.stages.train"]
    nowhere = [("models/odds/ends.py", "")]
    assert against_the_arrows(nowhere) == ["models/odds/ends.py: models.odds has no place among the arrows"]
    names = ["pipeline/evaluation/score.py", "pipeline/serving/scores.py", "pipeline/release/score.py"]
    assert alike_names((name, "") for name in names) == [
        "pipeline: score and scores",
        "pipeline: score twice",
    ]
    body = "    x = 1\n"
    long = [("models/a.py", f"def f():\n{body * 60}\n\nclass C:\n{body * 250}\n" + "\n" * 200)]
    assert list(too_long(long)) == [
        "models/a.py: 515 lines",
        "models/a.py:1: f has 61 lines",
        "models/a.py:64: C has 251 lines",
    ]
