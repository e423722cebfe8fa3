from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.arrays import distinct, spans, widened


def test_spans() -> None:
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spans(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


@given(st.lists(st.integers(-5, 5)))
def test_distinct(numbers: list[int]) -> None:
    assert distinct(np.array(numbers, np.int64)).tolist() == sorted(set(numbers))


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert widened(halves).tobytes() == halves.astype(np.float32).tobytes()
