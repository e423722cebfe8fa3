"""Two array primitives that the columnar kernels share."""

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
