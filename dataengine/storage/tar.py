"""The tar format: headers as dataengine writes them, and a strict walk over any tar a reader may be given.

Written tars are POSIX ustar with nothing in them that could differ between two machines: mode 0644, no owner,
no time, no pax records. Read tars are hostile: the walk verifies every checksum and length, reads ustar, GNU
long names and pax headers, and refuses whatever is no plain file under a relative path. It knows bytes and
offsets, not samples or stores. Format: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar's manual.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray

    from dataengine.storage.hashing import HashingWriter

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks: the end of an archive."""

MAX_NAME_BYTES = 100
MAX_MEMBER_BYTES = 8**11  # exclusive: the size field holds 11 octal digits
MAX_EXTENSION_BYTES = 2**20  # a long name or pax header above this is an attack on memory, not a name
MAX_DIGITS = 20

_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"00000000000\0"
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
_BLANK_CHECKSUM = b" " * 8
_FIXED_SUM = sum(_OWNER + _TIME + _BLANK_CHECKSUM + _TAIL)  # of every header, without its name and size
_ZEROS = bytes(BLOCK)
_OVERRIDES = {b"path", b"size"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: `nbytes` bytes of content from byte `offset`."""

    name: str
    offset: int
    nbytes: int


class TarFault(Exception):
    """A tar that breaks at byte `offset`; `fault` says how."""

    def __init__(self, where: str, offset: int, fault: str) -> None:
        super().__init__(where, offset, fault)  # exactly the arguments, so that it travels between processes
        self.where = where
        self.offset = offset
        self.fault = fault

    def __str__(self) -> str:
        return f"{self.where}: {self.fault} at byte {self.offset}"


def header(name: str, nbytes: int) -> bytes:
    """The 512-byte ustar header of a regular file, a pure function of its name and size.

    Raises ValueError when the name is empty, not ASCII or over 100 bytes, or the size is 8 GiB or more.
    """
    if not (0 < len(name) <= MAX_NAME_BYTES and name.isascii() and "\0" not in name):
        raise ValueError(f"a member name is 1 to {MAX_NAME_BYTES} ASCII characters, got {name!r}")
    if not 0 <= nbytes < MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: a member holds 0 to {MAX_MEMBER_BYTES - 1} bytes, got {nbytes}")
    title, size = name.encode(), b"%011o" % nbytes
    checksum = _FIXED_SUM + _sum(title + size)
    return b"%b%b%b\0%b%06o\0 %b" % (title.ljust(MAX_NAME_BYTES, b"\0"), _OWNER, size, _TIME, checksum, _TAIL)


def headers(names: NDArray[np.bytes_], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The headers of many regular files, as `header` writes each: uint8 [files, 512].

    `names` are ASCII, `S` of any width, [files]; `sizes` are bytes, int64 [files]. Raises ValueError as `header`.
    """
    _check_names(names)
    if len(sizes) and not (sizes.min() >= 0 and sizes.max() < MAX_MEMBER_BYTES):
        raise ValueError(f"a member holds 0 to {MAX_MEMBER_BYTES - 1} bytes, got {sizes.min()} to {sizes.max()}")
    blocks = np.empty((len(names), BLOCK), np.uint8)
    blocks[:] = np.frombuffer(header("-", 0), np.uint8)
    title = blocks[:, :MAX_NAME_BYTES]
    title[:] = names.astype(f"S{MAX_NAME_BYTES}").view(np.uint8).reshape(title.shape)
    size = blocks[:, 124:135]
    size[:] = _octal(sizes, 11)
    checksums = _FIXED_SUM + title.sum(axis=1, dtype=np.int64) + size.sum(axis=1, dtype=np.int64)
    blocks[:, 148:154] = _octal(checksums, 6)
    return blocks


def _check_names(names: NDArray[np.bytes_]) -> None:
    lengths = np.strings.str_len(names)
    wrong = (lengths < 1) | (lengths > MAX_NAME_BYTES)
    letters = np.ascontiguousarray(names).view(np.uint8)
    if wrong.any() or (letters.size and letters.max() > 127):
        raise ValueError(f"a member name is 1 to {MAX_NAME_BYTES} ASCII characters, got {names[wrong][:1].tolist()}")


def _octal(numbers: NDArray[np.int64], num_digits: int) -> NDArray[np.uint8]:
    """ASCII digits, uint8 [numbers, digits]."""
    shifts = np.arange(3 * (num_digits - 1), -1, -3)
    return ((numbers[:, None] >> shifts & 7) + ord("0")).astype(np.uint8)


def padding(nbytes: int) -> bytes:
    """The zeros that fill a content of `nbytes` bytes up to a whole block."""
    return _ZEROS[: -nbytes % BLOCK]


def append(tar: HashingWriter, name: str, content: bytes) -> int:
    """Write a regular file behind what `tar` holds; byte at which its content begins. `END` is the caller's."""
    tar.write(header(name, len(content)))
    offset = tar.num_bytes
    tar.write(content)
    tar.write(padding(len(content)))
    return offset


def split_name(name: str) -> tuple[str, str]:
    """(sample's key with folders, lower-case extension): cut at the first dot of the last path segment.

    This is WebDataset's rule: `a/7.src.JPG` is (`a/7`, `src.jpg`); without a dot the extension is empty.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def walk(file: BinaryIO, where: str) -> Iterator[Member]:
    """The regular files of the tar in a seekable `file`, in order; folders are skipped.

    Only headers are read, and every member lies wholly inside the file; the caller may read contents between
    two steps. `where` names the tar in messages. Raises TarFault, after every sound member before it, at a
    header that is broken, a name that is unsafe, a member that is no plain file, or a tar that ends early.
    """
    yield from _Walk(file, where).members()


class _Walk:
    """One pass over a tar.

    `offset` is where the next header begins; `overrides` holds the path and size that a long name or pax
    header gave for the next member.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.file = file
        self.where = where
        self.end = file.seek(0, 2)
        self.offset = 0
        self.overrides: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        while (block := self._read(BLOCK, "end-of-archive block")) != _ZEROS:
            begin = self.offset
            kind, nbytes = block[156:157], self._verified_size(block)
            self.offset += BLOCK
            if kind in b"Lxg":
                self._remember(kind, self._extension(nbytes))
                continue
            if kind == b"5" or (kind == b"\0" and block[:100].rstrip(b"\0").endswith(b"/")):
                self.overrides.clear()
                continue
            if kind not in b"07\0":
                raise self._fault(f"member of type {kind!r}, wanted a regular file", begin)
            yield self._member(block, nbytes, begin)

    def _member(self, block: bytes, nbytes: int, begin: int) -> Member:
        name = self._name(self.overrides.get(b"path") or _plain_name(block), begin)
        if b"size" in self.overrides:
            nbytes = self._number(self.overrides[b"size"], 10, begin)
        self.overrides.clear()
        member = Member(name, self.offset, nbytes)
        self._skip(nbytes, f"content of {name!r}")
        return member

    def _verified_size(self, block: bytes) -> int:
        stored = self._number(block[148:156], 8, self.offset)
        found = _sum(block[:148]) + _sum(_BLANK_CHECKSUM) + _sum(block[156:256]) + _sum(block[256:])
        if stored != found:
            raise self._fault(f"header checksum is {found}, header says {stored}", self.offset)
        if block[124] == 0x80:  # GNU and star write sizes of 8 GiB and more in base 256
            return int.from_bytes(block[125:136], "big")
        return self._number(block[124:136], 8, self.offset)

    def _number(self, field: bytes, base: int, begin: int) -> int:
        digits = field.strip(b" \0") or b"0"
        if digits.translate(None, b"0123456789"[:base]) or len(digits) > MAX_DIGITS:
            raise self._fault(f"no number of base {base} in field {field!r}", begin)
        return int(digits, base)

    def _name(self, name: bytes, begin: int) -> str:
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            raise self._fault(f"name {name!r} is not UTF-8", begin) from None
        if not text or "\0" in text or text.startswith("/") or ".." in text.split("/"):
            raise self._fault(f"unsafe name {text!r}", begin)
        return text

    def _extension(self, nbytes: int) -> bytes:
        if nbytes > MAX_EXTENSION_BYTES:
            raise self._fault(f"extended header of {nbytes} > {MAX_EXTENSION_BYTES} bytes", self.offset)
        content = self._read(nbytes, "extended header")
        self._skip(nbytes, "extended header")
        return content

    def _remember(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self.overrides[b"path"] = content.rstrip(b"\0")
            return
        records = self._pax_records(content)
        if any(keyword.startswith(b"GNU.sparse") for keyword in records):
            raise self._fault("sparse member", self.offset)
        if kind == b"x":
            self.overrides |= {keyword: records[keyword] for keyword in _OVERRIDES & records.keys()}
        elif _OVERRIDES & records.keys():
            raise self._fault("global pax header that renames or resizes members", self.offset)

    def _pax_records(self, content: bytes) -> dict[bytes, bytes]:
        """Keyword → value of records `LENGTH KEYWORD=VALUE\\n`, LENGTH counting the whole record."""
        records, begin = {}, 0
        while begin < len(content):
            length = content[begin : begin + MAX_DIGITS].partition(b" ")[0]
            end = begin + int(length) if length.isdigit() else begin
            keyword, equals, value = content[begin + len(length) + 1 : end - 1].partition(b"=")
            if not equals or end > len(content) or content[end - 1 : end] != b"\n":
                raise self._fault("broken pax header", self.offset)
            records[keyword] = value
            begin = end
        return records

    def _read(self, nbytes: int, what: str) -> bytes:
        self.file.seek(self.offset)
        content = self.file.read(nbytes)
        if len(content) < nbytes:
            raise self._fault(f"tar ends {'within a header' if content else f'without {what}'}", self.end)
        return content

    def _skip(self, nbytes: int, what: str) -> None:
        if self.offset + nbytes > self.end:
            raise self._fault(f"tar ends within {what}", self.end)
        self.offset += nbytes + -nbytes % BLOCK

    def _fault(self, fault: str, offset: int) -> TarFault:
        return TarFault(self.where, offset, fault)


def _plain_name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _sum(piece: bytes) -> int:
    """The sum of at most 256 bytes."""
    # Adler-32's low half is 1 + the sum mod 65,521, and 256 bytes sum to 65,280 at most: exact, in a tenth of
    # the time of sum().
    return (zlib.adler32(piece) & 0xFFFF) - 1
