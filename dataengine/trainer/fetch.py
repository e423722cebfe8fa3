"""Ranged reads from an object store: coalesced, in parallel, with time-outs and retries, through a cache if wanted.

In go (path, offset, size); out come the bytes, or the error, of each. Which bytes make a sample is not known here.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, cast

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Head, Root
from dataengine.trainer import arguments
from dataengine.trainer.blocks import Block, Pieces, Wanted, read_through
from dataengine.trainer.cache import Cache, Stored
from dataengine.trainer.calls import Calls

Range = tuple[str, int, int]
"""Path, offset, number of bytes."""

_MAX_GAP_BYTES = 256 * 2**10  # what a ranged GET costs in time is about this much of transfer
_MAX_RUN_BYTES = 8 * 2**20
_ENTRY_BLOCK = 1024  # index entries of a chunk of 128 samples
_MAX_ENTRY_BLOCKS = 16_384  # 16 MiB
_GRACE_SECONDS = 1.0
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
        # Reads that hang shall end by themselves, and after they were given up: that error says more.
        limit = patience.timeout_seconds + _GRACE_SECONDS
        self._root, self._patience, self._cache = replace(root, timeout_seconds=limit), patience, cache
        self._store = root.store()
        self._reads = Calls(parallel, "dataengine-read")
        self._runs = Calls(parallel, "dataengine-fetch")
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._heads: dict[str, Head] = {}

    def entries(self, ranges: Sequence[Range]) -> list[bytes | StorageError]:
        """Small ranges of index files, read and remembered in blocks of 1 KiB and the entry that follows."""
        wanted = {(path, offset // _ENTRY_BLOCK) for path, offset, _ in ranges}
        missing = [block for block in wanted if block not in self._blocks]
        failed: dict[tuple[str, int], StorageError] = {}
        loads = self._all([partial(self._load_block, *block) for block in missing])
        for block, content in zip(missing, loads, strict=True):
            if isinstance(content, StorageError):
                failed[block] = content
            else:
                self._blocks[block] = content
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
        reads = self._all([partial(self._read, run.path, run.begin, run.end - run.begin) for run in runs])
        for run, content in zip(runs, reads, strict=True):
            for number in run.numbers:
                _, offset, nbytes = ranges[number]
                begin = offset - run.begin
                found[number] = content if isinstance(content, StorageError) else content[begin : begin + nbytes]
        return found

    def forget(self, one: Range, size: int | None, entry: Range) -> None:
        """Drop what is kept of a range that turned out to be wrong, of its entry in the index, and of both objects."""
        path, offset, nbytes = one
        self._blocks.pop((entry[0], entry[1] // _ENTRY_BLOCK), None)
        self._heads.pop(entry[0], None)
        head = self._heads.pop(path, None) if size is None else Head(size, "")
        if self._cache is not None and head is not None and offset + nbytes <= head.nbytes:
            self._cache.forget(self._stored(path, head), offset, nbytes)

    def _through(
        self, cache: Cache, ranges: Sequence[Range], sizes: Sequence[int | None]
    ) -> list[bytes | StorageError]:
        known = {path: size for (path, _, _), size in zip(ranges, sizes, strict=True)}
        unknown = [path for path, size in known.items() if size is None]
        heads: dict[str, Head | StorageError] = {path: Head(size or 0, "") for path, size in known.items()}
        heads |= zip(unknown, self._all([partial(self._head, path) for path in unknown]), strict=True)
        stored = {path: self._stored(path, head) for path, head in heads.items() if isinstance(head, Head)}
        wanted = [Wanted(stored[path], offset, nbytes) for path, offset, nbytes in ranges if path in stored]
        read = iter(read_through(cache, wanted, partial(self._fetched, cache)))
        return [next(read) if path in stored else cast(StorageError, heads[path]) for path, _, _ in ranges]

    def _fetched(self, cache: Cache, blocks: Sequence[Block]) -> list[Pieces | StorageError]:
        return self._all([partial(self._kept, cache, block) for block in blocks])

    def _kept(self, cache: Cache, block: Block) -> Pieces:
        """A block, read and kept; only reading it has a limit of time."""
        content = self._read(block.stored.address, *cache.extent(block.stored, block.number))
        cache.keep(block.stored, block.number, content)
        return block.cut(content)

    def _stored(self, path: str, head: Head) -> Stored:
        return Stored(self._root.address(path), head.nbytes, f"{self._store} {head.tag}")

    def _head(self, path: str) -> Head:
        head = self._heads.get(path)
        if head is None:
            head = self._attempt(lambda: self._root.head(path), f"size of {path}")
            if head is None:
                raise MissingObject(f"{self._root.address(path)}: no such object; copy the shard again")
            self._heads[path] = head
        return head

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
        size = self._head(path).nbytes
        begin = number * _ENTRY_BLOCK
        return self._read(path, begin, max(0, min(_ENTRY_BLOCK + 8, size - begin)))

    def _read(self, path: str, offset: int, nbytes: int) -> bytes:
        return self._attempt(lambda: self._root.get_range(path, offset, nbytes), path)

    def _all(self, calls: Sequence[Callable[[], Found]]) -> list[Found | StorageError]:
        """What each call gave. After one that a store failed, the others are not waited for, and fail alike."""
        runs = [self._runs.submit(call) for call in calls]
        found: list[Found | StorageError] = []
        fault: StorageError | None = None
        try:
            for run in runs:
                if fault is not None and not run.done():
                    found.append(fault)
                    continue
                outcome = _outcome(run)
                found.append(outcome)
                fault = outcome if type(outcome) is StorageError else fault
        finally:
            for run in runs:
                self._runs.give_up(run)
        return found

    def _attempt(self, read: Callable[[], Found], what: str) -> Found:
        pause = self._patience.pause_seconds
        for attempt in range(1, self._patience.tries + 1):
            waiting = self._reads.submit(read)
            try:
                return waiting.result(self._patience.timeout_seconds)
            except MissingObject:
                raise
            except (StorageError, FutureTimeout) as error:
                self._reads.give_up(waiting)
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
