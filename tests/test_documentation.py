"""The Markdown pages: links resolve, commands exist, and the README's tree names every package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.__main__ import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("features", "models", "pipeline")
README = ROOT / "README.md"
PAGES = sorted(
    [README, ROOT / "mlruns" / "README.md"]
    + [page for folder in (*PACKAGES, "tests") for page in (ROOT / folder).rglob("*.md")]
)
MAX_README_LINES = 250
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FOREIGN = re.compile(r"pypi\.org|pythonhosted|(?<![\w.])/(?:home|root|tmp|work)/")
"""Hosts of package registries, and absolute paths of one machine."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path, program: str) -> set[str]:
    """First arguments of a program in code spans and code blocks; variables may precede the program."""
    text = text_of(page)
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    pattern = re.compile(rf"(?:[A-Z_]+=\S+ )*{program} ([a-z][a-z-]*)")
    return {match[1] for code in (*lines, *spans) if (match := pattern.match(code.strip()))}


def named(program: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for command in sorted(commands(page, program)):
            yield name_of(page), command


def tree() -> dict[str, str]:
    """Folder to description, from the README's tree."""
    block = next(block for block in FENCE.findall(text_of(README)) if "\nmodels/ " in block)
    folders: dict[str, str] = {}
    top = ""
    for line in block.splitlines()[1:-1]:
        match = re.fullmatch(r"(  )?(\w+)/ +(\S.*)", line)
        assert match, f"README.md: {line!r} is no folder with a description"
        top = top if match[1] else match[2]
        folder = f"{top}/{match[2]}" if match[1] else top
        assert folder not in folders, f"README.md: {folder} stands in the tree twice"
        folders[folder] = match[3]
    return folders


def folders_of(top: str) -> set[str]:
    return {
        name_of(path)
        for path in (ROOT / top).iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    }


def test_every_page_is_checked() -> None:
    assert {"README.md", "features/README.md", "models/README.md", "pipeline/README.md"} <= set(
        map(name_of, PAGES)
    )
    assert ("README.md", "demo") in set(named("make"))
    assert ("pipeline/README.md", "prune") in set(named("lookback"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if link.startswith("/") or not target.is_relative_to(ROOT) or not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: no such heading")
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_registry_and_no_machine_is_named(page: Path) -> None:
    assert not FOREIGN.findall(text_of(page))


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("top", [*PACKAGES, "tests"])
def test_the_tree_has_every_folder(top: str) -> None:
    described = {folder for folder in tree() if folder.startswith(f"{top}/")}
    assert top in tree()
    assert described == folders_of(top)


@pytest.mark.parametrize("folder", [name for name in tree() if (ROOT / name / "__init__.py").exists()])
def test_a_package_says_what_the_tree_says(folder: str) -> None:
    docstring = ast.get_docstring(ast.parse(text_of(ROOT / folder / "__init__.py")))
    assert docstring is not None
    assert docstring.splitlines()[0] == f"{tree()[folder]}."


@pytest.mark.parametrize(("page", "target"), sorted(named("make")))
def test_make_targets_exist(page: str, target: str) -> None:
    assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE), f"{page}: make {target}"


@pytest.mark.parametrize(("page", "command"), sorted(named("lookback")))
def test_commands_exist(page: str, command: str) -> None:
    assert command in cli.list_commands(click.Context(cli)), f"{page}: lookback {command}"
