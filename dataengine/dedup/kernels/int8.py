"""Rows of numbers as 8-bit integers, and products of these as numbers again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import summing


@summing
def quantise(rows: NDArray[np.float32], scales: NDArray[np.float32], codes: NDArray[np.int8]) -> float:
    """Write codes with rows ≈ codes · scales[:, None]; the largest length of a row's difference from that.

    A scale is a row's largest number by 127, and 0 for a row of zeros.
    """
    worst = np.float32(0)
    for number in range(len(rows)):
        row, code, scale = rows[number], codes[number], scales[number]
        per_unit = 1 / scale if scale > 0 else np.float32(0)
        squares = np.float32(0)
        for at in range(len(row)):
            whole = np.rint(row[at] * per_unit)
            code[at] = np.int8(whole)
            rest = row[at] - whole * scale
            squares += rest * rest
        worst = max(worst, squares)
    return float(np.sqrt(worst))


@summing
def scaled(
    sums: NDArray[np.int32], left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write sums · left[:, None] · right; `sums` may have more rows and columns."""
    for row in range(len(left)):
        for column in range(len(right)):
            out[row, column] = np.float32(sums[row, column]) * (left[row] * right[column])
