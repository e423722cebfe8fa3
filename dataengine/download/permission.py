"""Asks the robots.txt of every origin, once, whether its images may be fetched.

In goes a URL; out comes silence or a FetchFault. As RFC 9309 says, a robots.txt that does not exist allows
everything, and one that cannot be had now allows nothing for now. What a rule means is decided in robots.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dataengine.download.exchange import Exchange, FetchFault, read_body
from dataengine.download.robots import MAX_ROBOTS_BYTES, RobotsRules, parse_robots

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from dataengine.config.download import FetchConfig

_MAX_REDIRECTS = 5  # as many as RFC 9309 wants followed
_MAX_ORIGINS = 4096  # remembered at a time
_SAME_FOR_IMAGES = frozenset({"dns", "connect", "tls", "blocked_address"})


class RobotsGate:
    """Remembers the rules of every origin for one robot; `close` it in the event loop it is used in."""

    def __init__(self, exchange: Exchange, agent: str, config: FetchConfig) -> None:
        self._exchange = exchange
        self._agent = agent
        self._config = config
        self._asked: dict[URL, asyncio.Task[RobotsRules | FetchFault]] = {}

    async def check(self, url: URL) -> None:
        """Raises FetchFault robots with the forbidding line, or robots_unreachable.

        An origin that cannot be connected to keeps its own reason, because images fail for it all the same.
        """
        origin = url.origin()
        if origin not in self._asked:
            self._forget_oldest()
            self._asked[origin] = asyncio.create_task(self._ask(origin))
        asked = self._asked[origin]
        # Shielded: other URLs of the origin wait for the same answer when this one runs out of time.
        answer = await asyncio.shield(asked)
        if isinstance(answer, FetchFault):
            if self._asked.get(origin) is asked:
                del self._asked[origin]  # the next attempt asks again
            raise FetchFault(answer.reason, retry_after_seconds=answer.retry_after_seconds)
        line = answer.forbidding(url.raw_path_qs)
        if line is not None:
            raise FetchFault("robots", evidence=f"robots.txt: {line}")

    async def close(self) -> None:
        """Gives up what is being asked."""
        for asked in self._asked.values():
            asked.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def _forget_oldest(self) -> None:
        if len(self._asked) >= _MAX_ORIGINS:
            del self._asked[next(iter(self._asked))]

    async def _ask(self, origin: URL) -> RobotsRules | FetchFault:
        try:
            async with asyncio.timeout(self._config.total_seconds):
                return await self._exchange.follow(origin / "robots.txt", _MAX_REDIRECTS, self._receive)
        except TimeoutError:
            return FetchFault("robots_unreachable")
        except FetchFault as fault:
            if fault.reason == "redirects":
                return RobotsRules()
            return fault if fault.reason in _SAME_FOR_IMAGES else FetchFault("robots_unreachable")

    async def _receive(self, response: aiohttp.ClientResponse) -> RobotsRules:
        if response.status >= 500:
            raise FetchFault("robots_unreachable")
        if response.status != 200:
            return RobotsRules()
        body = await read_body(response, MAX_ROBOTS_BYTES, self._config.min_bytes_per_second)
        return parse_robots(body, self._agent)
