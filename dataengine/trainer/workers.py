"""What makes batches ahead of the training loop, and two that do it in this process: threads, and nobody.

A pool is given tickets in order and gives their batches in the same order.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import SimpleQueue
from typing import Protocol

from dataengine.errors import TryAgainError
from dataengine.trainer.batches import Batch, BatchMaker, BatchPlan
from dataengine.trainer.schedule import Ticket


class Pool(Protocol):
    """Makes batches of tickets, in order."""

    def put(self, ticket: Ticket) -> None:
        """Have one more batch made."""

    def get(self) -> Batch:
        """The batch of the oldest ticket that was put and not got. Raises what making it raised."""

    def forget(self) -> None:
        """Make and give no batch of the tickets that were put so far."""

    def close(self) -> None:
        """End the workers."""


class NoWorkers:
    """Makes each batch when it is asked for, in this very thread."""

    def __init__(self, plan: BatchPlan) -> None:
        self._maker = BatchMaker(plan)
        self._tickets: deque[Ticket] = deque()

    def put(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)

    def get(self) -> Batch:
        return self._maker.make(self._tickets.popleft())

    def forget(self) -> None:
        self._tickets.clear()

    def close(self) -> None:
        self.forget()


class Threads:
    """Worker threads: nothing is copied or sent, and decoders that release the interpreter run side by side."""

    def __init__(self, plan: BatchPlan, num_workers: int, timeout_seconds: float) -> None:
        self._plan, self._timeout = plan, timeout_seconds
        self._asked: SimpleQueue[tuple[Ticket, Future[Batch]] | None] = SimpleQueue()
        self._waiting: deque[tuple[Ticket, Future[Batch]]] = deque()
        # Daemons, unlike an executor's threads: one that hangs in a read must not keep the process from ending.
        self._threads = [
            threading.Thread(
                target=_work_in_thread, args=(plan, self._asked), daemon=True, name=f"dataengine-batch-{place}"
            )
            for place in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, ticket: Ticket) -> None:
        asked = (ticket, Future[Batch]())
        self._waiting.append(asked)
        self._asked.put(asked)

    def get(self) -> Batch:
        ticket, future = self._waiting.popleft()
        try:
            return future.result(self._timeout)
        except FutureTimeout as error:
            if future.done():  # a time-out of the transform's own
                raise
            raise hung(self._plan, ticket, self._timeout) from error

    def forget(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def close(self) -> None:
        self.forget()
        for _ in self._threads:
            self._asked.put(None)


def _work_in_thread(plan: BatchPlan, asked: SimpleQueue[tuple[Ticket, Future[Batch]] | None]) -> None:
    maker: BatchMaker | None = None
    while (one := asked.get()) is not None:
        ticket, future = one
        if not future.set_running_or_notify_cancel():
            continue
        try:
            maker = maker or BatchMaker(plan)
            future.set_result(maker.make(ticket))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training loop has to hear of it
            future.set_exception(error)


def hung(plan: BatchPlan, ticket: Ticket, seconds: float) -> TryAgainError:
    """What to raise when a batch is not made in time."""
    return TryAgainError(
        f"batch {ticket.step} was not made within {seconds:g} s; it reads {shards_of(plan, ticket)}. See whether that "
        "storage answers and what transform waits for, or raise timeout_seconds"
    )


def shards_of(plan: BatchPlan, ticket: Ticket) -> str:
    """The shards that a batch is read from, for messages."""
    rows, _ = plan.rows(plan.draws(ticket))
    numbers, _ = plan.source.shards.locate(rows)
    names = sorted({plan.source.shards.shards[number].name for number in numbers.tolist()})
    return f"shards {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
