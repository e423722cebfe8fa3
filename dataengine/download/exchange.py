"""Makes single HTTP requests to strangers, and turns whatever they do into a reason.

In goes a URL; out comes a response whose body is read within bounds of size and pace, or a FetchFault. What
is decided here: which URLs are asked at all, how faults of the network are named, which of them pass by
themselves, and that redirects are followed by hand, so that every hop is checked. Nothing here knows about
images, permissions or retries.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from yarl import URL

from dataengine.download.guard import BlockedAddress, GuardedResolver, check_literal

if TYPE_CHECKING:
    from dataengine.config.download import FetchConfig

Received = TypeVar("Received")

_RATE_WINDOW_SECONDS = 5.0
_DNS_CACHE_SECONDS = 300
_MAX_HEADER_BYTES = 16 * 1024  # one header; security policies of large sites pass the usual 8 KiB
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"Accept": "image/jpeg,image/png,image/webp,image/gif,*/*;q=0.1", "Accept-Encoding": "identity"}
_TRANSIENT = ("dns", "connect", "reset", "robots_unreachable", "http_429")
# First match wins: aiohttp's later ones are ancestors of its earlier ones.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (BlockedAddress, "blocked_address"),
    (aiohttp.InvalidURL, "bad_url"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (ssl.SSLError, "tls"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ConnectionTimeoutError, "connect"),
    (aiohttp.ClientConnectionError, "reset"),
    (OSError, "reset"),
    (aiohttp.ClientPayloadError, "truncated"),
    (aiohttp.ClientError, "protocol"),
)


class FetchFault(Exception):
    """Why a URL gave no image; `evidence` is the rule or header that forbids it."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None = None, evidence: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.evidence = evidence

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.reason in _TRANSIENT or self.reason.startswith("http_5")


def parse_url(text: str, base: URL | None = None) -> URL:
    """The http or https URL that `text` spells, or means relative to `base`; without user and fragment.

    Raises FetchFault bad_url.
    """
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        if url.scheme in ("http", "https") and url.host and url.port:
            return url.with_user(None).with_fragment(None)
    except ValueError as error:
        raise FetchFault("bad_url") from error
    raise FetchFault("bad_url")


class Exchange:
    """A pool of connections that asks for one URL at a time; close it in the event loop it was made in."""

    def __init__(self, config: FetchConfig, hosts: Mapping[str, str], per_host: int) -> None:
        self._resolver = GuardedResolver(hosts)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._resolver, limit=0, limit_per_host=per_host, ttl_dns_cache=_DNS_CACHE_SECONDS
            ),
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
        receive: Callable[[aiohttp.ClientResponse], Awaitable[Received]],
        *,
        permit: Callable[[URL], Awaitable[None]] | None = None,
        observe: Callable[[aiohttp.ClientResponse], None] | None = None,
    ) -> Received:
        """What `receive` makes of the response at the end of all redirects.

        `permit` is asked before each hop and may raise; `observe` sees each response. Raises FetchFault.
        """
        for _ in range(max_redirects + 1):
            if permit is not None:
                await permit(url)
            async with self._request(url) as response:
                if observe is not None:
                    observe(response)
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await receive(response)
            url = parse_url(location, url)
        raise FetchFault("redirects")

    @asynccontextmanager
    async def _request(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            check_literal(url.host or "")
            async with self._session.get(url, allow_redirects=False) as response:
                yield response
        except tuple(kind for kind, _ in _REASONS) as error:
            raise FetchFault(next(reason for kind, reason in _REASONS if isinstance(error, kind))) from error


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int) -> bytes:
    """The body, or its start when that is longer than `max_bytes`, which the caller sees by its length.

    Raises FetchFault too_slow when fewer than five seconds' worth of bytes came in five seconds.
    """
    body = bytearray()
    while True:
        start = len(body)
        try:
            async with asyncio.timeout(_RATE_WINDOW_SECONDS):
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > max_bytes:
                        break
                return bytes(body)
        except TimeoutError:
            if len(body) - start < min_bytes_per_second * _RATE_WINDOW_SECONDS:
                raise FetchFault("too_slow") from None


async def read_content(response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int) -> bytes:
    """The whole body, inflated when the server compressed it although asked not to.

    Raises FetchFault: too_large (before reading, when the server says so), too_slow, truncated, protocol.
    """
    if (response.content_length or 0) > max_bytes:
        raise FetchFault("too_large")
    body = await read_body(response, max_bytes, min_bytes_per_second)
    if len(body) > max_bytes:
        raise FetchFault("too_large")
    if response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate"):
        return _inflate(body, max_bytes)
    return body


def _inflate(body: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS + 32)  # gzip and zlib, told apart by their headers
    try:
        content = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise FetchFault("protocol") from error
    if len(content) > max_bytes:
        raise FetchFault("too_large")
    if not inflater.eof:
        raise FetchFault("truncated")
    return content


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
