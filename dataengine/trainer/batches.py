"""Makes a rank's part of a global batch: a ticket goes in, what the training loop gets comes out.

It joins order, reader and sample maker, in whatever process or thread it runs. A corrupt sample is replaced by a
deterministic reserve and told of; nothing else is ever replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from dataengine.errors import CorruptObject, StorageError
from dataengine.trainer.buckets import Shape
from dataengine.trainer.collate import collate
from dataengine.trainer.index import Shard
from dataengine.trainer.order import PHASES, StreamOrder, rows_of
from dataengine.trainer.reader import SampleReader, Source, columns_of
from dataengine.trainer.samples import SampleMaker
from dataengine.trainer.schedule import Ticket
from dataengine.trainer.shuffle import mixed
from dataengine.trainer.tarset import Raw

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnCorrupt = Literal["replace", "raise"]
_RESERVES = 16  # of which every one is corrupt only where the dataset is
_FEW_ROWS, _MAX_ROUNDS = 1024, 16  # NumPy places as many in about the time of its calls; more take memory


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

    @property
    def runs_own_code(self) -> bool:
        """Whether a function of the user's makes something of samples or batches."""
        return self.collate_fn is not None or self.maker.transform is not None or callable(self.maker.decode)

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


class _Drawn(NamedTuple):
    """A draw of a batch: its stream and row, its epoch in that stream, its bucket's shape, and whether it pads."""

    stream: int
    row: int
    epoch: int
    shape: Shape | None
    pad: bool | None


class BatchMaker:
    """Makes batches by a plan. Belongs to one thread of one process."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._reader = SampleReader(plan.source)
        self._ahead: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def make(self, ticket: Ticket) -> Batch:
        """This rank's part of the global batch.

        Raises StorageError when a store or disk fails, or, with `on_corrupt="raise"`, when a sample is corrupt.
        """
        plan = self._plan
        draws = plan.draws(ticket)
        rows, epochs = self._rows(draws)
        shape = plan.shapes[ticket.streams[0]]
        made = partial(
            plan.maker.batch, epochs=epochs, padding=draws.padding if plan.flags_padding else None, shape=shape
        )
        is_plain = plan.maker.is_plain and plan.collate_fn is None
        if is_plain and self._reader.is_plain and (columns := self._reader.columns(rows, plan.maker.arrays)):
            with suppress(CorruptObject):  # found again below, by sample
                return Batch(made(columns))
        shards, found = self._reader.read(rows)
        raws = list(found)
        if is_plain and not self._reader.is_plain:
            with suppress(CorruptObject):
                return Batch(made(columns_of(shards, raws, plan.maker.parts)))
        pads = draws.padding.tolist() if plan.flags_padding else [None] * len(rows)
        drawn = map(_Drawn, draws.streams.tolist(), rows.tolist(), epochs.tolist(), repeat(shape), pads)
        values, faults = self._samples(drawn, shards, raws)
        return Batch((plan.collate_fn or collate)(values), tuple(faults))

    def _rows(self, draws: Draws) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, epoch) of each draw; of a small part of a batch, those of the same part some rounds on are found, too.

        They come from the same lanes, so this worker is asked for them: 30 µs a batch of 64 instead of 130.
        """
        order, first, count = self._plan.orders[0], int(draws.draws[0]), len(draws.draws)
        rounds = min(_FEW_ROWS // count, _MAX_ROUNDS, order.num_rows // order.round_draws)
        if len(self._plan.orders) > 1 or rounds < 2 or draws.padding.any():
            return self._plan.rows(draws)
        found = self._ahead.pop(first, None)
        if found is None or len(found[0]) != count:
            if len(self._ahead) > PHASES * rounds:  # of a worker that is asked for others
                self._ahead.clear()
            firsts = first + np.arange(rounds)[:, None] * order.round_draws
            rows, epochs = (of.reshape(rounds, count) for of in order.rows((firsts + np.arange(count)).ravel()))
            self._ahead |= dict(zip(firsts[:, 0].tolist(), zip(rows, epochs, strict=True), strict=True))
            found = self._ahead.pop(first)
        return found

    def _samples(
        self, drawn: Iterable[_Drawn], shards: Sequence[Shard], raws: Iterable[Raw | StorageError]
    ) -> tuple[list[Any], list[Fault]]:
        faults: list[Fault] = []
        values = []
        for one, shard, raw in zip(drawn, shards, raws, strict=True):
            try:
                values.append(self._sample(one, shard, raw))
            except CorruptObject as error:
                if self._plan.on_corrupt == "raise":
                    raise
                replacement, value = self._reserve(one, error)
                faults.append(Fault(one.row, str(error), replacement))
                values.append(value)
        return values, faults

    def _sample(self, drawn: _Drawn, shard: Shard, raw: Raw | StorageError, replacement: int | None = None) -> Any:
        """The sample of a draw, or of the row in its place. One that does not decode is read a second time, if from
        afar: what a cache holds may have been damaged, and here alone.
        """
        try:
            return self._made(drawn, shard, raw, replaced=replacement is not None)
        except CorruptObject:
            again = None
            if not isinstance(raw, StorageError):
                again = self._reader.read_anew(drawn.row if replacement is None else replacement)
            if again is None:
                raise
        return self._made(drawn, shard, again, replaced=replacement is not None)

    def _made(self, drawn: _Drawn, shard: Shard, raw: Raw | StorageError, *, replaced: bool) -> Any:
        if isinstance(raw, StorageError):
            raise raw
        return self._plan.maker.sample(raw, shard, drawn.epoch, drawn.shape, replaced=replaced, pad=drawn.pad)

    def _reserve(self, drawn: _Drawn, fault: CorruptObject) -> tuple[int, Any]:
        """(row, sample) in place of a corrupt row: of its own stream, and the same whoever asks."""
        order = self._plan.orders[drawn.stream]
        for attempt in range(_RESERVES):
            hashed = mixed(self._plan.maker.seed, drawn.epoch, drawn.row, attempt)
            replacement = order.row_at(int(hashed[0] % np.uint64(order.num_rows)))
            (shard,), (raw,) = self._reader.read(np.array([replacement]))
            try:
                return replacement, self._sample(drawn, shard, raw, replacement)
            except CorruptObject:
                continue
        raise CorruptObject(
            f"{fault}; {_RESERVES} reserves for it were corrupt, too: copy the dataset again"
        ) from fault


def _interleaved(counts: Sequence[int]) -> NDArray[np.int64]:
    """An order of sum(counts) draws, stream by stream numbered, that spreads each stream evenly over the batch."""
    spread = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return np.argsort(spread, kind="stable")
