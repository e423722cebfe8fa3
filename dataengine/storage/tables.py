"""Tables and arrays as objects: Parquet with fixed settings, so that equal tables are equal bytes; `.npy` arrays."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from dataengine.errors import CorruptObject
from dataengine.schemas import TableSchema
from dataengine.storage.rundir import ObjectRef
from dataengine.storage.store import Root

TABLE_FORMAT = 3
"""Raised by hand when equal tables would become other bytes, or commits say other things of objects: every step's
recipe rests on it."""
ROW_GROUP_ROWS = 65_536  # a few MB of narrow columns: small enough to skip, large enough to compress
_SAMPLED_ROWS = 1_000  # tell whether a column repeats itself
_UNREADABLE = (pa.ArrowException, OSError, KeyError, IndexError)  # a page that fails its checksum is an OSError


def parquet_bytes(table: pa.Table) -> bytes:
    """`table` as a Parquet file whose bytes depend on nothing else."""
    sink = io.BytesIO()
    _write(sink, table.schema, [table], ROW_GROUP_ROWS)
    return sink.getvalue()


def bucketed_parquet_bytes(buckets: Sequence[pa.Table]) -> bytes:
    """A Parquet file with row group `i` = `buckets[i]`, so that a reducer reads its bucket alone; some may be empty."""
    sink = io.BytesIO()
    _write(sink, buckets[0].schema, buckets, max(1, *(len(bucket) for bucket in buckets)))
    return sink.getvalue()


def _write(sink: io.BytesIO, schema: pa.Schema, groups: Sequence[pa.Table], row_group_rows: int) -> None:
    writer = pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=3, write_page_checksum=True, store_schema=True,
        use_dictionary=[path for field in schema for path in _repeating(field, max(groups, key=len))],
    )  # fmt: skip
    with writer:
        for group in groups:
            writer.write_table(group.combine_chunks(), row_group_size=row_group_rows)


def _repeating(field: pa.Field, table: pa.Table) -> Iterator[str]:
    """The Parquet columns of a field for which a dictionary pays; keys and scores take half the time without one."""
    if pa.types.is_map(field.type):
        yield from (f"{field.name}.key_value.key", f"{field.name}.key_value.value")
    elif pa.types.is_list(field.type):
        yield f"{field.name}.list.element"
    else:
        first = table.column(field.name).slice(0, _SAMPLED_ROWS)
        if 2 * pc.count_distinct(first).as_py() <= len(first):
            yield field.name


def read_table(root: Root, path: str, schema: TableSchema, columns: Sequence[str] | None = None) -> pa.Table:
    """The table at `path`, checked against `schema`; only `columns` (in schema order) when given.

    Raises CorruptObject when the object is not that table, MissingObject when it is absent.
    """
    return read_tables(root, [path], schema, columns)


def read_tables(
    root: Root, paths: Sequence[str], schema: TableSchema, columns: Sequence[str] | None = None
) -> pa.Table:
    """The tables at `paths`, one at least, one after the other as one table; otherwise like `read_table`."""
    wanted = schema.arrow if columns is None else pa.schema([schema.arrow.field(name) for name in columns])
    found = [_read(root, path, schema.name, wanted) for path in paths]
    return found[0] if len(found) == 1 else pa.concat_tables(found)


def _read(root: Root, path: str, name: str, wanted: pa.Schema) -> pa.Table:
    local = root.local_path(path)
    try:
        with _opened(root, path, local) as file:
            # Half the cost of `pq.read_table` for a part; ranges are fetched together where each is a request.
            reader = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=local is None)
            # Many parts are read at once: threads within one pay only where it is large.
            table = reader.read(columns=wanted.names, use_threads=reader.metadata.num_rows > ROW_GROUP_ROWS)
        if table.schema.equals(wanted):
            return table
        return table.select(wanted.names).cast(wanted).replace_schema_metadata(table.schema.metadata)
    except _UNREADABLE as error:
        raise CorruptObject(f"{root.address(path)}: not a readable {name} table: {error}") from error


def _opened(root: Root, path: str, local: Path | None) -> pa.NativeFile | BinaryIO:
    """The object, through Arrow's own file where it can be: a sixth less for a part than through Python's."""
    try:
        return root.open(path) if local is None else pa.OSFile(str(local))
    except FileNotFoundError:
        return root.open(path)  # raises MissingObject with the address


def read_bucket(root: Root, path: str, schema: TableSchema, bucket: int) -> pa.Table:
    """Row group `bucket` of a file that `bucketed_parquet_bytes` made."""
    try:
        with root.open(path) as file:
            reader = pq.ParquetFile(file, page_checksum_verification=True)
            return reader.read_row_group(bucket).cast(schema.arrow)
    except _UNREADABLE as error:
        raise CorruptObject(f"{root.address(path)}: no readable bucket {bucket} of {schema.name}: {error}") from error


def npy_bytes(array: NDArray[Any]) -> bytes:
    """`array` as a `.npy` file."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()


def read_npy(root: Root, item: ObjectRef) -> NDArray[Any]:
    """The array that is `item`, its bytes proven: a `.npy` file has no checksum of its own.

    Raises CorruptObject when it is another one or none, MissingObject when it is absent.
    """
    content = root.get(item.path)
    found = xxhash.xxh3_64_hexdigest(content)
    if found != item.xxh3:
        raise CorruptObject(
            f"{root.address(item.path)}: {len(content)} bytes with XXH3 {found}, its commit names {item.nbytes} with "
            f"{item.xxh3}"
        )
    try:
        return _mapped(content)
    except ValueError as error:
        raise CorruptObject(f"{root.address(item.path)}: not a readable .npy array: {error}") from error


def _mapped(content: bytes) -> NDArray[Any]:
    """The array that a `.npy` file holds, on the file's own bytes and so not to be written to.

    Raises ValueError when it is none.
    """
    header = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(header)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    found = np.frombuffer(content, dtype, offset=header.tell())
    return found.reshape(shape, order="F" if fortran else "C")
