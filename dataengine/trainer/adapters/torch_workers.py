"""What torch's workers agree on: the point that an iteration of all of them begins at, in memory that they share.

Torch makes workers from the parent's dataset, tells the parent nothing of them, and lets each begin, and leave an
iteration early, when it comes to it. So whichever worker begins an iteration first fixes where all begin it, and the
last to make its part of the epoch moves the point to the epoch's end. The memory has no name, so it goes with the last
process; its lock goes with the process that holds it, since torch kills workers that are slow to leave.
"""

from __future__ import annotations

import fcntl
import marshal
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import current_process, parent_process
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

from torch.utils.data._utils.worker import WorkerInfo

from dataengine.trainer.schedule import Point


@dataclass(frozen=True)
class Turn:
    """A worker's `number`-th iteration, from 1.

    `crew` is the parent's pid and the seed of its `workers` workers, of which this is the `process`-th process that the
    parent has made: another crew may be given the same seed.
    """

    crew: tuple[int, int]
    worker: int
    workers: int
    process: int
    number: int

    @classmethod
    def of(cls, info: WorkerInfo, number: int) -> Turn:
        """The turn of the worker that torch says this is."""
        parent = parent_process()
        crew = (0 if parent is None or parent.pid is None else parent.pid, info.seed - info.id)
        return cls(crew, info.id, info.num_workers, current_process()._identity[-1], number)


@dataclass(frozen=True)
class _Record:
    """`point` begins the iteration `number` of `crew`, whose workers in `done` have made their part.

    `processes` has the crew's workers that have begun.
    """

    point: Point
    crew: tuple[int, int] | None = None
    number: int = 0
    processes: dict[int, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()

    def is_after(self, turn: Turn) -> bool:
        """Whether its crew was made after that of `turn`, which so is of a worker that was slow to start."""
        if turn.number > 1 or self.crew is None or self.crew[0] != turn.crew[0]:
            return False
        return any(
            process > turn.process and (worker <= turn.worker or self.crew != turn.crew)
            for worker, process in self.processes.items()
        )

    def is_before(self, turn: Turn) -> bool:
        """Whether `turn` is of another crew, unless `is_after`."""
        return self.crew != turn.crew or any(
            process < turn.process and worker >= turn.worker for worker, process in self.processes.items()
        )


class SharedPoint:
    """A point that a dataset and the copies of it in torch's workers share, forked or spawned.

    Other copies, by `copy` or `pickle`, have their own.
    """

    def __init__(self, point: Point) -> None:
        self._file = os.fdopen(os.memfd_create("dataengine-point", os.MFD_CLOEXEC), "r+b", 0)
        self.go(point)

    @property
    def point(self) -> Point:
        """Where the iteration under way began, or, once it is over, where the next one begins."""
        with self._locked():
            return self._read().point

    def go(self, point: Point) -> None:
        """Let the next iteration begin at `point`. One that is under way moves it no more."""
        with self._locked():
            self._write(_Record(point))

    def begin(self, turn: Turn, resumed: Point | None = None) -> Point:
        """Where the iteration that `turn` is of begins: the same for all workers, whatever they did before.

        `resumed` is where this worker goes on in an iteration that was saved; the least of all workers' is where the
        next iteration begins should this one be left.
        """
        with self._locked():
            record = self._read()
            if record.is_after(turn):
                return record.point
            if record.is_before(turn):
                record = _Record(record.point if resumed is None else resumed, turn.crew, turn.number)
            elif turn.number > record.number:
                record = replace(record, number=turn.number, done=frozenset())
            if resumed is not None and resumed.step < record.point.step:
                record = replace(record, point=resumed)
            self._write(replace(record, processes=record.processes | {turn.worker: turn.process}))
            return record.point

    def finish(self, turn: Turn, end: Point) -> None:
        """Note that the worker has made its part of the epoch, which goes to `end`."""
        with self._locked():
            record = self._read()
            if record.number != turn.number or record.is_after(turn) or record.is_before(turn):
                return  # the iteration was left, and another has begun
            done = record.done | {turn.worker}
            self._write(replace(record, done=done, point=end if len(done) == turn.workers else record.point))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Not flock, which forked processes hold together.
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read(self) -> _Record:
        descriptor = self._file.fileno()
        point, *others = marshal.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        return _Record(Point(*point), *others)

    def _write(self, record: _Record) -> None:
        point, *others = vars(record).values()
        # What a longer record has left behind it is not read.
        os.pwrite(self._file.fileno(), marshal.dumps((tuple(vars(point).values()), *others)), 0)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return SharedPoint, (self.point,)
        return _attached, (DupFd(self._file.fileno()),)


def _attached(duplicate: Any) -> SharedPoint:
    shared = SharedPoint.__new__(SharedPoint)
    shared._file = os.fdopen(duplicate.detach(), "r+b", 0)
    return shared
