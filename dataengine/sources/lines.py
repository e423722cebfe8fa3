"""Line-based tables: a byte stream of CSV, TSV, JSONL or TXT in, one row of text per record out.

Strangers write these files, so no line is trusted: a record that cannot be read is None, in its place, and
the next line is tried afresh. Rows are parsed one at a time because columnar readers give up the whole file
at the first unclosed quote or broken object; microseconds a row are little beside fetching its image. Invalid
UTF-8 becomes U+FFFD. It knows no tables and no files.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from dataengine.sources.fields import is_nested, parse_object, text_of

MAX_RECORD_BYTES = 2**20
"""A longer line or record is malformed: what runs on for a megabyte is no caption but an unclosed quote."""

Row = list[str | None]

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


def csv_records(lines: Iterator[str | None], delimiter: str) -> Iterator[list[str] | None]:
    """The records of RFC 4180 text, None for each that cannot be read; blank lines are no records.

    A quote that is never closed spoils only the line it stands on: the lines it swallowed are read again.
    """
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.taken.clear()
        try:
            record = next(reader)
        except StopIteration:
            return
        except (_Torn, csv.Error):
            feed.give_back()
            reader = csv.reader(feed, delimiter=delimiter)
            yield None
        else:
            if record:
                yield record


def csv_rows(records: Iterator[list[str] | None], num_fields: int, wanted: Sequence[int]) -> Iterator[Row | None]:
    """Fields number `wanted` of each record; None for a record of more or fewer than `num_fields` fields."""
    for record in records:
        is_sound = record is not None and len(record) == num_fields
        yield [record[position] for position in wanted] if record is not None and is_sound else None


def json_rows(lines: Iterator[str | None], names: Sequence[str]) -> Iterator[Row | None]:
    """Fields `names` of each JSON object, null where it lacks one; None for a line that is no object.

    An object whose wanted field is a list or an object is malformed too. Blank lines are no rows.
    """
    for line in lines:
        if line is None:
            yield None
        elif line.strip():
            values = parse_object(line)
            fields = [] if values is None else [values.get(name) for name in names]
            is_broken = values is None or any(map(is_nested, fields))
            yield None if is_broken else [text_of(field) for field in fields]


def text_rows(lines: Iterator[str | None]) -> Iterator[Row | None]:
    """One field per line, its end dropped; blank lines are no rows."""
    for line in lines:
        if line is None:
            yield None
        elif line.strip():
            yield [line.rstrip("\r\n")]


class _Torn(Exception):
    """The record in `_Feed.taken` has no end."""


class _Feed:
    """Lines for a csv.reader; `taken` are those of the record being read, so that they can be given back."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self.lines = lines
        self.pending: deque[str | None] = deque()
        self.taken: list[str | None] = []
        self.num_chars = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if not self.taken:
            self.num_chars = 0
        try:
            line = self.pending.popleft() if self.pending else next(self.lines)
        except StopIteration:
            if self.taken:
                raise _Torn from None
            raise
        self.taken.append(line)
        if line is None:
            raise _Torn
        self.num_chars += len(line)
        if self.num_chars > MAX_RECORD_BYTES:
            raise _Torn
        return line

    def give_back(self) -> None:
        """Put all but the record's first line back in front."""
        self.pending.extendleft(reversed(self.taken[1:]))
