"""Workers that make batches ahead of the training loop: processes, threads, or none.

A pool is given tickets in order and gives their batches in the same order. Worker w makes every W-th batch. A worker
process that dies is started anew and given its tickets again, a few times; one that hangs is an error that says so. The
parent's death ends its workers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Protocol

from dataengine.errors import TryAgainError
from dataengine.trainer import transport
from dataengine.trainer.batches import Batch, BatchMaker, BatchPlan
from dataengine.trainer.schedule import Ticket

_LOG = logging.getLogger("dataengine.trainer")
_LOOK_SECONDS = 1.0  # how often a waiting worker looks whether its parent lives
_STOP_SECONDS = 5.0


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
            raise _hung(self._plan, ticket, self._timeout) from error

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


@dataclass
class _Worker:
    """A worker process, its end of the wire, and the tickets that it has not answered, by number."""

    process: BaseProcess
    wire: Connection
    receiver: transport.Receiver
    unanswered: deque[tuple[int, Ticket]] = field(default_factory=deque)


class Processes:
    """Worker processes, each with `ahead` tickets at most that were put and not got or forgotten.

    `max_restarts` counts deaths of all workers between two batches that were made.
    """

    def __init__(
        self, plan: BatchPlan, num_workers: int, ahead: int, timeout_seconds: float, max_restarts: int, method: str
    ) -> None:
        self._plan, self._timeout, self._max_restarts = plan, timeout_seconds, max_restarts
        self._ahead = ahead
        self._context: Any = multiprocessing.get_context(method)
        self._deaths = 0
        self._put = self._got = 0
        self._workers: list[_Worker] = []
        self._workers += [self._started() for _ in range(num_workers)]

    def put(self, ticket: Ticket) -> None:
        worker = self._workers[self._put % len(self._workers)]
        worker.unanswered.append((self._put, ticket))
        self._put += 1
        # Where it has died, `get` finds out, and sends what is unanswered to its successor.
        with contextlib.suppress(OSError):
            worker.wire.send(worker.unanswered[-1])

    def get(self) -> Batch:
        number = self._got
        place = number % len(self._workers)
        deadline = time.monotonic() + self._timeout
        while True:
            worker = self._workers[place]
            ticket = worker.unanswered[0][1]
            left = deadline - time.monotonic()
            ready = wait([worker.wire, worker.process.sentinel], max(0.0, left))
            if worker.wire in ready:
                try:
                    answered, outcome = worker.receiver.receive()
                except (EOFError, OSError):
                    self._replace(place, ticket)
                    continue
                worker.unanswered.popleft()
                if answered != number:
                    continue  # forgotten meanwhile
                self._got, self._deaths = number + 1, 0
                return _settled(outcome)
            if ready:
                self._replace(place, ticket)
            elif left <= 0:
                raise _hung(self._plan, ticket, self._timeout)

    def forget(self) -> None:
        self._got = self._put

    def close(self) -> None:
        for worker in self._workers:
            worker.wire.close()
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_STOP_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers = []

    def _started(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        # A wire that a fork copied into a sibling would keep the parent's death from being noticed.
        forked = self._context.get_start_method() == "fork"
        inherited = [mine, *(worker.wire for worker in self._workers)] if forked else []
        parent = os.getpid() if forked else None
        process = self._context.Process(
            target=_work, args=(self._plan, theirs, self._ahead, parent, inherited), daemon=True
        )
        # What the garbage collector touches in a child is copied into it: frozen objects it leaves alone.
        gc.freeze()
        try:
            process.start()
        finally:
            gc.unfreeze()
        theirs.close()
        return _Worker(process, mine, transport.Receiver(mine))

    def _replace(self, place: int, ticket: Ticket) -> None:
        """Start a successor of a worker that died, or give up."""
        dead = self._workers[place]
        dead.process.join(_STOP_SECONDS)
        self._deaths += 1
        how = _how(dead.process.exitcode)
        said = f"worker {place} (pid {dead.process.pid}) died {how} while making batch {ticket.step}"
        if self._deaths > self._max_restarts:
            raise TryAgainError(
                f"{said}, after {self._max_restarts} restarts; it reads {_shards(self._plan, ticket)}. Look into the "
                "system's log for memory, and make the batch with num_workers=0 to see the fault"
            )
        _LOG.warning("%s; starting it again (%d of %d)", said, self._deaths, self._max_restarts)
        dead.wire.close()
        successor = self._started()
        successor.unanswered = dead.unanswered
        self._workers[place] = successor
        for unanswered in list(successor.unanswered):
            successor.wire.send(unanswered)


def _work(plan: BatchPlan, wire: Connection, ahead: int, parent: int | None, inherited: list[Connection]) -> None:
    """What a worker process does: make batches until the parent hangs up or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    # One thread each, as torch's own workers have: more would fight, and those of a parent are not in its fork.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    for other in inherited:
        other.close()
    parent = parent or os.getppid()  # that of a process that was not forked is the server that made it
    maker: BatchMaker | None = None
    sender = transport.Sender(wire, ahead)
    while True:
        try:
            while not wire.poll(_LOOK_SECONDS):
                if os.getppid() != parent:
                    return
            number, ticket = wire.recv()
        except (EOFError, OSError):
            return
        try:
            maker = maker or BatchMaker(plan)
            outcome: Any = maker.make(ticket)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training loop has to hear of it
            outcome = _Failed(error, traceback.format_exc())
        try:
            _answer(sender, number, outcome)
        except (BrokenPipeError, ConnectionResetError):
            return


def _answer(sender: transport.Sender, number: int, outcome: Any) -> None:
    if isinstance(outcome, Batch):
        outcome = (outcome.value, outcome.faults)
    try:
        sender.send((number, outcome))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # noqa: BLE001 - a batch or an error that cannot be sent
        text = outcome.text if isinstance(outcome, _Failed) else traceback.format_exc()
        sender.send((number, _Failed(RuntimeError(f"a worker's result cannot be sent: {error!r}"), text)))


@dataclass(frozen=True)
class _Failed:
    """What making a batch raised, with its traceback as text."""

    error: Exception
    text: str


def _settled(outcome: Any) -> Batch:
    if isinstance(outcome, _Failed):
        outcome.error.add_note(f"In a worker process:\n{outcome.text}")
        raise outcome.error
    value, faults = outcome
    return Batch(value, faults)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"by {signal.Signals(-exit_code).name}"
    return f"with exit code {exit_code}"


def _hung(plan: BatchPlan, ticket: Ticket, seconds: float) -> TryAgainError:
    return TryAgainError(
        f"batch {ticket.step} was not made within {seconds:g} s; it reads {_shards(plan, ticket)}. See whether that "
        "storage answers, or raise timeout_seconds"
    )


def _shards(plan: BatchPlan, ticket: Ticket) -> str:
    rows, _ = plan.rows(plan.draws(ticket))
    numbers, _ = plan.source.shards.locate(rows)
    names = sorted({plan.source.shards.shards[number].name for number in numbers.tolist()})
    return f"shards {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
