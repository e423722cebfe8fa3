"""Fetches URLs politely and gives every one of them exactly one outcome.

In go URLs, bounds and a clock; out comes a Fetched per URL, in the order of completion: the bytes as sent, or
the reason why there are none, with the evidence. What is decided here: one deadline over all attempts at a URL, which
faults are tried again and when, that opt-outs are read before bodies are, and how many URLs are under way. What
strangers do is never an exception, unless all of them seem dead at once. Nothing here knows what an image is.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

import aiohttp

from dataengine.download.body import read_content
from dataengine.download.exchange import Exchange, FetchFault, parse_url, retry_after_seconds
from dataengine.download.health import HealthGate
from dataengine.download.known_hosts import KnownHosts, new_hosts
from dataengine.download.opt_out import agent_token, opt_out
from dataengine.download.pace import Lane, Lanes
from dataengine.download.permission import RobotsGate
from dataengine.download.resolve import GuardedResolver
from dataengine.download.turns import Seats, Trip, Turns

if TYPE_CHECKING:
    from types import TracebackType

    from yarl import URL

    from dataengine.config.download import DownloadConfig

_FIRST_WAIT_SECONDS = 0.5
_MAX_TEXT_CHARS = 512  # of a stranger's header in our tables
_MAX_VISITS_PER_SEAT = 64  # under way, most of them waiting for their turn, at some 10 KB each
_HOST = re.compile(r"\s*https?://(?:[^/?#]*@)?([^/?#:]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """The outcome of one URL: `content`, or the `reason` why there is none."""

    content: bytes | None
    reason: str | None
    http_status: int | None
    """Of the last response, as are final_url, content_type and fetched_at."""
    final_url: str | None
    content_type: str | None
    evidence: str | None
    """The header or rule that forbids use, or the entry of a block-list."""
    fetched_at: datetime | None
    num_attempts: int
    """0 when the URL is bad, and when its host wants to be left alone; the reason is then that of others."""
    host: str | None
    """Of the URL asked; None when it is bad."""
    seconds: float
    """That servers took, for robots.txt as well."""
    num_body_bytes: int
    """Received, be they of use or not."""


@dataclass
class _Visit:
    """What is known so far about one URL."""

    trip: Trip
    host: str | None = None
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None
    fetched_at: datetime | None = None
    num_attempts: int = 0

    def saw(self, response: aiohttp.ClientResponse, at: datetime) -> None:
        self.http_status = response.status
        self.final_url = str(response.url)
        self.content_type = _clean(response.headers.get("Content-Type"))
        self.fetched_at = at

    def outcome(self, content: bytes | None, reason: str | None, evidence: str | None = None) -> Fetched:
        return Fetched(
            content, reason, self.http_status, self.final_url, self.content_type, _clean(evidence),
            self.fetched_at, self.num_attempts, self.host, self.trip.used_seconds, self.trip.num_body_bytes,
        )  # fmt: skip


class Fetcher:
    """Fetches URLs within one event loop, as one of `num_workers` workers that share each host's budget.

    Use as an async context manager. `now` tells the time in UTC; `hosts` is what is known of them from before;
    `forbids` names the entry of a block-list that holds a URL, if any does.
    """

    def __init__(
        self,
        config: DownloadConfig,
        num_workers: int,
        now: Callable[[], datetime],
        *,
        hosts: KnownHosts | None = None,
        forbids: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._config = config
        self._now = now
        self._agent = agent_token(config.fetch.user_agent)
        self._jitter = random.Random()
        self._hosts = hosts if hosts is not None else new_hosts(config.fetch, num_workers)
        self.pace = self._hosts.pace
        self._forbids = forbids

    async def __aenter__(self) -> Self:
        fetch, guard = self._config.fetch, self._config.guard
        resolver = GuardedResolver(guard, fetch, self._hosts.answers)
        self._exchange = Exchange(fetch, guard, resolver, Turns(self.pace), self._now, self._forbids)
        self._gate = RobotsGate(self._exchange, self._agent, fetch, self._hosts.rules)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._gate.close()
        await self._exchange.close()

    async def fetch(self, url: str, seats: Seats | None = None) -> Fetched:
        """The outcome of `url` within the deadline; never raises for what a stranger does.

        One of `seats` is the caller's; it is left whenever the URL has to wait.
        """
        visit = _Visit(Trip(self._config.fetch.total_seconds, seats))
        try:
            parsed = parse_url(url)
            visit.host = parsed.raw_host
            return visit.outcome(await self._fetch(parsed, visit), None)
        except FetchFault as fault:
            return visit.outcome(None, fault.reason, fault.evidence)

    async def _fetch(self, url: URL, visit: _Visit) -> bytes:
        """The body, after as many attempts as the config and the deadline allow."""
        while True:
            visit.num_attempts += 1
            try:
                return await self._attempt(url, visit)
            except FetchFault as fault:
                visit.num_attempts -= fault.is_unasked
                if not fault.is_transient or visit.num_attempts > self._config.fetch.retries:
                    raise
                backoff = _FIRST_WAIT_SECONDS * 2 ** (visit.num_attempts - 1) * self._jitter.uniform(0.5, 1.5)
                wait = max(backoff, fault.retry_after_seconds or 0.0)
                # Waiting past the deadline would hide the true reason behind a timeout.
                if wait >= visit.trip.left_seconds:
                    raise
            visit.trip.left_seconds -= wait
            await visit.trip.aside(asyncio.sleep(wait))

    async def _attempt(self, url: URL, visit: _Visit) -> bytes:
        return await self._exchange.follow(
            url,
            self._config.limits.max_redirects,
            self._receive,
            visit.trip,
            permit=self._gate.check if self._config.honor_opt_out else None,
            observe=lambda response: visit.saw(response, self._now()),
        )

    async def _receive(self, response: aiohttp.ClientResponse, trip: Trip) -> bytes:
        if response.status != 200:
            wait = retry_after_seconds(response.headers.get("Retry-After"), self._now())
            # A status may be any digits that a stranger thinks of; the closed set has those of three.
            reason = f"http_{response.status:03d}" if response.status < 1000 else "protocol"
            raise FetchFault(reason, retry_after_seconds=wait)
        if self._config.honor_opt_out:
            forbidding = opt_out(
                response.headers.getall("X-Robots-Tag", []),
                self._agent,
                tdm_reservations=response.headers.getall("TDM-Reservation", []),
            )
            if forbidding is not None:
                raise FetchFault("opt_out", evidence=forbidding)
        fetch = self._config.fetch
        return await read_content(response, self._config.limits.max_body_bytes, fetch.min_bytes_per_second, trip)


Receiver = Callable[[int, Fetched], Awaitable[None] | None]


async def fetch_all(
    urls: Sequence[str],
    config: DownloadConfig,
    num_workers: int,
    now: Callable[[], datetime],
    on_result: Receiver,
    *,
    hosts: KnownHosts | None = None,
    forbids: Callable[[str], str | None] = lambda _: None,
) -> None:
    """Calls `on_result(position, fetched)` once per URL, as they complete.

    At most `config.fetch.concurrency` bodies are in memory, those that `on_result` awaits for included. `hosts` and
    `forbids` are those of Fetcher. What
    `on_result` raises ends it all, and so does the TryAgainError of a network that seems dead (`config.health`).
    """
    async with Fetcher(config, num_workers, now, hosts=hosts, forbids=forbids) as fetcher:
        crew = _Crew(fetcher, urls, config, on_result)
        try:
            await crew.run()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors


class _Crew:
    """Tasks that fetch one URL after another, as many as there are seats, and more while some wait aside."""

    def __init__(self, fetcher: Fetcher, urls: Sequence[str], config: DownloadConfig, on_result: Receiver) -> None:
        self._fetcher = fetcher
        self._urls = urls
        self._on_result = on_result
        self._health = HealthGate(config.health)
        self._seats = Seats(config.fetch.concurrency, self._fill)
        self._lanes = Lanes(map(_host, urls), fetcher.pace)
        self._num_left = len(urls)
        self._num_tasks = 0
        self._max_tasks = _MAX_VISITS_PER_SEAT * config.fetch.concurrency
        self._group: asyncio.TaskGroup | None = None
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()
        self._alarm: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Returns when every URL came to its outcome."""
        if not self._urls:
            return
        async with asyncio.TaskGroup() as self._group:
            self._fill()
            await self._finished
            self._stop()

    def _stop(self) -> None:
        self._group = None
        if self._alarm is not None:
            self._alarm.cancel()

    def _fill(self) -> None:
        """Seat as many tasks as there are seats, and URLs that need not wait."""
        while self._group is not None and self._seats.num_free and self._num_tasks < self._max_tasks:
            found = self._next()
            if found is None:
                return
            self._seats.num_free -= 1
            self._num_tasks += 1
            self._group.create_task(self._work(*found))

    def _next(self) -> tuple[Lane, int] | None:
        found = self._lanes.next(self._loop.time())
        moment = self._lanes.next_moment()
        if self._seats.num_free and moment is not None and (self._alarm is None or self._alarm.when() > moment):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(moment, self._ring)
        return found

    def _ring(self) -> None:
        self._alarm = None
        self._fill()

    async def _work(self, lane: Lane, position: int) -> None:
        found: tuple[Lane, int] | None = (lane, position)
        try:
            while found is not None:
                await self._visit(*found)
                found = None if self._seats.is_wanted else self._next()
        except BaseException:
            self._stop()
            raise
        self._num_tasks -= 1
        self._seats.leave()

    async def _visit(self, lane: Lane, position: int) -> None:
        fetched = await self._fetcher.fetch(self._urls[position], self._seats)
        if fetched.num_attempts:  # else it says nothing about the network
            self._health.record(fetched.reason)
        handled = self._on_result(position, fetched)
        if handled is not None:
            await handled
        self._lanes.finished(lane)
        self._num_left -= 1
        if not self._num_left:
            self._finished.set_result(None)


def _host(url: str) -> str:
    """The host of `url`, or nearly: it only says which URLs wait together."""
    found = _HOST.match(url)
    return found[1].lower() if found else ""


def _clean(text: str | None) -> str | None:
    """`text` fit for a table: valid Unicode, of bounded length."""
    if text is None:
        return None
    return text[:_MAX_TEXT_CHARS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
