"""Writing while counting and hashing, so that an object's size and SHA-256 cost no second read."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import BinaryIO, Self

_APART_BYTES = 2**20
"""Pieces from this size on are hashed in a thread of their own while they are written: SHA-256 takes longer than a
write into the page cache, and neither holds the interpreter."""


class HashingWriter:
    """A context manager over a binary stream; `num_bytes` and `sha256` are of what was written."""

    def __init__(self, stream: AbstractContextManager[BinaryIO]) -> None:
        self._context = stream
        self._hash = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self.num_bytes = 0

    def __enter__(self) -> Self:
        self._stream = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        self._context.__exit__(kind, error, trace)

    def write(self, content: bytes | memoryview) -> int:
        """Append `content`, which may be changed again when this returns."""
        if len(content) < _APART_BYTES:
            self._stream.write(content)
            self._hash.update(content)
        else:
            self._write_and_hash(content)
        self.num_bytes += len(content)
        return len(content)

    def _write_and_hash(self, content: bytes | memoryview) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        hashed = self._thread.submit(self._hash.update, content)
        try:
            self._stream.write(content)
        finally:
            hashed.result()

    @property
    def sha256(self) -> str:
        """Of everything written so far, 64 hex characters."""
        return self._hash.hexdigest()

    # pyarrow writes to any object with these.
    closed = False

    def flush(self) -> None:
        """Nothing to do: the object appears when the block ends."""

    def tell(self) -> int:
        """Bytes written."""
        return self.num_bytes

    def writable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing to do: the `with` block closes."""
