"""Very dense neighbourhoods, bounded: of a row's many neighbours it keeps `max_degree`.

Rows stand in the order of a keyed hash, and a row keeps the neighbours that follow it in that order, round and round.
So a group of n copies costs n · max_degree edges, not n²; each member has edges, to others that have edges to others;
and whichever member a later order prefers, it stands for about 2 · max_degree of them. Keeping the same few anchors for
all would serve only who prefers an anchor: dropped for its sake or not, no other member knows another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.arrays import spans

if TYPE_CHECKING:
    from numpy.typing import NDArray


def kept(
    row: NDArray[np.int64],
    row_rank: NDArray[np.int64],
    neighbour_rank: NDArray[np.int64],
    num_ranks: int,
    max_degree: int,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which pairs are kept (bool [pairs]), and the rows that had more than `max_degree`.

    All pairs of a row stand together; ranks are places in the order of the hash, below `num_ranks`.
    """
    firsts = np.flatnonzero(np.append(True, row[1:] != row[:-1])[: len(row)])
    degrees = np.diff(np.append(firsts, len(row)))
    dense = degrees > max_degree
    keep = np.ones(len(row), bool)
    if not dense.any():
        return keep, row[:0]
    crowded = spans(firsts[dense], degrees[dense])
    distance = (neighbour_rank[crowded] - row_rank[crowded]) % num_ranks
    number = np.repeat(np.arange(len(firsts))[dense], degrees[dense])
    order = np.argsort(number * num_ranks + distance)
    begins = np.cumsum(degrees[dense]) - degrees[dense]
    keep[crowded[order]] = np.arange(len(crowded)) - np.repeat(begins, degrees[dense]) < max_degree
    return keep, row[firsts[dense]]
