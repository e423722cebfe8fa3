"""Reading ahead: in order, bounded, and stopped by what fails."""

from __future__ import annotations

import pytest

from dataengine.storage.ahead import map_ahead


def test_results_come_in_order_and_few_ahead() -> None:
    begun: list[int] = []
    results = map_ahead(lambda item: begun.append(item) or 2 * item, range(100), 4, 8)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(begun) <= 3 + 8
    assert list(results) == list(range(6, 200, 2))


def test_a_failure_comes_at_its_item_and_ends_the_reading() -> None:
    begun: list[int] = []

    def read(item: int) -> float:
        begun.append(item)
        return 1 / (3 - item)

    results = map_ahead(read, range(1000), 2, 4)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) <= 10
