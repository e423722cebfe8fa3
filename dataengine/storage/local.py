"""A local or network file system as a store: write aside, fsync, link to the final name.

`link` fails when the name exists, which makes it the create-once primitive; a name only ever points at whole files.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Head

_MAX_VIEWS = 1024  # IOV_MAX of Linux


class LocalBackend:
    """Objects are files under `base`."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def get(self, path: str) -> bytes:
        with _faults(self._base / path):
            return (self._base / path).read_bytes()

    def get_range(self, path: str, offset: int, nbytes: int) -> bytes:
        file = self._base / path
        with _faults(file), file.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), nbytes, offset)
        if len(content) != nbytes:
            raise CorruptObject(
                f"{file}: wanted {nbytes} bytes at {offset}, the file ends after {len(content)} of them"
            )
        return content

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        file = self._base / path
        with _faults(file), file.open("rb", buffering=0) as stream:
            for first in range(0, len(views), _MAX_VIEWS):
                some = views[first : first + _MAX_VIEWS]
                wanted = sum(map(len, some))
                found = os.preadv(stream.fileno(), some, offset)
                if found != wanted:
                    raise CorruptObject(
                        f"{file}: wanted {wanted} bytes at {offset}, the file ends after {found} of them"
                    )
                offset += wanted

    def put(self, path: str, content: bytes) -> None:
        with self.writer(path) as stream:
            stream.write(content)

    def create(self, path: str, content: bytes) -> bytes:
        file = self._base / path
        with _faults(file):
            aside = self._write_aside(file, content)
            try:
                os.link(aside, file)
            except FileExistsError:
                return file.read_bytes()
            finally:
                aside.unlink()
            _sync_folder(file.parent)
        return content

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        file = self._base / path
        with _faults(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = _aside(file)
            try:
                with aside.open("xb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                # Replaces at most the same bytes: a path is unique to its attempt, or its bytes to its inputs.
                aside.replace(file)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(file.parent)

    def copy(self, source: str, path: str) -> None:
        file, original = self._base / path, self._base / source
        with _faults(original):
            original.stat()  # what goes wrong from here on is the fault of the place to copy to
        with _faults(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(original, file)
            except FileExistsError:
                return  # of an attempt before: equal paths hold equal bytes
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
            else:
                _sync_folder(file.parent)
                return
        with _faults(original), original.open("rb") as stream, self.writer(path) as copied:
            shutil.copyfileobj(stream, copied)

    def delete(self, path: str) -> None:
        with _faults(self._base / path):
            (self._base / path).unlink(missing_ok=True)

    def modified(self, path: str) -> datetime | None:
        if self.size(path) is None:
            return None
        return datetime.fromtimestamp((self._base / path).stat().st_mtime, UTC)

    def size(self, path: str) -> int | None:
        with _faults(self._base / path):
            try:
                status = (self._base / path).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return status.st_size if not (self._base / path).is_dir() else None

    def head(self, path: str) -> Head | None:
        if self.size(path) is None:
            return None
        status = (self._base / path).stat()
        return Head(status.st_size, str(status.st_mtime_ns))

    def list(self, prefix: str) -> list[str]:
        folder, cut = self._base / prefix, len(str(self._base).rstrip("/")) + 1
        with _faults(folder):
            found = ((f"{parent.rstrip('/')}/"[cut:], names) for parent, _, names in os.walk(folder))
            return sorted(within + name for within, names in found for name in names if not name.startswith(".aside-"))

    def local_path(self, path: str) -> Path:
        return self._base / path

    def _write_aside(self, file: Path, content: bytes) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(file)
        try:
            with aside.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        return aside


def _aside(file: Path) -> Path:
    return file.parent / f".aside-{secrets.token_hex(8)}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _faults(file: Path) -> Iterator[None]:
    """Turns what the operating system says into a StorageError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObject(f"{file}: no such object") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{file}: no space left ({_free(file)} free); make room and run the same command again"
            ) from error
        raise StorageError(f"{file}: {error.strerror or error}; check the path and its permissions") from error


def _free(file: Path) -> str:
    parent = next(folder for folder in file.parents if folder.exists())
    return f"{shutil.disk_usage(parent).free / 2**20:,.0f} MiB"
