"""Cells: the k-means partition of embedding space that keeps the search for neighbours local, and who looks where.

Every row has a home, the cell of its nearest centroid, and looks into each further cell whose border is near. Let two
unit vectors have a cosine of `min_similarity`, so that they lie δ = sqrt(2 - 2·min_similarity) apart, and let their
homes be a and b. Both homes are nearest, so the pair straddles the plane halfway between the centroids a and b, and one
of the two is δ/2 or less from that plane. When every row looks into each cell whose plane is within `border`·δ/2, then
border = 1 finds every pair, by this proof; a smaller one is cheaper, and misses pairs that cross a border almost
head-on, of which there are few where dimensions are many. `dataengine.dedup.recall` measures how many.

Embeddings in; centroids, homes and looks out. It knows no keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.arrays import widened
from dataengine.dedup.products import Products, worth_int8

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

NO_CELL = -1
MIN_CELL_ROWS = 16
_ITERATIONS = 3  # more make the search no cheaper: cells need to be small, not good clusters
_BLOCK_FLOATS = 1 << 22  # 16 MiB of similarities at a time stay near the cache
_CACHED_ROWS = 512  # 1 MiB at 512 dimensions
_HALF_INFINITY = 0x7C00
_MAX_TABLE_CELLS = 4096  # a table of all distances between centroids of 64 MiB
_ROUNDING = 1e-6  # of a float32 product of unit vectors, and so of a distance to a plane
_COSINE_ROUNDING = 2e-5  # a dozen times what float32 was seen to lose of 2 - 2·cosine, at 2,048 dimensions


@dataclass(frozen=True)
class Placement:
    """Where rows live and where they look."""

    home: NDArray[np.int32]
    """[rows]; NO_CELL for a row that can have no neighbour, being zero or not finite."""
    look_row: NDArray[np.int64]
    """[looks] ascending."""
    look_cell: NDArray[np.int32]
    """[looks] ascending within a row, never its home."""


def num_cells(num_rows: int, rows_per_cell: int | None) -> int:
    """How many cells to make of `num_rows`; never none.

    By default 2.5 times the square root: placing a row costs as many products as there are cells, and searching for it,
    cells being uneven and borders being looked across, about six times as many as a cell has rows.
    """
    size = rows_per_cell or max(MIN_CELL_ROWS, round(math.sqrt(num_rows) / 2.5))
    return max(1, -(-num_rows // size))


def search_radius(min_similarity: float) -> float:
    """Distance of two unit vectors whose cosine is `min_similarity`."""
    return math.sqrt(max(2 - 2 * min_similarity, 0))


def unit_vectors(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to length 1: float32 [rows, dim]; rows that are zero or not finite become zero."""
    rows = np.empty(embeddings.shape, np.float32)
    for begin in range(0, len(rows), _CACHED_ROWS):
        block = _float32(embeddings[begin : begin + _CACHED_ROWS])
        squares = np.einsum("rd,rd->r", block, block)
        block *= np.divide(1, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)[:, None]
        rows[begin : begin + _CACHED_ROWS] = block
    return rows


def _float32(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    wide = widened(embeddings) if embeddings.dtype == np.float16 else embeddings.astype(np.float32)
    wide[~usable(embeddings)] = 0.0
    return wide


def usable(embeddings: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows have a direction, being finite and not zero: bool [rows]."""
    if embeddings.dtype == np.float16:
        largest = (embeddings.view(np.uint16) & 0x7FFF).max(axis=1, initial=0)
        return (largest > 0) & (largest < _HALF_INFINITY)
    return np.isfinite(embeddings).all(axis=1) & embeddings.any(axis=1)


def train_cells(sample: NDArray[np.floating], num_cells: int, radius: float, seed: int) -> NDArray[np.float32]:
    """Unit centroids: float32 [cells, dim], at least one, at most `num_cells`.

    Spherical k-means, on a GPU where FAISS has one. On a CPU the same sample in the same order gives the same bits: one
    thread, seeded. Zero rows teach nothing. Where near-duplicates are many, k-means puts several centroids among them,
    and borders through the midst of a group; of such, nearer to each other than `radius`, one stays.
    """
    units = unit_vectors(sample)
    units = units[units.any(axis=1)]
    cells = min(num_cells, len(units))
    if cells <= 1:
        return unit_vectors(units.sum(axis=0, keepdims=True))
    return _apart(unit_vectors(_cluster(units, cells, seed)), units, radius)


def _cluster(units: NDArray[np.float32], cells: int, seed: int) -> NDArray[np.float32]:
    import faiss

    clustering = faiss.Clustering(units.shape[1], cells)
    clustering.seed = seed % 2**31
    clustering.niter = _ITERATIONS
    clustering.spherical = True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = len(units)  # the caller has sampled already
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        clustering.train(units, _index(units.shape[1]))
    finally:
        faiss.omp_set_num_threads(num_threads)
    found: NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(cells, -1)
    return found


def _index(dim: int) -> Any:
    import faiss

    index = faiss.IndexFlatIP(dim)
    on_gpu = hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus() > 0
    return faiss.index_cpu_to_all_gpus(index) if on_gpu else index


def _apart(centroids: NDArray[np.float32], units: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """The centroids less those of tight cells that are nearer than `radius` to that of a larger tight cell.

    Tight are cells whose rows lie about `radius` or less from their centroid. Loose cells may have centroids as near to
    each other, towards the middle of all; to join them would make one cell of many topics, and cost most of a search.
    """
    home = place(units, Cells(centroids), 0.0).home
    sizes = np.bincount(home, minlength=len(centroids))
    cosines = np.bincount(home, np.einsum("rd,rd->r", units, centroids[home]), minlength=len(centroids))
    tight = cosines >= sizes * (1 - radius**2 / 2)
    near = (centroids @ centroids.T > 1 - radius**2 / 2) & tight
    stays = ~tight
    gone = np.zeros(len(centroids), bool)
    for cell in np.argsort(-sizes, kind="stable"):
        if tight[cell] and not gone[cell]:
            stays[cell] = True
            gone |= near[cell]
    return centroids[stays]


def main_axes(centroids: NDArray[np.float32], num_axes: int) -> NDArray[np.float32]:
    """The orthonormal directions that hold most of the centroids: float32 [dim, num_axes]."""
    _, axes = np.linalg.eigh(centroids.T.astype(np.float64) @ centroids)
    return np.ascontiguousarray(axes[:, -num_axes:], np.float32)


@dataclass(frozen=True)
class Cells:
    """The cells of a partition, and what placing rows asks of them again and again."""

    centroids: NDArray[np.float32]
    """Unit vectors [cells, dim]."""

    @property
    def int8(self) -> bool:
        """Whether products in a search of so many cells are better made in 8-bit integers."""
        return worth_int8(len(self.centroids))

    @cached_property
    def products(self) -> Products:
        """What multiplies rows with the centroids."""
        return Products(self.centroids, self.int8)

    @cached_property
    def widest(self) -> NDArray[np.float32]:
        """A distance from each centroid that none of the others exceeds: [cells]."""
        if self._gaps is not None:
            return np.asarray(self._gaps.max(axis=1))
        to_middle = np.linalg.norm(self.centroids - self.centroids.mean(axis=0), axis=1)
        return np.asarray(to_middle + to_middle.max(), np.float32)

    def gaps(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distance between two centroids, pair by pair: [pairs]."""
        if self._gaps is not None:
            return self._gaps[first, second]
        pairs, which = np.unique(first * len(self.centroids) + second, return_inverse=True)
        here, there = np.divmod(pairs, len(self.centroids))
        cosine = np.empty(len(pairs), np.float32)
        step = max(1, _BLOCK_FLOATS // self.centroids.shape[1])
        for begin in range(0, len(pairs), step):
            run = slice(begin, begin + step)
            cosine[run] = np.einsum("pd,pd->p", self.centroids[here[run]], self.centroids[there[run]])
        return _distance(cosine)[which]

    @cached_property
    def _gaps(self) -> NDArray[np.float32] | None:
        """All distances, unless the table would be large."""
        if len(self.centroids) > _MAX_TABLE_CELLS:
            return None
        return _distance(self.centroids @ self.centroids.T)


def _distance(cosine: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of two unit vectors, or a little more, never less: what float32 lost of a cosine is much of a small distance."""
    return np.sqrt(np.maximum(2 - 2 * cosine, 0) + _COSINE_ROUNDING)


def place(units: NDArray[np.float32], cells: Cells, reach: float) -> Placement:
    """The home of each row, and the cells whose border lies within `reach`; ties go to the lower cell.

    `units` are unit vectors, float32 [rows, dim]; zero rows get NO_CELL.
    """
    num_cells = len(cells.centroids)
    homes = np.full(len(units), NO_CELL, np.int32)
    rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    block = max(1, _BLOCK_FLOATS // num_cells)
    for begin in range(0, len(units), block):
        here = units[begin : begin + block]
        product, error = cells.products.of(here)
        floor = product.max(axis=1) - (2 * error + max(reach, 0.0) * cells.widest.max())
        row, cell = np.divmod(np.flatnonzero(product >= floor[:, None]), num_cells)
        similarity = cells.products.of_pairs(here, row, cell, product)
        firsts = np.searchsorted(row, np.arange(len(here)))
        highest = np.maximum.reduceat(similarity, firsts)
        tops = np.flatnonzero(similarity == highest[row])
        home = cell[tops[np.searchsorted(row[tops], np.arange(len(here)))]]
        homes[begin : begin + block] = home
        other = cell != home[row]
        row, cell, lag = row[other], cell[other], (highest[row] - similarity)[other]
        within = lag <= reach * cells.gaps(home[row], cell) + _ROUNDING
        rows.append(row[within] + begin)
        found.append(cell[within].astype(np.int32))
    homes[~units.any(axis=1)] = NO_CELL
    look_row, look_cell = np.concatenate(rows), np.concatenate(found)
    there = homes[look_row] != NO_CELL
    return Placement(homes, look_row[there], look_cell[there])


def bucket_starts(sizes: NDArray[np.floating], bucket_rows: int) -> list[int]:
    """The first cell of each bucket: runs of cells that hold about `bucket_rows` rows, a larger cell by itself."""
    starts, filled = [0], 0.0
    for cell, size in enumerate(sizes):
        if filled and filled + size > bucket_rows:
            starts.append(cell)
            filled = 0.0
        filled += size
    return starts


def bucket_cells(starts: Sequence[int], num_cells: int) -> list[range]:
    """The cells of each bucket."""
    return [range(first, last) for first, last in zip(starts, [*starts[1:], num_cells], strict=True)]
