"""Products of unit vectors with many others: in 8-bit integers where the processor multiplies them, decided in float64.

A processor with instructions for it makes such products about four times as fast as in float32. They are good enough to
tell nearly all pairs apart; those that they cannot tell are computed again, so what is found is the same. Unit vectors
in, float32 products or pairs out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_MAX_DOUBTFUL = 0.05  # a product by itself takes as long as 8 in a float32 matrix, or 20 in one of 8 bits
_MIN_CELLS = 640  # 66,000 rows at the default: well below, to load torch (1.2 CPU-seconds) costs more than it saves
FLOAT32_ERROR = 1e-4  # more than float32 can lose in a product of unit vectors of 2,048 dimensions
_LARGEST = 127  # of 8 bits, so that a sum of 100,000 products fits 32
_BLOCK_ROWS = 512
_SHAPE_ROWS = 128  # oneDNN compiles, and keeps, code for each shape: a millisecond and a MiB, so let them be few


def worth_int8(num_cells: int) -> bool:
    """Whether to multiply in 8-bit integers: the search is large, and this processor has instructions for it."""
    return num_cells >= _MIN_CELLS and _has_int8()


@functools.cache
def _has_int8() -> bool:
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_vnni") or has.get("amx_int8"))


@dataclass(frozen=True)
class Products:
    """What multiplies rows with these."""

    rows: NDArray[np.float32]
    """Unit vectors, or zero: [rows, dim]."""
    int8: bool = False

    def of(self, first: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Products of each unit vector in `first` with each row: [first, rows]; none is off by more than the second."""
        if not self.int8:
            return first @ self.rows.T, FLOAT32_ERROR
        product = np.empty((len(first), len(self.rows)), np.float32)
        errors = [
            self._multiply(first[begin : begin + _BLOCK_ROWS], product[begin : begin + _BLOCK_ROWS])
            for begin in range(0, len(first), _BLOCK_ROWS)
        ]
        return product, max(errors, default=0.0)

    def near(
        self, first: NDArray[np.float32], floor: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Pairs (row of first, row) whose product is `floor` or more, in that order, and about what it is.

        Near the floor (2 · FLOAT32_ERROR) it is off by FLOAT32_ERROR at most.
        """
        product, error = self.of(first)
        error = error + 2 * FLOAT32_ERROR if self.int8 else 0.0
        flat = np.flatnonzero(product >= floor - error)
        if error and np.count_nonzero(product.ravel()[flat] < floor + error) > _MAX_DOUBTFUL * product.size:
            product, error = first @ self.rows.T, 0.0
            flat = np.flatnonzero(product >= floor)
        left, right = np.divmod(flat, product.shape[1])
        similarity = product.ravel()[flat]
        doubtful = np.flatnonzero(similarity < floor + error)
        similarity[doubtful] = dots(first, left[doubtful], self.rows, right[doubtful])
        reaches = similarity >= floor
        return left[reaches], right[reaches], similarity[reaches]

    def of_pairs(
        self,
        first: NDArray[np.float32],
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        product: NDArray[np.float32],
    ) -> NDArray[np.floating]:
        """Products of rows `left` of first with rows `right`, to float32's last bits or better: [pairs].

        `product` is what `of` gave for `first`.
        """
        if not self.int8:
            return product[left, right]
        if len(left) > _MAX_DOUBTFUL * product.size:
            return np.asarray((first @ self.rows.T)[left, right])
        return dots(first, left, self.rows, right)

    @cached_property
    def _quantised(self) -> _Quantised:
        return _Quantised.of(self.rows)

    def _multiply(self, first: NDArray[np.float32], out: NDArray[np.float32]) -> float:
        """Write the products, and tell how far off they may be.

        With x = x' + e and y = y' + f, x·y - x'·y' = e·y + x'·f, so that it is no more than |e||y| + |x'||f|
        (Cauchy-Schwarz); vectors are of length 1 at most.
        """
        import torch

        from dataengine.dedup.kernels.int8 import scaled

        here, there = _Quantised.of(first), self._quantised
        sums = torch._int_mm(here.codes, there.codes.T)
        cast("Any", scaled)(sums.numpy(), here.scales, there.scales, out)
        return here.error + (1 + here.error) * there.error + FLOAT32_ERROR


@dataclass(frozen=True)
class _Quantised:
    """Rows as codes · scales."""

    codes: torch.Tensor
    """int8 [rows, filled up to a multiple of 128; dim, or 2]"""
    scales: NDArray[np.float32]
    error: float
    """No row is further from what it became."""

    @staticmethod
    def of(rows: NDArray[np.float32]) -> _Quantised:
        import torch

        from dataengine.dedup.kernels.int8 import quantise

        scales = np.abs(rows).max(axis=1, initial=0) / np.float32(_LARGEST)
        num_rows = -(-len(rows) // _SHAPE_ROWS) * _SHAPE_ROWS
        codes = np.zeros((num_rows, max(rows.shape[1], 2)), np.int8)  # torch 2.14 multiplies a single column wrongly
        error = cast("Any", quantise)(rows, scales, codes)
        return _Quantised(torch.from_numpy(codes), scales, error)


def dots(
    first: NDArray[np.float32], left: NDArray[np.int64], second: NDArray[np.float32], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Product of a row of `first` with one of `second`, pair by pair, summed in float64: [pairs]."""
    out = np.empty(len(left))
    if len(left):
        from dataengine.dedup.kernels.dots import products

        cast("Any", products)(first, left, second, right, out)
    return out
