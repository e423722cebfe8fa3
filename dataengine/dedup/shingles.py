"""Captions as sets of character shingles, and the exact Jaccard similarity of two such sets.

Decides what a shingle is: `shingle_chars` consecutive Unicode code points of a normalised caption, so that
scripts without spaces work as well as any other. A caption shorter than that has none. It knows neither
signatures nor keys.

The 64-bit hash of a shingle, for anyone who wants to recompute it::

    def shingle_hash(shingle: str) -> int:
        polynomial = 0
        for character in shingle:
            polynomial = (polynomial * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
        return int(mix64(np.array([polynomial], np.uint64), 0, "shingle")[0])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.dedup.arrays import distinct, spans
from dataengine.keys import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Shingles:
    """The shingles of many captions, one caption after the other."""

    hashes: NDArray[np.uint64]
    """In reading order, repeats included: [shingles]."""
    offsets: NDArray[np.int64]
    """Row r's shingles are `hashes[offsets[r] : offsets[r + 1]]`: [rows + 1]."""


def has_shingles(captions: pa.Array, shingle_chars: int) -> NDArray[np.bool_]:
    """Which captions are long enough to have a shingle: bool [rows]. The others have exact copies only."""
    return pc.greater_equal(pc.utf8_length(captions), shingle_chars).to_numpy(zero_copy_only=False)


def hash_shingles(captions: pa.Array, shingle_chars: int) -> Shingles:
    """The hashed shingles of each caption (string, no nulls)."""
    points, starts = _code_points(captions)
    counts = np.maximum(np.diff(starts) - shingle_chars + 1, 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    windows = np.zeros(max(len(points) - shingle_chars + 1, 0), np.uint64)
    # Horner's rule over every window at once, those across two captions included.
    for step in range(shingle_chars):
        windows *= _MULTIPLIER
        windows += points[step : step + len(windows)]
    return Shingles(mix64(windows[spans(starts[:-1], counts)], 0, "shingle"), offsets)


def _code_points(captions: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The code points of all captions in a row, and where each caption starts: [points], [rows + 1]."""
    lengths = pc.utf8_length(captions).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if not starts[-1]:
        return np.zeros(0, np.uint32), starts
    wide = captions.cast(pa.large_string())
    _, ends, content = wide.buffers()
    edges = np.frombuffer(ends, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    text = str(memoryview(content)[edges[0] : edges[-1]], "utf-8")
    return np.frombuffer(text.encode("utf-32-le"), np.uint32), starts


@dataclass(frozen=True)
class ShingleSets:
    """The distinct shingles of many captions, ready to be intersected."""

    members: NDArray[np.int64]
    """row × num_shingles + shingle, ascending: [members]."""
    num_shingles: int
    offsets: NDArray[np.int64]
    """Row r's members are `members[offsets[r] : offsets[r + 1]]`: [rows + 1]."""


def shingle_sets(captions: pa.Array, shingle_chars: int) -> ShingleSets:
    """The set of shingles of each caption (string, no nulls)."""
    shingles = hash_shingles(captions, shingle_chars)
    values, numbers = np.unique(shingles.hashes, return_inverse=True)
    rows = np.repeat(np.arange(len(captions), dtype=np.int64), np.diff(shingles.offsets))
    num_shingles = max(len(values), 1)
    members = distinct(rows * num_shingles + numbers)
    offsets = np.searchsorted(members, np.arange(len(captions) + 1, dtype=np.int64) * num_shingles)
    return ShingleSets(members, num_shingles, offsets.astype(np.int64))


def jaccard(sets: ShingleSets, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| of each pair of rows, 0 where both are empty: float64 [pairs]."""
    sizes = np.diff(sets.offsets)
    smaller = np.where(sizes[left] <= sizes[right], left, right)
    larger = left + right - smaller
    counts = sizes[smaller]
    pairs = np.repeat(np.arange(len(left)), counts)
    wanted = sets.members[spans(sets.offsets[smaller], counts)] + ((larger - smaller) * sets.num_shingles)[pairs]
    places = np.minimum(np.searchsorted(sets.members, wanted), max(len(sets.members) - 1, 0))
    shared = np.bincount(pairs[sets.members[places] == wanted], minlength=len(left))
    union = sizes[left] + sizes[right] - shared
    return shared / np.maximum(union, 1)
