"""A cache of remote bytes on this machine's disk, shared by its processes, that keeps to a byte limit.

Objects are cut into blocks; a block is fetched once, written aside and renamed, and the least recently used ones go
when the limit is reached. Only files that this cache wrote, in a folder that it marked, are ever deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataengine.errors import ConfigError, CorruptObject, StorageError
from dataengine.storage.store import Root

_MARK = "dataengine-cache.json"
_FORMAT = "dataengine-cache/1"
_USAGE = "usage"
_SUFFIX = ".block"
_KEEP = 0.9  # of the limit, when blocks are deleted: so that it is not done again for every block


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
        if not 0 < self.block_bytes <= self.max_bytes:
            raise ConfigError(
                f"cache: max_bytes={self.max_bytes}, block_bytes={self.block_bytes}: wanted a block or more"
            )
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / _MARK
        if not mark.exists():
            if any(folder.iterdir()):
                raise ConfigError(
                    f"cache: {folder} holds files that no cache wrote; give an empty folder, or a new one"
                )
            _replace(mark, json.dumps({"format": _FORMAT}).encode())

    def read(self, root: Root, path: str, offset: int, nbytes: int, size: int | None) -> bytes:
        """`nbytes` bytes at `offset` of an object of `size` bytes (asked for when None), fetching blocks that lack."""
        if size is None:
            size = root.size(path)
        if size is None or offset + nbytes > size:
            raise CorruptObject(f"{root.address(path)}: wanted {nbytes} bytes at {offset}, the object has {size}")
        first, last = offset // self.block_bytes, max(offset, offset + nbytes - 1) // self.block_bytes
        content = b"".join(self._block(root, path, number, size) for number in range(first, last + 1))
        begin = offset - first * self.block_bytes
        return content[begin : begin + nbytes]

    def forget(self, root: Root, path: str, offset: int, nbytes: int, size: int) -> None:
        """Delete the blocks of a range whose bytes turned out to be wrong."""
        for number in range(offset // self.block_bytes, max(offset, offset + nbytes - 1) // self.block_bytes + 1):
            self._file(root, path, number, size).unlink(missing_ok=True)

    def _file(self, root: Root, path: str, number: int, size: int) -> Path:
        name = hashlib.blake2b(f"{root.address(path)} {size} {self.block_bytes}".encode(), digest_size=16).hexdigest()
        return Path(self.folder) / name[:2] / f"{name}-{number}{_SUFFIX}"

    def _block(self, root: Root, path: str, number: int, size: int) -> bytes:
        begin = number * self.block_bytes
        nbytes = min(self.block_bytes, size - begin)
        file = self._file(root, path, number, size)
        try:
            content = file.read_bytes()
            if len(content) == nbytes:
                os.utime(file)  # file systems are mounted without access times
                return content
        except FileNotFoundError:
            pass
        content = root.get_range(path, begin, nbytes)
        self._store(file, content)
        return content

    def _store(self, file: Path, content: bytes) -> None:
        """Keep a block. Raises StorageError when the disk is full or refuses."""
        try:
            with self._locked() as usage:
                used = int(usage.read_bytes() or b"0") if usage.exists() else self._used()
                if used + len(content) > self.max_bytes:
                    used = self._evict(len(content))
                file.parent.mkdir(exist_ok=True)
                _replace(file, content)
                _replace(usage, str(used + len(content)).encode())
        except OSError as error:
            raise StorageError(
                f"{file}: cannot cache: {error.strerror}; give the cache room, or leave it out"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        with open(Path(self.folder) / _MARK, "rb") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)  # goes with the process that holds it
            yield Path(self.folder) / _USAGE

    def _evict(self, needed: int) -> int:
        """Deletes the blocks that were used longest ago; the bytes that are left."""
        blocks = sorted(self._blocks())
        used = sum(nbytes for _, _, nbytes in blocks)
        goal = min(int(self.max_bytes * _KEEP), self.max_bytes - needed)
        for _, file, nbytes in blocks:
            if used <= goal:
                break
            file.unlink(missing_ok=True)
            used -= nbytes
        return used

    def _blocks(self) -> Iterator[tuple[int, Path, int]]:
        """(time of last use, file, bytes) of every block, and of what a killed process left half written."""
        for file in Path(self.folder).glob("??/*"):
            try:
                status = file.stat()
            except FileNotFoundError:  # forgotten meanwhile
                continue
            yield status.st_mtime_ns, file, status.st_size

    def _used(self) -> int:
        return sum(nbytes for _, _, nbytes in self._blocks())


def _replace(file: Path, content: bytes) -> None:
    """Write `file` whole or not at all."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    aside.write_bytes(content)
    aside.replace(file)
