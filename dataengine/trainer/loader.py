"""DataLoader: batches of a ShardDataset over ranks and workers, and a position that counts what was handed out.

The stream of global batches depends on (manifest, view, seed, global batch size) alone; a rank takes its part of each.
Workers make batches ahead; what they have not handed over does not count.
"""

from __future__ import annotations

import logging
import multiprocessing
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from dataengine.errors import ConfigError, CorruptObject
from dataengine.trainer import arguments
from dataengine.trainer.batches import Batch, BatchPlan, Fault, OnCorrupt
from dataengine.trainer.collate import pinned
from dataengine.trainer.dataset import MAX_EPOCHS, ShardDataset
from dataengine.trainer.fit import installed_torch
from dataengine.trainer.plan import Plan
from dataengine.trainer.position import Position, load, save
from dataengine.trainer.processes import Processes
from dataengine.trainer.ranks import batch_size, check_batches, rank_and_world_size
from dataengine.trainer.schedule import Point, Schedule, Tail
from dataengine.trainer.workers import NoWorkers, Pool, Threads

_MAX_WORKERS, _MAX_AHEAD = 1024, 1024
_LOG = logging.getLogger("dataengine.trainer")


class DataLoader:
    """Iterates a rank's part of each global batch, from the current position to the end of the epoch, then the next.

    `global_batch_size` counts samples over all ranks; ranks must divide it. A batch is a dict of columns (arrays where
    samples stack, lists otherwise); a `transform` that gives something else gives batches of that. `collate_fn` gets
    the list of samples, and what it makes is handed over as it is.

    `tail`: `carry` fills an epoch's last batch up from the next epoch, so that every sample is drawn exactly once per
    epoch and every batch is full; `drop` leaves the rest out; `pad` repeats samples, whose `__pad__` is true.

    Workers are processes (batches come through shared memory) or, with `workers="thread"`, threads: cheaper for bytes
    and latents, and as fast for pictures, because decoders release the interpreter. Each makes `prefetch_batches`
    ahead. A worker that dies is started again, up to `max_restarts` times between two batches; a batch that is not made
    within `timeout_seconds` is an error. With `persistent_workers` they outlive the epoch, though no error: iterating
    again goes on behind the last batch that was handed out, with new ones. A copy of a loader starts its own.

    A corrupt sample is replaced by a reserve of its own stream, the same on every run, whose `__replaced__` is true; it
    is logged and kept in `skipped`. After `max_skipped` of them on a rank, or at once with `on_corrupt="raise"`, it is
    an error.

    Rank and world size are taken from the arguments (for tensor or pipeline parallelism: of the data-parallel group),
    else torch.distributed, else RANK and WORLD_SIZE. Raises ConfigError for arguments that do not fit each other.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        global_batch_size: int,
        num_workers: int = 0,
        workers: Literal["process", "thread"] = "process",
        tail: Tail = "carry",
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        prefetch_batches: int = 2,
        persistent_workers: bool = False,
        pin_memory: bool = False,
        timeout_seconds: float = 300.0,
        max_restarts: int = 3,
        on_corrupt: OnCorrupt = "replace",
        max_skipped: int = 1000,
        multiprocessing_context: str | None = None,
    ) -> None:
        if not isinstance(dataset, ShardDataset):
            raise ConfigError(
                f"dataset={arguments.shown(dataset)}: wanted a ShardDataset; torch's DataLoader takes others"
            )
        for name, chosen, allowed in (
            ("workers", workers, ("process", "thread")),
            ("tail", tail, ("carry", "drop", "pad")),
            ("on_corrupt", on_corrupt, ("replace", "raise")),
        ):
            arguments.one_of(name, chosen, allowed)
        self._dataset, self._batch, self._tail = dataset, batch_size(global_batch_size), tail
        self._place = (rank, world_size)
        self._num_workers, self._kind = arguments.whole("num_workers", num_workers, 0, _MAX_WORKERS), workers
        self._ahead = arguments.whole("prefetch_batches", prefetch_batches, 1, _MAX_AHEAD)
        self._collate, self._pin = (
            arguments.function("collate_fn", collate_fn),
            arguments.flag("pin_memory", pin_memory),
        )
        self._persistent = arguments.flag("persistent_workers", persistent_workers)
        self._timeout = arguments.number("timeout_seconds", timeout_seconds, 0, arguments.MAX_SECONDS, above=True)
        self._max_restarts = arguments.whole("max_restarts", max_restarts, 0)
        self._on_corrupt, self._max_skipped = on_corrupt, arguments.whole("max_skipped", max_skipped, 0)
        # The object-store client runs threads, which do not survive a fork.
        self._method = multiprocessing_context or ("fork" if dataset.is_local else "forkserver")
        arguments.one_of("multiprocessing_context", self._method, multiprocessing.get_all_start_methods())
        self.skipped: list[Fault] = []
        """Corrupt samples that this rank has met, in the order of the batches."""
        self._schedule: Schedule = dataset.view.schedule(global_batch_size, tail)
        self._position = Position(self._schedule.start(), self._batch)
        self._check_world()
        self._pool: Pool | None = None
        self._closing: weakref.finalize[Any, Any] | None = None

    @property
    def dataset(self) -> ShardDataset:
        """The dataset that batches are made of."""
        return self._dataset

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in."""
        return self._schedule.epoch(self._position.point)

    @property
    def step(self) -> int:
        """Batches handed out so far, over all epochs."""
        return self._position.point.step

    def __len__(self) -> int:
        """Batches of the current epoch, the same on every rank."""
        return self._schedule.steps_of(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a position inside that epoch stays, so that resuming loops may call it."""
        epoch = arguments.whole("epoch", epoch, 0, MAX_EPOCHS)
        if epoch != self.epoch:
            self._go(Position(self._schedule.at_epoch(epoch), self._position.order_batch, self._position.weights))

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        """Draw by other weights from the next batch on. Streams go on where they are; call it on every rank alike.

        Raises ConfigError for names that the dataset's mixture does not have.
        """
        if self._dataset.view.asked.mixture is None:
            raise ConfigError(
                "set_mixture: the dataset was opened without a mixture; give it one, if only of equal parts"
            )
        weights = arguments.weights("set_mixture:", weights)
        other = self._dataset.view.schedule(self._batch, self._tail, weights)
        self._schedule, point = self._schedule.reweighted(other.weights, self._position.point)
        self._go(Position(point, self._position.order_batch, weights))

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches handed out so far: a small JSON object, the same on every rank."""
        return save(self._position, self._dataset.view.identity(), self._tail)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position, whatever ranks and workers it was saved under. Reads and replays nothing.

        With another global batch size the order of samples goes on as it was and is cut into other batches. Raises
        InputError that names the differences when the state is of another dataset version or view, and what is wrong
        with it when it is not what `state_dict` returned.
        """
        view = self._dataset.view
        position, schedule = load(
            state, view.identity(), self._tail, lambda weights: view.schedule(self._batch, self._tail, weights)
        )
        self._schedule = schedule
        self._go(position)

    def plan(self, world_size: int | None = None) -> Plan:
        """What the loader will do, in numbers, before it reads a sample."""
        ranks = self._rank_and_world_size()[1] if world_size is None else arguments.whole("world_size", world_size, 1)
        return Plan(self._dataset.view, self._schedule, ranks)

    def close(self) -> None:
        """End the workers. Iterating again starts others."""
        if self._closing is not None:
            self._closing()
        self._pool = self._closing = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the workers, and what they have open: a copy starts its own."""
        return {**self.__dict__, "_pool": None, "_closing": None, "skipped": list(self.skipped)}

    def __iter__(self) -> Iterator[Any]:
        epoch, pool = self.epoch, self._started()
        pool.forget()
        ahead = self._position.point
        waiting: list[Point] = []
        while self.epoch == epoch and self._pool is pool:
            try:
                while len(waiting) < max(1, self._num_workers) * self._ahead and self._schedule.epoch(ahead) == epoch:
                    ticket, ahead = self._schedule.step(ahead)
                    waiting.append(ahead)
                    pool.put(ticket)
                batch = pool.get()
            except BaseException:
                self.close()  # half a message may have been read, a worker may hang; the position is what it was
                raise
            self._note(batch)
            self._position = Position(waiting.pop(0), self._position.order_batch, self._position.weights)
            position = self._position
            yield pinned(batch.value) if self._pin else batch.value
            if self._position is not position:  # set_mixture, set_epoch or load_state_dict in the loop
                pool = self._started()
                pool.forget()
                waiting, ahead = [], self._position.point
        if not self._persistent:
            self.close()

    def _go(self, position: Position) -> None:
        if position.order_batch != self._position.order_batch:
            self.close()  # workers hold the order
        self._position = position

    def _note(self, batch: Batch) -> None:
        for fault in batch.faults:
            rank = self._rank_and_world_size()[0]
            _LOG.warning("rank %d: row %d replaced by row %d: %s", rank, fault.row, fault.replacement, fault.error)
        self.skipped += batch.faults
        if len(self.skipped) > self._max_skipped:
            raise CorruptObject(
                f"{len(self.skipped)} corrupt samples on this rank, {self._max_skipped} are allowed (max_skipped); the "
                f"last: {self.skipped[-1].error}"
            )

    def _started(self) -> Pool:
        if self._pool is None:
            pool = self._new_pool()
            self._pool, self._closing = pool, weakref.finalize(self, pool.close)
        return self._pool

    def _new_pool(self) -> Pool:
        self._check_world()
        plan = self._batch_plan()
        if not self._num_workers:
            return NoWorkers(plan)
        if self._kind == "thread":
            return Threads(plan, self._num_workers, self._timeout)
        if self._dataset.view.asked.buckets is not None:
            installed_torch()  # imported here, lest each fork does it: 280 MB and a second
        # Laid out before workers are forked, an epoch's chunks are shared by all of them.
        ticket, _ = self._schedule.step(self._position.point)
        plan.rows(plan.draws(ticket))
        return Processes(plan, self._num_workers, self._ahead, self._timeout, self._max_restarts, self._method)

    def _batch_plan(self) -> BatchPlan:
        dataset = self._dataset
        rank, world_size = self._rank_and_world_size()
        return BatchPlan(
            orders=dataset.orders(self._position.order_batch, carried=self._tail == "carry"),
            shapes=dataset.shapes,
            source=dataset.source,
            maker=dataset.maker,
            rank=rank,
            world_size=world_size,
            collate_fn=self._collate,
            on_corrupt=self._on_corrupt,
            flags_padding=self._tail == "pad",
        )

    def _check_world(self) -> None:
        world_size = self._rank_and_world_size()[1]
        check_batches([group.batch for group in self._schedule.groups], world_size)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return rank_and_world_size(*self._place)
