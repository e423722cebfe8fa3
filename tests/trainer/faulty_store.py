"""A proxy before an object store that answers late, and now and then wrongly: refused, cut off, or a bit flipped."""

from __future__ import annotations

import http.client
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit


class FaultyStore:
    """What the proxy does: seconds to wait, the share of answers that are faulty, and how many were.

    The first answer for each path that ends with `spoiled` has a bit flipped, whatever the share. The first `hanging`
    answers come after a minute, and the first size that is told of each path that ends with `emptied` is 0.
    """

    def __init__(
        self,
        latency_seconds: float = 0.0,
        faults: float = 0.0,
        kinds: tuple[str, ...] = ("refuse", "cut"),
        spoiled: str | None = None,
        hanging: int = 0,
        emptied: str | None = None,
    ) -> None:
        self.latency_seconds, self.faults, self.kinds, self.spoiled = latency_seconds, faults, kinds, spoiled
        self.hanging, self.emptied = hanging, emptied
        self._seen: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.endpoint, self.closed = "", False
        self._random, self._lock = random.Random(1), Lock()

    def choose(self, path: str) -> str:
        """What becomes of the answer for a path."""
        with self._lock:
            self.counts["answers"] += 1
            if self.counts["hang"] < self.hanging:
                self.counts["hang"] += 1
                return "hang"
            if self.spoiled is not None and path.endswith(self.spoiled) and path not in self._seen:
                self._seen.add(path)
                self.counts["flip"] += 1
                return "flip"
            faulty = self._random.random() < self.faults
            kind = self._random.choice(self.kinds) if faulty else "sound"
            self.counts[kind] += 1
            return kind

    def empties(self, path: str) -> bool:
        """Whether a path's size is told as 0."""
        with self._lock:
            if self.emptied is None or not path.endswith(self.emptied) or path in self._seen:
                return False
            self._seen.add(path)
            self.counts["empty"] += 1
            return True


@contextmanager
def before(endpoint: str, store: FaultyStore) -> Iterator[FaultyStore]:
    """Runs `store` before the server at `endpoint`."""
    target = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if store.closed:  # a connection that is kept outlives the test, and the server behind
                self.close_connection = True
                return
            time.sleep(store.latency_seconds)
            store.counts[self.command] += 1
            kind = store.choose(self.path) if self.command == "GET" else "sound"
            if kind == "hang":
                time.sleep(60)
                self.close_connection = True
                return
            if kind == "refuse":
                self._answer(503, [("Content-Length", "0")], b"")
                return
            wire = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=30)
            try:
                wire.request(self.command, self.path, headers=dict(self.headers))
                answer = wire.getresponse()
                body = answer.read()
            except OSError:  # it ends before clients do that never gave up
                self.close_connection = True
                return
            finally:
                wire.close()
            if kind == "flip" and body:
                body = body[:-1] + bytes([body[-1] ^ 1]) if len(body) < 2000 else _flipped(body)
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
            if self.command == "HEAD" and store.empties(self.path):
                headers = [(name, "0" if name.lower() == "content-length" else value) for name, value in headers]
            self._answer(answer.status, headers, body[: len(body) // 2] if kind == "cut" else body)
            self.close_connection = self.close_connection or kind == "cut"

        do_HEAD = do_GET  # noqa: N815 - what the base class calls

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        store.closed = True
        server.shutdown()
        server.server_close()


def _flipped(body: bytes) -> bytes:
    """One bit of the middle turned, where the bytes of a picture are."""
    place = len(body) // 2
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
