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
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

from torch.utils.data._utils.worker import WorkerInfo

from dataengine.trainer.schedule import Point


@dataclass(frozen=True)
class Turn:
    """A worker's `number`-th iteration, as one of `workers` that share the seed `crew`."""

    crew: int
    number: int
    worker: int
    workers: int

    @classmethod
    def of(cls, info: WorkerInfo, number: int) -> Turn:
        """The turn of the worker that torch says this is."""
        return cls(info.seed - info.id, number, info.id, info.num_workers)


@dataclass(frozen=True)
class _Record:
    """`point` begins the iteration `number` of `crew`, whose workers in `done` have made their part.

    `pids` are those of the crew's workers, for torch may give the next crew the same seed.
    """

    point: Point
    crew: int | None = None
    number: int = 0
    pids: dict[int, int] = field(default_factory=dict)
    done: frozenset[int] = frozenset()

    def is_of(self, turn: Turn) -> bool:
        """Whether `turn` is of the same workers, this process one of them."""
        return self.crew == turn.crew and self.pids.get(turn.worker, os.getpid()) == os.getpid()


class SharedPoint:
    """A point that a dataset and the copies of it in torch's workers share, forked or spawned.

    Other copies, by `copy` or `pickle`, have their own.
    """

    def __init__(self, point: Point, descriptor: int | None = None) -> None:
        attached = descriptor is not None
        self._file = os.fdopen(
            descriptor if descriptor is not None else os.memfd_create("dataengine-point", os.MFD_CLOEXEC), "r+b", 0
        )
        if not attached:
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
            if not record.is_of(turn):
                record = _Record(record.point if resumed is None else resumed, turn.crew, turn.number)
            elif turn.number > record.number:
                record = replace(record, number=turn.number, done=frozenset())
            if resumed is not None and resumed.step < record.point.step:
                record = replace(record, point=resumed)
            self._write(replace(record, pids={**record.pids, turn.worker: os.getpid()}))
            return record.point

    def finish(self, turn: Turn, end: Point) -> None:
        """Note that the worker has made its part of the epoch, which goes to `end`."""
        with self._locked():
            record = self._read()
            if not record.is_of(turn) or record.number != turn.number:
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
        # Bytes that a longer record left behind are not read.
        point = tuple(vars(record.point).values())
        os.pwrite(self._file.fileno(), marshal.dumps((point, *list(vars(record).values())[1:])), 0)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return SharedPoint, (self.point,)
        return _attached, (self.point, DupFd(self._file.fileno()))


def _attached(point: Point, duplicate: Any) -> SharedPoint:
    return SharedPoint(point, duplicate.detach())
