"""Foreign tables: an open Parquet, CSV, TSV, JSONL or TXT file in, blocks of text columns out.

A file that cannot be used at all is an InputError; a row that cannot be read is a row of nulls marked
MALFORMED, in its place, so that no input row is lost. It knows no URLs, keys or stores.
"""

from __future__ import annotations

import difflib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import pyarrow as pa

from dataengine.errors import InputError
from dataengine.sources.lines import Row, csv_records, csv_rows, json_rows, text_lines, text_rows
from dataengine.sources.parquet import open_parquet, text_columns

MALFORMED = "__malformed__"
"""Boolean column after the wanted ones: the row could not be read, and its fields are null."""

BLOCK_ROWS = 65_536

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_CODECS = {"gz": "gzip", "zst": "zstd"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def table_format(path: str, declared: str) -> tuple[str, str | None]:
    """(format, compression) of the table at `path`, such as ("csv", "gz"); `auto` goes by the name.

    Raises InputError when `auto` cannot tell, and for compressed Parquet.
    """
    name = path.rpartition("/")[2].lower()
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


def read_columns(
    file: BinaryIO, path: str, format: str, compression: str | None, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows of a table in order, in blocks: `columns` as strings (nulls kept), then MALFORMED.

    CSV and TSV are RFC 4180 with a header; JSONL rows that lack a field hold null; TXT is one URL a line,
    so it has one column. Raises InputError naming `path` when a column is missing or nested, or the file is
    unreadable.
    """
    try:
        yield from _read(file, path, format, compression, columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot read this {format} file: {error}; fetch or write it again") from error


def count_rows(file: BinaryIO, path: str, format: str, compression: str | None) -> int:
    """The rows that `read_columns` yields in all; Parquet tells from its footer.

    Raises InputError naming `path` when the file is unreadable.
    """
    try:
        if format == "parquet":
            return cast(int, open_parquet(file, path).metadata.num_rows)
        lines = text_lines(_unpacked(file, compression))
        if format not in _DELIMITERS:
            return sum(1 for line in lines if line is None or line.strip())
        records = csv_records(lines, _DELIMITERS[format])
        _header(records, path)
        return sum(1 for _ in records)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot read this {format} file: {error}; fetch or write it again") from error


def _read(
    file: BinaryIO, path: str, format: str, compression: str | None, columns: Sequence[str]
) -> Iterator[pa.Table]:
    if format == "parquet":
        parquet = open_parquet(file, path)
        _check_names(path, columns, parquet.schema_arrow.names)
        for arrays in text_columns(parquet, path, columns, BLOCK_ROWS):
            yield pa.Table.from_arrays([*arrays, pa.repeat(False, len(arrays[0]))], [*columns, MALFORMED])
        return
    lines = text_lines(_unpacked(file, compression))
    yield from _blocks(_line_rows(lines, path, format, columns), columns)


def _line_rows(lines: Iterator[str | None], path: str, format: str, columns: Sequence[str]) -> Iterator[Row | None]:
    if format == "jsonl":
        return json_rows(lines, columns)
    if format == "txt":
        if len(columns) != 1:
            raise InputError(f"{path}: a TXT file holds URLs only, wanted columns {list(columns)}; use CSV or JSONL")
        return text_rows(lines)
    records = csv_records(lines, _DELIMITERS[format])
    header = _header(records, path)
    _check_names(path, columns, header)
    return csv_rows(records, len(header), [header.index(name) for name in columns])


def _header(records: Iterator[list[str] | None], path: str) -> list[str]:
    header = next(records, None)
    if header is None:
        raise InputError(f"{path}: no header line; the first line must name the columns")
    return header


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


def _unpacked(file: BinaryIO, compression: str | None) -> BinaryIO:
    file.seek(0)
    if compression is None:
        return file
    stream = pa.CompressedInputStream(pa.PythonFile(_Lent(file), "r"), _CODECS[compression])
    return cast(BinaryIO, io.BufferedReader(stream, 2**20))


class _Lent(io.RawIOBase):
    """A file that stays open when the stream over it, which closes what it reads, is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


def _blocks(rows: Iterator[Row | None], columns: Sequence[str]) -> Iterator[pa.Table]:
    blank: Row = [None] * len(columns)
    while block := list(itertools.islice(rows, BLOCK_ROWS)):
        fields = zip(*(blank if row is None else row for row in block), strict=True)
        arrays = [pa.array(values, pa.string()) for values in fields]
        malformed = pa.array([row is None for row in block], pa.bool_())
        yield pa.Table.from_arrays([*arrays, malformed], [*columns, MALFORMED])
