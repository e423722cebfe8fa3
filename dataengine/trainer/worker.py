"""What a worker process does: makes batches of the tickets that it is sent, until its parent hangs up or is gone."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import select
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from dataengine.trainer import transport
from dataengine.trainer.batches import Batch, BatchMaker, BatchPlan
from dataengine.trainer.schedule import Ticket
from dataengine.trainer.shuffle import mixed

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent dies
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's; looked up here, where forks share it


class Asked(NamedTuple):
    """A ticket by number, and the oldest number that is still wanted: what was asked for before is forgotten."""

    number: int
    oldest: int
    ticket: Ticket


@dataclass(frozen=True)
class Failed:
    """What making a batch raised, with its traceback as text."""

    error: BaseException
    text: str


@dataclass(frozen=True)
class Inherited:
    """What a fork has of its parent: whose it is, wires to others, and handlers of signals."""

    parent: int
    wires: list[Connection]
    handled: list[int]


def work(plan: BatchPlan, wire: Connection, ahead: int, inherited: Inherited | None) -> None:
    """Answer what is asked over `wire`, until the parent hangs up or is gone.

    `ahead` answers at most are under way. Without `inherited` this is no fork of the parent, but of a server that makes
    processes and ends with it.
    """
    if inherited is None:
        inherited = Inherited(os.getppid(), [], [])
    _let_signals_be(inherited.handled)
    _end_with(inherited.parent)
    # One thread each, as torch's own workers have: more would fight, and those of a parent are not in its fork.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    for other in inherited.wires:
        other.close()
    maker: BatchMaker | None = None
    sender = transport.Sender(wire, ahead)
    for number, ticket in _wanted(wire):
        try:
            maker = maker or BatchMaker(plan)
            if plan.runs_own_code:
                _seed(int(mixed(plan.maker.seed, plan.rank, ticket.step)[0]))
            outcome: Any = maker.make(ticket)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training loop has to hear of it
            outcome = _failed(error)
        try:
            _answer(sender, number, outcome)
        except (BrokenPipeError, ConnectionResetError):
            return


def handled_signals() -> list[int]:
    """Signals that this process handles by a function; asking takes memory, which a fork would have for itself."""
    return [int(number) for number in signal.valid_signals() if callable(signal.getsignal(number))]


def _let_signals_be(handled: list[int]) -> None:
    """Handle none as the parent does, whose handlers a fork has: they speak of the training run, and to its loop."""
    for number in {*handled, int(signal.SIGINT)}:  # the parent, which gets it too, ends its workers
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


def _end_with(parent: int) -> None:
    """Have this process end when its parent does, whatever it is doing. Not by a thread, which takes 150 kB of each."""

    def look(*_: Any) -> None:
        if os.getppid() != parent:  # else a mere thread of the parent has ended, which made this process
            os._exit(1)

    if _PRCTL is not None:
        signal.signal(signal.SIGRTMIN, look)
        _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGRTMIN))
    look()  # it may have died already


def _wanted(wire: Connection) -> Iterator[tuple[int, Ticket]]:
    """What to make, in turn, until the parent hangs up."""
    poller = select.poll()  # a tenth of what Connection.poll() costs, which makes one each time
    poller.register(wire, select.POLLIN)
    asked: deque[Asked] = deque()
    while True:
        # All that has come is read before the next batch is made: the parent, which may have forgotten what it asked
        # for, never waits long for room in the wire.
        while poller.poll(0 if asked else None):
            try:
                asked.append(wire.recv())
            except (EOFError, OSError):
                return
        while asked[0].number < asked[-1].oldest:
            asked.popleft()
        number, _, ticket = asked.popleft()
        yield number, ticket


def _seed(seed: int) -> None:
    """Seed what a user's code may draw from, lest every fork draws what its siblings draw."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - it is the one that others use
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(seed)


def _answer(sender: transport.Sender, number: int, outcome: Any) -> None:
    if isinstance(outcome, Batch):
        outcome = (outcome.value, outcome.faults)
    try:
        sender.send(number, outcome)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # noqa: BLE001 - a batch that cannot be sent
        text = traceback.format_exc()
        sender.send(number, Failed(RuntimeError(f"a worker's result cannot be sent: {error!r}"), text))


def _failed(error: BaseException) -> Failed:
    """`error`, or where it would not come out of a pickle as it went in, one that tells of it."""
    text = "".join(traceback.format_exception(error))
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301 - its own
    except Exception:  # noqa: BLE001 - a class of the user's own, of which anything may be expected
        same = False
    return Failed(error if same else RuntimeError(f"{type(error).__qualname__}: {error}"), text)
