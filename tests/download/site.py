"""A loopback server that says exactly what a test wants said, byte for byte."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]
Route = bytes | Handler | list[bytes]


def reply(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


NOT_FOUND = reply(b"", "404 Not Found")


class Site:
    """A loopback server that answers each path with raw bytes, in turn, or a handler."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self.requests: list[str] = []
        self.num_open = self.max_open = 0
        self.port = 0

    @property
    def paths(self) -> Counter[str]:
        return Counter(request.split(" ")[1] for request in self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = request.split(" ")[1]
                self.requests.append(request)
                route = self.routes.get(path, NOT_FOUND)
                if isinstance(route, list):
                    route = route[min(self.paths[path], len(route)) - 1]
                if not isinstance(route, bytes):
                    await route(writer)
                    return
                writer.write(route)
                if b"Content-Length" not in route:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self.num_open -= 1
            writer.close()


@asynccontextmanager
async def serving(routes: Mapping[str, Route]) -> AsyncIterator[Site]:
    site = Site(routes)
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
