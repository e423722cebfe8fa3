"""Parquet from strangers: an open file in, blocks of text columns out.

The footer is checked before a page is read: its own size, its counts, and the size of the column chunks that
are wanted. Pages are read one by one, so a row group may be of any size. Only flat columns are taken, and every value
becomes text. It knows no URLs or captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataengine.errors import InputError
from dataengine.sources.parquet_footer import FooterFault, read_chunks

MAX_FOOTER_BYTES = 256 * 2**20
MAX_CHUNK_BYTES = 4 * 2**30
"""Of one column in one row group, uncompressed; writers stay below 1 GiB for a whole row group."""

_BUFFER_BYTES = 4 * 2**20  # of a column chunk; without it a whole chunk is read at once
_MAGIC = b"PAR1"
_TRAILER_BYTES = 8  # length of the footer, then the magic bytes


def open_parquet(file: BinaryIO, path: str) -> pq.ParquetFile:
    """The Parquet file, its footer proven sane. Raises InputError naming `path` otherwise."""
    _check_trailer(file, path)
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    footer = parquet.metadata
    row_counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if min(row_counts, default=0) < 0 or sum(row_counts) != footer.num_rows:
        raise InputError(
            f"{path}: the footer says {footer.num_rows} rows, its row groups {row_counts[:8]}; write it anew"
        )
    return parquet


def cut_row_groups(footer: pq.FileMetaData, piece_rows: int) -> list[tuple[range, int]]:
    """Runs of row groups in order, and their rows: at most `piece_rows`, or one row group. At least one run."""
    runs = [(range(0), 0)]
    for group in range(footer.num_row_groups):
        groups, num_rows = runs[-1]
        group_rows = footer.row_group(group).num_rows
        if num_rows and num_rows + group_rows > piece_rows:
            runs.append((range(group, group + 1), group_rows))
        else:
            runs[-1] = (range(groups.start, group + 1), num_rows + group_rows)
    return runs


def text_columns(
    file: BinaryIO,
    parquet: pq.ParquetFile,
    path: str,
    columns: Sequence[str],
    row_groups: Sequence[int],
    block: tuple[int, int],
) -> Iterator[list[pa.Array]]:
    """Blocks of the rows of `row_groups`, one string array per column; the columns must exist.

    A block is of at most `block` (rows, bytes), the bytes by the mean of its row group. Raises InputError when a
    column is nested, named twice, or claims an absurd size.
    """
    for name in columns:
        _check_kind(parquet, path, name)
    sizes = _unpacked_bytes(file, path, columns)
    for group in row_groups:
        num_rows = parquet.metadata.row_group(group).num_rows
        block_rows = min(block[0], max(1, block[1] * num_rows // max(1, sizes[group])))
        for batch in parquet.iter_batches(block_rows, [group], list(columns), use_threads=False):
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


def _check_kind(parquet: pq.ParquetFile, path: str, name: str) -> None:
    if parquet.schema_arrow.names.count(name) != 1:
        raise InputError(
            f"{path}: column {name!r} stands {parquet.schema_arrow.names.count(name)} times; give it one name"
        )
    kind = parquet.schema_arrow.field(name).type
    if pa.types.is_nested(kind) or (isinstance(kind, pa.ExtensionType) and pa.types.is_nested(kind.storage_type)):
        raise InputError(f"{path}: column {name!r} is {kind}, wanted text or numbers; flatten it first")


def _unpacked_bytes(file: BinaryIO, path: str, columns: Sequence[str]) -> list[int]:
    """What `columns` claim to unpack to, by row group, each proven sane."""
    try:
        groups = read_chunks(file)
        for group, chunks in enumerate(groups):
            for name in columns:
                if chunks[name].unpacked_bytes > MAX_CHUNK_BYTES:
                    claim = f"column {name!r} claims {chunks[name].unpacked_bytes} bytes in row group {group}"
                    raise InputError(f"{path}: {claim}; write it anew")
        return [sum(chunks[name].unpacked_bytes for name in columns) for chunks in groups]
    except (FooterFault, KeyError) as error:
        raise InputError(f"{path}: the footer contradicts itself: {error}; write it anew") from error
