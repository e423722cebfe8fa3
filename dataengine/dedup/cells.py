"""Cells: the k-means partition of embedding space that keeps the search for neighbours local.

Decides where the cells lie (spherical k-means on a sample) and which cells each row is looked up in.
Embeddings in, centroids and cell numbers out. It knows no keys, and makes no promise about recall:
`dataengine.dedup.recall` measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ITERATIONS = 10  # the objective moves by less than 1 % afterwards
_BLOCK_FLOATS = 1 << 24  # 64 MiB of similarities at a time


def num_cells(num_rows: int, rows_per_cell: int) -> int:
    """How many cells hold `num_rows` at about `rows_per_cell` each; never none."""
    return max(1, -(-num_rows // rows_per_cell))


def unit_vectors(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to length 1: float32 [rows, dim]; rows that are zero or not finite become zero."""
    rows = embeddings.astype(np.float32)
    rows[~np.isfinite(rows).all(axis=1)] = 0.0
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def train_cells(sample: NDArray[np.floating], num_cells: int, seed: int) -> NDArray[np.float32]:
    """Unit centroids: float32 [cells, dim], at least one, at most `num_cells` or the usable rows.

    The same sample in the same order gives the same bits: one thread, seeded. Zero rows teach nothing.
    """
    import faiss

    units = unit_vectors(sample)
    units = units[units.any(axis=1)]
    cells = min(num_cells, len(units))
    if cells <= 1:
        return unit_vectors(units.sum(axis=0, keepdims=True))
    clustering = faiss.Clustering(units.shape[1], cells)
    clustering.seed = seed % 2**31
    clustering.niter = _ITERATIONS
    clustering.spherical = True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = len(units)  # the caller has sampled already
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        clustering.train(units, faiss.IndexFlatIP(units.shape[1]))
    finally:
        faiss.omp_set_num_threads(num_threads)
    return faiss.vector_to_array(clustering.centroids).reshape(cells, -1)


def probe_cells(embeddings: NDArray[np.floating], centroids: NDArray[np.float32], num_probes: int) -> NDArray[np.int32]:
    """The cells each row is looked up in, nearest first, ties by number: int32 [rows, probes ≤ cells]."""
    units = unit_vectors(embeddings)
    probes = np.empty((len(units), min(num_probes, len(centroids))), np.int32)
    block = max(1, _BLOCK_FLOATS // len(centroids))
    for begin in range(0, len(units), block):
        similarity = units[begin : begin + block] @ centroids.T
        for probe in range(probes.shape[1]):
            nearest = similarity.argmax(axis=1)
            probes[begin : begin + block, probe] = nearest
            similarity[np.arange(len(nearest)), nearest] = -np.inf
    return probes
