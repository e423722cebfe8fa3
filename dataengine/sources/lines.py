"""Line-based tables: a byte stream of CSV, TSV, JSONL or TXT in, one row of text per record out.

Strangers write these files, so no line is trusted: a record that cannot be read is a text that says where and
why, in its place, and the next line is tried afresh. Rows are parsed one at a time because columnar readers give
up the whole file at the first unclosed quote or broken object; microseconds a row are little beside fetching its
image. Invalid UTF-8 becomes U+FFFD. It knows no tables and no files.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from dataengine.sources.fields import flat_fields, parse_object

MAX_RECORD_BYTES = 2**20
"""A longer line or record is malformed: what runs on for a megabyte is no caption but an unclosed quote."""

Row = list[str | None] | str
"""The wanted fields; or, of a record that cannot be read, its first line (from 1) and what is wrong with it."""

_TOO_LONG = f"longer than {MAX_RECORD_BYTES:,} bytes"
_BARE_RETURN = "a carriage return without a line feed; end lines with either \\n or \\r\\n"
_UNCLOSED = "a quote is never closed"
# What an unclosed quote swallowed is read again, so a file of nothing but such lines costs the square of this.
_MAX_RECORD_LINES = 256

# For the whole process: the default, 131,072 characters of a field, would be less than what we promise.
csv.field_size_limit(MAX_RECORD_BYTES)

_BOM = "\ufeff"


def text_lines(stream: BinaryIO) -> Iterator[str | None]:
    """The lines of `stream` with their ends, None for one over MAX_RECORD_BYTES; a leading BOM is dropped."""
    is_first = True
    while raw := stream.readline(MAX_RECORD_BYTES + 1):
        if len(raw) > MAX_RECORD_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_RECORD_BYTES)
            yield None
        else:
            line = raw.decode("utf-8", "replace")
            yield line.removeprefix(_BOM) if is_first else line
        is_first = False


def csv_records(lines: Iterator[str | None], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The first line and the fields of each record of RFC 4180 text; what is wrong in place of fields otherwise.

    Blank lines are no records. A quote that is never closed spoils only the line it stands on: the lines it swallowed
    are read again.
    """
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.taken.clear()
        try:
            record = next(reader)
        except StopIteration:
            return
        except (_Torn, csv.Error) as error:
            line = feed.first_line
            feed.give_back()
            reader = csv.reader(feed, delimiter=delimiter)
            yield line, _BARE_RETURN if "new-line character" in str(error) else str(error)
        else:
            if record:
                yield feed.first_line, record


def csv_rows(records: Iterator[tuple[int, list[str] | str]], num_fields: int, wanted: Sequence[int]) -> Iterator[Row]:
    """Fields number `wanted` of each record; one of more or fewer than `num_fields` fields is malformed."""
    for line, record in records:
        if isinstance(record, str):
            yield f"line {line}: {record}"
        elif len(record) != num_fields:
            yield f"line {line}: {len(record)} fields, wanted {num_fields}"
        else:
            yield [record[position] for position in wanted]


def json_rows(lines: Iterator[str | None], names: Sequence[str]) -> Iterator[Row]:
    """Fields `names` of each JSON object, null where it lacks one; blank lines are no rows.

    A line that is no object, or whose wanted field is a list or an object, is malformed.
    """
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield f"line {number}: {_TOO_LONG}"
        elif line.strip():
            fields = flat_fields(parse_object(line), names)
            yield f"line {number}: {fields}" if isinstance(fields, str) else fields


def text_rows(lines: Iterator[str | None]) -> Iterator[Row]:
    """One field per line, its end dropped; blank lines are no rows."""
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield f"line {number}: {_TOO_LONG}"
        elif line.strip():
            yield [line.rstrip("\r\n")]


class _Torn(Exception):
    """The record in `_Feed.taken` has no end; the message says why."""


class _Feed:
    """Lines for a csv.reader; `taken` are those of the record being read, so that they can be given back."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self.lines = lines
        self.pending: deque[str | None] = deque()
        self.taken: list[str | None] = []
        self.num_chars = 0
        self.num_lines = 0

    @property
    def first_line(self) -> int:
        """Number, from 1, of the first of `taken`."""
        return self.num_lines - len(self.taken) + 1

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if not self.taken:
            self.num_chars = 0
        try:
            line = self.pending.popleft() if self.pending else next(self.lines)
        except StopIteration:
            if self.taken:
                raise _Torn(_UNCLOSED) from None
            raise
        self.taken.append(line)
        self.num_lines += 1
        if line is None:
            raise _Torn(_TOO_LONG if len(self.taken) == 1 else _UNCLOSED)
        self.num_chars += len(line)
        if self.num_chars > MAX_RECORD_BYTES or len(self.taken) > _MAX_RECORD_LINES:
            raise _Torn(_UNCLOSED)
        return line

    def give_back(self) -> None:
        """Put all but the record's first line back in front."""
        self.pending.extendleft(reversed(self.taken[1:]))
        self.num_lines -= len(self.taken) - 1
