"""How good stored pictures are: PSNR against the original, resized by Lanczos in floating point.

Only plain pictures count (8 bits, upright, opaque): of the others, contenders store different things on purpose.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.download_contenders import Location

_PEAK = 255.0


def reference(content: bytes, size: tuple[int, int]) -> NDArray[np.float32]:
    """The picture in `content` at `size` (width, height): float32 [height, width, 3] of 0 to 255."""
    bands = Image.open(io.BytesIO(content)).convert("RGB").split()
    resized = [np.asarray(band.convert("F").resize(size, Image.Resampling.LANCZOS)) for band in bands]
    return np.clip(np.dstack(resized), 0.0, _PEAK)


def psnr(original: bytes, stored: bytes) -> float:
    """Decibels by which the peak stands above the error of `stored`, over all of its pixels and channels."""
    picture = Image.open(io.BytesIO(stored)).convert("RGB")
    error = np.asarray(picture, np.float64) - reference(original, picture.size)
    return float(10 * np.log10(_PEAK**2 / np.mean(error**2)))


def mean_psnr(stored: Mapping[str, Mapping[str, Location]], originals: Mapping[str, Path]) -> dict[str, float]:
    """Mean PSNR by contender, over those of `originals` (URL → file) that all contenders in `stored` have."""
    shared = set(originals).intersection(*stored.values())
    if not shared:
        return {}
    return {
        name: float(np.mean([psnr(originals[url].read_bytes(), pictures[url].read()) for url in sorted(shared)]))
        for name, pictures in stored.items()
    }
