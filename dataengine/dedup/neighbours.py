"""Near-duplicate images: the pairs whose embeddings have a cosine of `min_similarity` or more.

The search is exact: float32 products only propose pairs, with room for their rounding, and float64 decides,
so that a pair gets the same similarity in whatever block, order or cell it is met. A pair that shares
several cells belongs to the lowest. Rows of one cell in, EDGE rows out; it knows neither parts nor stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.dedup.cells import unit_vectors
from dataengine.dedup.edges import Pairs, edge_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.dedup import ImageDedupConfig

KIND = "image_embedding"
_ROUNDING = 1e-4  # more than float32 can lose in a product of unit vectors of 2,048 dimensions
_BLOCK_FLOATS = 1 << 23  # 32 MiB of similarities at a time
_EXACT_ROWS = 1 << 12
NO_DISTANCE = -1


@dataclass(frozen=True)
class ImageRows:
    """The images of a cell or part, one row each."""

    keys: pa.Array
    """string [rows], distinct."""
    embeddings: NDArray[np.floating]
    """float16 or float32 [rows, dim], of any length; zero or not finite where there is none."""
    phashes: pa.Array
    """SCORE's `phash`: string [rows], 16 hex characters or null."""


@dataclass(frozen=True)
class ImageEdges:
    """What one search found."""

    edges: pa.Table
    """EDGE rows of kind image_embedding."""
    num_refused: int
    """Pairs near enough in cosine that `confirm` refused."""


def image_edges(rows: ImageRows, probes: NDArray[np.int32], cell: int, config: ImageDedupConfig) -> ImageEdges:
    """The near-duplicate pairs that `cell` owns, out of the rows that probe it, in any order.

    `probes` is int32 [rows, num_probes], each row's whole list. A pair is owned by the lowest cell that
    both probe.
    """
    pairs = _near_pairs(rows.embeddings, rows.embeddings, config.min_similarity, once=True)
    return _confirmed(rows, rows, pairs.where(_lowest_shared(probes, pairs) == cell), config)


def cross_edges(sample: ImageRows, rows: ImageRows, config: ImageDedupConfig) -> ImageEdges:
    """The near-duplicate pairs of any sampled row with any of `rows`, cells set aside."""
    pairs = _near_pairs(sample.embeddings, rows.embeddings, config.min_similarity, once=False)
    return _confirmed(sample, rows, pairs, config)


def _near_pairs(
    first: NDArray[np.floating], second: NDArray[np.floating], min_similarity: float, *, once: bool
) -> Pairs:
    """Pairs (row of first, row of second) that reach `min_similarity`; `once`: only with left < right."""
    floor = max(min_similarity - _ROUNDING, _ROUNDING)
    found = []
    for left, right in _proposed(unit_vectors(first), unit_vectors(second), floor, once=once):
        pairs = Pairs(left, right, _cosines(first, left, second, right))
        found.append(pairs.where(pairs.similarity >= min_similarity))
    return Pairs.joined(found)


def _proposed(
    first: NDArray[np.float32], second: NDArray[np.float32], floor: float, *, once: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    block = max(1, _BLOCK_FLOATS // max(len(second), 1))
    for begin in range(0, len(first), block):
        start = begin if once else 0
        near = first[begin : begin + block] @ second[start:].T >= floor
        left, right = (ends + offset for ends, offset in zip(np.nonzero(near), (begin, start), strict=True))
        later = right > left if once else slice(None)
        yield left[later], right[later]


def _cosines(
    first: NDArray[np.floating],
    left: NDArray[np.int64],
    second: NDArray[np.floating],
    right: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The cosine of each pair, in float64; identical rows give exactly 1."""
    cosines = np.empty(len(left))
    for begin in range(0, len(left), _EXACT_ROWS):
        run = slice(begin, begin + _EXACT_ROWS)
        here, there = first[left[run]].astype(np.float64), second[right[run]].astype(np.float64)
        product = np.einsum("rd,rd->r", here, there)
        squares = np.einsum("rd,rd->r", here, here) * np.einsum("rd,rd->r", there, there)
        cosines[run] = np.minimum(product / np.sqrt(squares), 1.0)
    return cosines


def _lowest_shared(probes: NDArray[np.int32], pairs: Pairs) -> NDArray[np.int32]:
    """The lowest cell that both rows of each pair probe: int32 [pairs]."""
    none = np.iinfo(np.int32).max
    lowest = np.full(len(pairs.left), none, np.int32)
    for column in range(probes.shape[1]):
        cells = probes[pairs.left, column]
        shared = (probes[pairs.right] == cells[:, None]).any(axis=1)
        np.minimum(lowest, np.where(shared, cells, none), out=lowest)
    return lowest


def _confirmed(first: ImageRows, second: ImageRows, pairs: Pairs, config: ImageDedupConfig) -> ImageEdges:
    """The pairs as EDGE rows, less those that `config.confirm` refuses; a missing pHash confirms nothing."""
    distance = _distances(first.phashes.take(pairs.left), second.phashes.take(pairs.right))
    keys = first.keys.take(pairs.left), second.keys.take(pairs.right)
    themselves = np.asarray(pc.equal(*keys))
    accepted = (distance != NO_DISTANCE) & (distance <= config.max_phash_distance)
    if config.confirm == "none":
        accepted = np.ones_like(accepted)
    edges = edge_table(
        keys[0].filter(accepted),
        keys[1].filter(accepted),
        KIND,
        pairs.similarity[accepted],
        pa.array(distance[accepted], pa.int16(), mask=distance[accepted] == NO_DISTANCE),
    )
    return ImageEdges(edges, int(np.count_nonzero(~accepted & ~themselves)))


def _distances(left: pa.Array, right: pa.Array) -> NDArray[np.int16]:
    """Hamming distance of two columns of hashes, `NO_DISTANCE` where either is null: int16 [pairs]."""
    differing = np.bitwise_count(_hash_bits(left) ^ _hash_bits(right)).astype(np.int16)
    known = np.asarray(left.is_valid()) & np.asarray(right.is_valid())
    return np.where(known, differing, np.int16(NO_DISTANCE))


def _hash_bits(hashes: pa.Array) -> NDArray[np.uint64]:
    text = "".join(hashes.fill_null("0" * 16).to_pylist())
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
