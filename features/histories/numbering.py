"""Item numberings: item indices of one catalogue as those of another."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemNumbering:
    """Old item indices to new ones: `new[old]`. Index 0 is padding in both, and an item that the new catalogue lacks."""

    new: NDArray[np.int32]
    """[num_old + 1], 0..num_items; new[0] is 0"""

    @classmethod
    def of_known(cls, known: NDArray[np.bool_]) -> "ItemNumbering":
        """Number the known items 1.. in their old order. known: [num_old + 1]; index 0 is ignored."""
        chosen = known.copy()
        chosen[0] = False
        return cls(np.where(chosen, np.cumsum(chosen), 0).astype(np.int32))

    @classmethod
    def load(cls, path: Path) -> "ItemNumbering":
        """A saved numbering."""
        return cls(np.load(path))

    def save(self, path: Path) -> None:
        """Write `new` as a .npy file."""
        np.save(path, self.new, allow_pickle=False)

    @property
    def num_items(self) -> int:
        """Items of the new catalogue, as far as the old one has them."""
        return int(self.new.max(initial=0))

    @property
    def known(self) -> NDArray[np.bool_]:
        """[num_old + 1] whether the new catalogue has an item."""
        return np.asarray(self.new > 0)

    def inverse(self) -> "ItemNumbering":
        """New item indices to old ones."""
        old = np.zeros(self.num_items + 1, np.int32)
        old[self.new[self.known]] = np.flatnonzero(self.known)
        return ItemNumbering(old)

    def compose(self, further: "ItemNumbering") -> "ItemNumbering":
        """Old item indices to those of `further`, whose old ones are this numbering's new ones."""
        return ItemNumbering(further.new[self.new])
