"""Items that scoring adds to an evaluated model."""

from pathlib import Path

import numpy as np

from features.histories.numbering import ItemNumbering
from features.histories.splits import Split
from pipeline.dataset.dataset import Dataset
from pipeline.evaluation.new_items import with_unlearned_items
from tests.factories import jagged


def test_other_items_are_numbered_behind_the_encoders() -> None:
    """Item 1 is too rare in training, 2 and 4 are learned, 3 and 5 are new, 6 has no event."""
    histories = jagged([[(0, 1), (1, 2), (2, 4), (3, 4), (5, 3)], [(1, 2), (6, 5)]])
    ends, everyone = np.asarray(histories.offsets[1:]), np.ones(2, bool)
    training = np.array([4, 6])
    kept = np.array([False, False, True, False, True, False, False])
    split = Split("temporal", training, training, ends, everyone, everyone, kept, 5, 5)
    numbering = ItemNumbering(np.array([0, 0, 1, 0, 2, 0, 0], np.int32))
    extended = with_unlearned_items(numbering, Dataset(Path(), histories, split))
    assert extended.new.tolist() == [0, 0, 1, 3, 2, 4, 5]
    assert extended.inverse().compose(numbering).new.tolist() == [0, 1, 2, 0, 0, 0]
