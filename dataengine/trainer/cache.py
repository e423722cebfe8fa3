"""A cache of remote bytes on this machine's disk, shared by its processes, that keeps to a byte limit.

Objects are cut into blocks; a block is kept once, written aside and renamed, and the least recently used ones go
when the limit is reached, or the disk is full. Only files that this cache wrote, in a folder that it marked, are ever
deleted. A disk that has no room, or refuses, or another process that stands still with the lock, costs speed alone:
what cannot be kept is read through.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from dataengine.errors import ConfigError
from dataengine.trainer import arguments

_MARK = "dataengine-cache.json"
_FORMAT = "dataengine-cache/1"
_USAGE = "usage"
_SUFFIX = ".block"
_OWN = re.compile(r"[0-9a-f]{32}-[0-9]+\.block|\.[0-9a-f]{32}-[0-9]+\.block\.[0-9a-f]{8}")
_KEEP = 0.9  # of the limit, when blocks are deleted: so that it is not done again for every block
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE_SECONDS = 60.0  # that a cache keeps nothing after a disk refused: finding that out costs more than a read
_LOCK_SECONDS = 3.0  # which are many writes of others
_LOOK_SECONDS = 0.001
_LOG = logging.getLogger("dataengine.trainer")
_aside_until: dict[Path, float] = {}
"""Of this process: folders whose disk refused, and when it is asked again."""
_turns: dict[Path, Lock] = {}
"""Of its threads, which one may ask for a folder's lock: threads wake each other, processes have to look."""


class Stored(NamedTuple):
    """An object by its full address, and `tag`, which tells contents apart that were or are to be had under it."""

    address: str
    nbytes: int
    tag: str


class Span(NamedTuple):
    """Bytes `begin` to `end` of a block, by the block's number."""

    block: int
    begin: int
    end: int


@dataclass(frozen=True)
class Cache:
    """Blocks of `block_bytes` under `folder`, `max_bytes` of them at most. May be sent to other processes.

    A block of 1 MiB holds some ten samples that lie side by side: small enough for several nodes that share a dataset,
    large enough for one request. Raises ConfigError when the folder holds files of others, or the limit is below one
    block.
    """

    folder: Path | str
    max_bytes: int
    block_bytes: int = 2**20

    def __post_init__(self) -> None:
        arguments.whole("cache: block_bytes", self.block_bytes, 1)
        arguments.whole("cache: max_bytes", self.max_bytes, self.block_bytes)
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strays = [file.name for file in folder.iterdir()]
            if strays and not (folder / _MARK).exists():  # asked last: another process may just have made it
                raise ConfigError(
                    f"cache: {folder} holds files that no cache wrote ({min(strays)}); give an empty folder, or a new "
                    "one"
                )
            self._mark()
        except OSError as error:
            if error.errno not in _FULL:
                raise ConfigError(
                    f"cache: {folder} is no folder to write to ({error.strerror}); give another, or leave the cache out"
                ) from error
            self._step_aside(error)

    def spans(self, offset: int, nbytes: int) -> Iterator[Span]:
        """What a range takes of each block that it lies in."""
        end = offset + nbytes
        for number in range(offset // self.block_bytes, -(-end // self.block_bytes)):
            start = number * self.block_bytes
            yield Span(number, max(offset, start) - start, min(end, start + self.block_bytes) - start)

    def kept(self, stored: Stored, span: Span) -> bytes | None:
        """A span of a block; None unless the block is kept, whole."""
        try:
            descriptor = os.open(self._file(stored, span.block), os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != self.extent(stored, span.block)[1]:
                return None
            content = os.pread(descriptor, span.end - span.begin, span.begin)
            with suppress(OSError):
                os.utime(descriptor)  # file systems are mounted without access times
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return content if len(content) == span.end - span.begin else None

    def extent(self, stored: Stored, number: int) -> tuple[int, int]:
        """(offset, number of bytes) of a block."""
        begin = number * self.block_bytes
        return begin, min(self.block_bytes, stored.nbytes - begin)

    def forget(self, stored: Stored, offset: int, nbytes: int) -> None:
        """Delete the blocks of a range whose bytes turned out to be wrong."""
        for span in self.spans(offset, nbytes):
            with suppress(OSError):
                self._file(stored, span.block).unlink(missing_ok=True)

    def _file(self, stored: Stored, number: int) -> Path:
        text = f"{stored.address}\n{stored.nbytes}\n{stored.tag}\n{self.block_bytes}"
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return Path(self.folder) / name[:2] / f"{name}-{number}{_SUFFIX}"

    def keep(self, stored: Stored, number: int, content: bytes) -> None:
        """Keep a block, in place of others if need be; where that fails, keep none for a while."""
        file = self._file(stored, number)
        if self._is_aside():
            return
        try:
            with self._locked() as usage:
                try:
                    self._write(usage, file, content)
                except OSError as error:
                    usage.unlink(missing_ok=True)  # it is counted anew
                    if error.errno not in _FULL:
                        raise
                    # Others have filled the disk: the cache is to be smaller than it may.
                    self._evict(int(self._used() * _KEEP) - len(content))
                    self._write(usage, file, content)
        except OSError as error:
            self._step_aside(error)

    def _write(self, usage: Path, file: Path, content: bytes) -> None:
        try:
            used = int(usage.read_bytes())
        except (FileNotFoundError, ValueError):
            used = self._used()
        if used + len(content) > self.max_bytes:
            used = self._evict(min(int(self.max_bytes * _KEEP), self.max_bytes - len(content)))
        file.parent.mkdir(exist_ok=True)
        _replace(file, content)
        _replace(usage, str(used + len(content)).encode())

    def _is_aside(self) -> bool:
        return time.monotonic() < _aside_until.get(Path(self.folder), 0.0)

    def _step_aside(self, error: OSError) -> None:
        folder, until = Path(self.folder), time.monotonic() + _ASIDE_SECONDS
        if _aside_until.setdefault(folder, until) is until:  # of threads that come at once, one speaks
            _LOG.warning(
                "cache %s: cannot keep what is read (%s); reading goes on without it, and it is tried again every %g s",
                folder,
                error.strerror,
                _ASIDE_SECONDS,
            )
        _aside_until[folder] = until

    def _mark(self) -> None:
        with suppress(FileExistsError), open(Path(self.folder) / _MARK, "xb") as mark:
            mark.write(json.dumps({"format": _FORMAT}).encode())

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        self._mark()  # the disk may have been full when the cache was opened
        turn, end = _turns.setdefault(Path(self.folder), Lock()), time.monotonic() + _LOCK_SECONDS
        if not turn.acquire(timeout=_LOCK_SECONDS):
            raise _locked_by_another()
        try:
            with open(Path(self.folder) / _MARK, "rb") as mark:
                self._lock(mark.fileno(), end)
                yield Path(self.folder) / _USAGE
        finally:
            turn.release()

    def _lock(self, mark: int, end: float) -> None:
        """Lock it as long as it is open. Raises OSError if another keeps it locked: one that was stopped, or hangs."""
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > end or self._is_aside():  # as another thread waited long enough
                raise _locked_by_another()
            time.sleep(_LOOK_SECONDS)

    def _evict(self, goal: int) -> int:
        """Deletes the blocks that were used longest ago, down to `goal` bytes; the bytes that are left."""
        blocks = sorted(self._blocks())
        used = sum(nbytes for _, _, nbytes in blocks)
        for _, file, nbytes in blocks:
            if used <= goal:
                break
            file.unlink(missing_ok=True)
            used -= nbytes
        return used

    def _blocks(self) -> Iterator[tuple[int, Path, int]]:
        """(time of last use, file, bytes) of every block, and of what a killed process left half written."""
        for file in Path(self.folder).glob("??/*"):
            if not _OWN.fullmatch(file.name):
                continue
            try:
                status = file.stat()
            except FileNotFoundError:  # forgotten meanwhile
                continue
            yield status.st_mtime_ns, file, status.st_size

    def _used(self) -> int:
        return sum(nbytes for _, _, nbytes in self._blocks())


def _locked_by_another() -> OSError:
    return OSError(errno.EAGAIN, f"another process has kept it locked for {_LOCK_SECONDS:g} s")


def _replace(file: Path, content: bytes) -> None:
    """Write `file` whole or not at all."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        aside.write_bytes(content)
        aside.replace(file)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
