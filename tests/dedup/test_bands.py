from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.bands import band_hashes, bucket_rows, candidates, hot_bands, owned


def test_bands_agree_exactly_where_signatures_do() -> None:
    signatures = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [3, 4, 1, 2]], np.uint32)
    hashes = band_hashes(signatures, 2)
    assert (hashes[0] == hashes[1]).tolist() == [True, False]
    assert len(np.unique(hashes)) == 5, "the same slots in another band are another hash"


@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 99))
def test_every_row_goes_once_to_each_bucket_that_owns_a_band(rows: int, num_buckets: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, (rows, 4), dtype=np.uint64)
    routed, buckets = bucket_rows(hashes, num_buckets)
    assert list(zip(routed.tolist(), buckets.tolist(), strict=True)) == [
        (row, bucket)
        for bucket in range(num_buckets)
        for row in range(rows)
        if owned(hashes, bucket, num_buckets)[row].any()
    ]


def all_pairs(hashes: np.ndarray, max_degree: int) -> list[tuple[int, int]]:
    bits = np.arange(len(hashes), dtype=np.uint64)
    found = candidates(hashes, owned(hashes, 0, 1), bits, max_degree, 0)
    return sorted(
        (min(pair), max(pair)) for part in found for pair in zip(part.left.tolist(), part.right.tolist(), strict=True)
    )


def test_small_neighbourhoods_are_compared_in_full() -> None:
    hashes = np.array([[7], [7], [9], [7], [9], [1]], np.uint64)
    assert all_pairs(hashes, 3) == [(0, 1), (0, 3), (1, 3), (2, 4)]
    assert hot_bands(hashes, 0, 1, 2).tolist() == [7]
    assert hot_bands(hashes, 0, 1, 3).tolist() == []


def test_dense_neighbourhoods_cost_rows_times_anchors() -> None:
    pairs = all_pairs(np.full((50_000, 1), 7, np.uint64), 4)
    assert len(pairs) == len(set(pairs)) == 50_000 * 4 - (4 + 3 + 2 + 1)
    ends, times = np.unique(np.array(pairs), return_counts=True)
    assert len(ends) == 50_000
    assert np.count_nonzero(times > 5) == 4, "only the anchors meet many rows"


def test_no_rows() -> None:
    assert all_pairs(np.zeros((0, 3), np.uint64), 4) == []
