"""Buckets are the nearest in log ratio, whatever the size, and mirror when width and height change places."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.emit.buckets import BUCKETS, nearest_bucket

SIDES = st.integers(1, 20_000)


def log_distance(name: str, width: int, height: int) -> float:
    left, right = map(int, name.split(":"))
    return abs(math.log(left / right) - math.log(width / height))


@given(SIDES, SIDES)
def test_the_nearest_ratio_wins(width: int, height: int) -> None:
    (name,) = nearest_bucket([width], [height]).to_pylist()
    assert log_distance(name, width, height) <= min(log_distance(other, width, height) for other in BUCKETS) + 1e-9


@pytest.mark.parametrize("name", BUCKETS)
def test_an_exact_ratio_is_its_own_bucket(name: str) -> None:
    width, height = map(int, name.split(":"))
    assert nearest_bucket([width * 64, height], [height * 64, width]).to_pylist() == [
        name,
        ":".join(name.split(":")[::-1]),
    ]


def test_known_sizes() -> None:
    assert nearest_bucket([1920, 480, 3000, 512, 1], [1080, 640, 1000, 512, 9]).to_pylist() == [
        "16:9",
        "3:4",
        "3:1",
        "1:1",
        "1:3",
    ]


def test_no_rows() -> None:
    assert nearest_bucket([], []).to_pylist() == []


def test_sides_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        nearest_bucket([0], [4])
