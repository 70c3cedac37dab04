"""`lookback compare --lists`: recommendations of two versions, user by user."""

import json
from collections.abc import Sequence
from pathlib import Path

from features.printable import printable_lines
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.reporting.list_changes_text import ListComparison
from pipeline.serving import scored_lists


def compare_lists(
    config: Config | None, named: Sequence[str], *, as_json: bool, html: Path | None = None
) -> None:
    """Print the changes of the lists from the first to the second of two versions or score folders; html: file for a page.

    Raises ConfigError without a configuration, or for another number of names; LookbackError where one has no lists.
    """
    if config is None or len(named) != 2:
        raise ConfigError(
            f"compare --lists: received {len(named)} names{'' if config else ' and no configuration'}, expected two versions "
            "or score folders: lookback compare 1 2 --lists --config FILE"
        )
    compared = ListComparison.of(config, *scored_lists.of_pair(config, *named))
    if html is not None:
        html.write_text(compared.as_page(), encoding="utf-8")
    print(json.dumps(compared.as_tree(), default=str) if as_json else printable_lines(compared.as_text()))
