"""Reads samples out of tars by place: one ranged read each, checked against the tar's own headers.

In goes a row of the index; out come the member contents and the key. It never scans a tar and never guesses:
a read that meets another name, another size or the end of the file is an error that names the shard, the key
and the offset.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from dataengine.errors import CorruptObject, MissingObject, StorageError
from dataengine.storage.tar import BLOCK
from dataengine.trainer.index import SampleIndex

MAX_OPEN_FILES = 128  # two windows of chunks; the usual limit is 1,024 per process


class SampleReader:
    """Reads rows of one index. Keeps files open, so one belongs to one process: workers make their own."""

    def __init__(self, index: SampleIndex) -> None:
        self._index = index
        self._files: OrderedDict[int, int] = OrderedDict()

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def read(self, row: int) -> tuple[str, dict[str, bytes]]:
        """(key, member → content) of `row`.

        Raises MissingObject or CorruptObject naming shard, key and offset.
        """
        offsets, sizes = self._index.offsets[row].tolist(), self._index.nbytes[row].tolist()
        begin = min(offsets) - BLOCK
        end = max(offset + nbytes for offset, nbytes in zip(offsets, sizes, strict=True))
        try:
            content = self._read_range(int(self._index.shard[row]), begin, end - begin)
        except StorageError as error:
            raise type(error)(f"{self.describe(row)}: {error}") from error
        contents, key = {}, ""
        for member, offset, nbytes in zip(self._index.members, offsets, sizes, strict=True):
            place = offset - begin
            name, found = _parse_header(content[place - BLOCK : place])
            stem = name.partition(".")[0]
            if found != nbytes or not stem or (key and stem != key):
                raise CorruptObject(
                    f"{self.describe(row)}: the tar holds member {name!r} of {found} bytes at {offset}, the "
                    f"manifest says {member} of {nbytes}; run `dataengine verify` on the dataset"
                )
            key, contents[member] = stem, content[place : place + nbytes]
        return key, contents

    def describe(self, row: int) -> str:
        """`shard ..., key ..., offset ...` of `row`, for messages."""
        shard = self._index.shards[int(self._index.shard[row])]
        return f"shard {shard.name}, key {self._index.key_of(row)}, offset {int(self._index.offsets[row].min())}"

    def _read_range(self, shard: int, offset: int, nbytes: int) -> bytes:
        root, path = self._index.version.root, self._index.shards[shard].path
        if offset < 0:
            raise CorruptObject(f"{root.address(path)}: no member can begin at byte {offset + BLOCK}")
        if not self._index.version.is_local:
            return root.get_range(path, offset, nbytes)
        content = os.pread(self._open(shard), nbytes, offset)
        if len(content) != nbytes:
            raise CorruptObject(
                f"{root.address(path)}: wanted {nbytes} bytes at {offset}, the file ends after {len(content)}"
            )
        return content

    def _open(self, shard: int) -> int:
        descriptor = self._files.pop(shard, None)
        if descriptor is None:
            file = self._index.version.root.local_path(self._index.shards[shard].path)
            assert file is not None
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError as error:
                raise MissingObject(f"{file}: no such object; copy the shard again") from error
            except OSError as error:
                raise StorageError(f"{file}: cannot open: {error.strerror}") from error
        self._files[shard] = descriptor
        if len(self._files) > MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor


def _parse_header(header: bytes) -> tuple[str, int]:
    """(name, size) of a ustar header; ("", -1) when it is none."""
    try:
        if header[257:262] == b"ustar":
            return header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError:
        pass
    return "", -1
