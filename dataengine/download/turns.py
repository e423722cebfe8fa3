"""Lets coroutines wait for their turn at a host, and for a seat among those that ask at all.

In go hosts; out comes the moment at which each request may start, in order of arrival. What is decided here: that
whoever waits holds no seat which others could use, that those who come back go before those who start, and that the
time of our own queues is not a server's. When a turn comes is decided in pace.py; nothing here knows about URLs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dataengine.download.pace import Pace, Refusal

Awaited = TypeVar("Awaited")


class GivenUp(Exception):
    """A host wants to be left alone for longer than a part may wait; `reason` is that of its last refusal."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Queue:
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    alarm: asyncio.TimerHandle | None = None


class Turns:
    """Hands out turns at hosts; make and use it in one event loop."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._queues: dict[str, _Queue] = {}

    def take_now(self, host: str) -> bool:
        """Whether there is a turn at once; if so, it is taken. Raises GivenUp."""
        now = self._loop.time()
        reason = self._pace.given_up(host, now)
        if reason is not None:
            raise GivenUp(reason)
        return host not in self._queues and self._pace.start(host, now)

    async def take(self, host: str) -> None:
        """Wait for a turn, behind those who came before. Raises GivenUp."""
        queue = self._queues.setdefault(host, _Queue())
        turn = self._loop.create_future()
        queue.waiting.append(turn)
        self._advance(host)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give(host, self._loop.time())
            raise

    def give(self, host: str, started: float, refusal: Refusal | None = None) -> None:
        """The request that took its turn at `started` came to its end."""
        self._pace.end(host, started, self._loop.time(), refusal)
        if host in self._queues:
            self._advance(host)

    def _advance(self, host: str) -> None:
        """Hand out the turns there are, and come back when there will be more."""
        queue, now = self._queues[host], self._loop.time()
        if queue.alarm is not None:
            queue.alarm.cancel()
            queue.alarm = None
        reason = self._pace.given_up(host, now)
        while queue.waiting and (queue.waiting[0].done() or reason or self._pace.start(host, now)):
            turn = queue.waiting.popleft()
            if not turn.done():
                turn.set_exception(GivenUp(reason)) if reason else turn.set_result(None)
        if not queue.waiting:
            del self._queues[host]
        elif not self._pace.is_full(host, now):  # else the end of a request calls
            queue.alarm = self._loop.call_at(self._pace.ready_at(host, now), self._advance, host)


class Seats:
    """Seats of those that may ask at once, `num_free` of them; `on_free` is called when one is left over."""

    def __init__(self, num_free: int, on_free: Callable[[], None]) -> None:
        self.num_free = num_free
        self._on_free = on_free
        self._returning: deque[asyncio.Future[None]] = deque()

    def leave(self) -> None:
        """Give up a seat, to one that wants back if there is any."""
        while self._returning:
            waiting = self._returning.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self.num_free += 1
        self._on_free()

    async def take(self) -> None:
        """Have a seat, before those who only start."""
        if self.num_free:
            self.num_free -= 1
            return
        waiting = asyncio.get_running_loop().create_future()
        self._returning.append(waiting)
        await waiting

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a seat."""
        return bool(self._returning)


class Trip:
    """One URL's way through queues and servers: the time that servers may still take, and its seat.

    The time runs during requests; nobody pays for our own queues.
    """

    def __init__(self, seconds: float, seats: Seats | None = None) -> None:
        self.left_seconds = seconds
        self.used_seconds = 0.0
        """Of servers, in requests that ended."""
        self.num_body_bytes = 0
        """As received."""
        self.until = 0.0
        """When the request under way must end, by the clock of the event loop."""
        self.seats = seats
        self._started: float | None = None

    async def aside(self, waiting: Awaitable[Awaited]) -> Awaited:
        """What `waiting` comes to, while others use the seat."""
        if self.seats is None:
            return await waiting
        self.seats.leave()
        try:
            result = await waiting
        except Exception:
            await self.seats.take()
            raise
        await self.seats.take()
        return result

    def start(self, now: float) -> None:
        """A request starts."""
        self._started = now
        self.until = now + self.left_seconds

    def stop(self, now: float) -> None:
        """The request came to its end."""
        self.used_seconds = self.server_seconds(now)
        self.left_seconds = self.until - now
        self._started = None

    def server_seconds(self, now: float) -> float:
        """What servers took so far."""
        return self.used_seconds + (0.0 if self._started is None else now - self._started)

    def charge(self, seconds: float) -> None:
        """Count what a server took in a request that others made as well."""
        self.used_seconds += seconds
        self.left_seconds -= seconds
