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


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_second: int, trip: Trip) -> bytes:
    """The body, or its start when that is longer than `max_bytes`, which the caller sees by its length.

    Raises FetchFault: too_slow when fewer than five seconds' worth of bytes came in five seconds, timeout when `trip`
    has no time left.
    """
    content = response.content
    body = bytearray(content.read_nowait())  # small bodies come with their headers, and need no timer
    try:
        start = len(body)
        while len(body) <= max_bytes and not content.at_eof() and not await _is_over(content, body, max_bytes, trip):
            if len(body) - start < min_bytes_per_second * _RATE_WINDOW_SECONDS:
                raise FetchFault("too_slow")
            start = len(body)
        return bytes(body)
    finally:
        trip.num_body_bytes += len(body)


async def _is_over(content: aiohttp.StreamReader, body: bytearray, max_bytes: int, trip: Trip) -> bool:
    """Whether the rest of `content`, or more than `max_bytes`, came into `body` within five seconds."""
    end = asyncio.get_running_loop().time() + _RATE_WINDOW_SECONDS
    try:
        async with asyncio.timeout_at(min(end, trip.until)):
            async for chunk in content.iter_any():
                body += chunk
                if len(body) > max_bytes:
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
