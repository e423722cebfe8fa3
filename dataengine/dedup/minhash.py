"""MinHash signatures of captions, bit for bit those of datasketch 2.0.

A signature equals ``MinHash(num_perm, seed, scheme="affine32", hashfunc=shingle_hash32)`` of datasketch
over the same shingles, where `shingle_hash32` is the upper half of the 64-bit hash that
`dataengine.dedup.shingles` documents (Broder 1997; the permutations a·h + b mod 2**32 with odd a are
datasketch's). Normalised captions in, a matrix out; it knows neither bands nor keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.shingles import Shingles, hash_shingles

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from dataengine.config.dedup import CaptionDedupConfig

EMPTY = np.uint32(0xFFFFFFFF)
"""Every slot of a caption without shingles; such rows must not be banded."""
_CHUNK_SHINGLES = 1 << 15  # 128 KiB of hashes: the inner loop's three passes stay within the L2 cache


def signatures(captions: pa.Array, config: CaptionDedupConfig, seed: int) -> NDArray[np.uint32]:
    """One signature per normalised caption: uint32 [rows, num_perm], all `EMPTY` where it has no shingle."""
    shingles = hash_shingles(captions, config.shingle_chars)
    rows = np.flatnonzero(np.diff(shingles.offsets))
    matrix = np.full((len(captions), config.num_perm), EMPTY)
    multipliers, increments = permutations(config.num_perm, seed)
    for begin, end in _chunks(shingles.offsets[rows], len(shingles.hashes)):
        matrix[rows[begin:end]] = _minima(shingles, rows[begin:end], multipliers, increments)
    return matrix


def permutations(num_perm: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The a (odd) and b of each permutation, drawn as datasketch draws them: uint32 [num_perm] each."""
    # The legacy generator, because its stream is the one datasketch froze.
    stream = np.random.RandomState(seed % 2**32)
    multipliers = stream.randint(0, 1 << 31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, stream.randint(0, 1 << 32, num_perm, dtype=np.uint32)


def _chunks(starts: NDArray[np.int64], num_shingles: int) -> list[tuple[int, int]]:
    """Runs of rows that start within the same chunk of shingles; a long caption may exceed its chunk."""
    edges = np.searchsorted(starts, np.arange(0, num_shingles, _CHUNK_SHINGLES))
    edges = np.unique(np.append(edges, len(starts)))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _minima(
    shingles: Shingles,
    rows: NDArray[np.intp],
    multipliers: NDArray[np.uint32],
    increments: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    begin, end = shingles.offsets[rows[0]], shingles.offsets[rows[-1] + 1]
    hashes = _scramble((shingles.hashes[begin:end] >> np.uint64(32)).astype(np.uint32))
    starts = shingles.offsets[rows] - begin
    permuted = np.empty_like(hashes)
    minima = np.empty((len(multipliers), len(rows)), np.uint32)
    for slot, (multiplier, increment) in enumerate(zip(multipliers, increments, strict=True)):
        np.multiply(hashes, multiplier, out=permuted)
        np.add(permuted, increment, out=permuted)
        np.minimum.reduceat(permuted, starts, out=minima[slot])
    return minima.T


def _scramble(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 32-bit finaliser of MurmurHash3 (Appleby), which datasketch applies before its permutations."""
    mixed = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
