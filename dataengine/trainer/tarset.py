"""Reads samples out of tars by place: the index beside the tar says where, the tar's own headers what.

In go (shard, place in it); out come key and members, checked: the tar has its length, the sample begins and ends where
the index says, its members are ustar and share one key. It scans nothing and guesses nothing: whatever does not fit is
an error that names file and offset.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise, starmap
from pathlib import Path
from typing import NamedTuple

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Root
from dataengine.storage.tar import BLOCK
from dataengine.trainer.fetch import Fetcher, Range
from dataengine.trainer.files import raise_file_limit
from dataengine.trainer.index import ShardTable

_PLACE = struct.Struct("<QQ")
_ENTRY = 8  # bytes of an index entry
_ENTRIES = 128  # of an index that are read at once: a chunk's, which one worker reads whole
_MAX_BLOCKS = 2**40  # of one index; blocks of all of them are numbered through
_MAX_ENTRY_BLOCKS = 16_384  # 20 MB: four chunks of each of 512 slots' lanes, should one process read them all
_SPARE_FILES = 256  # for everything else that the process opens; a quarter, where it may open few
_OPEN_TRIES, _OPEN_SECONDS = 100, 0.05  # until others of this process have closed theirs
_PARTS = {**dict.fromkeys((b"jpg", b"jpeg", b"png", b"webp"), "image"), b"txt": "txt", b"json": "json", b"npy": "npy"}
INDEX = ".idx"
MEMBERS = ("image", "txt", "json")
"""Of every sample; others have some."""
_NAME = 100  # bytes of a header that hold a name
_SIZE, _MAGIC = slice(124, 135), slice(257, 262)
HEADER_FIELDS = (slice(_NAME), _SIZE, _MAGIC)
"""Where a header holds what is read of it: name, size, magic. Format: ustar, POSIX.1-1988."""
_MAX_TAR_BYTES = 2**40  # of a tar whose size the manifest does not tell

_ADVICE = "run `dataengine verify` on the dataset, and copy the shard again"

Raw = tuple[str, Mapping[str, bytes]]
"""A sample as it lies in the tar: key, and member → content."""


class Tar(NamedTuple):
    """A tar: the path that the root opens, and its size if the manifest tells."""

    path: str
    nbytes: int | None = None


@dataclass(frozen=True)
class Tars:
    """A tar per shard: the shards themselves, or those of the same names that lie directly under the root: siblings,
    which hold `part`. Made when it is asked for, as shards are.
    """

    shards: ShardTable
    part: str = ""

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Tar:
        shard = self.shards[number]
        return Tar(f"{shard.name}.tar") if self.part else Tar(shard.path, shard.nbytes)

    def parsed(self, number: int, content: bytes) -> Raw:
        """The sample that `content` of a tar is. Raises CorruptObject; also where its key is none of its shard's."""
        try:
            key, members = parse_sample(content)
        except ValueError as error:
            raise CorruptObject(f"{error}; {_ADVICE}") from error
        shard = self.shards.at(number)
        if not shard.min_key <= key <= shard.max_key:
            strange = f"holds key {key!r}, its shard keys from {shard.min_key} to {shard.max_key}"
            raise CorruptObject(f"{strange}; {_ADVICE}")
        return key, {self.part: next(iter(members.values()))} if self.part else members


class _Entries:
    """Entries of an index, and how many of them an epoch has not asked for yet: after the last one they may go."""

    __slots__ = ("content", "left")

    def __init__(self, content: bytes) -> None:
        self.content, self.left = content, _ENTRIES


_Files = tuple[int, int, int]
"""A tar, its index, and the bytes of the tar."""


class _Shared:
    """Tars, of two files each, that all `LocalTars` of this process have open, and how many may be."""

    __slots__ = ("max_all", "max_each", "open_by")

    def __init__(self) -> None:
        self.open_by: dict[int, OrderedDict[int, _Files]] = {}
        self.max_all = self.max_each = 1

    def join(self, one: int) -> OrderedDict[int, _Files]:
        """What one more has open."""
        found = self.open_by[one] = OrderedDict()
        self._divide()
        return found

    def leave(self, one: int) -> None:
        """Count one less."""
        del self.open_by[one]
        self._divide()

    def _divide(self) -> None:
        """Give each its share of what the system grants."""
        limit = raise_file_limit()
        self.max_all = (limit - min(_SPARE_FILES, limit // 4)) // 2
        self.max_each = max(1, self.max_all // max(1, len(self.open_by)))

    def count(self) -> int:
        """Those open, of all threads, which change them meanwhile."""
        return sum(map(len, list(self.open_by.values())))


_SHARED = _Shared()


class LocalTars:
    """Tars on this machine's disks, kept open. Belongs to one thread; others make their own.

    All of this process share its files: as others come, each closes what is over its share before it reads on. What
    one that does not read on holds, the others do without.
    """

    def __init__(self, root: Root, tars: Tars) -> None:
        self._root, self._tars = root, tars
        self._open = _SHARED.join(id(self))
        self._entries: OrderedDict[int, _Entries] = OrderedDict()

    def __del__(self) -> None:
        self._close_down_to(0)
        _SHARED.leave(id(self))

    def read(self, places: Sequence[tuple[int, int]]) -> Iterator[Raw | StorageError]:
        """Each sample (shard, place), or what is wrong with it, read when it is asked for."""
        if len(self._open) > _SHARED.max_each:
            self._close_down_to(_SHARED.max_each)
        return starmap(self._sample, places)

    def forget(self, shard: int, place: int) -> None:
        """Drop what is kept of the index where a sample held wrong bytes."""
        self._entries.pop(shard * _MAX_BLOCKS + place // _ENTRIES, None)

    def read_into(
        self, places: Iterable[tuple[int, int]], nbytes: int, targets: Sequence[tuple[memoryview, memoryview]]
    ) -> bool:
        """Whether every sample has `nbytes`, of which the first fill its two targets, as large as everybody's.

        What follows is not read. If not, any of the targets may be filled.
        """
        if len(self._open) > _SHARED.max_each:
            self._close_down_to(_SHARED.max_each)
        wanted = sum(map(len, targets[0]))
        try:
            for (shard, place), target in zip(places, targets, strict=True):
                tar, begin, end = self._range(shard, place)
                if end - begin != nbytes or os.preadv(tar, target, begin) != wanted:
                    return False
        except (struct.error, OSError, StorageError):
            return False
        return True

    def _range(self, shard: int, place: int) -> tuple[int, int, int]:
        """(file, first byte, end) of a sample. Raises struct.error without an entry, OSError, StorageError."""
        tar, index, size = self._open.get(shard) or self._opened(shard)
        number = shard * _MAX_BLOCKS + place // _ENTRIES
        entries = self._entries.get(number) or self._load(index, number)
        begin, end = _PLACE.unpack_from(entries.content, place % _ENTRIES * _ENTRY)
        entries.left -= 1
        if not entries.left:
            del self._entries[number]
        if not begin < end <= size:
            raise CorruptObject(_misplaced(self._address(shard), place, begin, end, size))
        return tar, begin, end

    def _sample(self, shard: int, place: int) -> Raw | StorageError:
        try:
            tar, begin, end = self._range(shard, place)
            content = os.pread(tar, end - begin, begin)
            if len(content) != end - begin:
                raise CorruptObject(
                    f"{self._address(shard)}: wanted {end - begin} bytes at {begin}, the file ends after {len(content)}"
                )
            # The bytes are let go before the next ones are read, so that the allocator gives the same memory, still in
            # the processor's cache: half of the time of reading them all and then cutting them up.
            return self._tars.parsed(shard, content)
        except struct.error:
            error: StorageError = CorruptObject(f"{self._address(shard)}{INDEX}: has no entry {place}; copy it again")
        except OSError as fault:
            error = StorageError(f"{self._address(shard)}: cannot read: {fault.strerror}")
        except StorageError as fault:
            error = fault
        self.forget(shard, place)
        return error

    def _load(self, index: int, number: int) -> _Entries:
        begin = number % _MAX_BLOCKS * _ENTRIES * _ENTRY
        entries = _Entries(os.pread(index, (_ENTRIES + 1) * _ENTRY, begin))
        self._entries[number] = entries
        if len(self._entries) > _MAX_ENTRY_BLOCKS:
            self._entries.popitem(last=False)
        return entries

    def _opened(self, shard: int) -> _Files:
        self._close_down_to(_SHARED.max_each - 1)
        while self._open and _SHARED.count() >= _SHARED.max_all:  # one too many here or there is spared for
            self._close_down_to(len(self._open) - 1)
        for attempt in range(1, _OPEN_TRIES + 1):
            try:
                self._open[shard] = self._opened_files(shard)
                break
            except OSError:  # too many files are open
                if attempt == _OPEN_TRIES:
                    raise
            self._close_down_to(0)
            time.sleep(_OPEN_SECONDS if attempt > 1 else 0)
        return self._open[shard]

    def _close_down_to(self, count: int) -> None:
        while len(self._open) > count:
            for descriptor in self._open.popitem(last=False)[1][:2]:
                os.close(descriptor)

    def _opened_files(self, shard: int) -> _Files:
        """The files of a shard, opened. Raises OSError when too many files are open, StorageError for all else."""
        tar = self._tars[shard]
        path = self._root.local_path(tar.path)
        assert path is not None
        descriptor = _opened_file(path)
        try:
            size = os.fstat(descriptor).st_size
            if tar.nbytes is not None and size != tar.nbytes:
                raise CorruptObject(f"{path}: holds {size} bytes, the manifest says {tar.nbytes}; copy the shard again")
            index = _opened_file(path.with_name(path.name + INDEX))
        except (OSError, StorageError):
            os.close(descriptor)
            raise
        return descriptor, index, size

    def _address(self, shard: int) -> str:
        return self._root.address(self._tars[shard].path)


class RemoteTars:
    """Tars in an object store, read by ranges: index entries first, then samples, near ones in one request."""

    def __init__(self, root: Root, tars: Tars, fetcher: Fetcher) -> None:
        self._root, self._tars, self._fetcher = root, tars, fetcher

    def read(self, places: Sequence[tuple[int, int]]) -> Iterator[Raw | StorageError]:
        """Each sample (shard, place), or what is wrong with it."""
        entries = self._fetcher.entries([self._entry(*place) for place in places])
        found = [self._range(place, entry) for place, entry in zip(places, entries, strict=True)]
        ranges = [one for one in found if isinstance(one, tuple)]
        sizes = [self._tars[shard].nbytes for (shard, _), one in zip(places, found, strict=True) if type(one) is tuple]
        contents = iter(self._fetcher.ranges(ranges, sizes))
        read = (next(contents) if isinstance(one, tuple) else one for one in found)
        return (self._parsed(shard, one) for (shard, _), one in zip(places, read, strict=True))

    def forget(self, shard: int, place: int) -> None:
        """Drop what is kept of a sample that held wrong bytes, and of where it lies."""
        entry = self._entry(shard, place)
        found = self._range((shard, place), *self._fetcher.entries([entry]))
        tar = self._tars[shard]
        self._fetcher.forget((tar.path, 0, 0) if isinstance(found, StorageError) else found, tar.nbytes, entry)

    def _parsed(self, shard: int, content: bytes | StorageError) -> Raw | StorageError:
        if isinstance(content, StorageError):
            return content
        try:
            return self._tars.parsed(shard, content)
        except CorruptObject as error:
            return error

    def _entry(self, shard: int, place: int) -> Range:
        return self._tars[shard].path + INDEX, place * _ENTRY, _PLACE.size

    def _range(self, place: tuple[int, int], entry: bytes | StorageError) -> Range | StorageError:
        if isinstance(entry, StorageError):
            return entry
        tar = self._tars[place[0]]
        begin, end = _PLACE.unpack(entry)
        if not begin < end <= (_MAX_TAR_BYTES if tar.nbytes is None else tar.nbytes):
            return CorruptObject(_misplaced(self._root.address(tar.path), place[1], begin, end, tar.nbytes))
        return tar.path, begin, end - begin


def _misplaced(address: str, place: int, begin: int, end: int, nbytes: int | None) -> str:
    of = "" if nbytes is None else f" of {nbytes}"
    return f"{address}{INDEX}: has sample {place} at bytes {begin} to {end}{of}; copy the shard again"


def parse_sample(content: bytes) -> Raw:
    """(key, member → content) of one sample's bytes, from its first header to the end of its last padding.

    `image` stands for jpg, jpeg, png and webp; other members are called by their extension. Raises ValueError when they
    are no run of ustar members of one key that ends with the bytes.
    """
    members: dict[str, bytes] = {}
    key_bytes = content.find(b".", 0, _NAME)
    key, begin, end = content[:key_bytes], 0, len(content)
    if key_bytes < 1:
        raise ValueError("no ustar header at byte 0 of the sample")
    if end % BLOCK:
        raise ValueError(f"the index says that it ends at byte {end}, within a block")
    fields = _fields(key_bytes)
    while begin < end:
        stem, ending, size, magic = fields(content, begin)
        if magic != b"ustar":
            raise ValueError(f"no ustar header at byte {begin} of the sample")
        if stem != key:
            raise ValueError(f"member {_name(stem + ending)!r} beside key {key!r}")
        nbytes = int(size, 8)
        if nbytes < 0:
            raise ValueError(f"member {_name(stem + ending)!r} of {nbytes} bytes")
        begin += BLOCK
        members[_member(ending)] = content[begin : begin + nbytes]
        begin += nbytes + -nbytes % BLOCK
    if begin != end:
        raise ValueError(f"its last member ends at byte {begin}, the index says {end}")
    return key.decode("ascii"), members


@cache
def _fields(key_bytes: int) -> Callable[[bytes, int], tuple[bytes, bytes, bytes, bytes]]:
    """What unpacks a header of a key of so many bytes: key, the rest of the name, size, magic."""
    gaps = (f"{after.start - before.stop}x{after.stop - after.start}s" for before, after in pairwise(HEADER_FIELDS))
    return struct.Struct(f"{key_bytes}s{_NAME - key_bytes}s" + "".join(gaps)).unpack_from


@lru_cache(maxsize=256)
def _member(ending: bytes) -> str:
    """The member that a name's ending, its dot and its zeros included, stands for."""
    dot, extension = ending[:1], _name(ending[1:])
    if dot != b"." or not extension:
        raise ValueError(f"a member's name ends with {_name(ending)!r}, wanted a dot and an extension")
    return _PARTS.get(extension) or extension.decode("ascii")


def _name(field: bytes) -> bytes:
    return field.rstrip(b"\0")


def _opened_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise MissingObject(f"{path}: no such object; copy the shard again") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise StorageError(f"{path}: cannot open: {error.strerror}") from error
