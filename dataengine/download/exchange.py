"""Makes single HTTP requests to strangers, and turns whatever they do into a reason.

In goes a URL; out comes a response within bounds of time and of headers, or a FetchFault. What is decided here: which
URLs are asked at all, wherever they came from, how faults of the network are named, which of them pass by themselves,
and that redirects are followed by hand, so that every hop is checked and waits for its turn. Nothing here knows about
images, permissions or retries.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import ssl
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from yarl import URL

from dataengine.download.guard import BlockedAddress, BlockedPort, check_literal, check_port
from dataengine.download.outcomes import is_transient
from dataengine.download.pace import Refusal
from dataengine.download.resolve import NoSuchName
from dataengine.download.turns import GivenUp, Trip, Turns

if TYPE_CHECKING:
    from aiohttp.client import ClientTimeout
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from dataengine.config.download import FetchConfig, GuardConfig
    from dataengine.download.resolve import GuardedResolver

Received = TypeVar("Received")

_MAX_HEADER_BYTES = 16 * 1024  # one header, of 128; security policies of large sites pass the usual 8 KiB
_MAX_STALE = 8  # connections thrown away before a server counts as one that talks out of turn
_MAX_IDLE = 4096  # connections kept for later requests; each takes some 4 KB here, and more of a server
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 503)
_HEADERS = {"Accept": "image/jpeg,image/png,image/webp,image/gif,*/*;q=0.1", "Accept-Encoding": "identity"}
_TIME_USED_UP = frozenset({"timeout", "too_slow", "truncated"})
_UNREACHED = frozenset({"dns", "connect", "timeout"})  # without an answer, these slow a host down
# First match wins: aiohttp's later ones are ancestors of its earlier ones, and OSError is one of TimeoutError.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (BlockedAddress, "blocked_address"),
    (BlockedPort, "blocked_port"),
    (aiohttp.InvalidURL, "bad_url"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (ssl.SSLError, "tls"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ConnectionTimeoutError, "connect"),
    (aiohttp.ClientConnectionError, "reset"),
    (TimeoutError, "timeout"),
    (OSError, "reset"),
    (aiohttp.ClientPayloadError, "truncated"),
    (aiohttp.ClientError, "protocol"),
)
_FAULTS = tuple(kind for kind, _ in _REASONS)


class FetchFault(Exception):
    """Why a URL gave no image; `evidence` is the rule or header that forbids it.

    `is_unasked`: the reason is that of the host's last refusal, and this URL was not asked for. `is_final`: asking
    again at once would give the same answer.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after_seconds: float | None = None,
        evidence: str | None = None,
        is_unasked: bool = False,
        is_final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.evidence = evidence
        self.is_unasked = is_unasked
        self.is_final = is_final

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed soon, and did not use up its time."""
        passes = is_transient(self.reason) and self.reason not in _TIME_USED_UP
        return passes and not self.is_unasked and not self.is_final


@dataclass
class _Hop:
    """A request under way, as its connection sees it."""

    until: float
    timeout: asyncio.Timeout
    protocol: ResponseHandler | None = None


_HOP: ContextVar[_Hop] = ContextVar("_HOP")


class _Connector(aiohttp.TCPConnector):
    """Connections without leftovers of earlier responses, a bounded number of them idle.

    Once there is a connection, the headers must come within `first_byte_seconds`.
    """

    def __init__(self, resolver: GuardedResolver, first_byte_seconds: float) -> None:
        super().__init__(resolver=resolver, limit=0, use_dns_cache=False)  # the resolver keeps what it finds
        self._first_byte_seconds = first_byte_seconds
        self._idle: dict[ResponseHandler, None] = {}

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        """A connection on which nothing waits to be read."""
        hop = _HOP.get()
        for _ in range(_MAX_STALE):
            connection = await super().connect(req, traces, timeout)
            assert connection.protocol is not None
            self._idle.pop(connection.protocol, None)
            if not connection.protocol.should_close:
                hop.protocol = connection.protocol
                hop.timeout.reschedule(min(hop.until, self._loop.time() + self._first_byte_seconds))
                return connection
            # What came after the end of a response must not be taken for the next one.
            connection.close()
        raise aiohttp.ClientConnectionError("the server talks before it is asked")

    def rest(self, protocol: ResponseHandler) -> None:
        """The request on this connection is over; those that rest longest make room."""
        if protocol.is_connected():
            self._idle[protocol] = None
            if len(self._idle) > _max_idle():
                oldest = next(iter(self._idle))
                del self._idle[oldest]
                oldest.close()


@cache
def _max_idle() -> int:
    """A quarter of the open files that this process may have, as most machines grant 1,024."""
    return min(_MAX_IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] % 2**31 // 4)


def parse_url(text: str, base: URL | None = None) -> URL:
    """The http or https URL that `text` spells, or means relative to `base`; without user and fragment.

    Raises FetchFault bad_url.
    """
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        if url.scheme in ("http", "https") and url.host and url.port:
            if ":" in url.host:  # RFC 3986 has addresses of future versions as well, of which there are none
                ipaddress.IPv6Address(url.host)
            url = url if url.raw_user is None and url.raw_password is None else url.with_user(None)
            return url.with_fragment(None)
    except ValueError as error:
        raise FetchFault("bad_url") from error
    raise FetchFault("bad_url")


class Exchange:
    """A pool of connections that asks for one URL at a time; close it in the event loop it was made in.

    `now` tells the time in UTC; a URL that `forbids` names an entry for is not asked.
    """

    def __init__(
        self,
        config: FetchConfig,
        guard: GuardConfig,
        resolver: GuardedResolver,
        turns: Turns,
        now: Callable[[], datetime],
        forbids: Callable[[str], str | None],
    ) -> None:
        self._guard = guard
        self._turns = turns
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._forbids = forbids
        self._connector = _Connector(self._resolver, config.first_byte_seconds)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers=_HEADERS | {"User-Agent": config.user_agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # no proxies and no netrc
            auto_decompress=False,  # aiohttp inflates without a bound
            max_field_size=_MAX_HEADER_BYTES,
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()
        await self._resolver.close()

    async def follow(
        self,
        url: URL,
        max_redirects: int,
        receive: Callable[[aiohttp.ClientResponse, Trip], Awaitable[Received]],
        trip: Trip,
        *,
        permit: Callable[[URL, Trip], Awaitable[None]] | None = None,
        observe: Callable[[aiohttp.ClientResponse], None] | None = None,
    ) -> Received:
        """What `receive` makes of the response at the end of all redirects.

        `permit` is asked before each hop and may raise; `observe` sees each response. Raises FetchFault, timeout when
        servers take longer than `trip` has left.
        """
        for _ in range(max_redirects + 1):
            entry = self._forbids(str(url))
            if entry is not None:
                raise FetchFault("blocklist", evidence=entry)
            if permit is not None:
                await permit(url, trip)
            answer = await self._ask(url, receive, trip, observe)
            if not isinstance(answer, _Location):
                return answer
            url = parse_url(answer, url)
        raise FetchFault("redirects")

    async def _ask(
        self,
        url: URL,
        receive: Callable[[aiohttp.ClientResponse, Trip], Awaitable[Received]],
        trip: Trip,
        observe: Callable[[aiohttp.ClientResponse], None] | None,
    ) -> Received | _Location:
        """What one response comes to: a place to go to, or what `receive` says."""
        host = url.raw_host or ""
        await self._admit(url, host, trip)
        started = self._loop.time()
        trip.start(started)
        hop = _Hop(trip.until, asyncio.timeout_at(trip.until))
        _HOP.set(hop)
        response, refusal = None, None
        try:
            async with hop.timeout:
                response = await self._session.get(url, allow_redirects=False)
            refusal = self._refusal(response)
            async with response:
                if observe is not None:
                    observe(response)
                location = response.headers.get("Location")
                if location is not None and response.status in _REDIRECTS:
                    return _Location(location)
                return await receive(response, trip)
        except _FAULTS as error:
            reason, is_absent = _reason(error), _is_absent(error)
            # A name that does not exist has no server that rest would help; asking for it again is in vain.
            if response is None and reason in _UNREACHED and not is_absent:
                refusal = Refusal(reason)
            raise FetchFault(reason, is_final=is_absent) from error
        finally:
            if hop.protocol is not None:
                self._connector.rest(hop.protocol)
            trip.stop(self._loop.time())
            self._turns.give(host, started, refusal)

    async def _admit(self, url: URL, host: str, trip: Trip) -> None:
        """Wait for a turn at `host`, when it may be asked at all."""
        try:
            check_literal(host, self._guard)
            check_port(host, url.port, self._guard)
            if trip.left_seconds <= 0:
                raise FetchFault("timeout")
            if not self._turns.take_now(host):
                await trip.aside(self._turns.take(host))
        except (BlockedAddress, BlockedPort) as error:
            raise FetchFault(_reason(error)) from error
        except GivenUp as refused:
            raise FetchFault(refused.reason, is_unasked=True) from refused

    def _refusal(self, response: aiohttp.ClientResponse) -> Refusal | None:
        if response.status not in _BUSY:
            return None
        wait = retry_after_seconds(response.headers.get("Retry-After"), self._now())
        return Refusal(f"http_{response.status}", wait)


class _Location(str):
    """Where a redirect leads."""


def _reason(error: Exception) -> str:
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))


def _is_absent(error: Exception) -> bool:
    """Whether DNS says that there is no such host."""
    return isinstance(error, aiohttp.ClientConnectorDNSError) and isinstance(error.os_error, NoSuchName)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """How long a Retry-After header asks to wait, be it seconds or a date; None when it says nothing."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())
