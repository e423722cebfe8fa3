"""Ranged reads from an object store: coalesced, in parallel, with time-outs and retries, through a cache if wanted.

In go (path, offset, size); out come the bytes, or the error, of each. Which bytes make a sample is not known here.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TypeVar

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Root
from dataengine.trainer import arguments
from dataengine.trainer.blocks import Wanted, read_through
from dataengine.trainer.cache import Cache

Range = tuple[str, int, int]
"""Path, offset, number of bytes."""

_MAX_GAP_BYTES = 256 * 2**10  # what a ranged GET costs in time is about this much of transfer
_MAX_RUN_BYTES = 8 * 2**20
_ENTRY_BLOCK = 1024  # index entries of a chunk of 128 samples
_MAX_ENTRY_BLOCKS = 16_384  # 16 MiB
_MAX_TRIES = 20  # after which the pause has doubled to days
Found = TypeVar("Found")
_LOG = logging.getLogger("dataengine.trainer")


@dataclass(frozen=True)
class Patience:
    """How long a read may take, and how often it is tried: `timeout_seconds` for each of `tries`.

    Raises ConfigError for numbers that are none.
    """

    timeout_seconds: float = 60.0
    tries: int = 4
    pause_seconds: float = 0.2
    """Before the second try; it doubles with each further one."""

    def __post_init__(self) -> None:
        arguments.number("patience: timeout_seconds", self.timeout_seconds, 0, arguments.MAX_SECONDS, above=True)
        arguments.whole("patience: tries", self.tries, 1, _MAX_TRIES)
        arguments.number("patience: pause_seconds", self.pause_seconds, 0, arguments.MAX_SECONDS)


@dataclass
class _Run:
    """Ranges, by number, that one request serves."""

    path: str
    begin: int
    end: int
    numbers: list[int] = field(default_factory=list)


class Fetcher:
    """Reads ranges of objects under `root`. Runs threads, so it must be made after a fork."""

    def __init__(self, root: Root, patience: Patience, cache: Cache | None = None, parallel: int = 16) -> None:
        self._root, self._patience, self._cache = root, patience, cache
        # A read that timed out keeps its thread until the client gives up, hence twice as many threads as reads.
        self._reads = ThreadPoolExecutor(2 * parallel, thread_name_prefix="dataengine-read")
        self._runs = ThreadPoolExecutor(parallel, thread_name_prefix="dataengine-fetch")
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def entries(self, ranges: Sequence[Range]) -> list[bytes | StorageError]:
        """Small ranges of index files, read and remembered in blocks of 1 KiB and the entry that follows."""
        wanted = {(path, offset // _ENTRY_BLOCK) for path, offset, _ in ranges}
        missing = [block for block in wanted if block not in self._blocks]
        loads = [self._runs.submit(self._load_block, *block) for block in missing]
        failed: dict[tuple[str, int], StorageError] = {}
        for block, load in zip(missing, loads, strict=True):
            try:
                self._blocks[block] = load.result()
            except StorageError as error:
                failed[block] = error
        found = [self._entry(one, failed) for one in ranges]
        while len(self._blocks) > _MAX_ENTRY_BLOCKS:
            self._blocks.popitem(last=False)
        return found

    def ranges(self, ranges: Sequence[Range], sizes: Sequence[int | None]) -> list[bytes | StorageError]:
        """The bytes of each range; `sizes` are of the whole objects, which the cache wants to know."""
        if self._cache is not None:
            return self._through(self._cache, ranges, sizes)
        found: list[bytes | StorageError] = [b""] * len(ranges)
        runs = _coalesced(ranges)
        for run, read in [
            (run, self._runs.submit(self._read, run.path, run.begin, run.end - run.begin)) for run in runs
        ]:
            content = _outcome(read)
            for number in run.numbers:
                _, offset, nbytes = ranges[number]
                begin = offset - run.begin
                found[number] = content if isinstance(content, StorageError) else content[begin : begin + nbytes]
        return found

    def forget(self, one: Range, size: int | None, entry: Range) -> None:
        """Drop what was kept of a range that turned out to be wrong, and of its entry in the index."""
        path, offset, nbytes = one
        self._blocks.pop((entry[0], entry[1] // _ENTRY_BLOCK), None)
        size = self._sizes.get(path) if size is None else size
        if self._cache is not None and size is not None and offset + nbytes <= size:
            self._cache.forget(self._root, path, offset, nbytes, size)

    def _through(
        self, cache: Cache, ranges: Sequence[Range], sizes: Sequence[int | None]
    ) -> list[bytes | StorageError]:
        unknown = {path for (path, _, _), size in zip(ranges, sizes, strict=True) if size is None}
        found = {path: _outcome(self._runs.submit(self._size, path)) for path in unknown}
        every = [found[path] if size is None else size for (path, _, _), size in zip(ranges, sizes, strict=True)]
        wanted = [Wanted(*one, size) for one, size in zip(ranges, every, strict=True) if isinstance(size, int)]
        read = iter(read_through(cache, self._root, wanted, lambda *what: self._runs.submit(self._attempt, *what)))
        return [next(read) if isinstance(size, int) else size for size in every]

    def _size(self, path: str) -> int:
        size = self._sizes.get(path)
        if size is None:
            size = self._attempt(lambda: self._root.size(path), f"size of {path}")
            if size is None:
                raise MissingObject(f"{self._root.address(path)}: no such object; copy the shard again")
            self._sizes[path] = size
        return size

    def _entry(self, one: Range, failed: dict[tuple[str, int], StorageError]) -> bytes | StorageError:
        path, offset, nbytes = one
        block = (path, offset // _ENTRY_BLOCK)
        if block in failed:
            return failed[block]
        self._blocks.move_to_end(block)
        begin = offset % _ENTRY_BLOCK
        entry = self._blocks[block][begin : begin + nbytes]
        if len(entry) != nbytes:
            return CorruptObject(f"{self._root.address(path)}: has no entry at byte {offset}; copy it again")
        return entry

    def _load_block(self, path: str, number: int) -> bytes:
        """One block and the first entry of the next, or what the index has of it."""
        size = self._size(path)
        begin = number * _ENTRY_BLOCK
        return self._read(path, begin, max(0, min(_ENTRY_BLOCK + 8, size - begin)))

    def _read(self, path: str, offset: int, nbytes: int) -> bytes:
        return self._attempt(lambda: self._root.get_range(path, offset, nbytes), path)

    def _attempt(self, read: Callable[[], Found], what: str) -> Found:
        pause = self._patience.pause_seconds
        for attempt in range(1, self._patience.tries + 1):
            waiting: Future[Found] = self._reads.submit(read)
            try:
                return waiting.result(self._patience.timeout_seconds)
            except MissingObject:
                raise
            except (StorageError, FutureTimeout) as error:
                fault = (
                    error
                    if isinstance(error, StorageError)
                    else StorageError(f"{what}: no answer within {self._patience.timeout_seconds:g} s")
                )
                if attempt == self._patience.tries:
                    raise type(fault)(f"{fault} ({attempt} tries)") from error
                _LOG.warning("try %d of %d failed: %s", attempt, self._patience.tries, fault)
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")


def _outcome(read: Future[Found]) -> Found | StorageError:
    try:
        return read.result()
    except StorageError as error:
        return error


def _coalesced(ranges: Sequence[Range]) -> list[_Run]:
    """Ranges in runs of one object that lie close together; every range is in one run."""
    runs: list[_Run] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        path, offset, nbytes = ranges[number]
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.path == path
            and offset - last.end <= _MAX_GAP_BYTES
            and offset + nbytes - last.begin <= _MAX_RUN_BYTES
        ):
            last.end = max(last.end, offset + nbytes)
            last.numbers.append(number)
        else:
            runs.append(_Run(path, offset, offset + nbytes, [number]))
    return runs
