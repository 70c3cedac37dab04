"""Configuration section of the delivery to a database."""

import re
from typing import Literal

import pydantic

from pipeline.sections import Section

DELIVERED_TO = ("postgresql://", "postgres://", "sqlite:///")
"""Beginnings of the addresses of databases that take the live lists."""


class DeliverConfig(Section):
    """Table of a database for the live lists: the `[deliver]` section."""

    database: str
    """Address, postgresql://… or sqlite:///file. Credentials as for `events.database`: PGUSER and PGPASSWORD, or ~/.pgpass."""
    table: str
    """Table, with its schema or without; made where it is missing, with an index on `user_id`."""
    mode: Literal["replace", "append"] = "replace"
    """replace: the lists take the place of all rows; append: they come beside those of earlier deliveries."""

    @pydantic.field_validator("database")
    @classmethod
    def _known_database(cls, address: str) -> str:
        if not address.startswith(DELIVERED_TO):
            kind = address.partition("://")[0] if "://" in address else address
            raise ValueError(
                f"deliver.database: received {kind!r}, expected an address that begins with {', '.join(DELIVERED_TO)}"
            )
        return address

    @pydantic.field_validator("table")
    @classmethod
    def _plain_name(cls, table: str, about: pydantic.ValidationInfo) -> str:
        is_sqlite = str(about.data.get("database")).startswith("sqlite")
        if not re.fullmatch(r"[^\W\d]\w*" + ("" if is_sqlite else r"(\.[^\W\d]\w*)?"), table):
            schema = "" if is_sqlite else ", or schema.table"
            raise ValueError(
                f"deliver.table: received {table!r}, expected a name of letters, digits and _{schema}"
            )
        return table
