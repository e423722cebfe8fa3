"""Foreign tables: an open Parquet, CSV, TSV, JSON, JSONL or TXT file in, blocks of text columns out.

A Parquet file may be read in pieces, runs of its row groups; others are read from their beginning. Blocks are bounded
in rows and bytes. A file that cannot be used at all is an InputError; a row that cannot be read is a row of nulls whose
MALFORMED says why, in its place, so that no input row is lost. It knows no URLs, keys or stores.
"""

from __future__ import annotations

import codecs
import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from dataengine.errors import InputError
from dataengine.sources.json_array import array_rows
from dataengine.sources.lines import MAX_RECORD_BYTES, Row, csv_records, csv_rows, json_rows, text_lines, text_rows
from dataengine.sources.parquet import cut_row_groups, open_parquet, text_columns

MALFORMED = "__malformed__"
"""Text column after the wanted ones: the file, the place in it, and why the row could not be read; null for others."""

BLOCK_ROWS = 65_536
BLOCK_BYTES = 16 * 2**20
PIECE_ROWS = 2**20  # the row group that pyarrow writes by default

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_CODECS = {"gz": "gzip", "zst": "zstd"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class Piece:
    """A run of a table's rows; of a Parquet file these `row_groups`, of others all."""

    first_row: int
    num_rows: int
    row_groups: range | None


def table_format(path: str, declared: str) -> tuple[str, str | None]:
    """(format, compression) of the table at `path`, such as ("csv", "gz"); `auto` goes by the name.

    Raises InputError when `auto` cannot tell, and for compressed Parquet.
    """
    name = file_name(path).lower()
    stem, dot, suffix = name.rpartition(".")
    compression = _COMPRESSIONS.get(dot + suffix)
    if compression:
        name = stem
    found = _FORMATS.get("." + name.rpartition(".")[2]) if declared == "auto" else declared
    if found is None:
        known = ", ".join(_FORMATS)
        raise InputError(f"{path}: the name does not tell the format; set `format`, or end it in one of {known}")
    if found == "parquet" and compression:
        raise InputError(f"{path}: Parquet is compressed within; unpack the .{compression} first")
    return found, compression


def file_name(path: str) -> str:
    """The last part of a path or URL."""
    return path.rpartition("/")[2]


def cut_table(
    file: BinaryIO, path: str, format: str, compression: str | None, columns: Sequence[str] = ()
) -> list[Piece]:
    """The pieces that a table is read in, in order; at least one.

    Parquet tells from its footer, and is cut between row groups into pieces of about PIECE_ROWS; others are read.
    Raises InputError naming `path` when the file is unreadable, or names its columns and lacks one of `columns`.
    """
    with _readable(path, format):
        if format != "parquet":
            return [Piece(0, _count_rows(_text_stream(file, path, compression), path, format, columns), None)]
        parquet = open_parquet(file, path)
        _check_names(path, columns, parquet.schema_arrow.names)
        pieces, first_row = [], 0
        for row_groups, num_rows in cut_row_groups(parquet.metadata, PIECE_ROWS):
            pieces.append(Piece(first_row, num_rows, row_groups))
            first_row += num_rows
        return pieces


def read_columns(
    file: BinaryIO,
    path: str,
    format: str,
    compression: str | None,
    columns: Sequence[str],
    row_groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """The rows of a piece in order, in blocks: `columns` as strings (nulls kept), then MALFORMED.

    CSV and TSV are RFC 4180 with a header; JSON is an array of objects, or JSONL; JSON rows that lack a field hold
    null; TXT is one URL a line, so it has one column. Raises InputError naming `path` when a column is missing or
    nested, or the file is unreadable.
    """
    with _readable(path, format):
        if format == "parquet":
            yield from _parquet_blocks(file, path, columns, row_groups)
        else:
            rows = _rows(_text_stream(file, path, compression), path, format, columns)
            yield from _blocks(rows, file_name(path), columns)


@contextmanager
def _readable(path: str, format: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read this {format} file: {error}; fetch or write it again") from error


def _count_rows(stream: io.BufferedReader[io.RawIOBase], path: str, format: str, columns: Sequence[str]) -> int:
    if format in _DELIMITERS:
        records = csv_records(text_lines(stream), _DELIMITERS[format])
        _check_names(path, columns, _header(records, path))
        return sum(1 for _ in records)
    if format == "json" and _is_array(stream, path):
        return sum(1 for _ in array_rows(stream, []))
    return sum(1 for _ in text_rows(text_lines(stream)))


def _parquet_blocks(
    file: BinaryIO, path: str, columns: Sequence[str], row_groups: Sequence[int] | None
) -> Iterator[pa.Table]:
    parquet = open_parquet(file, path)
    _check_names(path, columns, parquet.schema_arrow.names)
    groups = range(parquet.metadata.num_row_groups) if row_groups is None else row_groups
    for arrays in text_columns(file, parquet, path, columns, groups, (BLOCK_ROWS, BLOCK_BYTES)):
        sound = pa.nulls(len(arrays[0]), pa.string())
        yield pa.Table.from_arrays([*arrays, sound], [*columns, MALFORMED])


def _rows(stream: io.BufferedReader[io.RawIOBase], path: str, format: str, columns: Sequence[str]) -> Iterator[Row]:
    if format == "json" and _is_array(stream, path):
        return array_rows(stream, columns)
    lines = text_lines(stream)
    if format in ("json", "jsonl"):
        return json_rows(lines, columns)
    if format == "txt":
        if len(columns) != 1:
            raise InputError(f"{path}: a TXT file holds URLs only, wanted columns {list(columns)}; use CSV or JSONL")
        return text_rows(lines)
    records = csv_records(lines, _DELIMITERS[format])
    header = _header(records, path)
    _check_names(path, columns, header)
    return csv_rows(records, len(header), [header.index(name) for name in columns])


def _header(records: Iterator[tuple[int, list[str] | str]], path: str) -> list[str]:
    _, header = next(records, (1, "it is empty"))
    if isinstance(header, str):
        raise InputError(f"{path}: no header line ({header}); the first line must name the columns")
    return header


def _is_array(stream: io.BufferedReader[io.RawIOBase], path: str) -> bool:
    """Whether JSON text is an array of objects; one object after the other are lines."""
    start = stream.peek(MAX_RECORD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)[:1]
    if start not in (b"[", b"{"):
        raise InputError(f"{path}: no JSON table: begins with {start!r}, wanted an array of objects or one a line")
    return start == b"["


def _check_names(path: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    for name in wanted:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            shown = ", ".join(found[:50])[:1000]
            raise InputError(
                f"{path}: no column {name!r}{hint}; its columns are {shown}; name the right one in the config"
            )
        if found.count(name) > 1:
            raise InputError(f"{path}: column {name!r} stands {found.count(name)} times; give each its own name")


def _text_stream(file: BinaryIO, path: str, compression: str | None) -> io.BufferedReader[io.RawIOBase]:
    """The unpacked text from its beginning; the file stays open when the stream is closed."""
    file.seek(0)
    raw: io.RawIOBase = _Lent(file)
    if compression is not None:
        raw = pa.CompressedInputStream(pa.PythonFile(raw, "r"), _CODECS[compression])
    stream: io.BufferedReader[io.RawIOBase] = io.BufferedReader(raw, MAX_RECORD_BYTES)
    if stream.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: UTF-16 text, wanted UTF-8; write it anew with: iconv -f UTF-16 -t UTF-8")
    return stream


class _Lent(io.RawIOBase):
    """A file that stays open when the stream over it, which closes what it reads, is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _blocks(rows: Iterator[Row], file: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    block: list[Row] = []
    num_chars = 0
    for row in rows:
        block.append(row)
        num_chars += len(row) if isinstance(row, str) else sum(len(field) for field in row if field)
        if len(block) == BLOCK_ROWS or num_chars >= BLOCK_BYTES:
            yield _block(block, file, columns)
            block, num_chars = [], 0
    if block:
        yield _block(block, file, columns)


def _block(rows: Sequence[Row], file: str, columns: Sequence[str]) -> pa.Table:
    blank = [None] * len(columns)
    fields = zip(*(blank if isinstance(row, str) else row for row in rows), strict=True)
    arrays = [pa.array(values, pa.string()) for values in fields]
    malformed = [f"{file}, {row}" if isinstance(row, str) else None for row in rows]
    return pa.Table.from_arrays([*arrays, pa.array(malformed, pa.string())], [*columns, MALFORMED])
