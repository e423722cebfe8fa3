"""Calls that are made in threads, of which none that hangs holds up the others, or the end of the process.

In goes what is to be called; out comes a future. A call that nobody waits for any more is given up: it is not made, or
its thread is made up for until it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

_MAX_LOST = 256  # threads of calls that were given up and have not come back; further ones are not made up for
Found = TypeVar("Found")
_Asked = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class Calls:
    """`parallel` threads at most that make calls, and those of calls that were given up. They end with it."""

    def __init__(self, parallel: int, name: str) -> None:
        self._threads = _Threads(parallel, name)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Make no call that has not begun, and end the threads."""
        self._threads.close()

    def submit(self, call: Callable[[], Found]) -> Future[Found]:
        """Have a call made; calls begin in order."""
        future = Future[Found]()
        self._threads.asked.put((future, call))
        self._threads.start()
        return future

    def give_up(self, future: Future[Any]) -> None:
        """Wait for a call no more."""
        if not future.cancel():
            self._threads.lose(future)


class _Threads:
    """Daemons, unlike an executor's threads: one that hangs must not keep the process from ending."""

    def __init__(self, parallel: int, name: str) -> None:
        self.asked: _Asked = SimpleQueue()
        self._parallel, self._name = parallel, name
        self._lock, self._alive = Lock(), 0
        self._lost: set[Future[Any]] = set()

    def start(self) -> None:
        """One more thread, unless there are enough."""
        with self._lock:
            if self._alive - len(self._lost) >= self._parallel:
                return
            self._alive += 1
        Thread(target=self._work, daemon=True, name=self._name).start()

    def lose(self, future: Future[Any]) -> None:
        with self._lock:
            if future.done() or len(self._lost) >= _MAX_LOST:
                return
            self._lost.add(future)
        self.start()

    def close(self) -> None:
        with suppress(Empty):
            while (one := self.asked.get_nowait()) is not None:
                one[0].cancel()
        for _ in range(self._alive):
            self.asked.put(None)

    def _work(self) -> None:
        while (one := self.asked.get()) is not None:
            future, call = one
            if future.set_running_or_notify_cancel():
                _answer(future, call)
            with self._lock:
                is_lost = future in self._lost
                self._lost.discard(future)
                self._alive -= is_lost
            if is_lost:
                return
            del one, future, call  # and what they hold, before the next one is waited for


def _answer(future: Future[Found], call: Callable[[], Found]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whatever it is, who waits has to hear of it
        future.set_exception(error)
