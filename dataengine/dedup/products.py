"""Products of unit vectors with many others: in bfloat16 where the processor multiplies it, decided in float64.

A processor with instructions for bfloat16 makes such products about three times as fast as in float32. They are good
enough to tell nearly all pairs apart; those that they cannot tell are computed again, so what is found is the same.
Unit vectors in, float32 products or pairs out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DOUBTFUL = 0.01  # a product by itself takes as long as about 100 in a matrix
_MIN_CELLS = 1024  # 170,000 rows at the default: below, to load torch (1.2 CPU-seconds) costs more than it saves
FLOAT32_ERROR = 1e-4  # more than float32 can lose in a product of unit vectors of 2,048 dimensions
BFLOAT16_ERROR = 0.0125  # 8 bits: half a unit, 2**-8, of each factor and of the result, and what float32 loses
_CONVERTED_ROWS = 512
_SHAPE_ROWS = 128  # oneDNN compiles, and keeps, code for each shape: a millisecond and a MiB, so let them be few


def worth_bfloat16(num_cells: int) -> bool:
    """Whether to multiply in bfloat16: the search is large, and this processor has instructions for it."""
    return num_cells >= _MIN_CELLS and _has_bfloat16()


@functools.cache
def _has_bfloat16() -> bool:
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@dataclass(frozen=True)
class Products:
    """What multiplies rows with these."""

    rows: NDArray[np.float32]
    """Unit vectors, or zero: [rows, dim]."""
    bfloat16: bool = False

    @property
    def error(self) -> float:
        """No product that `of` returns is further from the true one.

        A factor rounded to bfloat16 is off by 2**-8 of itself at most, and Σ|x·y| of unit vectors is at most 1
        (Cauchy-Schwarz); the result is rounded once more.
        """
        return BFLOAT16_ERROR if self.bfloat16 else FLOAT32_ERROR

    def of(self, first: NDArray[np.float32]) -> NDArray[np.float32]:
        """Products of each unit vector in `first` with each row: [first, rows]."""
        return self._multiply(first) if self.bfloat16 else first @ self.rows.T

    def near(
        self, first: NDArray[np.float32], floor: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Pairs (row of first, row) whose product is `floor` or more, in that order, and about what it is."""
        product, error = self.of(first), self.error if self.bfloat16 else 0.0
        flat = np.flatnonzero(product >= floor - error)
        if error and np.count_nonzero(product.ravel()[flat] < floor + error) > MAX_DOUBTFUL * product.size:
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
        return dots(first, left, self.rows, right) if self.bfloat16 else product[left, right]

    @cached_property
    def _multiply(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        import torch

        def halved(rows: NDArray[np.float32]) -> torch.Tensor:
            padded = torch.zeros((-(-len(rows) // _SHAPE_ROWS) * _SHAPE_ROWS, rows.shape[1]), dtype=torch.bfloat16)
            padded[: len(rows)].copy_(torch.from_numpy(np.require(rows, requirements="W")))
            return padded

        columns = halved(self.rows).T

        def multiply(first: NDArray[np.float32]) -> NDArray[np.float32]:
            product = np.empty((len(first), len(self.rows)), np.float32)
            for begin in range(0, len(first), _CONVERTED_ROWS):
                block = first[begin : begin + _CONVERTED_ROWS]
                found = (halved(block) @ columns)[: len(block), : len(self.rows)]
                torch.from_numpy(product[begin : begin + len(block)]).copy_(found)
            return product

        return multiply


def dots(
    first: NDArray[np.float32], left: NDArray[np.int64], second: NDArray[np.float32], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Product of a row of `first` with one of `second`, pair by pair, summed in float64: [pairs]."""
    out = np.empty(len(left))
    if len(left):
        from dataengine.dedup.kernels.dots import products

        cast("Any", products)(first, left, second, right, out)
    return out
