from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dataengine.dedup.edges import edge_table
from dataengine.dedup.recall import measure, recall_sample, sample_size, wilson
from dataengine.keys import url_keys
from dataengine.schemas import EDGE

KEYS = pa.array(url_keys("s", [str(row) for row in range(4000)]), pa.string())
NOBODY = pa.array([], pa.string())


def edges(pairs: list[tuple[int, int]]) -> pa.Table:
    left, right = np.array(pairs).reshape(-1, 2).T
    return edge_table(KEYS.take(pa.array(left)), KEYS.take(pa.array(right)), "image_embedding", np.ones(len(pairs)))


def test_wilson_interval_of_a_textbook_case() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[0] == 0.0


def test_nothing_to_find() -> None:
    recall = measure(EDGE.empty(), EDGE.empty(), KEYS[:10], NOBODY)
    assert (recall.value, recall.low, recall.high, recall.num_lost) == (None, 0.0, 1.0, 0)


def test_the_sample_has_about_the_asked_size_and_all_rows_when_there_are_few() -> None:
    assert recall_sample(KEYS, 4000, 400, seed=1).sum() == pytest.approx(400, abs=80)
    assert recall_sample(KEYS[:400], 400, 5000, seed=1).all()
    assert [sample_size(rows, 2000) for rows in (100, 40_000, 100_000, 10**6)] == [500, 500, 1000, 2000]


def test_pairs_of_bounded_rows_are_counted_apart_and_lost_rows_are_told() -> None:
    exact = edges([(0, 10), (1, 11), (2, 12), (2, 13), (3, 14)])
    recall = measure(exact, edges([(0, 10), (2, 12)]), KEYS[:5], KEYS[2:3])
    assert (recall.num_found, recall.num_pairs, recall.num_bounded) == (1, 3, 2)
    assert recall.num_lost == 2


def test_families_make_the_interval_wider() -> None:
    alone = edges([(row, 2000 + row) for row in range(100)])
    together = edges([(row // 10, 2000 + row) for row in range(100)])
    wide, narrow = (measure(pairs, pairs.slice(0, 90), KEYS[:1000], NOBODY) for pairs in (together, alone))
    assert (wide.num_pairs, wide.num_found) == (narrow.num_pairs, narrow.num_found)
    assert narrow.low == pytest.approx(wilson(90, 100)[0])
    assert wide.low == pytest.approx(wilson(9, 10)[0])


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        sizes = rng.geometric(0.4, 150)
        hits = sum(int(size) for size in sizes if rng.random() < 0.9)  # a row's pairs are found all or none
        low, high = wilson(hits, int(sizes.sum()), sizes.sum() ** 2 / np.square(sizes).sum())
        held += low <= 0.9 <= high
    assert held >= 180
