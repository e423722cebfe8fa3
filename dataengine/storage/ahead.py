"""Reading ahead: many small objects one after another, at the pace of several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def map_ahead(
    read: Callable[[Item], Found], items: Iterable[Item], num_threads: int, num_ahead: int
) -> Iterator[Found]:
    """What `read` makes of each item, in order; raises what `read` raises, at its item.

    At most `num_ahead` are read and not yet asked for, so memory is bounded; threads are at work while the caller is.
    """
    waiting: deque[Future[Found]] = deque()
    threads = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
