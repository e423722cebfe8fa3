from __future__ import annotations

import pyarrow as pa
import pytest

from dataengine.dedup.recall import measure, recall_sample, wilson
from dataengine.keys import url_keys
from dataengine.schemas import EDGE


def test_wilson_interval_of_a_textbook_case() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[0] == 0.0


def test_nothing_to_find() -> None:
    recall = measure(EDGE.empty(), EDGE.empty())
    assert (recall.value, recall.low, recall.high) == (1.0, 0.0, 1.0)


def test_the_sample_has_about_the_asked_size_and_all_rows_when_there_are_few() -> None:
    keys = pa.array(url_keys("s", [str(row) for row in range(4000)]))
    assert recall_sample(keys, 4000, 400, seed=1).sum() == pytest.approx(400, abs=80)
    assert recall_sample(keys, 4000, 5000, seed=1).all()
