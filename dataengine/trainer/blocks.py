"""Ranges through a cache: what is kept is read from disk, and a block that lacks is fetched once for all that want it.

In go ranges of objects; out come the bytes, or the error, of each. Who fetches, and how patiently, is the caller's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataengine.errors import CorruptObject, StorageError
from dataengine.trainer.cache import Cache, Span, Stored


class Wanted(NamedTuple):
    """`nbytes` at `offset` of an object."""

    stored: Stored
    offset: int
    nbytes: int


Pieces = list[bytes]
"""What each taker of a block gets of it."""


@dataclass
class Block:
    """A block that lacks, and its takers: number of a range, and what the range takes."""

    stored: Stored
    number: int
    takers: list[tuple[int, Span]] = field(default_factory=list)

    def cut(self, content: bytes) -> Pieces:
        return [content[span.begin : span.end] for _, span in self.takers]


Fetch = Callable[[Sequence[Block]], Sequence[Pieces | StorageError]]


def read_through(cache: Cache, ranges: Sequence[Wanted], fetch: Fetch) -> list[bytes | StorageError]:
    """The bytes of each range, or what is wrong with it; `fetch` has blocks fetched, kept and cut."""
    pieces: list[dict[int, bytes]] = [{} for _ in ranges]
    lacking: dict[tuple[Stored, int], Block] = {}
    for number, one in enumerate(ranges):
        for span in cache.spans(one.offset, one.nbytes) if _is_within(one) else ():
            kept = cache.kept(one.stored, span)
            if kept is None:
                block = lacking.setdefault((one.stored, span.block), Block(one.stored, span.block))
                block.takers.append((number, span))
            else:
                pieces[number][span.block] = kept
    faults: dict[int, StorageError] = {}
    for block, fetched in zip(lacking.values(), fetch([*lacking.values()]), strict=True):
        if isinstance(fetched, StorageError):
            faults |= {number: fetched for number, _ in block.takers}
            continue
        for (number, span), piece in zip(block.takers, fetched, strict=True):
            pieces[number][span.block] = piece
    return [faults.get(number) or _joined(one, pieces[number]) for number, one in enumerate(ranges)]


def _joined(one: Wanted, pieces: dict[int, bytes]) -> bytes | StorageError:
    if not _is_within(one):
        return CorruptObject(
            f"{one.stored.address}: wanted {one.nbytes} bytes at {one.offset}, the object has {one.stored.nbytes}"
        )
    return b"".join(pieces[number] for number in sorted(pieces))


def _is_within(one: Wanted) -> bool:
    return one.offset + one.nbytes <= one.stored.nbytes
