"""Array primitives that the columnar kernels share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spans(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every span start, start + 1, ... of `count` numbers, one span after the other: [sum of counts]."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different numbers, ascending.

    By sorting: `numpy.unique` hashes integers since NumPy 2.3, which takes five times as long on millions.
    """
    ordered = np.sort(numbers, axis=None)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def widened(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Finite float16 numbers as float32.

    By shifting bits: NumPy converts number by number, which takes three times as long. A half's exponent is the
    float's less 112, and multiplying by 2**112 also makes subnormal numbers right.
    """
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # the sign, extended downwards, is left only at the top
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    return wide
