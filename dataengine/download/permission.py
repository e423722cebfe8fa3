"""Asks the robots.txt of every origin, once, whether its images may be fetched.

In goes a URL; out comes silence or a FetchFault. As RFC 9309 says, a robots.txt that does not exist allows
everything, and one that cannot be had now allows nothing for now. What a rule means is decided in robots.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from dataengine.download.body import read_body
from dataengine.download.exchange import Exchange, FetchFault
from dataengine.download.robots import MAX_ROBOTS_BYTES, RobotsRules, parse_robots
from dataengine.download.turns import Seats, Trip

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from dataengine.config.download import FetchConfig

_MAX_REDIRECTS = 5  # as many as RFC 9309 wants followed
_MAX_ORIGINS = 4096  # remembered at a time
_SAME_FOR_IMAGES = frozenset({"dns", "connect", "tls", "blocked_address", "blocked_port", "bad_url"})


class _Question:
    """A robots.txt being asked for, and what came of it."""

    def __init__(self, trip: Trip, asking: Coroutine[None, None, RobotsRules | FetchFault]) -> None:
        self.trip = trip
        self.task = asyncio.create_task(asking)


class RobotsGate:
    """Remembers the rules of every origin for one robot; `close` it in the event loop it is used in."""

    def __init__(self, exchange: Exchange, agent: str, config: FetchConfig) -> None:
        self._exchange = exchange
        self._agent = agent
        self._config = config
        self._asked: dict[URL, _Question] = {}

    async def check(self, url: URL, trip: Trip) -> None:
        """Raises FetchFault robots with the forbidding line, or robots_unreachable.

        `trip` waits aside, and is charged for the seconds that the server took meanwhile. An origin that cannot be
        connected to keeps its own reason, because images fail for it all the same.
        """
        origin = url.origin()
        question = self._asked.get(origin)
        if question is None:
            question = self._asked[origin] = self._question(origin, trip.seats)
        answer = question.task.result() if question.task.done() else await self._wait(question, trip)
        if isinstance(answer, FetchFault):
            if self._asked.get(origin) is question:
                del self._asked[origin]  # the next attempt asks again
            raise FetchFault(
                answer.reason, retry_after_seconds=answer.retry_after_seconds, is_unasked=answer.is_unasked
            )
        line = answer.forbidding(url.raw_path_qs)
        if line is not None:
            raise FetchFault("robots", evidence=f"robots.txt: {line}")

    async def close(self) -> None:
        """Gives up what is being asked."""
        tasks = [question.task for question in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _question(self, origin: URL, seats: Seats | None) -> _Question:
        if len(self._asked) >= _MAX_ORIGINS:
            del self._asked[next(iter(self._asked))]
        trip = Trip(self._config.total_seconds, seats)
        return _Question(trip, self._seated(origin, trip))

    async def _wait(self, question: _Question, trip: Trip) -> RobotsRules | FetchFault:
        loop = asyncio.get_running_loop()
        before = question.trip.server_seconds(loop.time())
        # Shielded: other URLs of the origin wait for the same answer.
        answer = await trip.aside(asyncio.shield(question.task))
        trip.charge(question.trip.used_seconds - before)
        return answer

    async def _seated(self, origin: URL, trip: Trip) -> RobotsRules | FetchFault:
        if trip.seats is None:
            return await self._ask(origin, trip)
        await trip.seats.take()
        answer = await self._ask(origin, trip)
        trip.seats.leave()
        return answer

    async def _ask(self, origin: URL, trip: Trip) -> RobotsRules | FetchFault:
        try:
            return await self._exchange.follow(origin / "robots.txt", _MAX_REDIRECTS, self._receive, trip)
        except FetchFault as fault:
            if fault.reason == "redirects":
                return RobotsRules()
            keeps_reason = fault.is_unasked or fault.reason in _SAME_FOR_IMAGES
            return fault if keeps_reason else FetchFault("robots_unreachable")

    async def _receive(self, response: aiohttp.ClientResponse, trip: Trip) -> RobotsRules:
        # RFC 9309 has 4xx allow everything, but who asks for less traffic did not mean that.
        if response.status >= 500 or response.status == 429:
            raise FetchFault("robots_unreachable")
        if response.status != 200:
            return RobotsRules()
        body = await read_body(response, MAX_ROBOTS_BYTES, self._config.min_bytes_per_second, trip)
        return parse_robots(body, self._agent)
