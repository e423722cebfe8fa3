"""Measures of a picture that need no model: upright RGB pixels in, one number each out.

Each is a pure function of the gray pixels, which are made once. What counts as too blurred or too alike is decided at
select.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_PHASH_SIDE = 32
_SHARPNESS_SIDE = 256


@dataclass(frozen=True)
class Measures:
    """What is measured of one picture."""

    phash: int
    sharpness: float
    entropy: float


def measure(rgb: NDArray[np.uint8]) -> Measures:
    """All measures of an image [height, width, 3]."""
    gray = _gray(rgb)
    return Measures(_phash(gray), _sharpness(gray), _entropy(gray))


def phash(rgb: NDArray[np.uint8]) -> int:
    """The 64-bit DCT perceptual hash of an image [height, width, 3]; copies differ in few bits.

    Grayscale, 32 × 32 by area, type-II DCT along both axes; of coefficients 1 to 8 along each axis (without
    the mean), row by row from the highest bit down, a bit is set where it exceeds the median of all 64.
    (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1.)
    """
    return _phash(_gray(rgb))


def _phash(gray: NDArray[np.uint8]) -> int:
    small = cv2.resize(gray, (_PHASH_SIDE, _PHASH_SIDE), interpolation=cv2.INTER_AREA)
    basis = _cosines()
    # Rounded, so that the noise of float64 sets no bits in flat pictures.
    coefficients = np.round(basis @ small.astype(np.float64) @ basis.T, 6)
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def sharpness(rgb: NDArray[np.uint8]) -> float:
    """The variance of the Laplacian of the grayscale image, its short side reduced to 256 pixels.

    Smaller images are measured as they are. (Pech-Pacheco et al., Diatom autofocusing in brightfield
    microscopy, 2000.)
    """
    return _sharpness(_gray(rgb))


def _sharpness(gray: NDArray[np.uint8]) -> float:
    height, width = gray.shape
    scale = _SHARPNESS_SIDE / min(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        gray = np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    # Whole numbers of 16 bits hold the Laplacian exactly, in a sixth of the time of doubles.
    _, deviation = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def entropy(rgb: NDArray[np.uint8]) -> float:
    """The Shannon entropy of the grayscale histogram (256 bins): bits per pixel, 0 to 8."""
    return _entropy(_gray(rgb))


def _entropy(gray: NDArray[np.uint8]) -> float:
    # A twentieth of the time of np.bincount, which widens every pixel to 64 bits.
    counts = cv2.calcHist([gray], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(np.sum(shares * -np.log2(shares)))


def _gray(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """Rows 1 to 8 of the orthonormal type-II DCT: float64 [8, 32]."""
    frequencies = np.arange(1, 9)[:, None]
    places = np.arange(_PHASH_SIDE)[None, :] + 0.5
    return math.sqrt(2 / _PHASH_SIDE) * np.cos(math.pi / _PHASH_SIDE * frequencies * places)
