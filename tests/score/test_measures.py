"""Measures: formulas against plain definitions, and what copies and pictures of other things must give."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from dataengine.score.measures import entropy, phash, sharpness

IMAGES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


def picture(seed: int, height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    """Smooth coloured blobs."""
    noise = np.random.default_rng(seed).random((6, 8, 3), dtype=np.float32)
    return np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 255, 0, 255).astype(np.uint8)


def distance(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> int:
    return (phash(left) ^ phash(right)).bit_count()


def test_phash_is_the_median_threshold_of_the_dct() -> None:
    rgb = picture(1)
    small = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    block = cv2.dct(small.astype(np.float64))[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(block) else "0" for value in block)
    assert phash(rgb) == int(bits, 2)


def test_phash_holds_through_resizing_and_jpeg_and_tells_pictures_apart() -> None:
    rgb = picture(2)
    _, jpeg = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    reread = np.ascontiguousarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[:, :, ::-1])
    assert distance(rgb, cv2.resize(rgb, (160, 120), interpolation=cv2.INTER_AREA)) <= 4
    assert distance(rgb, reread) <= 4
    others = [distance(rgb, picture(seed)) for seed in range(10, 40)]
    assert min(others) > 10
    assert 26 < np.mean(others) < 38


def test_phash_of_a_flat_picture_is_zero() -> None:
    assert {phash(np.full((50, 70, 3), level, np.uint8)) for level in (0, 77, 255)} == {0}


def test_sharpness_falls_with_blur_and_does_not_depend_on_size() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert sharpness(rgb) > 4 * sharpness(cv2.GaussianBlur(rgb, (5, 5), 0))
    larger = cv2.resize(rgb, (1024, 1024), interpolation=cv2.INTER_NEAREST)
    assert sharpness(larger) == pytest.approx(sharpness(rgb), rel=0.02)


def test_sharpness_of_one_bright_pixel() -> None:
    rgb = np.zeros((9, 9, 3), np.uint8)
    rgb[4, 4] = 100
    laplacian = np.zeros(81)
    laplacian[:5] = [-400, 100, 100, 100, 100]
    assert sharpness(rgb) == pytest.approx(laplacian.var())


def test_entropy_of_known_histograms() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    assert entropy(levels) == pytest.approx(8)
    assert entropy(np.zeros((4, 4, 3), np.uint8)) == 0
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:2] = 255
    assert entropy(halves) == pytest.approx(1)


@settings(deadline=None)
@given(IMAGES)
def test_any_picture_has_finite_measures(rgb: NDArray[np.uint8]) -> None:
    assert 0 <= phash(rgb) < 2**64
    assert 0 <= sharpness(rgb) < np.inf
    assert 0 <= entropy(rgb) <= 8


def test_a_thin_picture_is_reduced_to_no_less_than_one_pixel() -> None:
    assert sharpness(np.zeros((1, 20_000, 3), np.uint8)) == 0
    assert np.isfinite(sharpness(picture(3, 300, 20_000)))
