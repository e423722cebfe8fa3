"""Sliced objects: one object per part that holds the rows for every reducer, each run of them one ranged read.

    slice 0 │ slice 1 │ ... │ offsets: uint64 [slices + 1] │ xxh3-64 of each slice: uint64 [slices] │ metadata: JSON │
    xxh3-64 of offsets to metadata: uint64 │ number of slices, bytes of metadata: uint32 ×2 │ magic (8)

A slice is one Arrow record batch (IPC, uncompressed), so that reading it copies nothing. The footer costs 16 bytes a
slice; a Parquet footer costs about a hundred for every row group and column, and each reducer reads every part's:
at 600 parts and 768 buckets that came to more bytes than the rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from dataengine.errors import CorruptObject
from dataengine.schemas import TableSchema
from dataengine.storage.store import Root

_MAGIC = b"DESLICE1"
_PARALLEL_READS = 16
_LAST_READ_BYTES = 32_768  # the whole footer of 1,024 slices, in one request
_ENDING_BYTES = 8 + 8 + len(_MAGIC)
_Read = TypeVar("_Read")


class Sink(Protocol):
    """Where a sliced object is written."""

    def write(self, content: bytes, /) -> int: ...


def write_slices(sink: Sink, slices: Iterable[pa.Table], metadata: Mapping[str, Any]) -> None:
    """Write `slices`, in order; their bytes depend on nothing but the rows and `metadata` (plain JSON)."""
    offsets, checksums = [0], []
    for table in slices:
        body = _body(table)
        checksums.append(xxhash.xxh3_64_intdigest(body))
        offsets.append(offsets[-1] + body.size)
        if body.size:
            sink.write(memoryview(body).cast("B"))  # type: ignore[arg-type]
    described = json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()
    index = np.array([*offsets, *checksums], np.uint64).tobytes() + described
    counts = np.array([len(checksums), len(described)], np.uint32)
    sink.write(index + xxhash.xxh3_64_intdigest(index).to_bytes(8, "little") + counts.tobytes() + _MAGIC)


def _body(table: pa.Table) -> pa.Buffer:
    if not len(table):
        return pa.py_buffer(b"")
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:  # strings of more than 2 GiB cannot be one array
        raise ValueError(f"a slice of {table.nbytes} bytes does not fit one record batch; cut it smaller")
    return batches[0].serialize()


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
        batches = [batch for batch in self.batches(schema, first, stop) if batch is not None]
        return pa.Table.from_batches(batches, schema.arrow)

    def batches(self, schema: TableSchema, first: int, stop: int) -> list[pa.RecordBatch | None]:
        """As `read`, slice by slice; None for an empty one."""
        begin, end = int(self.offsets[first]), int(self.offsets[stop])
        content = pa.py_buffer(self.root.get_range(self.path, begin, end - begin) if begin < end else b"")
        return [self._batch(schema, number, content, begin) for number in range(first, stop)]

    def _batch(self, schema: TableSchema, number: int, content: pa.Buffer, begin: int) -> pa.RecordBatch | None:
        here, there = int(self.offsets[number]) - begin, int(self.offsets[number + 1]) - begin
        if here == there:
            return None
        body = content.slice(here, there - here)
        if xxhash.xxh3_64_intdigest(body) != int(self.checksums[number]):
            raise CorruptObject(f"{self.root.address(self.path)}: slice {number} is not what was written")
        try:
            batch = pa.ipc.read_record_batch(body, schema.arrow)
            batch.validate()
        except (pa.ArrowException, OSError) as error:
            raise CorruptObject(
                f"{self.root.address(self.path)}: slice {number} is no {schema.name}: {error}"
            ) from error
        return batch


def read_each(objects: Sequence[SlicedObject], schema: TableSchema, first: int, stop: int) -> list[pa.Table]:
    """`SlicedObject.read` of each object, many at once where each costs a round trip."""
    return _each(objects, lambda item: item.read(schema, first, stop))


def read_batches(
    objects: Sequence[SlicedObject], schema: TableSchema, first: int, stop: int
) -> list[list[pa.RecordBatch | None]]:
    """`SlicedObject.batches` of each object, likewise."""
    return _each(objects, lambda item: item.batches(schema, first, stop))


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
