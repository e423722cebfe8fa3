"""One shard: rows and image bytes in, the bytes of a tar out, with the place of every member.

A sample is adjacent members named by its key: the image as stored, `txt` (the primary caption), `json` (jsons.py) and
the extra members its source asked for. Every size is known before a byte is read, so the tar is laid out first: headers
are made in one go, and stored bytes are read straight to where they are written from, while pieces before are hashed
and written. The tar is a pure function of the rows; where images come from and where it goes is the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.emit.jsons import Contents, contents_of, encode_jsons
from dataengine.storage import tar

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMBERS = ("image", "txt", "json")
PIECE_BYTES = 2 * 2**20
"""Of the tar that are written at once: large enough for a ranged read, small enough to stay in a core's cache."""


@dataclass(frozen=True)
class Layout:
    """Where everything of a shard lies, known from its rows alone.

    `names` are the extensions of the members in the order of the tar, the image's empty: rows differ in it.
    `sizes` and `offsets` are of the members' contents, int64 [samples, members]. `sample_offsets` is uint64
    [samples + 1]: the first header of each sample, and the end of the last one.
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sample_offsets: NDArray[np.uint64]

    @property
    def num_samples(self) -> int:
        """Samples in the shard."""
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tar."""
        return int(self.sample_offsets[-1]) + len(tar.END)

    @property
    def columns(self) -> dict[str, NDArray[np.int64]]:
        """MANIFEST's member columns, int64 [samples] each, such as `image_offset`."""
        found: dict[str, NDArray[np.int64]] = {}
        for place, member in enumerate(MEMBERS):
            found |= {f"{member}_offset": self.offsets[:, place], f"{member}_nbytes": self.sizes[:, place]}
        return found


Fill = Callable[[int, Sequence[memoryview]], Callable[[], object]]
"""Begins to fill views with the stored members of samples from a number on (of each sample the image, then its extra
members); what it returns waits until they are full, and raises what went wrong."""


@dataclass(frozen=True)
class Shard:
    """A shard before its images are read: its rows' names and texts, and its layout."""

    names: NDArray[np.bytes_]
    """Of all members, `S` [samples, members]."""
    txts: Contents
    jsons: Contents
    layout: Layout

    def write(self, fill: Fill, write: Callable[[memoryview], object], *, pieces_ahead: int = 2) -> None:
        """Write the tar piece by piece; stored members come from `fill`, `pieces_ahead` pieces ahead of `write`.

        `write` is done with a piece when it returns. Memory is `pieces_ahead` + 1 pieces, however large the shard.
        """
        free: deque[bytearray] = deque()
        waiting: deque[tuple[memoryview, Callable[[], object]]] = deque()
        for first, stop in self._pieces():
            piece = self._piece(first, stop, free)
            waiting.append((piece, fill(first, self._stored(piece, first, stop))))
            if len(waiting) > pieces_ahead:
                free.append(_flush(*waiting.popleft(), write))
        while waiting:
            _flush(*waiting.popleft(), write)
        write(memoryview(tar.END))

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Runs of whole samples of about `PIECE_BYTES`, one at least."""
        starts, first = self.layout.sample_offsets.astype(np.int64), 0
        while first < self.layout.num_samples:
            stop = int(np.searchsorted(starts, starts[first] + PIECE_BYTES, side="right")) - 1
            stop = min(max(stop, first + 1), self.layout.num_samples)
            yield first, stop
            first = stop

    def _piece(self, first: int, stop: int, free: deque[bytearray]) -> memoryview:
        """Samples `first` to `stop` - 1 without their stored members."""
        start = int(self.layout.sample_offsets[first])
        nbytes = int(self.layout.sample_offsets[stop]) - start
        kept = free.popleft() if free else bytearray(PIECE_BYTES)
        piece = memoryview(kept if nbytes <= len(kept) else bytearray(nbytes))[:nbytes]
        self._lay_headers(piece, start, first, stop)
        self._lay_texts(piece, start, first, stop)
        return piece

    def _lay_headers(self, piece: memoryview, start: int, first: int, stop: int) -> None:
        blocks = np.frombuffer(piece, np.uint8).reshape(-1, tar.BLOCK)
        offsets, sizes = self.layout.offsets[first:stop].ravel() - start, self.layout.sizes[first:stop].ravel()
        # The buffer held another piece before: the last block of a content ends in zeros, and one of none is no block.
        blocks[((offsets + sizes - 1) // tar.BLOCK)[sizes > 0]] = 0
        blocks[offsets // tar.BLOCK - 1] = tar.headers(self.names[first:stop].ravel(), sizes)

    def _lay_texts(self, piece: memoryview, start: int, first: int, stop: int) -> None:
        for place, texts in ((1, self.txts), (2, self.jsons)):
            offsets = (self.layout.offsets[first:stop, place] - start).tolist()
            bounds, data = texts.bounds[first : stop + 1].tolist(), texts.data
            for offset, begin, end in zip(offsets, bounds[:-1], bounds[1:], strict=True):
                piece[offset : offset + end - begin] = data[begin:end]

    def _stored(self, piece: memoryview, first: int, stop: int) -> list[memoryview]:
        stored = [0, *range(len(MEMBERS), len(self.layout.names))]
        begins = (self.layout.offsets[first:stop, stored] - int(self.layout.sample_offsets[first])).ravel()
        ends = begins + self.layout.sizes[first:stop, stored].ravel()
        return [piece[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def plan_shard(
    rows: pa.Table,
    *,
    caption_names: Sequence[str] = (),
    extra_names: Sequence[str] = (),
    extra_members: Sequence[str] = (),
    extra_sizes: NDArray[np.int64] | None = None,
) -> Shard:
    """The shard of `rows`, in their order: everything but the bytes of images and extra members.

    `rows` holds MANIFEST's columns but those about places in the tar, and `nbytes` of the stored image; every float
    column is a score. `caption_names` and `extra_names` are present in every json, also where a row lacks them.
    `extra_members` are extensions, in the order of the tar; `extra_sizes` their bytes, int64 [samples, extensions].
    """
    txts, jsons = contents_of(rows.column("caption")), encode_jsons(rows, caption_names, extra_names)
    images = rows.column("nbytes").to_numpy().astype(np.int64)
    sizes = np.stack([images, txts.sizes, jsons.sizes], axis=1)
    if extra_sizes is not None:
        sizes = np.concatenate([sizes, extra_sizes], axis=1)
    keys, formats = (np.array(rows.column(name).to_pylist(), np.bytes_) for name in ("key", "format"))
    dotted = np.strings.add(keys, b".")
    others = [np.strings.add(dotted, extension.encode()) for extension in ("txt", "json", *extra_members)]
    names = np.stack([np.strings.add(dotted, formats), *others], axis=1)
    return Shard(names, txts, jsons, _layout(("", "txt", "json", *extra_members), sizes))


def _layout(names: tuple[str, ...], sizes: NDArray[np.int64]) -> Layout:
    spans = tar.BLOCK + sizes + -sizes % tar.BLOCK
    ends = np.cumsum(spans, dtype=np.int64).reshape(spans.shape)
    sample_offsets = np.concatenate([[0], ends[:, -1]]).astype(np.uint64)
    return Layout(names, sizes, ends - spans + tar.BLOCK, sample_offsets)


def _flush(piece: memoryview, wait: Callable[[], object], write: Callable[[memoryview], object]) -> bytearray:
    """Write a piece once it is full; its buffer, free again."""
    wait()
    write(piece)
    buffer = piece.obj
    assert isinstance(buffer, bytearray)
    return buffer
