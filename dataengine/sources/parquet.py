"""Parquet from strangers: an open file in, blocks of text columns out.

The footer is checked before a page is read: its own size, its counts, and the size of the column chunks that
are wanted. Only flat columns are taken, and every value becomes text. It knows no URLs or captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataengine.errors import InputError

MAX_FOOTER_BYTES = 256 * 2**20
MAX_CHUNK_BYTES = 4 * 2**30
"""Of one column in one row group, uncompressed; writers stay below 1 GiB for a whole row group."""

_MAGIC = b"PAR1"
_TRAILER_BYTES = 8  # length of the footer, then the magic bytes


def open_parquet(file: BinaryIO, path: str) -> pq.ParquetFile:
    """The Parquet file, its footer proven sane. Raises InputError naming `path` otherwise."""
    _check_trailer(file, path)
    parquet = pq.ParquetFile(file, pre_buffer=False)
    footer = parquet.metadata
    row_counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if min(row_counts, default=0) < 0 or sum(row_counts) != footer.num_rows:
        raise InputError(
            f"{path}: the footer says {footer.num_rows} rows, its row groups {row_counts[:8]}; write it anew"
        )
    return parquet


def text_columns(
    parquet: pq.ParquetFile, path: str, columns: Sequence[str], block_rows: int
) -> Iterator[list[pa.Array]]:
    """Blocks of at most `block_rows` rows, one string array per column; the columns must exist.

    Raises InputError when a column is nested, named twice, or claims an absurd size.
    """
    for name in columns:
        _check_column(parquet, path, name)
    for batch in parquet.iter_batches(block_rows, columns=list(columns), use_threads=False):
        yield [as_text(batch.column(name)) for name in columns]


def as_text(values: pa.Array) -> pa.Array:
    """`values` of any flat type as strings, nulls kept; invalid UTF-8 becomes U+FFFD."""
    plain = values.storage if isinstance(values, pa.ExtensionArray) else values
    if isinstance(plain, pa.DictionaryArray):
        plain = plain.dictionary_decode()
    try:
        text = pc.cast(plain, pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = pc.cast(plain, pa.binary()).to_pylist()
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], pa.string())
    return text


def _check_trailer(file: BinaryIO, path: str) -> None:
    nbytes = file.seek(0, 2)
    file.seek(max(nbytes - _TRAILER_BYTES, 0))
    trailer = file.read(_TRAILER_BYTES)
    if len(trailer) < _TRAILER_BYTES or trailer[4:] != _MAGIC:
        raise InputError(
            f"{path}: no Parquet file: ends in {trailer[4:]!r}, wanted {_MAGIC!r}; is it cut or encrypted?"
        )
    footer_bytes = int.from_bytes(trailer[:4], "little")
    if footer_bytes > min(nbytes - _TRAILER_BYTES, MAX_FOOTER_BYTES):
        raise InputError(f"{path}: a footer of {footer_bytes} bytes in a file of {nbytes} is not sane; write it anew")
    file.seek(0)


def _check_column(parquet: pq.ParquetFile, path: str, name: str) -> None:
    if parquet.schema_arrow.names.count(name) != 1:
        raise InputError(
            f"{path}: column {name!r} stands {parquet.schema_arrow.names.count(name)} times; give it one name"
        )
    kind = parquet.schema_arrow.field(name).type
    if pa.types.is_nested(kind) or (isinstance(kind, pa.ExtensionType) and pa.types.is_nested(kind.storage_type)):
        raise InputError(f"{path}: column {name!r} is {kind}, wanted text or numbers; flatten it first")
    leaf = [parquet.schema.column(number).path for number in range(len(parquet.schema))].index(name)
    for group in range(parquet.metadata.num_row_groups):
        chunk_bytes = parquet.metadata.row_group(group).column(leaf).total_uncompressed_size
        if not 0 <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise InputError(f"{path}: column {name!r} claims {chunk_bytes} bytes in row group {group}; write it anew")
