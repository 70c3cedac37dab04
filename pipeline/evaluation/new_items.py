"""Items that scoring adds to an evaluated model: the described ones to the encoder, all others to the second stage."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from features.histories.numbering import ItemNumbering
from models.encoder.encoder import AttentionRecommender
from models.encoder.extend import with_items
from models.retrieval.content_map import ContentMap
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.item_features import all_features, dense_features, has_content, padded_categories

if TYPE_CHECKING:
    from numpy.typing import NDArray


def with_described_items(
    recommender: AttentionRecommender, dataset: Dataset, numbering: ItemNumbering
) -> tuple[AttentionRecommender, ItemNumbering]:
    """Extend an encoder by the dataset's described items that it does not know, as scoring does; unchanged without content.

    `numbering`: items of the dataset -> the encoder's. Returns the extended encoder and numbering, new items last.
    """
    encoder, content = recommender.encoder, dataset.content
    if content is None:
        return recommender, numbering
    described: NDArray[np.bool_] = has_content(content) & ~dataset.under_core()
    described[0] = False
    added = np.flatnonzero(described & ~numbering.known)
    items = numbering.inverse().new.astype(np.int64)
    vectors = None
    if not encoder.settings.item_content:
        learned = np.flatnonzero(described & numbering.known)
        own = encoder.items.all().detach().float().cpu().numpy()
        fitted = ContentMap.fit(all_features(content, learned), own[numbering.new[learned]])
        if fitted is None:
            return recommender, numbering
        vectors = fitted[0](all_features(content, added))
    if not len(added):
        return recommender, numbering
    grown = with_items(encoder, vectors, dense_features(content, added), padded_categories(content, added))
    new = numbering.new.copy()
    new[added] = np.arange(len(items), len(items) + len(added), dtype=np.int32)
    return AttentionRecommender(grown), replace(numbering, new=new)


def with_unlearned_items(numbering: ItemNumbering, dataset: Dataset) -> ItemNumbering:
    """Number the dataset's other items behind an encoder's, as scoring does for a second stage; none under the core filter.

    `numbering`: items of the dataset -> the encoder's.
    """
    others = ~dataset.under_core() & ~numbering.known
    others[0] = False
    new = numbering.new.copy()
    new[others] = numbering.num_items + np.arange(1, np.count_nonzero(others) + 1, dtype=np.int32)
    return ItemNumbering(new)
