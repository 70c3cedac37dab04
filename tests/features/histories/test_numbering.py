from pathlib import Path

import numpy as np

from features.histories.numbering import ItemNumbering


def numbering(*new: int) -> ItemNumbering:
    return ItemNumbering(np.array(new, np.int32))


def test_known_items_keep_their_order() -> None:
    made = ItemNumbering.of_known(np.array([True, False, True, True]))
    assert made.new.tolist() == [0, 0, 1, 2]
    assert (made.num_items, made.known.tolist()) == (2, [False, False, True, True])


def test_the_inverse_leads_back() -> None:
    assert numbering(0, 3, 0, 1, 2).inverse().new.tolist() == [0, 3, 4, 1]
    assert numbering(0, 0, 3).inverse().new.tolist() == [0, 0, 0, 2], (
        "items 1 and 2 are not in the old catalogue"
    )


def test_composed_numberings_skip_the_one_between() -> None:
    first, second = numbering(0, 2, 0, 1), numbering(0, 0, 5)
    assert first.compose(second).new.tolist() == [0, 5, 0, 0]
    earlier, later = numbering(0, 1, 0, 2, 0), numbering(0, 1, 2, 3, 0)
    assert later.inverse().compose(earlier).new.tolist() == [0, 1, 0, 2], "later items -> earlier items"


def test_it_is_what_it_was_after_saving(tmp_path: Path) -> None:
    numbering(0, 2, 1).save(tmp_path / "items.npy")
    assert ItemNumbering.load(tmp_path / "items.npy").new.tolist() == [0, 2, 1]
