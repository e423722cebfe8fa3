"""Chunks: the rows that a stream draws from, as runs of neighbours in one tar.

In go shard sizes and, where a view leaves rows out or repeats them, one mask; out comes a table of about 12 bytes per
128 rows, 28 with a mask, from which any row is found by arithmetic. It knows no order, no seed and no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

CHUNK_ROWS = 128  # of 100 KB samples 13 MB: one read that a disk or a store serves at full speed
_BYTES = CHUNK_ROWS // 8
_BLOCK_CHUNKS = 4096  # whose row numbers take 4 MiB


@dataclass(frozen=True)
class Chunks:
    """`starts` int64 [chunks] is the row that a chunk's grid cell begins at; `counts` int32 [chunks] the rows in it.

    `bits` uint8 [chunks, 16] tells which of the cell's 128 rows they are (the first bit is the highest); None when
    they are the first `counts`.
    """

    starts: NDArray[np.int64]
    counts: NDArray[np.int32]
    bits: NDArray[np.uint8] | None = None

    @property
    def num_rows(self) -> int:
        """Rows, copies counted."""
        return int(self.counts.sum())

    def rows(self, chunks: NDArray[np.int64], within: NDArray[np.int64]) -> NDArray[np.int64]:
        """The `within`-th row of each of `chunks`: int64, as the arguments."""
        if self.bits is None:
            return self.starts[chunks] + within
        seen = np.cumsum(np.unpackbits(self.bits[chunks], axis=1), axis=1, dtype=np.uint8)
        return self.starts[chunks] + np.argmax(seen == (within + 1).astype(np.uint8)[:, None], axis=1)

    def joined(self, others: Iterable[Chunks]) -> Chunks:
        """These chunks, and then those of `others`."""
        every = [self, *others]
        whole = all(chunks.bits is None for chunks in every)
        return Chunks(
            np.concatenate([chunks.starts for chunks in every]),
            np.concatenate([chunks.counts for chunks in every]),
            None if whole else np.concatenate([chunks._bits() for chunks in every]),
        )

    def _bits(self) -> NDArray[np.uint8]:
        if self.bits is not None:
            return self.bits
        return np.packbits(np.arange(CHUNK_ROWS) < self.counts[:, None], axis=1)


def cut_chunks(first_rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Chunks:
    """Every row of shards that begin at `first_rows` and hold `sizes` rows, cut from each shard's first row on."""
    num_chunks = -(-sizes // CHUNK_ROWS)
    shard = np.repeat(np.arange(len(sizes)), num_chunks)
    number = np.arange(len(shard)) - np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
    starts = first_rows[shard] + number * CHUNK_ROWS
    counts = np.minimum(CHUNK_ROWS, sizes[shard] - number * CHUNK_ROWS)
    return Chunks(starts.astype(np.int64), counts.astype(np.int32))


def keep(chunks: Chunks, wanted: NDArray[np.bool_]) -> Chunks:
    """The rows of whole `chunks` that `wanted`, bool [all rows], marks; chunks without one are left out."""
    ends = chunks.starts + chunks.counts
    marked = np.concatenate([[0], np.cumsum(wanted, dtype=np.int64)])
    counts = marked[ends] - marked[chunks.starts]
    kept = np.flatnonzero(counts)
    if len(kept) == len(chunks.starts) and bool((counts == chunks.counts).all()):
        return chunks
    bits = np.zeros((len(kept), _BYTES), dtype=np.uint8)
    for begin in range(0, len(kept), _BLOCK_CHUNKS):
        block = kept[begin : begin + _BLOCK_CHUNKS]
        rows = chunks.starts[block, None] + np.arange(CHUNK_ROWS)
        inside = rows < ends[block, None]
        bits[begin : begin + _BLOCK_CHUNKS] = np.packbits(wanted[np.where(inside, rows, 0)] & inside, axis=1)
    return Chunks(chunks.starts[kept], counts[kept].astype(np.int32), bits)


def repeated(chunks: Chunks, times: NDArray[np.integer]) -> Chunks:
    """Each row of whole `chunks` as often as `times`, int [all rows], says.

    Second copies are chunks of their own behind all first ones, so that copies of a sample lie far apart.
    """
    highest = int(times.max(initial=0))
    passes = [keep(chunks, times > number) for number in range(max(1, highest))]
    return passes[0].joined(passes[1:]) if highest > 1 else passes[0]
