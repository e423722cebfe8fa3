"""Root: one address under which runs and datasets live, on a local disk or an object store.

Objects are immutable bytes under a path. All safety rests on one primitive, `create`: the first writer of a path wins
for ever, and whoever asks is told what the path holds. There is no rename and no lock, and listing is
only a hint. Purges alone delete, and they alone ask the store's clock.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from dataengine.errors import ConfigError, StorageError
from dataengine.storage.hashing import HashingWriter

READ_AHEAD_BYTES = 4 * 2**20  # a ranged GET costs about as much as 4 MiB of transfer
_PLACES = ("ENDPOINT", "ACCOUNT_NAME")  # in the names of settings that say which store a bucket is one of


class Head(NamedTuple):
    """What a store tells of an object without reading it: bytes, and the ETag, or else the time of change."""

    nbytes: int
    tag: str


class Backend(Protocol):
    """What a kind of store must be able to do; paths are relative to the backend's base."""

    def get(self, path: str) -> bytes: ...
    def get_range(self, path: str, offset: int, nbytes: int) -> bytes: ...
    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None: ...
    def put(self, path: str, content: bytes) -> None: ...
    def create(self, path: str, content: bytes) -> bytes: ...
    def writer(self, path: str) -> AbstractContextManager[BinaryIO]: ...
    def copy(self, source: str, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def modified(self, path: str) -> datetime | None: ...
    def size(self, path: str) -> int | None: ...
    def head(self, path: str) -> Head | None: ...
    def list(self, prefix: str) -> list[str]: ...
    def local_path(self, path: str) -> Path | None: ...


@dataclass(frozen=True)
class Root:
    """Objects under `url` (a folder or s3://, gs://, az://). Small, and may be sent to any worker.

    A path is relative to the root; one that is absolute (`/x`) or a URL reaches another store with the same options.
    Every method raises StorageError (MissingObject, CorruptObject) with the object's full address.
    """

    url: str
    options: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float | None = None
    """For a request to an object store, and for trying it again; None is two minutes, and one."""

    def get(self, path: str) -> bytes:
        """The whole object."""
        backend, inner = self._locate(path)
        return backend.get(inner)

    def get_range(self, path: str, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset`; raises CorruptObject when the object ends before."""
        backend, inner = self._locate(path)
        return backend.get_range(inner, offset, nbytes)

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views`, one after another, with the bytes from `offset` on; raises CorruptObject as `get_range`."""
        backend, inner = self._locate(path)
        backend.read_into(inner, offset, views)

    def put(self, path: str, content: bytes) -> None:
        """Store an object whose path only this attempt writes, or whose bytes are the same whoever writes them."""
        backend, inner = self._locate(path)
        backend.put(inner, content)

    def create(self, path: str, content: bytes) -> bytes:
        """Store `content` unless the path is taken; the bytes that the path now holds for ever.

        An unclear answer (time-out, 5xx, conflict) is settled by reading the object back.
        """
        backend, inner = self._locate(path)
        return backend.create(inner, content)

    def writer(self, path: str) -> HashingWriter:
        """A stream into a new object that appears whole when the `with` block ends, or not at all."""
        backend, inner = self._locate(path)
        return HashingWriter(backend.writer(inner))

    def copy(self, source: str, path: str) -> None:
        """Let `path` hold what `source` holds: by a hard link or within the store where it can, else byte by byte.

        Neither object may ever change. Raises MissingObject when `source` is absent.
        """
        (backend, inner), (other, target) = self._locate(source), self._locate(path)
        if backend is other:
            backend.copy(inner, target)
            return
        with self.open(source) as stream, self.writer(path) as writer:
            while piece := stream.read(READ_AHEAD_BYTES):
                writer.write(piece)

    def delete(self, path: str) -> None:
        """Remove the object for good; nothing happens when it is not there. For purges alone."""
        backend, inner = self._locate(path)
        backend.delete(inner)

    def modified(self, path: str) -> datetime | None:
        """When the object was stored, by the store's own clock, in UTC; None when it is not there."""
        backend, inner = self._locate(path)
        return backend.modified(inner)

    def open(self, path: str) -> BinaryIO:
        """A seekable, buffered reader of the object."""
        local = self.local_path(path)
        if local is not None:
            backend, inner = self._locate(path)
            return _open_local(local, backend, inner)
        return io.BufferedReader(_RangeReader(self, path), READ_AHEAD_BYTES)

    def size(self, path: str) -> int | None:
        """Bytes of the object; None when it is not there."""
        backend, inner = self._locate(path)
        return backend.size(inner)

    def head(self, path: str) -> Head | None:
        """Size and tag of the object; None when it is not there."""
        backend, inner = self._locate(path)
        return backend.head(inner)

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        return self.size(path) is not None

    def fingerprint(self, path: str) -> str | None:
        """A cheap text that changes when the object does (size and ETag or time of change); None when absent."""
        found = self.head(path)
        return None if found is None else f"{found.nbytes}-{found.tag}"

    def list(self, prefix: str) -> list[str]:
        """Sorted paths of the objects under the folder `prefix`, in the form they can be opened with."""
        backend, inner = self._locate(prefix)
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        cut = len(f"{inner.rstrip('/')}/") if inner.rstrip("/") else 0
        return sorted(folder + path[cut:] for path in backend.list(inner))

    def local_path(self, path: str) -> Path | None:
        """Where the object lies on this machine's disk, if the store is one."""
        backend, inner = self._locate(path)
        return backend.local_path(inner)

    def address(self, path: str) -> str:
        """The object's full address, to be opened from any root."""
        return path if _is_absolute(path) else f"{_absolute_url(self.url)}/{path}"

    def store(self) -> str:
        """Tells its store from others with a bucket of the same name: the settings that say where it is."""
        named = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
        settings = sorted((named | dict(self.options)).items())
        return " ".join(f"{name}={value}" for name, value in settings if any(one in name.upper() for one in _PLACES))

    def within(self, address: str) -> str:
        """`address` relative to this root when it lies inside, so that a root may be moved; else as it is."""
        return address.removeprefix(f"{self.address('').rstrip('/')}/")

    def _locate(self, path: str) -> tuple[Backend, str]:
        base, inner = _split(self.address(path))
        return _backend(base, self.options, self.timeout_seconds), inner


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")


def _absolute_url(url: str) -> str:
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if url.endswith("://"):
        raise ConfigError(f"{url}: names no bucket; roots are folders, or URLs such as s3://bucket/folder")
    if "://" in url:
        return url.rstrip("/")
    return _tidied(url) if url.startswith("/") else str(Path(url).expanduser().absolute())


@functools.lru_cache(maxsize=64)
def _tidied(absolute: str) -> str:
    return str(Path(absolute))


def _split(address: str) -> tuple[str, str]:
    """`s3://bucket/a/b` → (`s3://bucket`, `a/b`); a local path → (`/`, path without its leading slash)."""
    address = address.removeprefix("file://")
    scheme, separator, rest = address.partition("://")
    if not separator:
        return "/", address.lstrip("/")
    bucket, _, inner = rest.partition("/")
    return f"{scheme}://{bucket}", inner


@functools.lru_cache(maxsize=64)
def _backend(base: str, options: tuple[tuple[str, str], ...], timeout_seconds: float | None) -> Backend:
    if base == "/":
        from dataengine.storage.local import LocalBackend

        return LocalBackend(Path("/"))
    scheme = base.partition("://")[0]
    if scheme not in ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss"):
        raise ConfigError(f"{base}: no such kind of store; roots are folders, s3://, gs:// or az:// URLs")
    from dataengine.storage.remote import RemoteBackend

    return RemoteBackend(base, dict(options), timeout_seconds)


def _open_local(local: Path, backend: Backend, inner: str) -> BinaryIO:
    try:
        return local.open("rb")
    except FileNotFoundError:
        backend.get_range(inner, 0, 0)  # raises MissingObject with the address
        raise
    except OSError as error:
        raise StorageError(f"{local}: cannot open: {error}") from error


class _RangeReader(io.RawIOBase):
    """Random access to a remote object through ranged reads."""

    def __init__(self, root: Root, path: str) -> None:
        size = root.size(path)
        if size is None:
            root.get(path)  # raises MissingObject with the address
            raise StorageError(f"{root.address(path)}: appeared while it was being opened; try again")
        self._root, self._path, self._size, self._position = root, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        nbytes = min(len(buffer), max(0, self._size - self._position))
        if nbytes:
            buffer[:nbytes] = self._root.get_range(self._path, self._position, nbytes)
            self._position += nbytes
        return nbytes
