"""Decides which row is drawn at which position of an epoch, and which worker of which rank reads it.

Rows are cut into chunks, short runs within a shard. An epoch permutes the chunks, then the rows inside each
window of 64 chunks, by the Philox generator keyed with (seed, epoch): any position is found without walking
to it, and reads stay within a few dozen runs at a time. In come array lengths, seeds and counts; out come row
numbers. It knows no files, no torch and no samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_ROWS = 64
WINDOW_CHUNKS = 64
_UINT64 = 2**64 - 1


@dataclass(frozen=True)
class Share:
    """The positions of an epoch that one worker of one rank reads.

    From `start` on, positions are dealt to ranks in turn, and a rank's share to its workers in blocks of
    `block` (a batch). So after the same number of batches on every rank the positions read are a prefix of
    the epoch, which any other number of ranks and workers can take up.
    """

    start: int
    stop: int
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1
    block: int = 1

    def within(self, low: int, high: int) -> NDArray[np.int64]:
        """This worker's positions in [low, high), ascending."""
        first = max(low, self.start)
        first += (self.rank - (first - self.start)) % self.world_size
        positions = np.arange(first, min(high, self.stop), self.world_size, dtype=np.int64)
        if self.num_workers == 1:
            return positions
        blocks = (positions - self.start) // (self.world_size * self.block)
        return positions[blocks % self.num_workers == self.worker]

    def num_positions(self) -> int:
        """How many positions the whole rank reads."""
        return max(0, -(-(self.stop - self.start - self.rank) // self.world_size))


def draw_rows(wanted: NDArray[np.bool_], repeat: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    """The rows of one epoch, each as often as `repeat` says: int32 [draws]; None when it is every row once.

    Second copies come after all first ones, so that copies of a sample lie far apart when windows are
    shuffled.
    """
    if wanted.all() and (repeat is None or bool((repeat == 1).all())):
        return None
    rows = np.flatnonzero(wanted).astype(np.int32)
    if repeat is None:
        return rows
    passes = []
    times = 0
    while rows.size:
        rows = rows[repeat[rows] > times]
        passes.append(rows)
        times += 1
    return np.concatenate(passes) if passes else rows


def cut_chunks(shards: NDArray[np.int32], chunk_rows: int = CHUNK_ROWS) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First draw and length of each chunk, int64 [chunks]: runs of one shard, of `chunk_rows` draws at most.

    `shards` is the shard number of each draw.
    """
    bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=-1))
    begins, ends = bounds[:-1], bounds[1:]
    num_chunks = -(-(ends - begins) // chunk_rows)
    run = np.repeat(np.arange(len(begins)), num_chunks)
    chunk_in_run = np.arange(len(run)) - np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
    starts = begins[run] + chunk_in_run * chunk_rows
    return starts, np.minimum(chunk_rows, ends[run] - starts)


class EpochOrder:
    """The draws of one epoch in the order of their positions; memory is 24 bytes per chunk."""

    def __init__(
        self, chunks: tuple[NDArray[np.int64], NDArray[np.int64]], seed: int, epoch: int, *, shuffle: bool
    ) -> None:
        starts, sizes = chunks
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        chosen = self._permutation(len(starts), stream=0) if shuffle else np.arange(len(starts))
        self._starts, self._sizes = starts[chosen], sizes[chosen]
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes)])
        self.num_positions = int(self._bounds[-1])

    def draws(self, share: Share) -> Iterator[NDArray[np.int64]]:
        """The draws of `share` in order of position, one int64 array per window that holds any."""
        first = int(np.searchsorted(self._bounds, share.start, side="right") - 1) // WINDOW_CHUNKS
        for chunk in range(first * WINDOW_CHUNKS, len(self._starts), WINDOW_CHUNKS):
            last = min(chunk + WINDOW_CHUNKS, len(self._starts))
            low, high = int(self._bounds[chunk]), int(self._bounds[last])
            positions = share.within(low, high)
            if positions.size:
                yield self._window(chunk, last)[positions - low]

    def _window(self, chunk: int, last: int) -> NDArray[np.int64]:
        sizes = self._sizes[chunk:last]
        begins = self._bounds[chunk:last] - self._bounds[chunk]
        draws = np.arange(int(sizes.sum())) + np.repeat(self._starts[chunk:last] - begins, sizes)
        if not self._shuffle:
            return draws
        return draws[self._permutation(len(draws), stream=1 + chunk // WINDOW_CHUNKS)]

    def _permutation(self, length: int, stream: int) -> NDArray[np.int64]:
        # Sorted raw numbers rather than Generator.permutation: NumPy promises the raw stream of Philox for
        # ever, and not the algorithm on top, so a run resumed under a newer NumPy keeps its order.
        key = np.array([self._seed & _UINT64, self._epoch], dtype=np.uint64)
        counter = np.array([0, 0, 0, stream], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(length), kind="stable")
