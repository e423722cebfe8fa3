"""Near-duplicate captions of one bucket: candidates that share a band hash, verified by exact Jaccard.

Decides which bucket owns a pair, so that each is written once without comparing buckets: the lowest band
that both rows share and that is not hot; when every shared band is hot, the lowest shared band. A hot band
(more than `max_degree` rows) compares rows with its anchors only, so leaving pairs to it would lose them.
Rows in, EDGE rows out; it knows neither parts nor stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.bands import Candidates, candidates, owned
from dataengine.dedup.edges import Pairs, edge_table
from dataengine.dedup.shingles import has_shingles, jaccard, shingle_sets
from dataengine.keys import key_bits

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from dataengine.config.dedup import CaptionDedupConfig

KIND = "caption_minhash"


@dataclass(frozen=True)
class CaptionEdges:
    """What one bucket found."""

    edges: pa.Table
    """EDGE rows of kind caption_minhash."""
    num_capped: int
    """Rows in a hot band, each counted in one bucket only."""


def caption_edges(
    keys: pa.Array,
    captions: pa.Array,
    hashes: NDArray[np.uint64],
    bucket: int,
    hot: NDArray[np.uint64],
    config: CaptionDedupConfig,
    seed: int,
) -> CaptionEdges:
    """The near-duplicate pairs that `bucket` owns, out of its rows in any order.

    `keys` and `captions` (normalised) are string [rows] of distinct captions, `hashes` is uint64 [rows,
    num_bands], and `hot` holds the `hot_bands` of every bucket. Captions without shingles are passed over.
    """
    rows = np.flatnonzero(has_shingles(captions, config.shingle_chars))
    keys, captions, hashes = keys.take(rows), captions.take(rows), hashes[rows]
    mine = owned(hashes, bucket, config.num_buckets)
    is_hot = np.isin(hashes, hot)
    found = []
    for candidate in candidates(hashes, mine, key_bits(keys), config.max_degree, seed):
        left, right = _owned_pairs(candidate, hashes, is_hot)
        pairs = Pairs(left, right, _similarity(captions, left, right, config.shingle_chars))
        found.append(pairs.where(pairs.similarity >= config.min_similarity))
    near = Pairs.joined(found)
    edges = edge_table(keys.take(near.left), keys.take(near.right), KIND, near.similarity)
    return CaptionEdges(edges, int(np.count_nonzero(_first(is_hot) & mine)))


def _owned_pairs(
    candidate: Candidates, hashes: NDArray[np.uint64], is_hot: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shared = hashes[candidate.left] == hashes[candidate.right]
    cool = shared & ~is_hot[candidate.left]
    owner = np.where(cool.any(axis=1), cool.argmax(axis=1), shared.argmax(axis=1))
    here = owner == candidate.band
    return candidate.left[here], candidate.right[here]


def _similarity(
    captions: pa.Array, left: NDArray[np.int64], right: NDArray[np.int64], shingle_chars: int
) -> NDArray[np.float64]:
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    sets = shingle_sets(captions.take(rows), shingle_chars)
    return jaccard(sets, places[: len(left)], places[len(left) :])


def _first(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`flags` with only the first true of each row left: bool [rows, columns]."""
    return flags & (np.cumsum(flags, axis=1) == 1)
