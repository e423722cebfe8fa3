"""Fetches URLs politely and gives every one of them exactly one outcome.

In go URLs, bounds and a clock; out comes a Fetched per URL, in the order of completion: the bytes as sent, or
the reason why there are none, with the evidence. What is decided here: one deadline over all attempts at a
URL, which faults are tried again and when, how many requests a host gets at once, and that opt-outs are read
before bodies are. What strangers do is never an exception. Nothing here knows what an image is.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

import aiohttp

from dataengine.download.exchange import Exchange, FetchFault, parse_url, read_content, retry_after_seconds
from dataengine.download.opt_out import agent_token, opt_out
from dataengine.download.permission import RobotsGate

if TYPE_CHECKING:
    from types import TracebackType

    from yarl import URL

    from dataengine.config.download import DownloadConfig

_FIRST_WAIT_SECONDS = 0.5
_MAX_TEXT_CHARS = 512  # of a stranger's header in our tables


@dataclass(frozen=True)
class Fetched:
    """The outcome of one URL: `content`, or the `reason` why there is none."""

    content: bytes | None
    reason: str | None
    http_status: int | None
    """Of the last response, as are final_url, content_type and fetched_at."""
    final_url: str | None
    content_type: str | None
    opt_out: str | None
    """The header or rule that forbids use."""
    fetched_at: datetime | None
    num_attempts: int


@dataclass
class _Visit:
    """What is known so far about one URL."""

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
            self.fetched_at, self.num_attempts,
        )  # fmt: skip


class Fetcher:
    """Fetches URLs within one event loop, as one of `num_workers` workers that share each host's budget.

    Use as an async context manager. `now` tells the time in UTC.
    """

    def __init__(self, config: DownloadConfig, num_workers: int, now: Callable[[], datetime]) -> None:
        self._config = config
        self._now = now
        self._agent = agent_token(config.fetch.user_agent)
        self.per_host = max(1, config.fetch.per_host // num_workers)

    async def __aenter__(self) -> Self:
        self._exchange = Exchange(self._config.fetch, self._config.hosts, self.per_host)
        self._gate = RobotsGate(self._exchange, self._agent, self._config.fetch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._gate.close()
        await self._exchange.close()

    async def fetch(self, url: str) -> Fetched:
        """The outcome of `url` within the deadline; never raises for what a stranger does."""
        visit = _Visit()
        try:
            async with asyncio.timeout(self._config.fetch.total_seconds) as deadline:
                content = await self._fetch(parse_url(url), visit, random.Random(url), deadline)
        except TimeoutError:
            return visit.outcome(None, "timeout")
        except FetchFault as fault:
            return visit.outcome(None, fault.reason, fault.evidence)
        return visit.outcome(content, None)

    async def _fetch(self, url: URL, visit: _Visit, jitter: random.Random, deadline: asyncio.Timeout) -> bytes:
        """The body, after as many attempts as the config and the deadline allow."""
        while True:
            visit.num_attempts += 1
            try:
                return await self._attempt(url, visit)
            except FetchFault as fault:
                if not fault.is_transient or visit.num_attempts > self._config.fetch.retries:
                    raise
                backoff = _FIRST_WAIT_SECONDS * 2 ** (visit.num_attempts - 1) * jitter.uniform(0.5, 1.5)
                wait = max(backoff, fault.retry_after_seconds or 0.0)
                # Waiting past the deadline would hide the true reason behind a timeout.
                if asyncio.get_running_loop().time() + wait >= (deadline.when() or 0.0):
                    raise
            await asyncio.sleep(wait)

    async def _attempt(self, url: URL, visit: _Visit) -> bytes:
        return await self._exchange.follow(
            url,
            self._config.limits.max_redirects,
            self._receive,
            permit=self._gate.check if self._config.honor_opt_out else None,
            observe=lambda response: visit.saw(response, self._now()),
        )

    async def _receive(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            wait = retry_after_seconds(response.headers.get("Retry-After"), self._now())
            raise FetchFault(f"http_{response.status}", retry_after_seconds=wait)
        if self._config.honor_opt_out:
            forbidding = opt_out(
                response.headers.getall("X-Robots-Tag", []),
                self._agent,
                tdm_reservation=response.headers.get("TDM-Reservation"),
            )
            if forbidding is not None:
                raise FetchFault("opt_out", evidence=forbidding)
        fetch = self._config.fetch
        return await read_content(response, self._config.limits.max_body_bytes, fetch.min_bytes_per_second)


async def fetch_all(
    urls: Sequence[str],
    config: DownloadConfig,
    num_workers: int,
    now: Callable[[], datetime],
    on_result: Callable[[int, Fetched], Awaitable[None] | None],
) -> None:
    """Calls `on_result(position, fetched)` once per URL, as they complete.

    At most `config.fetch.concurrency` bodies are in memory, those that `on_result` awaits for included. What
    `on_result` raises ends it all.
    """
    async with Fetcher(config, num_workers, now) as fetcher:
        lanes = _lanes(urls, fetcher.per_host)

        async def work() -> None:
            while lanes:
                lane = lanes.popleft()
                position = lane.popleft()
                handled = on_result(position, await fetcher.fetch(urls[position]))
                if handled is not None:
                    await handled
                if lane:
                    lanes.append(lane)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.fetch.concurrency, len(lanes))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors


def _lanes(urls: Sequence[str], per_host: int) -> deque[deque[int]]:
    """Positions of `urls` in lanes whose URLs are fetched one after another, `per_host` lanes a host.

    Nobody waits for a busy host while another one is idle, and a slow server holds no more than its lanes.
    """
    by_host: dict[str, list[int]] = {}
    for position, url in enumerate(urls):
        by_host.setdefault(_host(url), []).append(position)
    cuts = ((positions[start::per_host] for start in range(per_host)) for positions in by_host.values())
    return deque(deque(lane) for lanes in cuts for lane in lanes if lane)


def _host(url: str) -> str:
    try:
        return parse_url(url).host or ""
    except FetchFault:
        return ""


def _clean(text: str | None) -> str | None:
    """`text` fit for a table: valid Unicode, of bounded length."""
    if text is None:
        return None
    return text[:_MAX_TEXT_CHARS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
