"""Very dense neighbourhoods, bounded: of a row's many neighbours it keeps `max_degree`.

Rows stand in the order of a keyed hash, and a row keeps the neighbours that follow it in that order, round and round.
So a group of n copies costs n · max_degree edges, not n²; each member has edges, to others that have edges to others;
and whichever member a later order prefers, it stands for about 2 · max_degree of them. Keeping the same few anchors for
all would serve only who prefers an anchor: dropped for its sake or not, no other member knows another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def kept(
    row: NDArray[np.int64], neighbour: NDArray[np.int64], num_places: int, max_degree: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which pairs are kept (bool [pairs]), and the rows that had more than `max_degree` (ascending).

    `row` and `neighbour` are places below `num_places` in the order of the hash, each pair once, in any order.
    """
    rows, which, degrees = np.unique(row, return_inverse=True, return_counts=True)
    dense = degrees > max_degree
    keep = np.ones(len(row), bool)
    if not dense.any():
        return keep, rows[:0]
    crowded = np.flatnonzero(dense[which])
    distance = (neighbour[crowded] - row[crowded]) % num_places
    order = np.lexsort((distance, row[crowded]))
    begins = np.cumsum(degrees[dense]) - degrees[dense]
    rank = np.arange(len(crowded)) - np.repeat(begins, degrees[dense])
    keep[crowded[order]] = rank < max_degree
    return keep, rows[dense]
