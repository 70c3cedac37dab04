"""Facts of an item index and digests of its files, in index.json."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from models.settings.index import IndexFacts

FACTS = "index.json"


def write_facts(folder: Path, facts: IndexFacts, names: Iterable[str]) -> None:
    """Write index.json beside the folder's files `names`."""
    content = {"facts": asdict(facts), "files": {name: _digest(folder / name) for name in names}}
    (folder / FACTS).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_facts(folder: Path, names: Iterable[str], *, verify: bool) -> IndexFacts:
    """Facts of a folder's index; without index.json those of an exact index in files `names` (bundles of earlier versions).

    Raises ValueError for a missing file or (`verify`) one that differs from its digest.
    """
    path = folder / FACTS
    is_there = path.is_file()
    content = json.loads(path.read_text(encoding="utf-8")) if is_there else {}
    digests: dict[str, str | None] = content.get("files", dict.fromkeys(names))
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ValueError(
                f"item index: {folder / name} is missing; run the stage index again with --force"
            )
        if verify and digest is not None and _digest(folder / name) != digest:
            raise ValueError(
                f"item index: {folder / name} is damaged (its digest is not that of {FACTS}); run the stage index again with "
                "--force"
            )
    return IndexFacts(**content["facts"]) if is_there else IndexFacts()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
