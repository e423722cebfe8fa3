"""Reads bodies that strangers send.

In goes a response; out come its bytes, within bounds of size, pace and time, or a FetchFault. What is decided here:
that nothing is cut short silently, and that compressed bodies are inflated no further than the bound.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from dataengine.download.exchange import FetchFault

if TYPE_CHECKING:
    import aiohttp

    from dataengine.download.turns import Trip

_RATE_WINDOW_SECONDS = 5.0
_INFLATED = ("gzip", "x-gzip", "deflate")
_MEMBER = b"\x1f\x8b"  # RFC 1952: a file is one member after the other; what else follows is padding
_MAX_MEMBERS = 64  # empty ones of 20 bytes would cost the square of their number
_MAX_CHUNKS = 4096  # one that comes byte by byte takes 40 bytes a byte


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int, trip: Trip) -> bytes:
    """The body, or its start when that is longer than `max_bytes`, which the caller sees by its length.

    Raises FetchFault: too_slow when fewer than five seconds' worth of bytes came in five seconds, timeout when `trip`
    has no time left.
    """
    content = response.content
    # Joined once: growing one buffer copies a picture of 400 kB three times more, 2 % of what a picture costs.
    body = _Body([content.read_nowait()])  # small bodies come with their headers, and need no timer
    try:
        start = body.num_bytes
        while (
            body.num_bytes <= max_bytes and not content.at_eof() and not await _is_over(content, body, max_bytes, trip)
        ):
            if body.num_bytes - start < min_bytes_per_second * _RATE_WINDOW_SECONDS:
                raise FetchFault("too_slow")
            start = body.num_bytes
        return b"".join(body.chunks)
    finally:
        trip.num_body_bytes += body.num_bytes


class _Body:
    """What came so far."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.num_bytes = sum(map(len, chunks))

    def add(self, chunk: bytes) -> None:
        if len(self.chunks) >= _MAX_CHUNKS:
            self.chunks = [b"".join(self.chunks)]
        self.chunks.append(chunk)
        self.num_bytes += len(chunk)


async def _is_over(content: aiohttp.StreamReader, body: _Body, max_bytes: int, trip: Trip) -> bool:
    """Whether the rest of `content`, or more than `max_bytes`, came into `body` within five seconds."""
    end = asyncio.get_running_loop().time() + _RATE_WINDOW_SECONDS
    try:
        async with asyncio.timeout_at(min(end, trip.until)):
            async for chunk in content.iter_any():
                body.add(chunk)
                if body.num_bytes > max_bytes:
                    break
        return True
    except TimeoutError:
        if trip.until <= end:
            raise FetchFault("timeout") from None
        return False


async def read_content(
    response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int, trip: Trip
) -> bytes:
    """The whole body, inflated when the server compressed it although asked not to.

    Raises FetchFault: too_large (before reading, when the server says so), too_slow, timeout, truncated, protocol.
    """
    if (response.content_length or 0) > max_bytes:
        raise FetchFault("too_large")
    body = await read_body(response, max_bytes, min_bytes_per_second, trip)
    if len(body) > max_bytes:
        raise FetchFault("too_large")
    if _encoding(response) not in _INFLATED:
        return body
    content, is_whole = _inflate(body, max_bytes)
    if len(content) > max_bytes:
        raise FetchFault("too_large")
    if not is_whole:
        raise FetchFault("truncated")
    return content


async def read_start(response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int, trip: Trip) -> bytes:
    """At most the first `max_bytes` of the body, inflated as `read_content` does.

    Raises FetchFault: too_slow, timeout, and protocol for a body in an encoding that was not asked for.
    """
    body = await read_body(response, max_bytes, min_bytes_per_second, trip)
    encoding = _encoding(response)
    if encoding in _INFLATED:
        body, _ = _inflate(body, max_bytes)
    elif encoding not in ("", "identity"):
        raise FetchFault("protocol")
    return body[:max_bytes]


def _encoding(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Encoding", "").strip().lower()


def _inflate(body: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """What `body` inflates to, or somewhat more than the first `max_bytes` of it; and whether nothing is missing."""
    content = b""
    for _ in range(_MAX_MEMBERS):
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS + 32)  # gzip and zlib, told apart by their headers
        try:
            content += inflater.decompress(body, max_bytes + 1 - len(content))
        except zlib.error as error:
            raise FetchFault("protocol") from error
        body = inflater.unused_data
        if not body.startswith(_MEMBER) or len(content) > max_bytes:
            return content, inflater.eof
    raise FetchFault("protocol")
