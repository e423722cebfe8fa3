"""A proxy before an object store that answers late, and now and then wrongly: refused, cut off, or a bit flipped.

It runs in a process of its own, so that its work is not counted as a contender's. What is decided here: the delay of
each answer, the share of faulty ones and their kinds, drawn from a seed; what has been answered is asked for at
`/--counts`, which empties the count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = ("refuse", "cut", "flip")
_PIECE = 2**16
_REFUSED = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def before(endpoint: str, latency_seconds: float, faults: float, kinds: tuple[str, ...]) -> Iterator[str]:
    """The proxy's own endpoint, before that of a store, while the context lasts."""
    command = [sys.executable, "-m", "benchmarks.late_store", endpoint, str(latency_seconds), str(faults), *kinds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            yield f"http://127.0.0.1:{int(proxy.stdout.readline())}"
        finally:
            proxy.terminate()


def counts(endpoint: str) -> dict[str, int]:
    """Answers since this was asked last, by kind; `sound` are those that were right, `bytes` what all of them held."""
    found: dict[str, int] = json.loads(urllib.request.urlopen(f"{endpoint}/--counts", timeout=10).read())
    return found


@dataclass
class Proxy:
    """What is done to answers."""

    host: str
    port: int
    latency_seconds: float
    faults: float
    kinds: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, and one of its own to the store."""
        store_reader, store_writer = await asyncio.open_connection(self.host, self.port)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(await reader.readuntil(b"\r\n\r\n"), writer, store_reader, store_writer):
                await writer.drain()
        for stream in (writer, store_writer):
            stream.close()

    async def _answer(
        self,
        request: bytes,
        client: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Whether the connection can go on."""
        if request.startswith(b"GET /--counts"):
            content = json.dumps(self.counts).encode()
            self.counts.clear()
            client.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            return True
        await asyncio.sleep(self.latency_seconds)
        is_head = request.startswith(b"HEAD")
        kind = self.random.choice(self.kinds) if self.random.random() < self.faults and not is_head else "sound"
        self.counts[kind] += 1
        if kind == "refuse":
            client.write(_REFUSED)
            return True
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        client.write(head)
        nbytes = 0 if is_head else _length(head)
        self.counts["bytes"] += nbytes
        return await self._pass_on(reader, client, nbytes, kind)

    async def _pass_on(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, nbytes: int, kind: str
    ) -> bool:
        passed = 0
        while passed < nbytes:
            piece = await reader.read(min(_PIECE, nbytes - passed))
            if not piece:
                return False
            middle = nbytes // 2 - passed
            if 0 <= middle < len(piece) and kind == "cut":
                client.write(piece[:middle])
                await client.drain()
                return False
            if 0 <= middle < len(piece) and kind == "flip":
                piece = piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
            client.write(piece)
            await client.drain()
            passed += len(piece)
        return True


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def _run(proxy: Proxy) -> None:
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("latency_seconds", type=float)
    parser.add_argument("faults", type=float)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    arguments = parser.parse_args()
    target = urlsplit(arguments.endpoint)
    proxy = Proxy(
        str(target.hostname), target.port or 80, arguments.latency_seconds, arguments.faults, tuple(arguments.kinds)
    )
    asyncio.run(_run(proxy))


if __name__ == "__main__":
    main()
