"""What tests of whole downloads share: a server that logs every request, a config for it, and what was committed."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataengine.schemas import CANDIDATE, SAMPLE, TableSchema
from dataengine.storage.rundir import Commit, UnitDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table
from tests.cli.command import write_config


def reply(status: int, body: bytes = b"", *headers: str) -> bytes:
    """A whole response."""
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


ROBOTS, NO_ROBOTS = "/robots.txt", reply(404)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, at a time of the monotonic clock."""

    seconds: float
    path: str
    status: int


class LoggingSite:
    """Every request that came, in order; answers are raw bytes."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self.answer = answer
        self.arrivals: list[Arrival] = []
        self.num_pictures = 0
        """Requests so far for anything but robots.txt."""
        self.port = 0

    def hits(self) -> Counter[str]:
        """Requests so far by path, but for robots.txt."""
        return Counter(arrival.path for arrival in self.arrivals if arrival.path != ROBOTS)

    def respond(self, path: str) -> bytes:
        """The answer to a request that has just come, which is logged."""
        response = NO_ROBOTS if path == ROBOTS else self.answer(path)
        self.num_pictures += path != ROBOTS
        self.arrivals.append(Arrival(time.monotonic(), path, int(response[9:12])))
        return response


class _Connection(asyncio.Protocol):
    def __init__(self, site: LoggingSite) -> None:
        self._site = site
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            self._transport.write(self._site.respond(request.split(b" ", 2)[1].decode()))


def picture_reply() -> bytes:
    """A response of about 1 KB that is a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (18, 18, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return reply(200, file.getvalue(), "Content-Type: image/png")


@contextmanager
def logging_site(answer: Callable[[str], bytes]) -> Iterator[LoggingSite]:
    """A server on loopback, in a thread of its own while the context lasts."""
    site, loop = LoggingSite(answer), asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: _Connection(site), "127.0.0.1", 0, backlog=1024))
    site.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield site
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def crawl_config(
    folder: Path,
    site: LoggingSite,
    num_urls: int,
    num_hosts: int,
    part_rows: int,
    fetch: dict[str, Any],
    **sections: Any,
) -> Path:
    """A config that downloads `/0.png`, `/1.png` ... of `site` under `num_hosts` names, with the settings `fetch`."""
    urls = [f"http://host{number % num_hosts}.test/{number}.png" for number in range(num_urls)]
    table = folder / "urls.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {number}" for number in range(num_urls)]}), table)
    hosts = {f"host{number}.test": f"127.0.0.1:{site.port}" for number in range(num_hosts)}
    download = {"fetch": fetch, "guard": {"hosts": hosts}}
    source = {"kind": "table", "paths": [str(table)]}
    return write_config(folder, source, part_rows=part_rows, download=download, **sections)


@dataclass(frozen=True)
class Part:
    """One committed part of the download: SAMPLE rows, each with the path of its URL as `path`."""

    commit: Commit
    rows: list[dict[str, Any]]

    @property
    def paths(self) -> set[str]:
        """Of all its URLs."""
        return {row["path"] for row in self.rows}


def planned_parts(folder: Path) -> dict[str, set[str]]:
    """The paths that each part of the download is asked for, by part."""
    return {
        name: {f"/{row['url'].rpartition('/')[2]}" for row in rows}
        for name, (_, rows) in _tables(folder, "sources", "candidate", CANDIDATE).items()
    }


def committed_parts(folder: Path) -> dict[str, Part]:
    """The parts that are committed now, by name."""
    candidates = _tables(folder, "sources", "candidate", CANDIDATE)
    paths = {row["key"]: f"/{row['url'].rpartition('/')[2]}" for _, rows in candidates.values() for row in rows}
    return {
        name: Part(commit, [row | {"path": paths[row["key"]]} for row in rows])
        for name, (commit, rows) in _tables(folder, "download", "sample", SAMPLE).items()
    }


def _tables(folder: Path, stage: str, name: str, schema: TableSchema) -> dict[str, tuple[Commit, list[dict[str, Any]]]]:
    """The newest commit of each part of the config's source at `stage`, and the rows of its table `name`."""
    root, found = Root(str(folder / "root")), {}
    for unit in (folder / "root").glob(f"runs/small/{stage}/web-*"):
        directory = UnitDirectory(root, unit.relative_to(folder / "root").as_posix())
        for part, commits in directory.load_commits().items():
            found[part] = commits[-1], read_table(root, commits[-1].objects[name].path, schema).to_pylist()
    return found
