from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup import products
from dataengine.dedup.cells import unit_vectors
from dataengine.dedup.products import Products, dots, worth_int8


def near_pairs(rng: np.random.Generator, num_rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    first = unit_vectors(rng.normal(size=(num_rows, dim)))
    second = unit_vectors(np.concatenate([first + rng.normal(0, 0.3 / dim**0.5, first.shape), np.zeros((2, dim))]))
    return first, second


@given(st.integers(0, 2**16), st.integers(1, 60), st.sampled_from([3, 16, 96]), st.floats(0.01, 1))
def test_int8_finds_what_float64_finds(seed: int, num_rows: int, dim: int, floor: float) -> None:
    first, second = near_pairs(np.random.default_rng(seed), num_rows, dim)
    exact = first.astype(np.float64) @ second.T
    left, right, similarity = Products(second, int8=True).near(first, floor)
    doubt = np.abs(exact - floor) < 1e-6  # of the last bits of float32
    found = np.zeros_like(exact, bool)
    found[left, right] = True
    assert np.array_equal(found | doubt, (exact >= floor) | doubt)
    assert np.abs(similarity - exact[left, right]).max(initial=0) <= Products(second, int8=True).of(first)[1]
    assert np.all(np.diff(left * len(second) + right) > 0)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dim", [1, 65, 512])
def test_no_product_is_off_by_more_than_the_error(int8: bool, dim: int) -> None:
    spike = np.full((1, dim), 0.4 / 127)  # beside one of 1, every other number loses nearly half a unit
    spike[0, 0] = 1
    rows = np.concatenate([unit_vectors(spike), *near_pairs(np.random.default_rng(1), 300, dim)])
    product, error = Products(rows, int8).of(rows)
    off = np.abs(product - rows.astype(np.float64) @ rows.T).max()
    assert off <= error < 0.15
    assert int8 == (error > 1e-3) or dim == 1


def test_no_rows_have_no_products() -> None:
    none, some = np.zeros((0, 8), np.float32), unit_vectors(np.ones((3, 8)))
    for first, second in ((none, some), (some, none), (none, none)):
        assert Products(second, int8=True).of(first)[0].shape == (len(first), len(second))


def test_where_nearly_all_are_doubtful_float32_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    rows = unit_vectors(rng.normal(size=64) + rng.normal(0, 0.2, (200, 64)))
    floor = float(np.median(rows @ rows.T))
    asked = []
    monkeypatch.setattr(products, "dots", lambda *given: asked.append(len(given[1])) or dots(*given))
    left, right, _ = Products(rows, int8=True).near(rows, floor)
    plain = Products(rows).near(rows, floor)
    assert sum(asked) < 100
    assert np.array_equal(np.stack([left, right]), np.stack(plain[:2]))


def test_dots_are_exact() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(20, 7)).astype(np.float32), rng.normal(size=(30, 7)).astype(np.float32)
    left, right = rng.integers(20, size=100), rng.integers(30, size=100)
    wanted = np.einsum("pd,pd->p", first[left].astype(np.float64), second[right].astype(np.float64))
    assert dots(first, left, second, right) == pytest.approx(wanted, abs=1e-12)
    assert len(dots(first, left[:0], second, right[:0])) == 0


def test_small_searches_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_int8", lambda: True)
    assert not worth_int8(100)
    assert worth_int8(2500)
