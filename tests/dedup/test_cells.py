from __future__ import annotations

import numpy as np
import pytest

from dataengine.dedup.cells import num_cells, probe_cells, train_cells, unit_vectors


def test_number_of_cells() -> None:
    assert [num_cells(rows, 100) for rows in (0, 1, 100, 101, 24_000)] == [1, 1, 1, 2, 240]


def test_training_repeats_to_the_bit() -> None:
    sample = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    first, second = (train_cells(sample, 7, seed=4) for _ in range(2))
    assert first.shape == (7, 32)
    assert first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3])
def test_few_rows_make_few_cells(num_rows: int) -> None:
    sample = np.eye(3, 8, dtype=np.float32)[:num_rows]
    centroids = train_cells(sample, 5, seed=0)
    assert centroids.shape == (max(num_rows, 1), 8)
    assert probe_cells(sample, centroids, 2).shape == (num_rows, min(2, max(num_rows, 1)))


def test_unusable_rows_teach_nothing() -> None:
    sample = np.zeros((4, 3), np.float32)
    sample[1] = np.nan
    sample[2] = [0, 3, 0]
    assert train_cells(sample, 4, seed=0).tolist() == [[0, 1, 0]]
    assert unit_vectors(sample).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_probes_are_nearest_first_and_ties_go_by_number() -> None:
    centroids = np.array([[0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    embeddings = np.array([[2, 0], [0, 0.5], [0, 0]], np.float16)
    assert probe_cells(embeddings, centroids, 3).tolist() == [[1, 2, 0], [0, 1, 2], [0, 1, 2]]
