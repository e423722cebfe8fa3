"""A loopback server with every bad habit that a download worker meets; the path says which, and the URL's number."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.download.site import NOT_FOUND, reply

EVIL = b"bytes that nobody asked for"
BOMB_BYTES = 300 * 2**20

Habit = Callable[[asyncio.StreamWriter, int], Awaitable[bool]]
"""Answers a request; says whether the connection stays open."""


def body_of(number: int) -> bytes:
    """What an honest server has under this number, a few kilobytes of it."""
    return random.Random(number).randbytes(1000 + 37 * (number % 100))


async def good(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(body_of(number)))
    return True


async def silent(writer: asyncio.StreamWriter, number: int) -> bool:
    await asyncio.sleep(60)
    return False


async def slow_header(writer: asyncio.StreamWriter, number: int) -> bool:
    await _drip(writer, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 4000)
    return False


async def slow_body(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    await _drip(writer, b"x" * 4000, seconds=1.0)
    return False


async def steady_body(writer: asyncio.StreamWriter, number: int) -> bool:
    """A live stream: not slow, not large, without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n")
    for _ in range(200):
        writer.write(b"x" * 1000)
        await writer.drain()
        await asyncio.sleep(0.1)
    return False


async def endless_body(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for count in itertools.count():
        writer.write(b"X-%d: %s\r\n" % (count, b"x" * 1000))
        await writer.drain()
    return False


async def endless_header(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        writer.write(b"x" * 1000)
        await writer.drain()


async def redirect_loop(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(b"", "302 Found", f"Location: /redirect_loop/{number}"))
    return True


async def redirect_chain(writer: asyncio.StreamWriter, number: int) -> bool:
    """10,000 of them."""
    end = number // 10_000 * 10_000 + 9_999
    step = reply(b"", "301 Moved", f"Location: /redirect_chain/{number + 1}")
    writer.write(step if number < end else reply(b"the end"))
    return True


async def short_body(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(body_of(number))[:-500])
    return False


async def long_body(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(body_of(number)) + b"x" * 500)
    return True


async def gzip_bomb(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(_bomb(), "200 OK", "Content-Encoding: gzip", "Content-Type: image/jpeg"))
    return True


async def html(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(b"<html>gone</html>", "200 OK", "Content-Type: image/jpeg"))
    return True


async def reset(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await writer.drain()
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def desync(writer: asyncio.StreamWriter, number: int) -> bool:
    """Two responses to one request, the second of which belongs to none."""
    writer.write(reply(body_of(number)) + reply(EVIL))
    return True


async def late_desync(writer: asyncio.StreamWriter, number: int) -> bool:
    writer.write(reply(body_of(number)))
    await asyncio.sleep(0.05)
    writer.write(reply(EVIL))
    return True


HABITS: dict[str, Habit] = {
    habit.__name__: habit
    for habit in (
        *(good, silent, slow_header, slow_body, steady_body, endless_body, endless_headers, endless_header),
        *(redirect_loop, redirect_chain, short_body, long_body, gzip_bomb, html, reset, desync, late_desync),
    )
}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        stays_open = True
        while stays_open:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            if path == "/robots.txt":
                writer.write(NOT_FOUND)
                continue
            _, name, number = path.split("/")
            stays_open = await HABITS[name](writer, int(number))
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        return
    finally:
        writer.close()


async def _stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads the start of TLS, and never answers."""
    try:
        while await reader.read(4096):
            pass
    except (ConnectionError, asyncio.CancelledError):
        return
    finally:
        writer.close()


@asynccontextmanager
async def hostile_servers() -> AsyncIterator[tuple[int, int]]:
    """The ports of the server, and of one that stalls."""
    _bomb()  # takes a second, in which nobody would be served
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    stalling = await asyncio.start_server(_stall, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], stalling.sockets[0].getsockname()[1]
    finally:
        server.close()
        stalling.close()


async def _drip(writer: asyncio.StreamWriter, content: bytes, seconds: float = 0.1) -> None:
    for byte in content:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(seconds)


@functools.cache
def _bomb() -> bytes:
    deflater = zlib.compressobj(wbits=zlib.MAX_WBITS + 16)
    megabyte = bytes(2**20)
    chunks = [deflater.compress(megabyte) for _ in range(BOMB_BYTES // len(megabyte))]
    return b"".join(chunks) + deflater.flush()
