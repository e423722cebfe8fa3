"""Worker processes, seen from the training loop.

Worker w makes every W-th batch. One that dies is started anew and given its tickets again, a few times; one that hangs
is an error that says so.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from typing import Any

from dataengine.errors import ConfigError, TryAgainError
from dataengine.trainer import transport
from dataengine.trainer.batches import Batch, BatchPlan
from dataengine.trainer.files import raise_file_limit
from dataengine.trainer.schedule import Ticket
from dataengine.trainer.worker import Asked, Failed, Inherited, handled_signals, work
from dataengine.trainer.workers import hung, shards_of

_LOG = logging.getLogger("dataengine.trainer")
_STOP_SECONDS = 5.0


@dataclass
class _Worker:
    """A worker process, its end of the wire, the tickets that it has not answered, and the answers not asked for yet.

    Both by number, and without what was forgotten.
    """

    process: BaseProcess
    wire: Connection
    receiver: transport.Receiver
    unanswered: deque[tuple[int, Ticket]] = field(default_factory=deque)
    answers: deque[tuple[int, Any]] = field(default_factory=deque)

    def wait(self, seconds: float, *, to_send: bool = False) -> int:
        """What the wire is ready for, as poll(2) has it; POLLHUP also when the process has ended; 0: time is up."""
        poller = select.poll()
        poller.register(self.wire, select.POLLIN | (select.POLLOUT if to_send else 0))
        poller.register(self.process.sentinel, select.POLLIN)
        events = dict(poller.poll(1000 * max(0.0, seconds)))
        return events.get(self.wire.fileno(), select.POLLHUP if events else 0)


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
        raise_file_limit()  # each batch that lies ready takes a file
        try:
            for _ in range(num_workers):
                self._workers.append(self._started())
        except BaseException:
            self.close()
            raise

    def put(self, ticket: Ticket) -> None:
        worker = self._workers[self._put % len(self._workers)]
        worker.unanswered.append((self._put, ticket))
        self._put += 1
        self._send(worker, *worker.unanswered[-1])

    def get(self) -> Batch:
        place = self._got % len(self._workers)
        deadline = time.monotonic() + self._timeout
        while not self._workers[place].answers:
            worker = self._workers[place]
            ticket = worker.unanswered[0][1]
            ready = worker.wait(deadline - time.monotonic())
            if ready & select.POLLIN and self._received(worker, ticket):
                continue
            if not ready:
                raise hung(self._plan, ticket, self._timeout)
            self._replace(place, ticket)
        number, outcome = self._workers[place].answers.popleft()
        self._got, self._deaths = number + 1, 0
        return _settled(outcome)

    def forget(self) -> None:
        self._got = self._put
        for worker in self._workers:
            worker.unanswered.clear()
            worker.answers.clear()

    def _send(self, worker: _Worker, number: int, ticket: Ticket) -> None:
        """Ask a worker for a batch. If it has died, `get` finds out, and asks its successor.

        A worker that waits for its own answer to be read reads nothing: what comes meanwhile is taken.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            ready = worker.wait(deadline - time.monotonic(), to_send=True)
            if ready & select.POLLOUT:
                with contextlib.suppress(OSError):
                    worker.wire.send(Asked(number, self._got, ticket))
                return
            if not ready:
                raise hung(self._plan, ticket, self._timeout)
            if not (ready & select.POLLIN and self._received(worker, ticket)):
                return

    def _received(self, worker: _Worker, ticket: Ticket) -> bool:
        """Take an answer; False when the worker has died. Raises TryAgainError when it stops in the middle of one."""
        try:
            number, outcome = worker.receiver.receive()
        except transport.Unreadable as error:
            number, outcome = error.number, Failed(RuntimeError(f"a worker's result cannot be read: {error.why!r}"), "")
        except BlockingIOError as error:
            raise hung(self._plan, ticket, self._timeout) from error
        except (EOFError, OSError):
            return False
        if worker.unanswered and worker.unanswered[0][0] == number:  # else it was forgotten
            worker.unanswered.popleft()
            worker.answers.append((number, outcome))
        return True

    def close(self) -> None:
        for worker in self._workers:
            worker.wire.close()
            worker.process.kill()  # nothing that a worker has needs putting away; SIGTERM may be handled, or wait
        for worker in self._workers:
            worker.process.join(_STOP_SECONDS)
        self._workers = []

    def _started(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        _limit(mine, self._timeout)
        # A wire that a fork copied into a sibling would keep the parent's death from being noticed.
        wires = [mine, *(worker.wire for worker in self._workers)]
        method = self._context.get_start_method()
        inherited = Inherited(os.getpid(), wires, handled_signals()) if method == "fork" else None
        process = self._context.Process(target=work, args=(self._plan, theirs, self._ahead, inherited), daemon=True)
        with _garbage_frozen(), _told(method):
            process.start()
        theirs.close()
        return _Worker(process, mine, transport.Receiver(mine))

    def _replace(self, place: int, ticket: Ticket) -> None:
        """Start a successor of a worker that died, or give up."""
        dead = self._workers[place]
        dead.process.join(_STOP_SECONDS)
        self._deaths += 1
        how = _how(dead.process.exitcode)
        said = f"worker {place} (pid {dead.process.pid}) died {how} while making batch {ticket.step}"
        if dead.process.exitcode == 1 and (method := self._context.get_start_method()) != "fork":
            # Where all exceptions are caught, that is what Python ends with when it could not start.
            raise ConfigError(
                f"{said}: a process of {method} could not start, see above why. It imports the script again: keep what "
                "starts the training under `if __name__ == '__main__':`, or take workers='thread'"
            )
        if self._deaths > self._max_restarts:
            raise TryAgainError(
                f"{said}, after {self._max_restarts} restarts; it reads {shards_of(self._plan, ticket)}. Look into the "
                "system's log for memory, and make the batch with num_workers=0 to see the fault"
            )
        _LOG.warning("%s; starting it again (%d of %d)", said, self._deaths, self._max_restarts)
        dead.wire.close()
        successor = self._started()
        self._workers[place] = successor
        for number, asked in list(dead.unanswered):
            successor.unanswered.append((number, asked))
            self._send(successor, number, asked)


@contextlib.contextmanager
def _garbage_frozen() -> Iterator[None]:
    """What the garbage collector touches in a fork is copied into it: frozen objects it leaves alone."""
    if gc.get_freeze_count():  # by the user, whose objects thawing ours would thaw
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _told(method: str) -> Iterator[None]:
    """Why no process could be started, for those who did not choose that there be any. Raises ConfigError."""
    try:
        yield
    except (PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"workers: what they need does not travel to a process of {method} ({error}); define transform, decode and "
            "collate_fn at the top of a module, or take workers='thread'"
        ) from error
    except AssertionError as error:
        raise ConfigError(f"workers: {error}; take workers='thread' or num_workers=0 here") from error


def _limit(wire: Connection, seconds: float) -> None:
    """Let no read or write of a wire wait longer, even for the rest of a message: BlockingIOError then."""
    length = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with transport.socket_of(wire) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, length)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, length)


def _settled(outcome: Any) -> Batch:
    if isinstance(outcome, Failed):
        if outcome.text:
            outcome.error.add_note(f"In a worker process:\n{outcome.text}")
        raise outcome.error
    value, faults = outcome
    return Batch(value, faults)


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"with exit code {exit_code}"
    try:
        return f"by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"by signal {-exit_code}"
