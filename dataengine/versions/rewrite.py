"""One tar without some of its samples: spans of bytes are copied, headers and all; nothing is decoded or packed anew.

In go the tar and the rows of the samples table that lie in it; out go the bytes that stay, and how far each sample that
stays moves. The whole tar is read and hashed on the way, so a damaged one never becomes a sound-looking child.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.emit.shard import MEMBERS
from dataengine.errors import CorruptObject
from dataengine.storage import tar
from dataengine.storage.store import Root

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE_BYTES = 8 * 2**20
_PLACES = [f"{member}_{what}" for member in MEMBERS for what in ("offset", "nbytes")]
COLUMNS = ("key", *_PLACES, "extra_members")
"""Of the samples table: what must be known to cut a tar."""


@dataclass(frozen=True)
class Cut:
    """What stays of a tar of samples [samples]: `begins` and `ends` are int64 bytes, `stays` bool, by place in it."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    stays: NDArray[np.bool_]

    @property
    def sample_offsets(self) -> NDArray[np.uint64]:
        """First header of each sample that stays in the new tar, and the end of the last: uint64 [staying + 1]."""
        sizes = (self.ends - self.begins)[self.stays]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)

    @property
    def shifts(self) -> NDArray[np.int64]:
        """Bytes that each sample moves towards the beginning, if it stays: int64 [samples]."""
        return np.cumsum(np.where(self.stays, 0, self.ends - self.begins))

    def spans(self) -> list[tuple[int, int]]:
        """Runs of bytes that stay, in order."""
        found: list[tuple[int, int]] = []
        for begin, end in zip(self.begins[self.stays].tolist(), self.ends[self.stays].tolist(), strict=True):
            if found and found[-1][1] == begin:
                found[-1] = (found[-1][0], end)
            else:
                found.append((begin, end))
        return found


def cut(rows: pl.DataFrame, removed: pl.Series, where: str) -> Cut:
    """How to cut the keys `removed` out of the tar `where`, whose samples are `rows` in its order.

    Raises CorruptObject when the samples do not lie one after another from the first byte on.
    """
    extras = rows["extra_members"].to_list()
    begins, ends = [], []
    for row, others in zip(rows.select(_PLACES).iter_rows(), extras, strict=True):
        places = [
            *zip(row[::2], row[1::2], strict=True),
            *((at["value"]["offset"], at["value"]["nbytes"]) for at in others),
        ]
        begins.append(min(offset for offset, _ in places) - tar.BLOCK)
        last, nbytes = max(places)
        ends.append(last + nbytes + -nbytes % tar.BLOCK)
    if begins and (begins[0] != 0 or begins[1:] != ends[:-1]):
        raise CorruptObject(f"{where}: holds bytes between samples that its table does not know; verify the version")
    stays = ~rows["key"].is_in(removed.implode()).to_numpy()
    return Cut(np.array(begins, np.int64), np.array(ends, np.int64), stays)


def moved(samples: pa.Table, cuts: Mapping[str, Cut]) -> pa.Table:
    """The rows of a samples table that stay, those of shards that are cut (name → how) with their new places."""
    shards, places = samples.column("shard"), samples.column("index_in_shard").to_numpy().copy()
    stays, shifts = np.ones(len(samples), np.bool_), np.zeros(len(samples), np.int64)
    for shard in cuts.keys() & set(shards.unique().to_pylist()):
        found, rows = cuts[shard], np.flatnonzero(pc.equal(shards, shard).to_numpy())
        before = places[rows]
        stays[rows], shifts[rows] = found.stays[before], found.shifts[before]
        places[rows] = (np.cumsum(found.stays) - 1)[before]
    left, shifts = samples.filter(pa.array(stays)), shifts[stays]
    columns = dict(zip(left.column_names, left.columns, strict=True))
    columns["index_in_shard"] = pa.array(places[stays])
    columns |= {name: pc.subtract(columns[name], shifts) for name in _PLACES[::2]}
    columns["extra_members"] = _moved_members(columns["extra_members"].combine_chunks(), shifts)
    return pa.table(columns, schema=samples.schema)


def _moved_members(members: pa.MapArray, shifts: NDArray[np.int64]) -> pa.MapArray:
    bounds = members.offsets.to_numpy()
    names, found = (part[bounds[0] : bounds[-1]] for part in (members.keys, members.items))
    offsets = pc.subtract(found.field("offset"), np.repeat(shifts, np.diff(bounds)))
    fields = [offsets if field.name == "offset" else found.field(field.name) for field in found.type]
    placed = pa.StructArray.from_arrays(fields, fields=list(found.type))
    return pa.MapArray.from_arrays(bounds - bounds[0], names, placed, type=members.type)


def copy_spans(
    root: Root, path: str, sha256: str, spans: list[tuple[int, int]], write: Callable[[memoryview], object]
) -> None:
    """Write the `spans` of the tar at `path`, then the end of an archive.

    Raises CorruptObject when the tar is not the one of `sha256`; what was written is worth nothing then.
    """
    digest, waiting = hashlib.sha256(), list(reversed(spans))
    for start, piece in _pieces(root, path):
        digest.update(piece)
        while waiting and waiting[-1][0] < start + len(piece):
            begin, end = waiting.pop()
            write(piece[begin - start : end - start])
            if end > start + len(piece):
                waiting.append((start + len(piece), end))
                break
    if waiting or digest.hexdigest() != sha256:
        raise _changed(root, path, digest.hexdigest(), sha256)
    write(memoryview(tar.END))


def check_whole(root: Root, path: str, sha256: str) -> None:
    """Raises CorruptObject when the object at `path` is not the one of `sha256`."""
    digest = hashlib.sha256()
    for _, piece in _pieces(root, path):
        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise _changed(root, path, digest.hexdigest(), sha256)


def _changed(root: Root, path: str, found: str, wanted: str) -> CorruptObject:
    return CorruptObject(f"{root.address(path)}: has sha256 {found}, its version names {wanted}; restore the file")


def _pieces(root: Root, path: str) -> Iterator[tuple[int, memoryview]]:
    with root.open(path) as stream:
        start = 0
        while piece := stream.read(PIECE_BYTES):
            yield start, memoryview(piece)
            start += len(piece)
