"""The footer of Parquet from strangers: an open file in, where each column chunk lies and how it is written out.

Arrow reads the same footer, but asking it for the metadata of a column chunk ends the whole process where that
contradicts itself (a `std::terminate` in 26.0; reading the values raises as it should). So it is never asked. What
is read here is claims: spans are checked where they are followed. Format: apache/parquet-format, parquet.thrift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from dataengine.sources.thrift import Fields, ThriftFault, read_struct

MAX_FOOTER_BYTES = 64 * 2**20
"""Some 300,000 column chunks."""

_TRAILER_BYTES = 8  # length of the footer, then the magic bytes
_BYTE_ARRAY = 6  # Type
_UNCOMPRESSED = 0  # CompressionCodec
_PLAIN, _RLE = 0, 3  # Encoding

Span = tuple[int, int]
"""First byte within the file, number of bytes."""


class FooterFault(Exception):
    """A footer that does not say what it must; the message says what."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the footer says of one column in one row group; `path` is dotted."""

    path: str
    span: Span
    num_values: int
    unpacked_bytes: int
    has_dictionary: bool
    has_places: bool
    """Whether its values stand in the file as they are: bytes, without compression or dictionary, all PLAIN."""


def read_chunks(file: BinaryIO) -> list[dict[str, Chunk]]:
    """The column chunks of each row group by path, in order; the file's trailer must have been checked.

    Raises FooterFault.
    """
    file.seek(-_TRAILER_BYTES, 2)
    footer_bytes = int.from_bytes(file.read(4), "little")
    if footer_bytes > MAX_FOOTER_BYTES:
        raise FooterFault(f"a footer of {footer_bytes} bytes, at most {MAX_FOOTER_BYTES}")
    file.seek(-_TRAILER_BYTES - footer_bytes, 2)
    try:
        footer, _ = read_struct(file.read(footer_bytes))
    except ThriftFault as fault:
        raise FooterFault(f"the footer is no struct: {fault}") from fault
    groups = _list(footer, 4)
    return [{chunk.path: chunk for chunk in map(_chunk, _list(group, 1))} for group in groups]


def _chunk(column: Fields) -> Chunk:
    about = column.get(3)
    if not isinstance(about, dict):
        raise FooterFault("a column chunk without metadata; is the file encrypted?")
    first_page, dictionary = _count(about, 9), about.get(11)
    has_dictionary = isinstance(dictionary, int) and 0 < dictionary < first_page
    begin = dictionary if isinstance(dictionary, int) and has_dictionary else first_page
    encodings = about.get(2)
    is_plain = isinstance(encodings, list) and all(item in (_PLAIN, _RLE) for item in encodings)  # levels are RLE
    return Chunk(
        path=_path(about.get(3)),
        span=(begin, _count(about, 7)),
        num_values=_count(about, 5),
        unpacked_bytes=_count(about, 6),
        has_dictionary=has_dictionary,
        has_places=is_plain and not has_dictionary and (about.get(1), about.get(4)) == (_BYTE_ARRAY, _UNCOMPRESSED),
    )


def _path(names: object) -> str:
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise FooterFault("a column chunk without a path")
    return b".".join(names).decode("utf-8", "replace")


def _count(fields: Fields, number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise FooterFault(f"field {number} of a column chunk is {value!r:.40}, wanted a count")
    return value


def _list(fields: object, number: int) -> list[Fields]:
    found = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise FooterFault(f"field {number} of the footer is {found!r:.40}, wanted a list of structs")
    return found
