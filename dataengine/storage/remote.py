"""An object store (S3, GCS, Azure) as a store, through obstore; create-once is `If-None-Match: *` with read-back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotModifiedError, PreconditionError
from obstore.store import from_url

from dataengine.errors import ConfigError, CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Head

_CREATE_TRIES = 5
_ENDPOINT = re.compile(r"https?://[^\s/]+(/\S*)?")
_ABSENT = (NotFoundError, FileNotFoundError)  # obstore raises either


class RemoteBackend:
    """Objects of one bucket; credentials come from the environment, other settings from `options`.

    `timeout_seconds` are those of a request, and those in which it is tried again.
    """

    def __init__(self, base: str, options: dict[str, str], timeout_seconds: float | None = None) -> None:
        self._base = base
        timeout = timedelta(seconds=timeout_seconds or 120)
        client: dict[str, Any] = {"timeout": timeout, "connect_timeout": min(timeout, timedelta(seconds=10))}
        endpoint = options.get("endpoint", "")
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise ConfigError(f"{base}: storage_options: endpoint={endpoint!r}: wanted http:// or https:// and a host")
        is_plain = endpoint.startswith("http://")
        if is_plain or options.get("allow_http") == "true":
            client["allow_http"] = True
        settings = {name: value for name, value in options.items() if name != "allow_http"}
        try:
            self._store: Any = from_url(
                base,
                config=cast(Any, settings),
                client_options=cast(Any, client),
                retry_config={"max_retries": 6, "retry_timeout": min(timeout, timedelta(seconds=60))},
            )
        except BaseException as error:
            # The client panics, which is no Exception, at an option of another kind than the store's.
            if not isinstance(error, BaseError) and type(error).__name__ != "PanicException":
                raise
            raise ConfigError(f"{base}: storage_options do not fit this store: {_brief(error)}") from error

    def get(self, path: str) -> bytes:
        with self._faults(path):
            return bytes(obstore.get(self._store, path).bytes())

    def get_range(self, path: str, offset: int, nbytes: int) -> bytes:
        if not nbytes:
            return b""
        with self._faults(path):
            content = bytes(obstore.get_range(self._store, path, start=offset, length=nbytes))
        if len(content) != nbytes:
            raise CorruptObject(f"{self._base}/{path}: wanted {nbytes} bytes at {offset}, got {len(content)}")
        return content

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> None:
        content = memoryview(self.get_range(path, offset, sum(map(len, views))))
        begin = 0
        for view in views:
            view[:] = content[begin : begin + len(view)]
            begin += len(view)

    def put(self, path: str, content: bytes) -> None:
        with self._faults(path):
            obstore.put(self._store, path, content)

    def create(self, path: str, content: bytes) -> bytes:
        unclear: BaseException | None = None
        for _ in range(_CREATE_TRIES):
            try:
                obstore.put(self._store, path, content, mode="create", use_multipart=False)
            except BaseError as error:
                # The store may have applied a put whose answer was lost and then refused its own retry, so no answer
                # but the object itself tells who won.
                unclear = error
                stored = self._peek(path)
                if stored is not None:
                    return stored
                if not isinstance(error, AlreadyExistsError | PreconditionError | NotModifiedError):
                    continue
            else:
                return content
        raise StorageError(f"{self._base}/{path}: could not be created: {unclear and _brief(unclear)}") from unclear

    def _peek(self, path: str) -> bytes | None:
        try:
            return self.get(path)
        except MissingObject:
            return None

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        with self._faults(path):
            stream = obstore.open_writer(self._store, path, buffer_size=16 * 2**20)
            try:
                yield cast(BinaryIO, _Copying(stream))
            except BaseException:
                # Dropped unfinished: a multipart upload becomes an object only when it is closed.
                del stream
                raise
            stream.close()

    def copy(self, source: str, path: str) -> None:
        with self._faults(source):
            obstore.copy(self._store, source, path)

    def delete(self, path: str) -> None:
        with self._faults(path):
            try:
                obstore.delete(self._store, path)
            except _ABSENT:
                return

    def modified(self, path: str) -> datetime | None:
        with self._faults(path):
            try:
                return obstore.head(self._store, path)["last_modified"]
            except _ABSENT:
                return None

    def size(self, path: str) -> int | None:
        with self._faults(path):
            try:
                return int(obstore.head(self._store, path)["size"])
            except _ABSENT:
                return None

    def head(self, path: str) -> Head | None:
        with self._faults(path):
            try:
                found = obstore.head(self._store, path)
            except _ABSENT:
                return None
            return Head(int(found["size"]), found["e_tag"] or found["last_modified"].isoformat())

    def list(self, prefix: str) -> list[str]:
        folder = prefix.rstrip("/") + "/" if prefix else ""
        with self._faults(prefix):
            return sorted(item["path"] for chunk in obstore.list(self._store, prefix=folder) for item in chunk)

    def local_path(self, path: str) -> Path | None:
        return None

    @contextmanager
    def _faults(self, path: str) -> Iterator[None]:
        try:
            yield
        except _ABSENT as error:
            raise MissingObject(f"{self._base}/{path}: no such object") from error
        except (BaseError, OSError) as error:
            raise StorageError(
                f"{self._base}/{path}: {_brief(error)}; check address, credentials and network"
            ) from error


@dataclass
class _Copying:
    """Hands a stream what nobody changes any more: it sends pieces from the memory they came in, and later."""

    stream: Any

    def write(self, content: bytes | memoryview) -> int:
        return int(self.stream.write(content if isinstance(content, bytes) else bytes(content)))


def _brief(error: BaseException) -> str:
    """The message without the dump of Rust objects that obstore appends."""
    return str(error).partition("\n\nDebug source")[0]
