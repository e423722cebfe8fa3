"""Serves a rendered sample web on the loopback address, faults included, from a process of its own, so that
its work is not counted as the client's. It knows pages and manners, never why a page is as it is.

Run by hand: ``python -m dataengine.testing.server DIRECTORY --port 8080``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from dataengine.testing.pages import CLOSED_HOST, Page, read_index

if TYPE_CHECKING:
    from dataengine.testing.web import SampleWeb

HITS = "/-/hits"
"""On every host: requests so far as JSON, ``host target`` → number."""

_LOOPBACK = "127.0.0.1"
_DRIP_SECONDS = 0.5
_FLOOD = bytes(1 << 16)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: close() sends RST


@contextmanager
def serve(sample: SampleWeb, port: int = 0) -> Iterator[dict[str, str]]:
    """Serves the web while the context lasts; yields host → ``address:port`` for all its hosts.

    Port 0 takes a free one. What a URL answers first and later starts anew with every server. The server ends
    with this process, however that ends.
    """
    with _closed_port() as closed, _server_process(sample.directory, port) as open_port:
        addresses = dict.fromkeys(sample.hosts, f"{_LOOPBACK}:{open_port}")
        yield addresses | {CLOSED_HOST: f"{_LOOPBACK}:{closed}"}


@contextmanager
def _closed_port() -> Iterator[int]:
    """A port that nobody can listen on, so that every connection to it is refused."""
    with socket.socket() as unheard:
        unheard.bind((_LOOPBACK, 0))
        yield unheard.getsockname()[1]


@contextmanager
def _server_process(directory: Path, port: int) -> Iterator[int]:
    """The server in a child process that ends when its standard input does; yields its port."""
    code = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", __name__, str(directory), "--port", str(port), "--until-eof"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            if not announced:
                raise OSError(f"the sample web's server did not start on port {port}; its message is on stderr")
            yield int(announced)
        finally:
            process.kill()


class Pages:
    """Answers requests from the pages under ``directory`` and counts them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pages = read_index(directory)
        self._hits: Counter[str] = Counter()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response that the requested page is meant to give; 404 where there is no page."""
        host, target = request.host.partition(":")[0], request.raw_path
        if target == HITS:
            return web.json_response(self._hits)
        self._hits[f"{host} {target}"] += 1
        page = self._pages.get((host, target))
        if page is None:
            return web.Response(status=404, text="no such page\n")
        if page.manner == "later" and self._hits[f"{host} {target}"] > 1:
            page = Page(page.host, page.target, headers={"Content-Type": "image/jpeg"})
        return await _MANNERS[page.manner](request, page, self._directory / page.file)


async def _whole(_: web.BaseRequest, page: Page, file: Path) -> web.StreamResponse:
    return web.Response(status=page.status, headers=page.headers, body=file.read_bytes())


async def _fail(_: web.BaseRequest, page: Page, _file: Path) -> web.StreamResponse:
    return web.Response(status=page.status, headers=page.headers, text="try again\n")


async def _cut(request: web.BaseRequest, page: Page, file: Path) -> web.StreamResponse:
    body = file.read_bytes()
    response = web.StreamResponse(headers=page.headers)
    response.content_length = len(body)
    response.force_close()
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return response


async def _drip(request: web.BaseRequest, page: Page, file: Path) -> web.StreamResponse:
    body = file.read_bytes()
    response = web.StreamResponse(headers=page.headers)
    response.content_length = len(body)
    await response.prepare(request)
    for place in range(len(body)):
        await response.write(body[place : place + 1])
        await asyncio.sleep(_DRIP_SECONDS)
    return response


async def _endless(request: web.BaseRequest, page: Page, file: Path) -> web.StreamResponse:
    response = web.StreamResponse(headers=page.headers)
    await response.prepare(request)
    await response.write(file.read_bytes())
    while True:  # until the client leaves and the write fails
        await response.write(_FLOOD)


async def _reset(request: web.BaseRequest, _page: Page, _file: Path) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    request.transport.abort()
    return web.Response()


_MANNERS: dict[str, Callable[[web.BaseRequest, Page, Path], Awaitable[web.StreamResponse]]] = {
    "whole": _whole,
    "later": _fail,
    "cut": _cut,
    "drip": _drip,
    "endless": _endless,
    "reset": _reset,
}


async def _run(directory: Path, port: int, *, until_eof: bool) -> None:
    """Listens, prints the port, and serves until standard input ends or, unless asked, for ever."""
    runner = web.ServerRunner(web.Server(Pages(directory).answer, access_log=None))
    await runner.setup()
    listener = socket.create_server((_LOOPBACK, port), backlog=1024)
    await web.SockSite(runner, listener).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    if until_eof:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await asyncio.Event().wait()


def main() -> None:
    """Serves a rendered web from the command line."""
    parser = argparse.ArgumentParser(description="Serve a rendered sample web on the loopback address.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    # Clients that give up on a drip or a flood are what those pages are for.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    asyncio.run(_run(arguments.directory, arguments.port, until_eof=arguments.until_eof))


if __name__ == "__main__":
    main()
