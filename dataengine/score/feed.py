"""The feed: stored bytes in, decoded pictures out in the same order, made by threads ahead of the tower.

Decoders release Python's lock, so threads are enough. Work is handed out in chunks: on a CPU the next chunk starts when
the tower has finished the last one, since both would only take turns on the same cores and lose their caches; for a GPU
chunks are decoded ahead of it. It counts what the consumer waited for. It knows neither stores nor models.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from dataengine.score.metrics import Waits

Made = TypeVar("Made")


@dataclass(frozen=True)
class Feed(Generic[Made]):
    """Threads that make something of bytes."""

    make: Callable[[bytes], Made]
    num_threads: int
    chunk: int
    """Items handed out at once."""
    num_ahead: int
    """Chunks made ahead of the consumer."""
    waits: Waits

    def __call__(self, contents: Iterable[bytes | None]) -> Iterator[Made | None]:
        """What is made of each content, in order; None for None."""
        source = iter(contents)
        pending: deque[list[Future[Made] | None]] = deque()
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        try:
            while True:
                while len(pending) <= self.num_ahead and (futures := self._hand_out(source, pool)):
                    pending.append(futures)
                if not pending:
                    return
                # Waits for the whole chunk, so that no decoder runs beside a tower unless it was asked to.
                yield from [None if future is None else self._await(future) for future in pending.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _hand_out(self, source: Iterator[bytes | None], pool: ThreadPoolExecutor) -> list[Future[Made] | None]:
        futures: list[Future[Made] | None] = []
        contents = islice(source, self.chunk)
        while True:
            started = time.perf_counter()
            try:
                content = next(contents)
            except StopIteration:
                return futures
            finally:
                self.waits.read_seconds += time.perf_counter() - started
            futures.append(None if content is None else pool.submit(self.make, content))

    def _await(self, future: Future[Made]) -> Made:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waits.decode_seconds += time.perf_counter() - started
