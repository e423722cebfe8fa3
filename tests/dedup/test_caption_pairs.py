from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.caption_pairs import (
    Comparison,
    audited_pairs,
    candidate_pairs,
    distinct_pairs,
    ends,
    find_runs,
    stands_in,
)

HASHES = st.lists(st.integers(0, 4), max_size=40)


def pairs_of(
    hashes: np.ndarray, rows: np.ndarray, sketches: np.ndarray, num_own: int, comparison: Comparison, at_once: int = 99
) -> list[tuple[int, int]]:
    runs = find_runs(hashes, rows, sketches, num_own, comparison)
    found = [pairs for pairs, _ in candidate_pairs(runs, comparison, at_once)]
    low, high = ends(np.concatenate([np.zeros(0, np.uint64), *found]))
    return sorted(zip(low.tolist(), high.tolist(), strict=True))


def records(values: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sketches = np.random.default_rng(seed).integers(0, 2**64, len(values), dtype=np.uint64)
    return np.array(values, np.uint64), np.arange(len(values), dtype=np.uint32), sketches


@given(HASHES, st.integers(0, 40))
def test_short_runs_are_compared_in_full(values: list[int], num_own: int) -> None:
    hashes, rows, sketches = records(values)
    wanted = [
        (a, b) for a, b in combinations(range(len(values)), 2) if values[a] == values[b] and a < num_own
    ]  # fmt: skip
    assert pairs_of(hashes, rows, sketches, num_own, Comparison(64, 64, 1)) == wanted


@given(HASHES, st.integers(1, 5), st.integers(0, 99), st.integers(5, 50))
def test_order_and_batches_do_not_matter(values: list[int], max_degree: int, seed: int, at_once: int) -> None:
    hashes, rows, sketches = records(values)
    comparison = Comparison(max_degree, 40, 7)
    order = np.random.default_rng(seed).permutation(len(values))
    wanted = pairs_of(hashes, rows, sketches, 30, comparison)
    assert pairs_of(hashes[order], rows[order], sketches[order], 30, comparison, at_once) == wanted


def test_sketches_that_differ_too_much_are_no_candidates() -> None:
    sketches = np.array([0, 0b111, 0b1111], np.uint64)
    found = pairs_of(np.zeros(3, np.uint64), np.arange(3, dtype=np.uint32), sketches, 3, Comparison(64, 3, 1))
    assert found == [(0, 1), (1, 2)]


def test_a_dense_run_costs_rows_times_anchors() -> None:
    hashes, rows, sketches = records([7] * 20_000)
    comparison = Comparison(8, 64, 1)
    found = pairs_of(hashes, rows, sketches, 20_000, comparison, at_once=1000)
    assert len(found) == 20_000 * 8 - (4 + 3 + 2 + 1) - 4
    _, times = np.unique(np.array(found), return_counts=True)
    assert np.count_nonzero(times > 2 * 8 + 4) == 4, "only the anchors meet many rows"
    runs = find_runs(hashes, rows, sketches, 20_000, comparison)
    assert runs.dense_rows().tolist() == list(range(20_000))
    audited = audited_pairs(runs, comparison)
    assert (1 << 16) - 64 < len(audited) <= 1 << 16
    met = stands_in(audited, distinct_pairs(np.array([a << 32 | b for a, b in found], np.uint64)))
    assert met.mean() < 0.01, "pairs of rows that are no anchors; hardly any are neighbours by chance"


@pytest.mark.parametrize("bits", [8, 33, 64])
@given(st.integers(0, 500), st.integers(0, 99))
def test_distinct_pairs(bits: int, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, size, dtype=np.uint64)
    wanted = sorted(set(values.tolist()))
    found = distinct_pairs(values.copy())
    assert found.tolist() == wanted
    probe = np.array([0, *wanted[:3], 2**64 - 1], np.uint64)
    assert stands_in(probe, found).tolist() == [value in set(wanted) for value in probe.tolist()]
