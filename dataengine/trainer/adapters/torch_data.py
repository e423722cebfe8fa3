"""Global batches under torch.utils.data.DataLoader and torchdata's StatefulDataLoader, map-style or iterable.

The same batches as `dataengine.trainer.DataLoader` makes, from the same order. Map-style: `DrawDataset` with
`DrawSampler`; iterable: `BatchDataset`, whose items are whole batches. Both have torchdata's `state_dict` protocol.

Torch's workers fetch ahead and tell nobody what was handed out. So a loop that is left early goes on where it was left
without workers; with workers it starts over, and where they had fetched the epoch to its end, it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from dataengine.errors import InputError
from dataengine.trainer.adapters.torch_workers import SharedPoint, Turn
from dataengine.trainer.batches import BatchMaker, BatchPlan
from dataengine.trainer.dataset import ShardDataset
from dataengine.trainer.position import Position, load, save
from dataengine.trainer.ranks import check_batches, rank_and_world_size
from dataengine.trainer.schedule import Point, Schedule, Tail, Ticket

Draw = tuple[int, int, bool]
"""Number of a stream, of a draw in it, and whether it pads: what a sample of a global batch is, before it is read."""


class _Route:
    """A rank's plan, and the points on its way, that sampler and iterable dataset share."""

    def __init__(
        self, dataset: ShardDataset, global_batch_size: int, tail: Tail, rank: int | None, world_size: int | None
    ) -> None:
        rank, world_size = rank_and_world_size(rank, world_size)
        self._view, self._batch, self._tail = dataset.view, global_batch_size, tail
        self.schedule: Schedule = dataset.view.schedule(global_batch_size, tail)
        check_batches([group.batch for group in self.schedule.groups], world_size)
        self.plan = BatchPlan(
            orders=dataset.orders(global_batch_size, carried=tail == "carry"),
            shapes=dataset.shapes,
            source=dataset.source,
            maker=dataset.maker,
            rank=rank,
            world_size=world_size,
            flags_padding=tail == "pad",
        )

    def state_dict(self, point: Point) -> dict[str, Any]:
        return save(Position(point, self._batch), self._view.identity(), self._tail)

    def point(self, state: Mapping[str, Any]) -> Point:
        """The point that `state_dict` saved. Raises InputError when it is of another view or batch size."""
        position, _ = load(
            state,
            self._view.identity(),
            self._tail,
            lambda weights: self._view.schedule(self._batch, self._tail, weights),
        )
        if position.order_batch != self._batch or position.weights is not None:
            raise InputError(
                f"state_dict: of global batches of {position.order_batch} and weights {position.weights}; under "
                f"torch's loaders both stay as they were made ({self._batch}, None). "
                "dataengine.trainer.DataLoader takes it"
            )
        return position.point

    def in_epoch(self, point: Point, epoch: int) -> Point:
        """`point`, if it lies in `epoch`, else that epoch's start."""
        return point if self.schedule.epoch(point) == epoch else self.schedule.at_epoch(epoch)

    def steps_of_epoch(self, point: Point) -> int:
        return self.schedule.steps_of(self.schedule.epoch(point))


class _Draws(list[Draw]):
    """A batch of draws. `read` tells the sampler that they are read in its own process, so not ahead of the loop."""

    def __init__(self, draws: Iterable[Draw], read: Callable[[], None]) -> None:
        super().__init__(draws)
        self.read = read

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # in another process there is no sampler to tell


class DrawSampler(Sampler[list[Draw]]):
    """A batch sampler: the draws of this rank's part of each global batch, from the position to the end of the epoch.

    For `DataLoader(DrawDataset(dataset, 256), batch_sampler=DrawSampler(dataset, 256))`. Each `iter` is an epoch, or
    what is left of one. Draws that torch fetched ahead of a loop that was left are drawn again: the next `iter` begins
    after what a DrawDataset read in this process. Where workers read, that is where the last one began, or, if all of
    the epoch was fetched, the next epoch. So with workers the position is known only to torchdata's StatefulDataLoader,
    which asks for `state_dict` at the right moment; one of an epoch's last batch goes on with a loop of no batches.

    Raises ConfigError when ranks do not divide the batch.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        global_batch_size: int,
        *,
        tail: Tail = "carry",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._route = _Route(dataset, global_batch_size, tail, rank, world_size)
        self._begin = self._drawn = self._route.schedule.start()  # where the next iteration begins, and this one is

    def __len__(self) -> int:
        """Batches of the current epoch."""
        return self._route.steps_of_epoch(self._begin)

    def __iter__(self) -> Iterator[list[Draw]]:
        self._drawn = self._begin  # now, not at the first batch: torchdata asks for the state in between
        return _Sampling(self)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position inside it stays."""
        point = self._route.in_epoch(self._begin, epoch)
        if point != self._begin:
            self._begin = self._drawn = point

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches that were sampled so far."""
        return self._route.state_dict(self._drawn)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises InputError when it is of another view or batch size."""
        self._begin = self._drawn = self._route.point(state)

    def _is_in(self, epoch: int | None) -> bool:
        return self._route.schedule.epoch(self._drawn) == epoch

    def _draw(self) -> list[Draw]:
        ticket, self._drawn = self._route.schedule.step(self._drawn)
        draws = self._route.plan.draws(ticket)
        columns = (draws.streams.tolist(), draws.draws.tolist(), draws.padding.tolist())
        return _Draws(zip(*columns, strict=True), partial(self._go_on_at, self._drawn))

    def _go_on_at(self, point: Point) -> None:
        self._begin = point


class _Sampling(Iterator[list[Draw]]):
    """An iteration of a sampler, which torchdata saves and loads beside the sampler.

    With workers, torchdata loads a state of a finished epoch into an iteration that it fetches from and throws away; it
    must not be of the next epoch, which might be short enough to be fetched whole, and taken for done. So the state
    says that the epoch is over.
    """

    def __init__(self, sampler: DrawSampler) -> None:
        self._sampler = sampler
        self._epoch: int | None = sampler._route.schedule.epoch(sampler._drawn)

    def __next__(self) -> list[Draw]:
        if self._sampler._is_in(self._epoch):
            return self._sampler._draw()
        if self._epoch is not None:
            self._epoch = None
            self._sampler._go_on_at(self._sampler._drawn)
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        was_fetched_ahead = self._sampler._begin != self._sampler._drawn
        return {"over": was_fetched_ahead and not self._sampler._is_in(self._epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["over"]:
            self._epoch = None


class DrawDataset(Dataset[Any]):
    """A map-style dataset of draws: what `DrawSampler` yields goes in, samples of the right epoch come out.

    `global_batch_size` and `tail` are the sampler's. Raises CorruptObject and other StorageErrors for what cannot be
    read: torch's loaders know no replacement that is flagged.
    """

    def __init__(self, dataset: ShardDataset, global_batch_size: int, *, tail: Tail = "carry") -> None:
        self._dataset, self._flags_padding = dataset, tail == "pad"
        self._orders = dataset.orders(global_batch_size, carried=tail == "carry")

    def __getitem__(self, draw: Draw) -> Any:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Any]:
        """The samples of a batch of draws, by one call: reads are joined."""
        if isinstance(draws, _Draws):
            draws.read()
        streams, numbers, padding = np.array(draws, dtype=np.int64).reshape(-1, 3).T
        pads = padding.astype(bool).tolist() if self._flags_padding else None
        return self._dataset.samples(self._orders, streams, numbers, pads)


class BatchDataset(IterableDataset[Any]):
    """An iterable dataset of this rank's part of each global batch, for `DataLoader(..., batch_size=None)`.

    With W workers, worker w makes every W-th batch; torch hands them over in turn, so the stream is the same for any W.
    Each loop is an epoch, or what is left of one, whether torch keeps its workers or makes new ones. One that is left
    early starts over with workers, unless they had made all of its batches; without workers it goes on.

    Under torchdata's StatefulDataLoader each worker has a state, so go on with as many workers as before;
    `dataengine.trainer.DataLoader` goes on with any number. As a worker knows of no other, a state taken at the last
    batch of an epoch goes on with a loop of no batches, and then with the next epoch.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        global_batch_size: int,
        *,
        tail: Tail = "carry",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._route = _Route(dataset, global_batch_size, tail, rank, world_size)
        self._shared = SharedPoint(self._route.schedule.start())
        # In a worker: its part of the iteration under way, and one that a state tells it to go on with.
        self._part: _Part | None = None
        self._loaded: _Part | None = None
        self._turns = 0

    def __len__(self) -> int:
        """Batches of the current epoch."""
        return self._route.steps_of_epoch(self._shared.point)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            return self._alone()
        self._turns += 1
        turn, part = Turn.of(worker, self._turns), self._loaded
        point = self._shared.begin(turn, None if part is None else part.point)
        self._part, self._loaded = part or _Part(self._route.schedule, point, point.step), None
        # Now, not at the first batch: torchdata asks for the state in between, and may never ask for a batch.
        return self._batches(self._part, turn, self._upcoming(self._part, turn))

    def _alone(self) -> Iterator[Any]:
        schedule, maker = self._route.schedule, BatchMaker(self._route.plan)
        epoch = schedule.epoch(self._shared.point)
        while schedule.epoch(point := self._shared.point) == epoch:
            ticket, after = schedule.step(point)
            self._shared.go(after)
            yield maker.make(ticket).value

    def _batches(self, part: _Part, turn: Turn, upcoming: _Step | None) -> Iterator[Any]:
        maker = BatchMaker(self._route.plan)
        while upcoming is not None:
            ticket, part.point = upcoming
            value = maker.make(ticket).value
            upcoming = self._upcoming(part, turn)
            yield value

    def _upcoming(self, part: _Part, turn: Turn) -> _Step | None:
        upcoming = part.upcoming(turn)
        if upcoming is None:
            self._shared.finish(turn, part.point)
        return upcoming

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position inside it stays."""
        begin = self._shared.point
        point = self._route.in_epoch(begin, epoch)
        if point != begin:
            self._shared.go(point)

    def state_dict(self) -> dict[str, Any]:
        """The position, and, of a worker, where its iteration began and whether its part of the epoch is done."""
        part = self._loaded or self._part
        if part is None:
            return {"position": self._route.state_dict(self._shared.point), "begin": None, "done": False}
        return {"position": self._route.state_dict(part.point), "begin": part.begin, "done": part.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises InputError when it is of another view or batch size, or no state of this class."""
        if not isinstance(state, Mapping) or state.keys() != {"position", "begin", "done"}:
            got = sorted(map(str, state))[:20] if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise InputError(
                f"state_dict: is {got}, wanted position, begin and done, as the state_dict() of a BatchDataset has them"
            )
        point, begin, done = self._route.point(state["position"]), state["begin"], state["done"]
        if begin is not None and not (type(begin) is int and 0 <= begin <= point.step):
            raise InputError(
                f"state_dict: begin is {begin!r}, wanted null or a whole number from 0 to {point.step}, the step"
            )
        if type(done) is not bool:
            raise InputError(f"state_dict: done is {done!r}, wanted true or false")
        if get_worker_info() is None:
            self._shared.go(point)
        else:
            self._loaded = _Part(self._route.schedule, point, point.step if begin is None else begin, done=done)


_Step = tuple[Ticket, Point]
"""A global batch, and the point after it."""


class _Part:
    """A worker's part of an iteration: every W-th batch from the step `begin` on, of which the next is at `point`.

    Once it is `done`, `point` is where the epoch ends.
    """

    def __init__(self, schedule: Schedule, point: Point, begin: int, *, done: bool = False) -> None:
        self.point, self.begin, self._schedule = point, begin, schedule
        self._epoch = None if done else schedule.epoch(point)

    @property
    def done(self) -> bool:
        return self._epoch is None

    def upcoming(self, turn: Turn) -> _Step | None:
        """The worker's next batch, to which `point` goes; None when the epoch has no more."""
        while self._schedule.epoch(self.point) == self._epoch:
            ticket, after = self._schedule.step(self.point)
            if (ticket.step - self.begin) % turn.workers == turn.worker:
                return ticket, after
            self.point = after
        self._epoch = None
        return None
