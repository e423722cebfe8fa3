"""Global batches under torch.utils.data.DataLoader and torchdata's StatefulDataLoader, map-style or iterable.

The same batches as `dataengine.trainer.DataLoader` makes, from the same order. Map-style: `DrawDataset` with
`DrawSampler`; iterable: `BatchDataset`, whose items are whole batches. Both have torchdata's `state_dict` protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from dataengine.errors import InputError
from dataengine.trainer.batches import BatchMaker, BatchPlan
from dataengine.trainer.dataset import ShardDataset
from dataengine.trainer.position import Position, load, save
from dataengine.trainer.ranks import check_batches, rank_and_world_size
from dataengine.trainer.schedule import Point, Schedule, Tail

Draw = tuple[int, int]
"""Number of a stream, and of a draw in it: what a sample of a global batch is, before it is read."""


class _Place:
    """A rank's plan and the position in it, that sampler and iterable dataset share."""

    def __init__(
        self, dataset: ShardDataset, global_batch_size: int, tail: Tail, rank: int | None, world_size: int | None
    ) -> None:
        rank, world_size = rank_and_world_size(rank, world_size)
        self.dataset, self.batch, self.tail = dataset, global_batch_size, tail
        self.schedule: Schedule = dataset.view.schedule(global_batch_size, tail)
        check_batches([group.batch for group in self.schedule.groups], world_size)
        self.position = Position(self.schedule.start(), global_batch_size)
        self.plan = BatchPlan(
            orders=dataset.orders(global_batch_size, carried=tail == "carry"),
            shapes=dataset.shapes,
            source=dataset.source,
            maker=dataset.maker,
            rank=rank,
            world_size=world_size,
            flags_padding=tail == "pad",
        )

    @property
    def epoch(self) -> int:
        return self.schedule.epoch(self.position.point)

    def go(self, point: Point) -> None:
        self.position = Position(point, self.position.order_batch)

    def state_dict(self) -> dict[str, Any]:
        return save(self.position, self.dataset.view.identity(), self.tail)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        view = self.dataset.view
        position, _ = load(
            state, view.identity(), self.tail, lambda weights: view.schedule(self.batch, self.tail, weights)
        )
        if position.order_batch != self.position.order_batch or position.weights is not None:
            raise InputError(
                f"state_dict: of global batches of {position.order_batch} and weights {position.weights}; under "
                f"torch's loaders both stay as they were made ({self.position.order_batch}, None). "
                "dataengine.trainer.DataLoader takes it"
            )
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.go(self.schedule.at_epoch(epoch))

    def steps(self) -> int:
        return self.schedule.steps_of(self.epoch)


class DrawSampler(Sampler[list[Draw]]):
    """A batch sampler: the draws of this rank's part of each global batch, from the position to the end of the epoch.

    For `DataLoader(DrawDataset(dataset), batch_sampler=DrawSampler(dataset, 256))`. Torch's own loader fetches ahead,
    so its position is known only to torchdata's StatefulDataLoader, which asks for `state_dict` at the right moment.
    Each `iter` is an epoch, or what is left of one. Raises ConfigError when ranks do not divide the batch.
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
        self._place = _Place(dataset, global_batch_size, tail, rank, world_size)

    def __len__(self) -> int:
        """Batches of the current epoch."""
        return self._place.steps()

    def __iter__(self) -> Iterator[list[Draw]]:
        place, epoch = self._place, self._place.epoch
        while place.epoch == epoch:
            ticket, after = place.schedule.step(place.position.point)
            place.go(after)
            draws = place.plan.draws(ticket)
            yield list(zip(draws.streams.tolist(), draws.draws.tolist(), strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position inside it stays."""
        self._place.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches that were sampled so far."""
        return self._place.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises InputError when it is of another view or batch size."""
        self._place.load_state_dict(state)


class DrawDataset(Dataset[Any]):
    """A map-style dataset of draws: what `DrawSampler` yields goes in, samples of the right epoch come out.

    `global_batch_size` is the sampler's. Raises CorruptObject and other StorageErrors for what cannot be read: torch's
    loaders know no replacement that is flagged.
    """

    def __init__(self, dataset: ShardDataset, global_batch_size: int, *, tail: Tail = "carry") -> None:
        self._dataset = dataset
        self._orders = dataset.orders(global_batch_size, carried=tail == "carry")

    def __getitem__(self, draw: Draw) -> Any:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Any]:
        """The samples of a batch of draws, by one call: reads are joined."""
        streams, numbers = np.array(draws, dtype=np.int64).reshape(-1, 2).T
        return self._dataset.samples(self._orders, streams, numbers)


class BatchDataset(IterableDataset[Any]):
    """An iterable dataset of this rank's part of each global batch, for `DataLoader(..., batch_size=None)`.

    With W workers, worker w makes every W-th batch; torch hands them over in turn, so the stream is the same for any W.
    Call `set_epoch` before each epoch, or use `persistent_workers`: torch makes new workers from the dataset as it
    stood. Under torchdata's StatefulDataLoader each worker has a state, so go on with as many workers as before;
    `dataengine.trainer.DataLoader` goes on with any number.
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
        self._place = _Place(dataset, global_batch_size, tail, rank, world_size)
        self._begin: int | None = None  # step that an iteration under way began at: its batch is the first worker's

    def __len__(self) -> int:
        """Batches of the current epoch."""
        return self._place.steps()

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        place, epoch, maker = self._place, self._place.epoch, BatchMaker(self._place.plan)
        begin = self._begin = place.position.point.step if self._begin is None else self._begin
        while place.epoch == epoch:
            ticket, after = place.schedule.step(place.position.point)
            place.go(after)
            if (ticket.step - begin) % workers == number:
                yield maker.make(ticket).value
        self._begin = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position inside it stays."""
        self._place.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position of this worker, and where its iteration began."""
        return {"position": self._place.state_dict(), "begin": self._begin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises InputError when it is of another view or batch size, or no state of this class."""
        if not isinstance(state, Mapping) or state.keys() != {"position", "begin"}:
            got = sorted(map(str, state))[:20] if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise InputError(
                f"state_dict: is {got}, wanted position and begin, as the state_dict() of a BatchDataset has them"
            )
        begin = state["begin"]
        self._place.load_state_dict(state["position"])
        step = self._place.position.point.step
        if begin is not None and not (type(begin) is int and 0 <= begin <= step):
            raise InputError(
                f"state_dict: begin is {begin!r}, wanted null or a whole number from 0 to {step}, the step"
            )
        self._begin = begin
