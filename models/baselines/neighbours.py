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
    data, lengths = matrix.data, np.diff(matrix.indptr)
    long = np.flatnonzero(lengths > keep)
    least = np.full(len(lengths), -np.inf, data.dtype)
    for number in long:
        of_row = data[matrix.indptr[number] : matrix.indptr[number + 1]]
        least[number] = np.partition(of_row, -keep)[-keep]
    row = np.repeat(np.arange(len(lengths)), lengths)
    kept, equal = data > least[row], np.flatnonzero(data == least[row])
    room = keep - np.bincount(row[kept], minlength=len(lengths))
    of_equal = row[equal]
    place = np.arange(len(equal)) - np.searchsorted(of_equal, np.arange(len(lengths)))[of_equal]
    kept[equal[place < room[of_equal]]] = True
    starts = np.concatenate(([0], np.cumsum(np.minimum(lengths, keep))))
    return csr_array((data[kept], matrix.indices[kept], starts), shape=matrix.shape)
