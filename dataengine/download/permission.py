"""Asks the robots.txt of every origin, once, whether its images may be fetched.

In goes a URL; out comes silence or a FetchFault. As RFC 9309 says, a robots.txt that does not exist allows
everything, and one that cannot be had now allows nothing for now. What a rule means is decided in robots.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from dataengine.download.body import read_start
from dataengine.download.exchange import Exchange, FetchFault
from dataengine.download.robots import MAX_ROBOTS_BYTES, RobotsRules, parse_robots
from dataengine.download.turns import Seats, Trip

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from dataengine.config.download import FetchConfig

_MAX_REDIRECTS = 5  # as many as RFC 9309 wants followed
_MAX_ORIGINS = 4096  # remembered at a time
_MAX_AGE_SECONDS = 86_400.0  # RFC 9309, 2.4
_SAME_FOR_IMAGES = frozenset({"dns", "connect", "tls", "blocked_address", "blocked_port", "bad_url"})


class _Question:
    """A robots.txt being asked for, and what came of it."""

    def __init__(self, trip: Trip, asking: Coroutine[None, None, RobotsRules | FetchFault]) -> None:
        self.trip = trip
        self.task = asyncio.create_task(asking)


class RobotsGate:
    """Remembers the rules of every origin for one robot in `known`; `close` it in the event loop it is used in."""

    def __init__(
        self, exchange: Exchange, agent: str, config: FetchConfig, known: dict[URL, tuple[RobotsRules, float]]
    ) -> None:
        self._exchange = exchange
        self._agent = agent
        self._config = config
        self._known = known
        self._asked: dict[URL, _Question] = {}
        self._loop = asyncio.get_running_loop()

    async def check(self, url: URL, trip: Trip) -> None:
        """Raises FetchFault robots with the forbidding line, or robots_unreachable.

        `trip` waits aside, and is charged for the seconds that the server took meanwhile. An origin that cannot be
        connected to keeps its own reason, because images fail for it all the same.
        """
        origin = url.origin()
        rules, until = self._known.get(origin, (None, 0.0))
        if rules is None or until <= self._loop.time():
            rules = await self._rules(origin, trip)
        line = rules.forbidding(url.raw_path_qs)
        if line is not None:
            raise FetchFault("robots", evidence=f"robots.txt: {line}")

    async def close(self) -> None:
        """Gives up what is being asked."""
        tasks = [question.task for question in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rules(self, origin: URL, trip: Trip) -> RobotsRules:
        question = self._asked.get(origin)
        if question is None:
            question = self._asked[origin] = self._question(origin, trip.seats)
        before = question.trip.server_seconds(self._loop.time())
        # Shielded: other URLs of the origin wait for the same answer.
        answer = await trip.aside(asyncio.shield(question.task))
        trip.charge(question.trip.used_seconds - before)
        if isinstance(answer, FetchFault):
            raise FetchFault(
                answer.reason,
                retry_after_seconds=answer.retry_after_seconds,
                is_unasked=answer.is_unasked,
                is_final=answer.is_final,
            )
        return answer

    def _question(self, origin: URL, seats: Seats | None) -> _Question:
        trip = Trip(self._config.total_seconds, seats)
        question = _Question(trip, self._seated(origin, trip))
        question.task.add_done_callback(lambda task: self._settle(origin, task))
        return question

    def _settle(self, origin: URL, task: asyncio.Task[RobotsRules | FetchFault]) -> None:
        """Rules are remembered; after a fault, the next attempt asks again."""
        del self._asked[origin]
        answer = None if task.cancelled() or task.exception() else task.result()
        if isinstance(answer, RobotsRules):
            self._known.pop(origin, None)
            if len(self._known) >= _MAX_ORIGINS:
                del self._known[next(iter(self._known))]
            self._known[origin] = answer, self._loop.time() + _MAX_AGE_SECONDS

    async def _seated(self, origin: URL, trip: Trip) -> RobotsRules | FetchFault:
        if trip.seats is None:
            return await self._ask(origin, trip)
        await trip.seats.take()
        try:
            return await self._ask(origin, trip)
        finally:
            trip.seats.leave()

    async def _ask(self, origin: URL, trip: Trip) -> RobotsRules | FetchFault:
        answered: list[int] = []
        try:
            return await self._exchange.follow(
                origin / "robots.txt",
                _MAX_REDIRECTS,
                self._receive,
                trip,
                observe=lambda response: answered.append(response.status),
            )
        except FetchFault as fault:
            if fault.reason == "redirects":
                return RobotsRules()
            # Where a redirect of robots.txt leads says nothing about the images.
            keeps_reason = not answered and (fault.is_unasked or fault.reason in _SAME_FOR_IMAGES)
            return fault if keeps_reason else FetchFault("robots_unreachable")

    async def _receive(self, response: aiohttp.ClientResponse, trip: Trip) -> RobotsRules:
        # RFC 9309 has 4xx allow everything, but who asks for less traffic did not mean that.
        if response.status >= 500 or response.status == 429:
            raise FetchFault("robots_unreachable")
        if response.status != 200:
            return RobotsRules()
        body = await read_start(response, MAX_ROBOTS_BYTES, self._config.min_bytes_per_second, trip)
        return parse_robots(body, self._agent)
