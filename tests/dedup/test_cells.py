from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup import cells
from dataengine.dedup.cells import (
    NO_CELL,
    Cells,
    bucket_cells,
    bucket_starts,
    num_cells,
    place,
    search_radius,
    train_cells,
    unit_vectors,
    usable,
)


def test_number_of_cells() -> None:
    assert [num_cells(rows, 100) for rows in (0, 1, 100, 101, 24_000)] == [1, 1, 1, 2, 240]
    assert [num_cells(rows, None) for rows in (0, 100, 1_000_000)] == [1, 7, 2500]


def test_training_repeats_to_the_bit() -> None:
    sample = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    first, second = (train_cells(sample, 7, 0.3, seed=4) for _ in range(2))
    assert first.shape == (7, 32)
    assert first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3])
def test_few_rows_make_few_cells(num_rows: int) -> None:
    sample = np.eye(3, 8, dtype=np.float32)[:num_rows]
    centroids = train_cells(sample, 5, 0.3, seed=0)
    assert centroids.shape == (max(num_rows, 1), 8)


def test_unusable_rows_teach_nothing() -> None:
    sample = np.zeros((4, 3), np.float32)
    sample[1] = np.nan
    sample[2] = [0, 3, 0]
    assert train_cells(sample, 4, 0.3, seed=0).tolist() == [[0, 1, 0]]
    assert unit_vectors(sample).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert usable(sample).tolist() == [False, False, True, False]


def test_no_border_runs_through_a_group_of_near_duplicates() -> None:
    rng = np.random.default_rng(5)
    group = rng.normal(size=64) + rng.normal(0, 0.05, (400, 64))
    sample = np.concatenate([group, rng.normal(size=(100, 64))])
    radius = search_radius(0.95)
    centroids = train_cells(sample, 50, radius, seed=1)
    gaps = np.sqrt(np.maximum(2 - 2 * centroids @ centroids.T, 0)) + 2 * np.eye(len(centroids))
    assert gaps.min() >= radius
    assert len(set(place(unit_vectors(group), Cells(centroids), 0.0).home.tolist())) == 1


@given(st.integers(0, 2**16), st.integers(1, 300), st.integers(1, 30), st.sampled_from([0.6, 0.8, 0.9, 0.97]))
def test_every_pair_meets_when_rows_look_across_the_whole_border(
    seed: int, num_rows: int, number: int, min_similarity: float
) -> None:
    rng = np.random.default_rng(seed)
    units = unit_vectors(rng.normal(size=(num_rows, 6)))
    centroids = unit_vectors(rng.normal(size=(number, 6)))
    placed = place(units, Cells(centroids), search_radius(min_similarity) / 2)
    assert placed.home.tolist() == (units @ centroids.T).argmax(axis=1).tolist()
    looks = set(zip(placed.look_row.tolist(), placed.look_cell.tolist(), strict=True))
    assert len(looks) == len(placed.look_row)
    assert not looks & set(enumerate(placed.home.tolist()))
    for first, second in np.argwhere(np.triu(units @ units.T >= min_similarity, k=1)).tolist():
        homes = int(placed.home[first]), int(placed.home[second])
        assert homes[0] == homes[1] or (first, homes[1]) in looks or (second, homes[0]) in looks


@pytest.mark.parametrize("max_table_cells", [4096, 5])
def test_looks_are_those_within_reach_of_the_border(monkeypatch: pytest.MonkeyPatch, max_table_cells: int) -> None:
    monkeypatch.setattr(cells, "_MAX_TABLE_CELLS", max_table_cells)
    rng = np.random.default_rng(2)
    units, centroids = unit_vectors(rng.normal(size=(200, 8))), unit_vectors(rng.normal(size=(20, 8)))
    placed = place(units, Cells(centroids), 0.1)
    found = np.zeros((200, 20), bool)
    found[placed.look_row, placed.look_cell] = True
    for row, home in enumerate(placed.home):
        for cell in set(range(20)) - {home}:
            normal = centroids[home] - centroids[cell]
            assert found[row, cell] == (units[row] @ normal / np.linalg.norm(normal) <= 0.1)


def test_ties_go_to_the_lower_cell_and_zero_rows_have_none() -> None:
    centroids = np.array([[0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    units = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    placed = place(units, Cells(centroids), 0.2)
    assert placed.home.tolist() == [1, 0, NO_CELL]
    assert 2 not in placed.look_row


def test_buckets_hold_whole_cells() -> None:
    starts = bucket_starts(np.array([5, 5, 30, 1, 1, 8, 9]), 10)
    assert starts == [0, 2, 3, 6]
    assert bucket_cells(starts, 7) == [range(0, 2), range(2, 3), range(3, 6), range(6, 7)]
    assert bucket_cells(bucket_starts(np.zeros(3), 10), 3) == [range(0, 3)]
    assert math.isclose(search_radius(0.95), math.sqrt(0.1))


def test_int8_places_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    units, centroids = unit_vectors(rng.normal(size=(500, 32))), unit_vectors(rng.normal(size=(90, 32)))
    plain = place(units, Cells(centroids), 0.1)
    monkeypatch.setattr(cells, "worth_int8", lambda _: True)
    quick = place(units, Cells(centroids), 0.1)
    assert Cells(centroids).products.int8
    for name in ("home", "look_row", "look_cell"):
        assert np.array_equal(getattr(quick, name), getattr(plain, name))


@pytest.mark.parametrize("gap", [2e-3, 3e-4, 1e-5])
def test_pairs_across_the_border_of_twin_cells_are_seen(gap: float) -> None:
    rng = np.random.default_rng(7)
    middle, across = np.linalg.qr(rng.normal(size=(256, 2)))[0].T
    twins = unit_vectors(np.stack([middle + gap / 2 * across, middle - gap / 2 * across]))
    others = unit_vectors(rng.normal(size=(6, 256)))
    half = search_radius(0.95) / 2 * 0.9997
    pairs = unit_vectors(np.stack([np.sqrt(1 - half**2) * middle + side * half * across for side in (1, -1)]))
    placed = place(pairs, Cells(np.concatenate([twins, others])), search_radius(0.95) / 2)
    looks = set(zip(placed.look_row.tolist(), placed.look_cell.tolist(), strict=True))
    assert sorted(placed.home) == [0, 1]
    assert looks & {(0, placed.home[1]), (1, placed.home[0])}


def test_int8_places_all_the_same_where_cells_are_hard_to_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    units = unit_vectors(rng.normal(size=64) + rng.normal(0, 0.3, (400, 64)))
    plain = place(units, Cells(units[:100]), 0.1)
    monkeypatch.setattr(cells, "worth_int8", lambda _: True)
    quick = place(units, Cells(units[:100]), 0.1)
    for name in ("home", "look_row", "look_cell"):
        assert np.array_equal(getattr(quick, name), getattr(plain, name))
