from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.bounded import kept


def clique(size: int) -> tuple[np.ndarray, np.ndarray]:
    row, neighbour = np.nonzero(~np.eye(size, dtype=bool))
    return row, neighbour


@given(st.integers(2, 60), st.integers(1, 12), st.randoms())
def test_a_clique_keeps_a_ring(size: int, max_degree: int, random: object) -> None:
    row, neighbour = clique(size)
    ranks = np.random.default_rng(random.randrange(2**31)).permutation(size)  # type: ignore[attr-defined]
    keep, dense = kept(row, ranks[row], ranks[neighbour], size, max_degree)
    if size - 1 <= max_degree:
        assert keep.all()
        assert not len(dense)
        return
    assert dense.tolist() == list(range(size))
    pairs = set(zip(ranks[row][keep].tolist(), ranks[neighbour][keep].tolist(), strict=True))
    assert pairs == {(here, (here + step) % size) for here in range(size) for step in range(1, max_degree + 1)}


def test_rows_with_few_neighbours_keep_them_beside_one_with_many() -> None:
    row = np.array([0] * 9 + [4, 7])
    neighbour = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0])
    keep, dense = kept(row, row, neighbour, 10, 3)
    assert dense.tolist() == [0]
    assert keep.tolist() == [True] * 3 + [False] * 6 + [True] * 2


def test_whoever_stands_for_a_clique_few_others_are_left() -> None:
    row, neighbour = clique(5000 // 4)
    keep, _ = kept(row, row, neighbour, 1250, 64)
    near = np.zeros((1250, 1250), bool)
    near[row[keep], neighbour[keep]] = True
    near |= near.T
    left_over, survivors = np.random.default_rng(0).permutation(1250).tolist(), 0
    while left_over:
        best, survivors = left_over[0], survivors + 1
        left_over = [other for other in left_over[1:] if not near[best, other]]
    assert survivors <= 0.02 * 1250
