"""Source file of a class of one's own, named `package.module:Class`, located without importing it."""

import ast
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from pipeline.errors import ConfigError


def add_working_directory() -> None:
    """Make modules in the working directory importable, after all others; `lookback` alone does not look there."""
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.append(here)


def source_of(key: str, name: str) -> Path:
    """File of the module of `package.module:Class`. Raises ConfigError, naming the configuration key, if one is missing.

    A class counts as there if the module binds its name anywhere at its top level.
    """
    add_working_directory()
    module, _, class_name = name.partition(":")
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"{key}: received {name!r}, but there is no module {module!r} in Python source; expected package.module:Class in "
            f"the working directory ({Path.cwd()}) or installed beside lookback"
        )
    path = Path(spec.origin)
    try:
        bound = _bound_names(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{key}: received {name!r}, but {path} is not valid Python: {error}") from error
    if class_name not in bound and "*" not in bound:
        raise ConfigError(f"{key}: received {name!r}, but {path} has no {class_name!r}")
    return path


def _spec(module: str) -> ModuleSpec | None:
    """Specification of a module, found from package to package, none of them executed."""
    outermost, *inner = module.split(".")
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(outermost)
    except ValueError:  # a module without a specification, such as __main__
        return None
    for name in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    return spec


def _bound_names(tree: ast.Module) -> set[str]:
    """Names bound by classes, imports and assignments at a module's top level, conditions included; `*` for a star import."""
    names: set[str] = set()
    statements = list(tree.body)
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.If | ast.Try):
            statements += [node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt)]
    return names
