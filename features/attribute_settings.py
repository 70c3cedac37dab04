"""Columns of the users' and items' tables and of the log that a model can read as values, by the configuration."""

from collections.abc import Collection

from features.settings import EventSettings, ItemSettings, UserSettings

IDS = {"users": "user_id", "items": "item_id"}
"""Tables and their columns of ids."""
READ_OTHERWISE = ("title", "text", "embedding")
"""Columns of items that are no values; models read their content."""


def attribute_columns(
    users: UserSettings | None,
    items: ItemSettings | None,
    events: EventSettings,
    names: str | Collection[str],
) -> list[tuple[str, str]]:
    """Table and name of each configured column that `names` means: auto, or such as `country` and `users.country`.

    Raises ValueError for a name that no table has.
    """
    known = [
        (table, name)
        for table, settings in (("users", users), ("items", items))
        for name in (settings.columns if settings is not None else ())
        if name not in (IDS[table], *READ_OTHERWISE)
    ] + [("events", name) for name in events.further]
    if names == "auto":
        return known
    labels = {name for table, column in known for name in (column, f"{table}.{column}")}
    for name in names:
        if name not in labels:
            raise ValueError(
                f"ranker.columns: received {name!r}, expected auto or columns of [users] and [items], or further ones "
                "of [events]: "
                + (", ".join(f"{table}.{column}" for table, column in known) or "they name none")
            )
    return [(table, column) for table, column in known if {column, f"{table}.{column}"} & set(names)]
