"""Embeddings that somebody made elsewhere: rows of a `.npy` file in, unit vectors out, some rows at a time.

The file is hostile: its header is believed only where the file is as long as it says, and nothing is held but a block
of rows and the result. It knows no stores.
"""

from __future__ import annotations

import io
import math
import tokenize
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dataengine.errors import InputError
from dataengine.score.part import NOT_FINITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZERO = "zero"
"""Why a row of nothing but zeros cannot be compared: it points nowhere."""
_HEADER_BYTES = 1 << 14  # numpy reads headers of up to 10,000
_BLOCK_FLOATS = 1 << 21  # 16 MiB in float64
_BAD_HEADER = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)
"""What numpy's parser, Python's own inside it, lets out on bytes that are no header."""


@dataclass(frozen=True)
class Units:
    """The rows that can be compared."""

    rows: NDArray[np.int64]
    """Their numbers in the file, ascending: [usable]."""
    embeddings: NDArray[np.float16]
    """Of length 1: [usable, dim]."""
    unusable: Counter[str]
    """Reason (zero, not_finite) → rows left out."""


@dataclass(frozen=True)
class EmbeddingFile:
    """What the header of a `.npy` file of embeddings says, the file being as long as that."""

    where: str
    dtype: np.dtype[Any]
    """Any floating type, of any byte order."""
    num_rows: int
    dim: int
    offset: int
    """Of the first row, in bytes."""

    @classmethod
    def open(cls, file: BinaryIO, where: str) -> EmbeddingFile:
        """Read the header of a seekable `file`; `where` names it in messages.

        Raises InputError when the file is no `.npy` array of floats [rows, dim] in C order, holds no rows, or holds
        more or fewer bytes than such an array.
        """
        head = io.BytesIO(file.read(_HEADER_BYTES))
        try:
            shape, fortran, dtype = _parse(head)
        except _BAD_HEADER as error:
            raise InputError(
                f"{where}: not a readable .npy array: {str(error) or 'no header'}; save the embeddings "
                "anew with np.save"
            ) from error
        if len(shape) != 2 or not np.issubdtype(dtype, np.floating):
            raise InputError(f"{where}: {dtype} {list(shape)}, wanted floats [rows, dim]; {_MAKE_THEM}")
        if fortran:
            raise InputError(
                f"{where}: its rows lie in Fortran order, wanted C order, to be read in blocks; save it anew as "
                "np.save(path, np.ascontiguousarray(rows))"
            )
        found = cls(where, dtype, shape[0], shape[1], head.tell())
        found._check_size(file.seek(0, io.SEEK_END))
        return found

    def check_dim(self, dim: int) -> None:
        """Raises InputError when the rows have not `dim` dimensions."""
        if self.dim != dim:
            raise InputError(
                f"{self.where}: {self.dtype} [{self.num_rows}, {self.dim}], wanted floats [rows, {dim}]; {_MAKE_THEM}"
            )

    def units(self, file: BinaryIO, begin: int, end: int) -> Units:
        """Rows `begin` to `end` as unit vectors, without those that have no direction.

        Raises InputError when the file ends before.
        """
        block_rows = max(1, _BLOCK_FLOATS // self.dim)
        embeddings = np.empty((end - begin, self.dim), np.float16)
        kept = np.zeros(end - begin, bool)
        unusable: Counter[str] = Counter()
        num_kept = 0
        for top in range(begin, end, block_rows):
            rows = self._read(file, top, min(top + block_rows, end))
            units, good, reasons = unit_rows(rows)
            embeddings[num_kept : num_kept + len(units)] = units
            kept[top - begin : top - begin + len(rows)] = good
            num_kept += len(units)
            unusable += reasons
        return Units(begin + np.flatnonzero(kept), embeddings[:num_kept], unusable)

    def _read(self, file: BinaryIO, begin: int, end: int) -> NDArray[np.floating]:
        row_bytes = self.dim * self.dtype.itemsize
        file.seek(self.offset + begin * row_bytes)
        content = file.read((end - begin) * row_bytes)
        if len(content) < (end - begin) * row_bytes:
            raise InputError(f"{self.where}: ends before row {end}; it changed while it was read, run again")
        return np.frombuffer(content, self.dtype).reshape(-1, self.dim)

    def _check_size(self, nbytes: int) -> None:
        if min(self.num_rows, self.dim) < 1:
            raise InputError(
                f"{self.where}: {self.dtype} [{self.num_rows}, {self.dim}] holds no embeddings, wanted one row or "
                "more; mend the file or leave it out"
            )
        wanted = math.prod((self.num_rows, self.dim, self.dtype.itemsize))
        if nbytes - self.offset != wanted:
            raise InputError(
                f"{self.where}: {nbytes - self.offset:,} bytes after its header, wanted {wanted:,} for the "
                f"{self.dtype} [{self.num_rows}, {self.dim}] that it tells; it was cut short, or holds more than one "
                "array: save the embeddings anew with np.save"
            )


_MAKE_THEM = "embed the images with the scorer that dedup compares, or give the images themselves"


def _parse(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and type; raises any of `_BAD_HEADER`."""
    major, _ = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    return shape, fortran, dtype


def unit_rows(rows: NDArray[np.floating]) -> tuple[NDArray[np.float16], NDArray[np.bool_], Counter[str]]:
    """The rows that have a direction, scaled to length 1: float16 [usable, dim]; which these are: bool [rows]; and why
    the others have none.

    `rows` are floats [rows, dim] of any size: squares of 1e-300 or 1e300 would vanish or overflow, so that each row is
    scaled by its largest magnitude first.
    """
    wide = rows.astype(np.result_type(rows.dtype, np.float64))
    largest = np.abs(wide).max(axis=1, initial=0)
    finite, zero = np.isfinite(largest), largest == 0
    good = finite & ~zero
    scaled = wide[good] / largest[good, None]
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    reasons = Counter({ZERO: int(zero.sum()), NOT_FINITE: int((~finite).sum())})
    return scaled.astype(np.float16), good, +reasons
