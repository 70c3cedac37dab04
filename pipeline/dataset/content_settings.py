"""Settings of the content encoder, apart from `item_features` so that the stage features does not import torch."""

from typing import TYPE_CHECKING

from features.settings import ContentSettings

if TYPE_CHECKING:
    from pipeline.config import Config


def content_settings(config: "Config") -> ContentSettings:
    """Settings of the content encoder."""
    items = config.items
    if items is None:
        return ContentSettings()
    return ContentSettings(items.text_dim, items.text_max_words, items.text_min_items)
