"""Where the values of a Parquet column lie: an open file and the span of one column chunk in, byte ranges out.

Only page headers, levels and the length before each value are read; of the values, the places are noted. A chunk has
such places when it is flat, not compressed, and PLAIN throughout. What is decided here: which claims of a hostile
file are believed (none that leaves the chunk). It knows no images. Format: apache/parquet-format, README.md,
Encodings.md and parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from dataengine.sources.parquet_footer import Chunk, Span
from dataengine.sources.thrift import Fields, ThriftFault, Truncated, read_struct

MAX_HEADER_BYTES = 16 * 2**20
"""A page header holds statistics, so whole values at worst; as much as Arrow reads."""

_FIRST_WINDOW_BYTES = 256  # a header without statistics takes about 30
_MAX_LEVEL_BYTES = 16  # of one value: the worst encoding, a run of one, takes 6
_LENGTH_BYTES = 4
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)  # PageType
_PLAIN, _RLE = 0, 3  # Encoding


class PageFault(Exception):
    """A column chunk that breaks at byte `offset` of its file; `fault` says how."""

    def __init__(self, fault: str, offset: int) -> None:
        super().__init__(fault, offset)  # exactly the arguments, so that it travels between processes
        self.fault = fault
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.fault} at byte {self.offset}"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a column chunk: `nbytes` bytes from byte `offset` of the file, its header not counted."""

    kind: int
    offset: int
    nbytes: int
    unpacked_bytes: int
    num_values: int
    """Nulls included; 0 when it holds no data."""
    encoding: int
    level_encoding: int
    level_bytes: int | None
    """Bytes of the definition levels; None: the page says so itself, in its first four bytes (version 1)."""
    repetition_bytes: int
    """Bytes of the repetition levels before them, version 2; flat columns have none."""

    @property
    def holds_rows(self) -> bool:
        """Whether it is a data page."""
        return self.kind in (_DATA, _DATA_V2)


def read_pages(file: BinaryIO, span: Span) -> Iterator[Page]:
    """The pages of the chunk at `span`, in order, from their headers alone; compressed or not. Raises PageFault."""
    position, end = span[0], span[0] + span[1]
    if not 0 <= position <= end <= file.seek(0, 2):
        raise PageFault(f"a column chunk of {span[1]} bytes does not lie in the file", position)
    while position < end:
        header, header_bytes = _header(file, position, end)
        page = _page(header, position + header_bytes)
        if page.offset + page.nbytes > end:
            raise PageFault(f"a page of {page.nbytes} bytes leaves its column chunk", position)
        yield page
        position = page.offset + page.nbytes


def locate_values(file: BinaryIO, chunk: Chunk, num_rows: int, max_level: int) -> Iterator[Span | None]:
    """Where each value of a chunk lies that `has_places`, None for null; all `num_rows` of them, or PageFault.

    `max_level` is the column's maximum definition level, its repetition level being 0. Raises PageFault after every
    value before it that lies wholly within its page. Checksums are not verified: whoever reads the values does so.
    """
    num_seen = 0
    for page in read_pages(file, chunk.span):
        if page.kind == _INDEX:
            continue
        if page.kind == _DICTIONARY or page.encoding != _PLAIN or page.repetition_bytes:
            raise PageFault("a dictionary, levels or an encoding that the footer does not name", page.offset)
        num_seen += page.num_values
        if num_seen > num_rows:
            raise PageFault(f"pages of {num_seen} values in a row group of {num_rows}", page.offset)
        yield from _values(file, page, max_level)
    if num_seen < num_rows:
        raise PageFault(f"pages of {num_seen} values in a row group of {num_rows}", sum(chunk.span))


def _values(file: BinaryIO, page: Page, max_level: int) -> Iterator[Span | None]:
    position, end = page.offset, page.offset + page.nbytes
    is_present = np.ones(page.num_values, dtype=bool)
    if max_level:
        levels, position = _levels(file, page)
        is_present = decode_levels(levels, page.num_values, max_level.bit_length(), page.offset) == max_level
    for present in is_present.tolist():
        if not present:
            yield None
            continue
        file.seek(position)
        nbytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        position += _LENGTH_BYTES
        if position + nbytes > end:
            raise PageFault(f"a value of {nbytes} bytes leaves its page", position - _LENGTH_BYTES)
        yield position, nbytes
        position += nbytes
    if position != end:
        raise PageFault(f"{end - position} bytes after the last value of a page", position)


def _levels(file: BinaryIO, page: Page) -> tuple[bytes, int]:
    """The encoded definition levels of a page, and where the bytes after them begin."""
    if page.level_encoding != _RLE:
        raise PageFault("definition levels in an encoding that the footer does not name", page.offset)
    position, level_bytes = page.offset, page.level_bytes
    file.seek(position)
    if level_bytes is None:
        level_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        position += _LENGTH_BYTES
    if position + level_bytes > page.offset + page.nbytes:
        raise PageFault(f"levels of {level_bytes} bytes leave their page", page.offset)
    return file.read(min(level_bytes, _MAX_LEVEL_BYTES * (page.num_values + 1))), position + level_bytes


def decode_levels(content: bytes, num_values: int, width: int, offset: int) -> NDArray[np.int64]:
    """`num_values` numbers of `width` (1 to 8) bits in Parquet's hybrid of run lengths and bit packing.

    Raises PageFault, with `offset`, when there are fewer. Format: Encodings.md, "RLE".
    """
    runs: list[NDArray[np.int64]] = []
    position, num_left = 0, num_values
    while num_left:
        head, position = _run_head(content, position, offset)
        nbytes = (head >> 1) * width if head & 1 else 1
        if position + nbytes > len(content):
            raise PageFault(f"levels end {num_left} short of {num_values}", offset)
        if head & 1:
            needed_bytes = min(nbytes, -(-num_left * width // 8))
            runs.append(_unpack(content[position : position + needed_bytes], width)[:num_left])
        else:
            runs.append(np.full(min(head >> 1, num_left), content[position], dtype=np.int64))
        position += nbytes
        num_left -= len(runs[-1])
    return np.concatenate([np.empty(0, dtype=np.int64), *runs])


def _run_head(content: bytes, position: int, offset: int) -> tuple[int, int]:
    """An unsigned varint of at most five bytes, and the position after it."""
    for number, byte in enumerate(content[position : position + 5]):
        if byte < 0x80:
            digits = content[position : position + number + 1]
            return sum((digit & 0x7F) << (7 * place) for place, digit in enumerate(digits)), position + number + 1
    raise PageFault("levels end within a run", offset)


def _unpack(packed: bytes, width: int) -> NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    whole = bits[: len(bits) // width * width].reshape(-1, width).astype(np.int64)
    return cast(NDArray[np.int64], whole @ (1 << np.arange(width)))


def _header(file: BinaryIO, position: int, end: int) -> tuple[Fields, int]:
    window = _FIRST_WINDOW_BYTES
    while True:
        file.seek(position)
        content = file.read(min(window, end - position))
        try:
            return read_struct(content)
        except Truncated as fault:
            if window >= min(MAX_HEADER_BYTES, end - position):
                raise PageFault(f"a page header {fault}", position) from fault
        except ThriftFault as fault:
            raise PageFault(f"no page header: {fault}", position) from fault
        window = min(8 * window, MAX_HEADER_BYTES)


def _page(header: Fields, offset: int) -> Page:
    """Raises PageFault when the fields that every page has are absent, of another type, or negative."""
    kind = _count(header, 1, offset)
    data = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, -1))
    fields: Fields = data if isinstance(data, dict) else {}
    if kind > _DATA_V2 or (kind != _INDEX and not fields):
        raise PageFault(f"a page of type {kind} without a header of its own", offset)
    is_second = kind == _DATA_V2
    return Page(
        kind=kind,
        offset=offset,
        nbytes=_count(header, 3, offset),
        unpacked_bytes=_count(header, 2, offset),
        num_values=_count(fields, 1, offset) if kind in (_DATA, _DATA_V2) else 0,
        encoding=_count(fields, 4 if is_second else 2, offset) if fields else _PLAIN,
        level_encoding=_RLE if is_second else _count(fields, 3, offset) if kind == _DATA else _RLE,
        level_bytes=_count(fields, 5, offset) if is_second else None,
        repetition_bytes=_count(fields, 6, offset) if is_second else 0,
    )


def _count(fields: Fields, number: int, offset: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise PageFault(f"field {number} of a page header is {value!r:.40}, wanted a count", offset)
    return value
