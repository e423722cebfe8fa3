"""The order of a stream: which row each of its draws is, epoch after epoch, computed at any place.

An epoch is a permutation of the stream's chunks, laid end to end and cut into `slots × phases` lanes of equal length.
Batch t takes `take` rows from each slot's lane of phase t mod `phases`; within a lane, windows of four chunks are
shuffled. So a rank that keeps to its slots, and a worker that keeps to its phases, read few chunks, and those whole,
while every batch mixes hundreds of them. The rows that lanes leave over, fewer than a round of batches, are shuffled
among themselves: some begin the epoch, up to the first whole batch, the rest ends it.

Nothing here knows ranks, workers or files: a draw's row is a function of (stream, seed, global batch size) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dataengine.trainer.chunks import CHUNK_ROWS, Chunks
from dataengine.trainer.shuffle import mixed, permuted, philox_permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WINDOW_ROWS = 4 * CHUNK_ROWS
PHASES = 8  # workers per rank are seldom more, and a divisor of it keeps each chunk with one worker
MAX_SLOTS = 512
_USUAL_RANKS = (8, 16, 24, 32, 48, 64, 96, 128)
_KEPT_EPOCHS = 2  # a batch touches two at most
_POOL = 2**32 - 1  # stands for the lane's number in the pool's key


def slots_of(global_batch_size: int) -> int:
    """Slots of a batch: its least divisor up to 512 that is a multiple of as many usual numbers of ranks as any.

    128 for 4,096 and 384 for 3,840.
    """
    divisors = [slots for slots in range(1, min(global_batch_size, MAX_SLOTS) + 1) if global_batch_size % slots == 0]
    most = max(sum(slots % ranks == 0 for ranks in _USUAL_RANKS) for slots in divisors)
    if not most:
        return divisors[-1]
    return next(slots for slots in divisors if sum(slots % ranks == 0 for ranks in _USUAL_RANKS) == most)


@dataclass(frozen=True)
class Order:
    """What fixes the order of streams: `batch` is the global batch size, in samples, that lanes are laid out for.

    With `carried` tails a batch may begin in one epoch and end in the next, and the next epoch's lanes begin at the
    first batch that lies wholly in it.
    """

    seed: int
    batch: int
    shuffle: bool = True
    carried: bool = True


class StreamOrder:
    """The draws of one stream, numbered from 0 over all epochs; memory is 24 bytes per chunk and epoch in use.

    `stream` sets the order apart from that of other streams with the same seed.
    """

    def __init__(self, chunks: Chunks, order: Order, stream: int = 0) -> None:
        self._chunks, self._order, self._stream = chunks, order, stream
        self.num_rows = chunks.num_rows
        self._slots = slots_of(order.batch)
        self._epoch = lru_cache(maxsize=_KEPT_EPOCHS)(self._laid_out)

    def __reduce__(self) -> tuple[type[StreamOrder], tuple[Chunks, Order, int]]:
        return StreamOrder, (self._chunks, self._order, self._stream)

    @property
    def round_draws(self) -> int:
        """Draws of a batch of every phase: so far apart are those that come from the same lanes, one after another."""
        return PHASES * self._order.batch

    def rows(self, draws: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, epoch) of each draw: int64, as `draws`."""
        first = int(draws.min()) // self.num_rows
        if int(draws.max()) < (first + 1) * self.num_rows:
            return self._rows(first, draws - first * self.num_rows), np.full(len(draws), first)
        epochs, places = np.divmod(draws, self.num_rows)
        rows = np.empty_like(draws)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            within = epochs == epoch
            if within.any():
                rows[within] = self._rows(epoch, places[within])
        return rows, epochs

    def row_at(self, place: int) -> int:
        """The `place`-th row of the stream in the order of its tars."""
        bounds = np.concatenate([[0], np.cumsum(self._chunks.counts, dtype=np.int64)])
        chunk = np.searchsorted(bounds, [place], side="right") - 1
        return int(self._chunks.rows(chunk, place - bounds[chunk])[0])

    def _rows(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        chosen, bounds = self._epoch(epoch if self._order.shuffle else 0)
        if self._order.shuffle:
            places = self._shuffled(epoch, places)
        chunk = np.searchsorted(bounds, places, side="right") - 1
        return self._chunks.rows(chosen[chunk], places - bounds[chunk])

    def _laid_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's chunks in order, and where each begins in the epoch."""
        num_chunks = len(self._chunks.starts)
        order = self._order
        chosen = (
            philox_permutation(num_chunks, order.seed, epoch, self._stream) if order.shuffle else np.arange(num_chunks)
        )
        return chosen, np.concatenate([[0], np.cumsum(self._chunks.counts[chosen], dtype=np.int64)])

    def _shuffled(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the draws of an epoch lie in its permuted chunks: a permutation of range(num_rows)."""
        batch = self._order.batch
        head = -epoch * self.num_rows % batch if self._order.carried else 0
        rounds = max(0, self.num_rows - head) // (PHASES * batch)
        take = batch // self._slots
        lane_rows = rounds * take
        laned = lane_rows * self._slots * PHASES
        key = mixed(self._order.seed, epoch, self._stream)

        if laned and int(places.min()) >= head and int(places.max()) < head + laned:
            return self._in_lanes(places - head, lane_rows, take, key)
        found = np.empty_like(places)
        in_lane = (places >= head) & (places < head + laned)
        if in_lane.any():
            found[in_lane] = self._in_lanes(places[in_lane] - head, lane_rows, take, key)
        pooled = places[~in_lane]
        if pooled.size:
            pooled = np.where(pooled >= head + laned, pooled - laned, pooled).astype(np.uint64)
            length = np.uint64(self.num_rows - laned)
            found[~in_lane] = laned + permuted(pooled, length, mixed(_POOL) ^ key).astype(np.int64)  # type: ignore[arg-type]
        return found

    def _in_lanes(
        self, places: NDArray[np.int64], lane_rows: int, take: int, key: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        number, within_batch = np.divmod(places, self._order.batch)
        slot, within_take = np.divmod(within_batch, take)
        turn, phase = np.divmod(number, PHASES)
        lane = slot * PHASES + phase
        window, within = np.divmod(turn * take + within_take, WINDOW_ROWS)
        lengths = np.minimum(WINDOW_ROWS, lane_rows - window * WINDOW_ROWS).astype(np.uint64)
        keys = mixed(lane.astype(np.uint64), window.astype(np.uint64)) ^ key
        shuffled = permuted(within.astype(np.uint64), lengths, keys).astype(np.int64)
        return lane * lane_rows + window * WINDOW_ROWS + shuffled


def rows_of(
    orders: Sequence[StreamOrder], streams: NDArray[np.int64], draws: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, epoch of its stream) of each of `draws`; `streams` numbers the stream of each: all int64, of one length."""
    if len(orders) == 1:
        return orders[0].rows(draws)
    rows, epochs = np.empty_like(draws), np.empty_like(draws)
    for stream in np.unique(streams).tolist():
        mine = streams == stream
        rows[mine], epochs[mine] = orders[stream].rows(draws[mine])
    return rows, epochs
