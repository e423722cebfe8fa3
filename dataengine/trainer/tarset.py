"""Reads samples out of tars by place: the index beside the tar says where, the tar's own headers what.

In go (shard, place in it); out come key and members, checked: the tar has its length, the sample begins and ends where
the index says, its members are ustar and share one key. It scans nothing and guesses nothing: whatever does not fit is
an error that names file and offset.
"""

from __future__ import annotations

import os
import resource
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Root
from dataengine.storage.tar import BLOCK
from dataengine.trainer.fetch import Fetcher, Range
from dataengine.trainer.index import Shard

_PLACE = struct.Struct("<QQ")
_ENTRY = 8  # bytes of an index entry
_SPARE_FILES = 256  # for everything else that the process opens
_MANY_FILES = 65_536
_READERS = 8  # threads that read in one process, each with files of its own
_PARTS = {**dict.fromkeys((b"jpg", b"jpeg", b"png", b"webp"), "image"), b"txt": "txt", b"json": "json", b"npy": "npy"}
INDEX = ".idx"
_MAX_TAR_BYTES = 2**40  # of a tar whose size the manifest does not tell
_HEADER = struct.Struct("100s24x11s122x5s").unpack_from  # name, size, magic

Sample = tuple[str, dict[str, bytes]]
"""Key, and member → content."""


class Tar(NamedTuple):
    """A tar: the path that the root opens, and its size if the manifest tells."""

    path: str
    nbytes: int | None = None


@dataclass(frozen=True)
class Tars:
    """A tar per shard: the shards themselves, or those of the same names that lie directly under the root.

    Made when it is asked for: to look at all 3,072 would copy a megabyte into every worker that was forked.
    """

    shards: Sequence[Shard]
    is_sibling: bool = False

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Tar:
        shard = self.shards[number]
        return Tar(f"{shard.name}.tar") if self.is_sibling else Tar(shard.path, shard.nbytes)


class LocalTars:
    """Tars on this machine's disks, kept open. Belongs to one thread; others make their own."""

    def __init__(self, root: Root, tars: Tars) -> None:
        self._root, self._tars = root, tars
        self._open: OrderedDict[int, tuple[int, int, int]] = OrderedDict()
        self._max_open = _room_for(len(tars))

    def __del__(self) -> None:
        for *descriptors, _ in self._open.values():
            for descriptor in descriptors:
                os.close(descriptor)

    def read(self, places: Sequence[tuple[int, int]]) -> Iterator[Sample | StorageError]:
        """Each sample (shard, place), or what is wrong with it, read when it is asked for."""
        return starmap(self._sample, places)

    def forget(self, shard: int, place: int) -> None:
        """Nothing is kept of local tars but that they are open."""

    def _sample(self, shard: int, place: int) -> Sample | StorageError:
        # The bytes are let go before the next ones are read, so that the allocator gives the same memory, still in the
        # processor's cache: half of the time of reading them all and then cutting them up.
        return _parsed(self._read(shard, place))

    def _read(self, shard: int, place: int) -> bytes | StorageError:
        try:
            tar, index, size = self._open.get(shard) or self._opened(shard)
            entry = os.pread(index, _PLACE.size, place * _ENTRY)
            if len(entry) != _PLACE.size:
                return CorruptObject(f"{self._address(shard)}{INDEX}: has no entry {place}; copy it again")
            begin, end = _PLACE.unpack(entry)
            if not begin < end <= size:
                return CorruptObject(_misplaced(self._address(shard), place, begin, end, size))
            content = os.pread(tar, end - begin, begin)
        except OSError as error:
            return StorageError(f"{self._address(shard)}: cannot read: {error.strerror}")
        except StorageError as error:
            return error
        if len(content) != end - begin:
            return CorruptObject(
                f"{self._address(shard)}: wanted {end - begin} bytes at {begin}, the file ends after {len(content)}"
            )
        return content

    def _opened(self, shard: int) -> tuple[int, int, int]:
        tar = self._tars[shard]
        path = self._root.local_path(tar.path)
        assert path is not None
        descriptor = _opened_file(path)
        try:
            size = os.fstat(descriptor).st_size
            if tar.nbytes is not None and size != tar.nbytes:
                raise CorruptObject(f"{path}: holds {size} bytes, the manifest says {tar.nbytes}; copy the shard again")
            index = _opened_file(path.with_name(path.name + INDEX))
        except StorageError:
            os.close(descriptor)
            raise
        while len(self._open) >= self._max_open:
            for oldest in self._open.popitem(last=False)[1][:2]:
                os.close(oldest)
        self._open[shard] = (descriptor, index, size)
        return descriptor, index, size

    def _address(self, shard: int) -> str:
        return self._root.address(self._tars[shard].path)


class RemoteTars:
    """Tars in an object store, read by ranges: index entries first, then samples, near ones in one request."""

    def __init__(self, root: Root, tars: Tars, fetcher: Fetcher) -> None:
        self._root, self._tars, self._fetcher = root, tars, fetcher

    def read(self, places: Sequence[tuple[int, int]]) -> Iterator[Sample | StorageError]:
        """Each sample (shard, place), or what is wrong with it."""
        entries = self._fetcher.entries([self._entry(*place) for place in places])
        found = [self._range(place, entry) for place, entry in zip(places, entries, strict=True)]
        ranges = [one for one in found if isinstance(one, tuple)]
        sizes = [self._tars[shard].nbytes for (shard, _), one in zip(places, found, strict=True) if type(one) is tuple]
        contents = iter(self._fetcher.ranges(ranges, sizes))
        return (_parsed(next(contents)) if isinstance(one, tuple) else one for one in found)

    def forget(self, shard: int, place: int) -> None:
        """Drop what is kept of a sample that held wrong bytes, and of where it lies."""
        entry = self._entry(shard, place)
        found = self._range((shard, place), *self._fetcher.entries([entry]))
        tar = self._tars[shard]
        self._fetcher.forget((tar.path, 0, 0) if isinstance(found, StorageError) else found, tar.nbytes, entry)

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


def _parsed(content: bytes | StorageError) -> Sample | StorageError:
    if isinstance(content, StorageError):
        return content
    try:
        return parse_sample(content)
    except ValueError as error:
        return CorruptObject(f"{error}; run `dataengine verify` on the dataset, and copy the shard again")


def parse_sample(content: bytes) -> Sample:
    """(key, member → content) of one sample's bytes, from its first header to the end of its last padding.

    `image` stands for jpg, jpeg, png and webp; other members are called by their extension. Raises ValueError when they
    are no run of ustar members of one key that ends with the bytes.
    """
    members: dict[str, bytes] = {}
    key, begin, end = b"", 0, len(content)
    while begin < end:
        name, size, magic = _HEADER(content, begin) if begin + BLOCK <= end else (b"", b"", b"")
        if magic != b"ustar":
            raise ValueError(f"no ustar header at byte {begin} of the sample")
        stem, _, extension = name.rstrip(b"\0").partition(b".")
        if stem != key:
            if key:
                raise ValueError(f"member {name!r} beside key {key!r}")
            key = stem
        nbytes = int(size, 8)
        begin += BLOCK
        members[_PARTS.get(extension) or extension.decode("ascii")] = content[begin : begin + nbytes]
        begin += (nbytes + BLOCK - 1) // BLOCK * BLOCK
    if begin != end or not key:
        raise ValueError(f"its last member ends at byte {begin}, the index says {end}")
    return key.decode("ascii"), members


def _opened_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise MissingObject(f"{path}: no such object; copy the shard again") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot open: {error.strerror}") from error


def _room_for(num_tars: int) -> int:
    """How many tars, of two files each, may be open. Asks the system for more files when the dataset has more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MANY_FILES <= (
        hard if hard != resource.RLIM_INFINITY else _MANY_FILES
    ):
        # The usual 1,024 are for programs that use select(); 3,072 shards would be opened again for every other sample.
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MANY_FILES, hard))
        soft = _MANY_FILES
    room = num_tars if soft == resource.RLIM_INFINITY else (soft - _SPARE_FILES) // (2 * _READERS)
    return max(1, min(num_tars, room))
