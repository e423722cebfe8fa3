"""Dot products of chosen rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import summing


@summing
def products(
    first: NDArray[np.float32],
    left: NDArray[np.int64],
    second: NDArray[np.float32],
    right: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Write first[left] · second[right] of each pair, summed in float64."""
    for pair in range(len(left)):
        row, other = first[left[pair]], second[right[pair]]
        total = 0.0
        for at in range(len(row)):
            total += np.float64(row[at]) * np.float64(other[at])
        out[pair] = total
