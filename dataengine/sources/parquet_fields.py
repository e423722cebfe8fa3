"""Fields of foreign Parquet as text: row groups of an open file in, blocks of fields out.

Unlike the URL tables, these rows belong to images that lie elsewhere, so they are read by row group, and a row group
that breaks is a GroupFault: the rows before stay. Numbers, lists and objects become the text that JSON would be.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataengine.errors import InputError
from dataengine.sources.fields import text_of
from dataengine.sources.parquet import MAX_CHUNK_BYTES, as_text, open_parquet
from dataengine.sources.parquet_footer import Chunk, FooterFault, read_chunks
from dataengine.sources.parquet_pages import PageFault, read_pages

MAX_GROUP_ROWS = 2**20
"""Rows of a row group: as many as Arrow puts into one, and far more than the images of a sane one."""

MAX_BLOCK_BYTES = 64 * 2**20
"""Of one column that is unpacked at a time, unless a single value takes more."""

MAX_TEXT_CHARS = 256 * 2**20
"""Of all fields of a row group."""

_BLOCK_ROWS = 1024
_READ_AHEAD_BYTES = 2**20  # pages are read as they are wanted, not the whole column chunk
_UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)


class GroupFault(Exception):
    """A row group that cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class GroupedParquet:
    """An open Parquet file that is read by row group; `num_rows` and `chunks` (by path) are of each."""

    file: BinaryIO
    path: str
    reader: pq.ParquetFile
    schema: pa.Schema
    max_levels: Mapping[str, int]
    """Maximum definition level by the path of a leaf column."""
    num_rows: Sequence[int]
    chunks: Sequence[Mapping[str, Chunk]]


def open_groups(file: BinaryIO, path: str) -> GroupedParquet:
    """The Parquet file, opened to be read by row group, its checksums verified where there are any.

    Raises InputError naming `path` when it is no Parquet file, or one of its row groups claims too many rows.
    """
    try:
        footer = open_parquet(file, path).metadata
        reader = pq.ParquetFile(
            file,
            metadata=footer,
            pre_buffer=False,
            buffer_size=_READ_AHEAD_BYTES,
            page_checksum_verification=True,
        )
        leaves = [reader.schema.column(leaf) for leaf in range(len(reader.schema))]
        max_levels = {leaf.path: leaf.max_definition_level for leaf in leaves}
        num_rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        parquet = GroupedParquet(file, path, reader, reader.schema_arrow, max_levels, num_rows, read_chunks(file))
    except (*_UNREADABLE, FooterFault) as error:
        raise InputError(f"{path}: cannot read this Parquet file: {error}; fetch or write it again") from error
    for group, rows in enumerate(num_rows):
        if rows > MAX_GROUP_ROWS:
            raise InputError(
                f"{path}: row group {group} holds {rows:,} rows, at most {MAX_GROUP_ROWS:,}; write it anew in smaller "
                f"row groups"
            )
    return parquet


def require_columns(parquet: GroupedParquet, columns: Sequence[str]) -> None:
    """Raises InputError naming the file when one of `columns` is not there, or there twice."""
    path, found = parquet.path, parquet.schema.names
    for name in columns:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            shown = ", ".join(found[:50])[:1000]
            raise InputError(f"{path}: no column {name!r}{hint}; its columns are {shown}; name the right one")
        if found.count(name) > 1:
            raise InputError(f"{path}: column {name!r} stands {found.count(name)} times; give each its own name")


def read_fields(parquet: GroupedParquet, group: int, columns: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """The rows of a row group: column → text or None. Raises GroupFault after every sound block before it."""
    if not columns:
        yield from ({} for _ in range(parquet.num_rows[group]))
        return
    num_chars = 0
    for batch in read_batches(parquet, group, columns):
        try:
            texts = [_texts(batch.column(name)) for name in columns]
        except _UNREADABLE as error:
            raise GroupFault(str(error)) from error
        num_chars += sum(len(text or "") for column in texts for text in column)
        if num_chars > MAX_TEXT_CHARS:
            raise GroupFault(f"columns {list(columns)} hold more than {MAX_TEXT_CHARS} characters")
        for row in zip(*texts, strict=True):
            yield dict(zip(columns, row, strict=True))


def read_batches(parquet: GroupedParquet, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of a row group whose size in memory is bounded; `columns` are names, or dotted paths of leaves.

    Raises GroupFault after every sound block before it.
    """
    chunks = [
        chunk
        for path, chunk in parquet.chunks[group].items()
        if any(f"{path}.".startswith(f"{name}.") for name in columns)
    ]
    block_rows = min((_block_rows(parquet.file, chunk) for chunk in chunks), default=_BLOCK_ROWS)
    try:
        yield from parquet.reader.iter_batches(block_rows, row_groups=[group], columns=list(columns), use_threads=False)
    except _UNREADABLE as error:
        raise GroupFault(str(error)) from error


def _block_rows(file: BinaryIO, chunk: Chunk) -> int:
    """Rows of a column chunk that MAX_BLOCK_BYTES hold, by what its pages say. Raises GroupFault.

    A value of a dictionary counts as the whole dictionary: a hostile one holds one huge value that every row names.
    """
    value_bytes = total_bytes = 0
    try:
        for page in read_pages(file, chunk.span):
            total_bytes += page.unpacked_bytes
            if not page.holds_rows:
                value_bytes = max(value_bytes, page.unpacked_bytes)
    except PageFault as fault:
        raise GroupFault(str(fault)) from fault
    if total_bytes > MAX_CHUNK_BYTES:
        raise GroupFault(f"column {chunk.path} unpacks to {total_bytes} bytes, at most {MAX_CHUNK_BYTES}")
    value_bytes = max(value_bytes, total_bytes // max(chunk.num_values, 1), 1)
    return max(1, min(_BLOCK_ROWS, MAX_BLOCK_BYTES // value_bytes))


def _texts(values: pa.Array) -> list[str | None]:
    kind = values.type
    if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return [_json_text(value) for value in values]
    return list(as_text(values).to_pylist())


def _json_text(value: pa.Scalar) -> str | None:
    try:
        return text_of(value.as_py())
    except (TypeError, ValueError):  # bytes, times and broken text within a list are no JSON
        return None
