"""Sliced objects: one object per part that holds the rows for every reducer, each run of them one ranged read.

    slice 0 │ slice 1 │ ... │ offsets: uint64 [slices + 1] │ xxh3-64 of each slice: uint64 [slices] │ metadata: JSON │
    xxh3-64 of offsets to metadata: uint64 │ number of slices, bytes of metadata: uint32 ×2 │ magic (8)

A slice is one Arrow record batch (IPC, uncompressed), or records of a fixed size, so that reading it copies
nothing. The footer costs 16 bytes a slice; a Parquet footer costs about a hundred for every row group and column, and
each reducer reads every part's: at 600 parts and 768 buckets that came to more bytes than the rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from dataengine.errors import CorruptObject
from dataengine.schemas import TableSchema
from dataengine.storage.hashing import HashingWriter
from dataengine.storage.store import Root

_MAGIC = b"DESLICE1"
_PARALLEL_READS = 16
_LAST_READ_BYTES = 32_768  # the whole footer of 1,024 slices, in one request
_ENDING_BYTES = 8 + 8 + len(_MAGIC)
_Read = TypeVar("_Read")


class Sink(Protocol):
    """Where a sliced object is written."""

    def write(self, content: bytes | memoryview, /) -> int: ...


def write_slices(sink: Sink, slices: Iterable[memoryview], metadata: Mapping[str, Any]) -> None:
    """Write `slices` of bytes, in order; the object depends on nothing but them and `metadata` (plain JSON)."""
    offsets, checksums = [0], []
    for body in slices:
        checksums.append(xxhash.xxh3_64_intdigest(body))
        offsets.append(offsets[-1] + body.nbytes)
        if body.nbytes:
            sink.write(body)
    described = json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()
    index = np.array([*offsets, *checksums], np.uint64).tobytes() + described
    counts = np.array([len(checksums), len(described)], np.uint32)
    sink.write(index + xxhash.xxh3_64_intdigest(index).to_bytes(8, "little") + counts.tobytes() + _MAGIC)


def put_slices(root: Root, path: str, slices: Iterable[memoryview], metadata: Mapping[str, Any]) -> HashingWriter:
    """`write_slices` into the object at `path`; its size and hash."""
    with root.writer(path) as writer:
        write_slices(writer, slices, metadata)
    return writer


def batch_slices(table: pa.Table, edges: NDArray[np.int64]) -> Iterator[memoryview]:
    """The rows of `table` between each two of `edges`, as record batches; no bytes for no rows.

    Raises ValueError for strings of more than 2 GiB, which cannot be one array.
    """
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise ValueError(f"{table.nbytes} bytes of strings do not fit one record batch; write fewer rows at once")
    for start, stop in pairwise(edges.tolist()):
        body = batches[0].slice(start, stop - start).serialize() if start < stop else b""
        yield memoryview(body).cast("B")


def record_slices(records: NDArray[Any], edges: NDArray[np.int64]) -> Iterator[memoryview]:
    """The bytes of the contiguous `records` between each two of `edges`, which count along the first axis."""
    content, width = records.reshape(-1).view(np.uint8).data, records.nbytes // max(len(records), 1)
    for start, stop in pairwise((edges * width).tolist()):
        yield content[start:stop]


@dataclass(frozen=True)
class SlicedObject:
    """The footer of a sliced object, read once; slices are read when they are asked for."""

    root: Root
    path: str
    offsets: NDArray[np.uint64]
    checksums: NDArray[np.uint64]
    metadata: Mapping[str, Any]

    @property
    def num_slices(self) -> int:
        """Slices, empty ones included."""
        return len(self.checksums)

    @staticmethod
    def open(root: Root, path: str) -> SlicedObject:
        """The object at `path`. Raises CorruptObject when it is no sliced object, MissingObject when it is absent."""
        return _opened(root, path)

    def read(self, schema: TableSchema, first: int, stop: int) -> pa.Table:
        """The rows of slices `first` to `stop` - 1, in one ranged read.

        Raises CorruptObject when a slice is not what was written, or has other columns than `schema`.
        """
        content, edges = self._content(first, stop)
        batches = [
            self._batch(schema, first + at, content[start:end])
            for at, (start, end) in enumerate(pairwise(edges))
            if start < end
        ]
        return pa.Table.from_batches(batches, schema.arrow)

    def records(self, dtype: np.dtype[Any], first: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The records of slices `first` to `stop` - 1, likewise, and where each slice begins: int64 [slices + 1]."""
        content, edges = self._content(first, stop)
        starts, rest = np.divmod(np.array(edges, np.int64), dtype.itemsize)
        if rest.any():
            raise CorruptObject(f"{self.root.address(self.path)}: no records of {dtype.itemsize} bytes")
        return np.frombuffer(content, dtype), starts

    def _content(self, first: int, stop: int) -> tuple[memoryview, list[int]]:
        """The bytes of slices `first` to `stop` - 1, proven to be those written, and where each begins and ends."""
        begin = int(self.offsets[first])
        edges = [offset - begin for offset in self.offsets[first : stop + 1].tolist()]
        content = memoryview(self.root.get_range(self.path, begin, edges[-1]) if edges[-1] else b"")
        for at, ((start, end), checksum) in enumerate(
            zip(pairwise(edges), self.checksums[first:stop].tolist(), strict=True)
        ):
            if xxhash.xxh3_64_intdigest(content[start:end]) != checksum:
                raise CorruptObject(f"{self.root.address(self.path)}: slice {first + at} is not what was written")
        return content, edges

    def _batch(self, schema: TableSchema, number: int, body: memoryview) -> pa.RecordBatch:
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(body), schema.arrow)
            batch.validate()
        except (pa.ArrowException, OSError) as error:
            raise CorruptObject(
                f"{self.root.address(self.path)}: slice {number} is no {schema.name}: {error}"
            ) from error
        return batch


def read_each(objects: Sequence[SlicedObject], schema: TableSchema, first: int, stop: int) -> list[pa.Table]:
    """`SlicedObject.read` of each object, many at once where each costs a round trip."""
    return _each(objects, lambda item: item.read(schema, first, stop))


def read_each_records(
    objects: Sequence[SlicedObject], dtype: np.dtype[Any], first: int, stop: int
) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    """`SlicedObject.records` of each object, likewise."""
    return _each(objects, lambda item: item.records(dtype, first, stop))


def _each(objects: Sequence[SlicedObject], read: Callable[[SlicedObject], _Read]) -> list[_Read]:
    if all(item.root.local_path(item.path) is not None for item in objects):
        return [read(item) for item in objects]
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(read, objects))


@functools.lru_cache(maxsize=4096)  # immutable; a reducer meets the same parts again in its next bucket
def _opened(root: Root, path: str) -> SlicedObject:
    where = root.address(path)
    size = root.size(path)
    if size is None:
        root.get(path)  # raises MissingObject with the address
        raise CorruptObject(f"{where}: appeared while it was being opened; try again")
    tail = root.get_range(path, max(size - _LAST_READ_BYTES, 0), min(size, _LAST_READ_BYTES))
    if tail[-len(_MAGIC) :] != _MAGIC or len(tail) < _ENDING_BYTES:
        raise CorruptObject(f"{where}: not a sliced object, or not all of one")
    num_slices, num_metadata_bytes = np.frombuffer(tail, np.uint32, 2, len(tail) - len(_MAGIC) - 8).tolist()
    nbytes = 16 * num_slices + 8 + num_metadata_bytes
    if nbytes + _ENDING_BYTES > size:
        raise CorruptObject(f"{where}: the footer is not what was written")
    if nbytes + _ENDING_BYTES > len(tail):
        tail = root.get_range(path, size - nbytes - _ENDING_BYTES, nbytes + _ENDING_BYTES)
    index = tail[len(tail) - nbytes - _ENDING_BYTES : len(tail) - _ENDING_BYTES]
    checksum = tail[len(tail) - _ENDING_BYTES :][:8]
    if xxhash.xxh3_64_intdigest(index) != int.from_bytes(checksum, "little"):
        raise CorruptObject(f"{where}: the footer is not what was written")
    offsets = np.frombuffer(index, np.uint64, num_slices + 1)
    checksums = np.frombuffer(index, np.uint64, num_slices, offsets.nbytes)
    return SlicedObject(root, path, offsets, checksums, json.loads(index[offsets.nbytes + checksums.nbytes :]))
