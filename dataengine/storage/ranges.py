"""One object of many ranges, each read alone: what an exchange of vectors leaves for its reducers.

    entry of range 0 | entry of range 1 | ... | content of range 0 | content of range 1 | ...

An entry is offset, size and XXH3-64 of its range, so a reader needs two small reads and proves what it got: the
object's own SHA-256 would take reading all of it. A range is one Arrow record batch without compression, which a local
disk maps and nothing parses.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

import pyarrow as pa
import xxhash

from dataengine.errors import CorruptObject
from dataengine.schemas import TableSchema
from dataengine.storage.store import Root

_ENTRY = struct.Struct("<QQQ")


def range_pieces(schema: TableSchema, tables: Sequence[pa.Table]) -> Iterator[memoryview]:
    """The object of which range `i` is `tables[i]`, piece by piece; tables may be empty."""
    contents = [memoryview(_batch(table.cast(schema.arrow)).serialize()).cast("B") for table in tables]
    offset = _ENTRY.size * len(contents)
    entries = bytearray()
    for content in contents:
        entries += _ENTRY.pack(offset, len(content), xxhash.xxh3_64_intdigest(content))
        offset += len(content)
    yield memoryview(entries)
    yield from contents


def read_range(root: Root, path: str, schema: TableSchema, number: int) -> pa.Table:
    """Range `number` of an object that `range_pieces` made, mapped where the store is a local disk.

    Raises CorruptObject when the object holds something else there, MissingObject when it is absent.
    """
    offset, nbytes, wanted = _ENTRY.unpack(root.get_range(path, _ENTRY.size * number, _ENTRY.size))
    content = _content(root, path, offset, nbytes)
    found = xxhash.xxh3_64_intdigest(content)
    if found != wanted:
        raise CorruptObject(f"{root.address(path)}: range {number} has XXH3 {found:016x}, its entry says {wanted:016x}")
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), schema.arrow)
    except (pa.ArrowException, OSError) as error:
        raise CorruptObject(f"{root.address(path)}: range {number} is no {schema.name}: {error}") from error
    return pa.Table.from_batches([batch])


def _batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _content(root: Root, path: str, offset: int, nbytes: int) -> memoryview:
    local = root.local_path(path)
    if local is None:
        return memoryview(root.get_range(path, offset, nbytes))
    size = local.stat().st_size
    if offset + nbytes > size:
        raise CorruptObject(f"{local}: {size} bytes, wanted {nbytes} from {offset}")
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with local.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), offset - start + nbytes, access=mmap.ACCESS_READ, offset=start)
    return memoryview(mapped)[offset - start :]
