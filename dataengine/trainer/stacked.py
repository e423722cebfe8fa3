"""Reads arrays, such as latents, straight to where their batch is stacked.

In go places in one set of local tars; out come keys and one array, if the samples are alike: one npy file each, of one
header, under keys of one length. Their headers are compared for the whole batch at once, and each array is copied once,
by the system. Whatever is not alike, or cannot be read, is left to the reader that goes sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dataengine.errors import CorruptObject
from dataengine.storage.tar import BLOCK
from dataengine.trainer.arrays import Layout, array_layout, decode_array
from dataengine.trainer.tarset import HEADER_FIELDS, LocalTars

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_DOUBLINGS = 8  # of the batches that are not tried after one that was not alike

Place = tuple[int, int]


class _Pattern(NamedTuple):
    """What samples that are alike share: `head` uint8 [bytes before the values], where `settled` has 255 and not 0."""

    head: NDArray[np.uint8]
    settled: NDArray[np.uint8]
    key_bytes: int
    layout: Layout
    nbytes: int


class StackedReader:
    """Reads `part` of batches out of tars that hold nothing else. Belongs to one thread, as the tars do."""

    def __init__(self, tars: LocalTars, part: str) -> None:
        self._tars, self._part = tars, part
        self._pattern: _Pattern | None = None
        self._misses = self._wait = 0

    def read(self, places: Sequence[Place]) -> tuple[list[str], NDArray[Any]] | None:
        """Keys, and their arrays [samples, ...]; None unless all are sound and alike.

        After each in a row that was not, more and more are not tried, 255 at most: a try costs half of what it saves.
        """
        if self._wait:
            self._wait -= 1
            return None
        known = self._pattern
        found = self._read(places, known) if known else None
        if found is None:
            self._pattern = self._learnt(places[0])
            found = self._read(places, self._pattern) if self._pattern else None
        if found:
            self._misses = 0
        else:
            self._wait = 2 ** min(self._misses, _MAX_DOUBLINGS) - 1
            self._misses += 1
        return found

    def _learnt(self, place: Place) -> _Pattern | None:
        """What a sample looks like, if arrays like it can be stacked as they lie there."""
        sample = next(self._tars.read([place]))
        if not isinstance(sample, tuple) or sample[1].keys() != {self._part}:
            return None
        key, content = sample[0], sample[1][self._part]
        try:
            decode_array(content)  # raises for shapes that no array can have
            layout = array_layout(content)
        except CorruptObject:
            return None
        if layout is None or layout.begin + layout.nbytes != len(content) or not _is_plain(layout):
            return None
        head = np.zeros(BLOCK + layout.begin, np.uint8)
        nbytes = BLOCK + len(content) + -len(content) % BLOCK
        if not self._tars.read_into([place], nbytes, [(head.data, memoryview(bytearray()))]):
            return None  # it has further members
        settled = np.zeros_like(head)
        for part in (*HEADER_FIELDS, slice(BLOCK, None)):
            settled[part] = 255
        settled[: len(key)] = 0
        return _Pattern(head, settled, len(key), layout, nbytes)

    def _read(self, places: Sequence[Place], pattern: _Pattern) -> tuple[list[str], NDArray[Any]] | None:
        heads = np.empty((len(places), len(pattern.head)), np.uint8)
        try:
            stacked = np.empty((len(places), *pattern.layout.shape), pattern.layout.dtype)
        except (MemoryError, ValueError):  # of one large array among small ones; of one axis too many
            return None
        targets = list(zip(_rows(heads), _rows(stacked), strict=True))
        if not self._tars.read_into(places, pattern.nbytes, targets):
            return None
        keys = heads[:, : pattern.key_bytes].tobytes()
        if ((heads ^ pattern.head) & pattern.settled).any() or b"." in keys or not keys.isascii():
            return None
        text, step = keys.decode("ascii"), pattern.key_bytes
        return [text[begin : begin + step] for begin in range(0, len(text), step)], stacked


def _is_plain(layout: Layout) -> bool:
    """Whether the values lie in the file as they do in memory, and there are any."""
    return bool(layout.nbytes) and layout.dtype.isnative and layout.dtype.kind in "biufc" and layout.order == "C"


def _rows(array: NDArray[Any]) -> list[memoryview]:
    """The bytes of each row of a contiguous array."""
    content, step = array.reshape(-1).view(np.uint8).data, array.nbytes // len(array)
    return [content[begin : begin + step] for begin in range(0, array.nbytes, step)]
