"""Ranges through a cache: what is kept is read from disk, and a block that lacks is fetched once for all that want it.

In go ranges with the sizes of their objects; out come the bytes, or the error, of each. Who fetches, and how patiently,
is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from dataengine.errors import CorruptObject, StorageError
from dataengine.storage.store import Root
from dataengine.trainer.cache import Cache, Span


class Wanted(NamedTuple):
    """`nbytes` at `offset` of an object of `size` bytes."""

    path: str
    offset: int
    nbytes: int
    size: int


Pieces = list[bytes]
"""What each taker of a block gets of it."""
Submit = Callable[[Callable[[], Pieces], str], Future[Pieces]]


@dataclass
class _Block:
    """A block that lacks, and its takers: number of a range, and what the range takes."""

    path: str
    number: int
    size: int
    takers: list[tuple[int, Span]] = field(default_factory=list)

    def fetch(self, cache: Cache, root: Root) -> Pieces:
        content = cache.fetch(root, self.path, self.number, self.size)
        return [content[span.begin : span.end] for _, span in self.takers]


def read_through(cache: Cache, root: Root, ranges: Sequence[Wanted], submit: Submit) -> list[bytes | StorageError]:
    """The bytes of each range, or what is wrong with it; `submit` has a block fetched."""
    pieces: list[dict[int, bytes]] = [{} for _ in ranges]
    lacking: dict[tuple[str, int], _Block] = {}
    for number, one in enumerate(ranges):
        for span in cache.spans(one.offset, one.nbytes) if one.offset + one.nbytes <= one.size else ():
            kept = cache.kept(root, one.path, span, one.size)
            if kept is None:
                block = lacking.setdefault((one.path, span.block), _Block(one.path, span.block, one.size))
                block.takers.append((number, span))
            else:
                pieces[number][span.block] = kept
    fetched = [(block, submit(partial(block.fetch, cache, root), block.path)) for block in lacking.values()]
    faults: dict[int, StorageError] = {}
    for block, future in fetched:
        try:
            for (number, span), piece in zip(block.takers, future.result(), strict=True):
                pieces[number][span.block] = piece
        except StorageError as error:
            faults |= {number: error for number, _ in block.takers}
    return [faults.get(number) or _joined(root, one, pieces[number]) for number, one in enumerate(ranges)]


def _joined(root: Root, one: Wanted, pieces: dict[int, bytes]) -> bytes | StorageError:
    if one.offset + one.nbytes > one.size:
        return CorruptObject(
            f"{root.address(one.path)}: wanted {one.nbytes} bytes at {one.offset}, the object has {one.size}"
        )
    return b"".join(pieces[number] for number in sorted(pieces))
