"""What makes batches ahead of the training loop, and two that do it in this process: threads, and nobody.

A pool is given tickets in order and gives their batches in the same order.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Protocol

from dataengine.errors import TryAgainError
from dataengine.trainer.batches import Batch, BatchMaker, BatchPlan
from dataengine.trainer.calls import Calls
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
        self._calls = Calls(num_workers, "dataengine-batch")
        self._makers = threading.local()
        self._waiting: deque[tuple[Ticket, Future[Batch]]] = deque()

    def put(self, ticket: Ticket) -> None:
        self._waiting.append((ticket, self._calls.submit(partial(_made, self._plan, self._makers, ticket))))

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
        self._calls.close()


def _made(plan: BatchPlan, makers: threading.local, ticket: Ticket) -> Batch:
    """A batch by this thread's own maker."""
    if not hasattr(makers, "own"):
        makers.own = BatchMaker(plan)
    maker: BatchMaker = makers.own
    return maker.make(ticket)


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
