"""Makes a rank's part of a global batch: a ticket goes in, what the training loop gets comes out.

It joins order, reader and sample maker, in whatever process or thread it runs. A corrupt sample is replaced by a
deterministic reserve and told of; nothing else is ever replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dataengine.errors import CorruptObject, StorageError
from dataengine.trainer.buckets import Shape
from dataengine.trainer.collate import collate
from dataengine.trainer.order import StreamOrder, rows_of
from dataengine.trainer.reader import Raw, SampleReader, Source
from dataengine.trainer.samples import SampleMaker
from dataengine.trainer.schedule import Ticket
from dataengine.trainer.shuffle import mixed

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnCorrupt = Literal["replace", "raise"]
_RESERVES = 16  # of which every one is corrupt only where the dataset is


@dataclass(frozen=True)
class Fault:
    """A corrupt sample: its row, what is wrong with it, and the row that was drawn in its place."""

    row: int
    error: str
    replacement: int


@dataclass(frozen=True)
class Batch:
    """What one rank gets of one global batch, and what had to be replaced in it."""

    value: Any
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class BatchPlan:
    """Everything that makes batches of tickets. May be sent to other processes; each makes its own `BatchMaker`.

    `shapes` is each stream's bucket shape; `flags_padding` adds `__pad__` to every sample.
    """

    orders: tuple[StreamOrder, ...]
    shapes: tuple[Shape | None, ...]
    source: Source
    maker: SampleMaker
    rank: int
    world_size: int
    collate_fn: Callable[[list[Any]], Any] | None = None
    on_corrupt: OnCorrupt = "replace"
    flags_padding: bool = False

    def draws(self, ticket: Ticket) -> Draws:
        """This rank's draws of a global batch."""
        begin, end = (ticket.size * number // self.world_size for number in (self.rank, self.rank + 1))
        if len(ticket.streams) == 1:
            stream = ticket.streams[0]
            places, count = np.arange(begin, end), ticket.counts[0]
            if end <= count:
                alike = np.full(len(places), stream)
                return Draws(alike, ticket.first[0] + places, np.zeros(len(places), dtype=np.bool_))
            num_rows = self.orders[stream].num_rows
            start = ticket.first[0] // num_rows * num_rows
            draws = np.where(places < count, ticket.first[0] + places, start + (places - count) % num_rows)
            return Draws(np.full(len(places), stream), draws, places >= count)
        chosen = _interleaved(ticket.counts)[begin:end]
        bounds = np.concatenate([[0], np.cumsum(ticket.counts)])
        member = np.searchsorted(bounds, chosen, side="right") - 1
        draws = np.array(ticket.first)[member] + chosen - bounds[member]
        return Draws(np.array(ticket.streams)[member], draws, np.zeros(len(draws), dtype=np.bool_))

    def rows(self, draws: Draws) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, epoch of its stream) of each draw."""
        return rows_of(self.orders, draws.streams, draws.draws)


@dataclass(frozen=True)
class Draws:
    """Draws of a batch, one entry each: the stream's number, the draw in it, and whether it only fills up the batch."""

    streams: NDArray[np.int64]
    draws: NDArray[np.int64]
    padding: NDArray[np.bool_]


class BatchMaker:
    """Makes batches by a plan. Belongs to one thread of one process."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._reader = SampleReader(plan.source)

    def make(self, ticket: Ticket) -> Batch:
        """This rank's part of the global batch.

        Raises StorageError when a store or disk fails, or, with `on_corrupt="raise"`, when a sample is corrupt.
        """
        plan = self._plan
        draws = plan.draws(ticket)
        rows, epochs = plan.rows(draws)
        shape = plan.shapes[ticket.streams[0]]
        raws = self._reader.read(rows)
        if plan.maker.is_plain and plan.collate_fn is None and shape is None:
            sound = [raw for raw in raws if isinstance(raw, Raw)]
            try:
                if len(sound) == len(raws):
                    return Batch(plan.maker.columns(sound, epochs, draws.padding if plan.flags_padding else None))
            except CorruptObject:
                pass  # found again below, by sample
        values, faults = self._samples(draws, rows, epochs, raws, shape)
        return Batch((plan.collate_fn or collate)(values), tuple(faults))

    def _samples(
        self,
        draws: Draws,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        raws: Sequence[Raw | StorageError],
        shape: Shape | None,
    ) -> tuple[list[Any], list[Fault]]:
        faults: list[Fault] = []
        values = []
        pads = draws.padding.tolist() if self._plan.flags_padding else [None] * len(raws)
        for stream, row, epoch, raw, pad in zip(
            draws.streams.tolist(), rows.tolist(), epochs.tolist(), raws, pads, strict=True
        ):
            try:
                values.append(self._sample(raw, epoch, shape, pad))
            except CorruptObject as error:
                if self._plan.on_corrupt == "raise":
                    raise
                replacement, value = self._reserve(stream, row, epoch, shape, pad, error)
                faults.append(Fault(row, str(error), replacement))
                values.append(value)
        return values, faults

    def _sample(
        self, raw: Raw | StorageError, epoch: int, shape: Shape | None, pad: bool | None, replaced: bool = False
    ) -> Any:
        if isinstance(raw, StorageError):
            raise raw
        return self._plan.maker.sample(raw, epoch, shape, replaced=replaced, pad=pad)

    def _reserve(
        self, stream: int, row: int, epoch: int, shape: Shape | None, pad: bool | None, fault: CorruptObject
    ) -> tuple[int, Any]:
        """(row, sample) in place of a corrupt row: of its own stream, and the same whoever asks."""
        order = self._plan.orders[stream]
        for attempt in range(_RESERVES):
            place = int(mixed(self._plan.maker.seed, epoch, row, attempt)[0] % np.uint64(order.num_rows))
            replacement = order.row_at(place)
            (raw,) = self._reader.read(np.array([replacement]))
            try:
                return replacement, self._sample(raw, epoch, shape, pad, replaced=True)
            except CorruptObject:
                continue
        raise CorruptObject(
            f"{fault}; {_RESERVES} reserves for it were corrupt, too: copy the dataset again"
        ) from fault


def _interleaved(counts: Sequence[int]) -> NDArray[np.int64]:
    """An order of sum(counts) draws, stream by stream numbered, that spreads each stream evenly over the batch."""
    spread = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return np.argsort(spread, kind="stable")
