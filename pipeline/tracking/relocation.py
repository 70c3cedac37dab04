"""Artifact locations of an SQLite store that was moved, copied, or mounted elsewhere.

MLflow records absolute addresses. Experiments made here keep their files beside the database (`artifact_root`), so such a
folder elsewhere is an earlier place of the same store.
"""

import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Tables and columns with addresses of files."""
_ROOTS = """
SELECT DISTINCT artifact_location FROM experiments AS own WHERE artifact_location LIKE 'file:///%/artifacts' AND (
    EXISTS (SELECT 1 FROM experiment_tags AS tag WHERE tag.experiment_id = own.experiment_id
            AND tag.key = 'mlflow.experimentKind' AND tag.value = 'custom_model_development')
    OR EXISTS (SELECT 1 FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
               WHERE runs.experiment_id = own.experiment_id AND tags.key = 'lookback.stage'))
"""
"""Locations of the experiments made by a Tracker."""


def relocate(database: sqlite3.Connection, root: str) -> None:
    """Rewrite recorded addresses below an earlier artifact root to the present one; other addresses stay.

    Raises sqlite3.Error where the database cannot be read or written.
    """
    present = local_path(root)
    for (earlier,) in database.execute(_ROOTS).fetchall():
        place = local_path(earlier)
        if earlier == root or (place.exists() and present.exists() and place.samefile(present)):
            continue
        with database:
            for table, column in _LOCATIONS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608  (names of this module)
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (root, len(earlier) + 1, earlier, len(earlier) + 1, f"{earlier}/"),
                )


def local_path(address: str) -> Path:
    """Path of a file URI."""
    return Path(unquote(urlsplit(address).path))
