"""Sparse item-item matrices: co-occurrence counts, largest entries per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.topk import row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_array

# Letters in shapes: r rows (histories), n items; X [r, n + 1] is 0/1, see `interactions`.

_BLOCK_CELLS = 2**22
"""Approximate number of item pairs counted at once (48 MiB with indices)."""


def pair_counts(held: csr_array) -> Iterator[tuple[slice, csr_array]]:
    """Blocks of rows of X'X with their slices: numbers of rows of `held` [r, n + 1] with both items of a pair."""
    by_item = held.T.tocsr()
    for block in row_chunks(held.shape[1], held.shape[1], _BLOCK_CELLS):
        yield block, by_item[block] @ held


def largest_per_row(matrix: csr_array, keep: int) -> csr_array:
    """Keep the `keep` largest entries of each row; the lower column of equal ones."""
    from scipy.sparse import csr_array

    matrix.sort_indices()
    lengths = np.diff(matrix.indptr)
    is_long = np.repeat(lengths > keep, lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    among = np.flatnonzero(is_long)
    order = among[np.lexsort((-matrix.data[among], row[among]))]
    long = lengths[lengths > keep]
    place = np.arange(len(order)) - np.repeat(np.cumsum(long) - long, long)
    kept = ~is_long
    kept[order[place < keep]] = True
    starts = np.concatenate(([0], np.cumsum(np.minimum(lengths, keep))))
    return csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)
