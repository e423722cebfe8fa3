"""Locality-sensitive hashing: which captions are worth comparing at all.

A signature is cut into bands; two captions that agree on all of one band share its hash and become
candidates (Indyk and Motwani 1998; Leskovec et al., Mining of Massive Datasets, 3.4). Band hashes are
routed to buckets by their value, so a bucket sees every row of the band hashes it owns. Matrices in, row
numbers out; it reads no caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.arrays import distinct, spans
from dataengine.keys import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_PAIRS = 1 << 16


def band_hashes(signatures: NDArray[np.uint32], num_bands: int) -> NDArray[np.uint64]:
    """One hash per band of each signature, the band's number hashed in: uint64 [rows, num_bands].

    `num_bands` must divide the number of slots.
    """
    bands = signatures.reshape(len(signatures), num_bands, signatures.shape[1] // num_bands)
    hashes = np.broadcast_to(np.arange(num_bands, dtype=np.uint64), bands.shape[:2])
    for slot in range(bands.shape[2]):
        hashes = mix64(hashes + bands[:, :, slot], 0, "band")
    return hashes


def bucket_rows(hashes: NDArray[np.uint64], num_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The (row, bucket) pairs to route: a row goes once to each bucket that owns one of its band hashes.

    Two int64 arrays of equal length, sorted by bucket, then row.
    """
    buckets = (hashes % np.uint64(num_buckets)).astype(np.int64)
    rows = np.arange(len(hashes), dtype=np.int64)[:, None]
    routes = distinct(buckets * max(len(hashes), 1) + rows)
    return routes % max(len(hashes), 1), routes // max(len(hashes), 1)


def owned(hashes: NDArray[np.uint64], bucket: int, num_buckets: int) -> NDArray[np.bool_]:
    """Which band hashes this bucket owns: bool [rows, num_bands]."""
    return hashes % np.uint64(num_buckets) == np.uint64(bucket)


def hot_bands(hashes: NDArray[np.uint64], bucket: int, num_buckets: int, max_degree: int) -> NDArray[np.uint64]:
    """The band hashes of this bucket that more than `max_degree` rows share, ascending: uint64 [hot]."""
    values, counts = np.unique(hashes[owned(hashes, bucket, num_buckets)], return_counts=True)
    return values[counts > max_degree]


@dataclass(frozen=True)
class Candidates:
    """Pairs of rows that share a band hash; a pair comes once for each band it shares."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    band: NDArray[np.int64]


def candidates(
    hashes: NDArray[np.uint64],
    owned_bands: NDArray[np.bool_],
    bits: NDArray[np.uint64],
    max_degree: int,
    seed: int,
) -> Iterator[Candidates]:
    """The candidate pairs of one bucket, about 65,536 at a time.

    Rows of a band hash are ordered by a hash of (seed, `bits` of the row's key, band hash), and each is
    paired with the first `max_degree` before it: all pairs of a small neighbourhood, and only those with
    its anchors of a dense one.
    """
    rows, bands = np.nonzero(owned_bands)
    values = hashes[owned_bands]
    order = np.lexsort((rows, mix64(bits[rows] ^ values, seed, "anchor"), values))
    rows, bands, values = rows[order], bands[order], values[order]
    places = np.arange(len(rows), dtype=np.int64)
    starts = np.maximum.accumulate(np.where(np.append(True, values[1:] != values[:-1])[: len(rows)], places, 0))
    counts = np.minimum(places - starts, max_degree)
    for begin, end in _slices(counts):
        nearer = np.repeat(places[begin:end], counts[begin:end])
        anchors = spans(starts[begin:end], counts[begin:end])
        yield Candidates(rows[anchors], rows[nearer], bands[nearer])


def _slices(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.searchsorted(ends, np.arange(0, total, _CHUNK_PAIRS), side="right")
    edges = np.unique(np.append(edges, len(counts)))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
