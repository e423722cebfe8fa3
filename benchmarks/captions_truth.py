"""Every pair of captions at or above a Jaccard similarity, found exactly and by other means than dedup's.

A set similarity join: shingles are numbered rarest first, and two sets of similarity t must share one of the rarest
n - ceil(t n) + 1 of each (Chaudhuri et al. 2006; positions bound the overlap as in Xiao et al., PPJoin, 2008). What
shares one is compared by merging both sets.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.dedup.captions import text_buffers
from dataengine.dedup.kernels.compiling import compiled
from dataengine.dedup.kernels.shingles import shingle_polynomials
from dataengine.dedup.shingles import Shingling


def true_pairs(
    captions: pa.Array, shingling: Shingling, min_similarity: float, num_threads: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Left row, right row (left < right) and similarity of every pair of normalised captions, in no order."""
    tokens, offsets = _sets(captions, shingling)
    sizes = np.diff(offsets)
    order = np.argsort(sizes, kind="stable")
    tokens, offsets = _in_order(tokens, offsets, order)
    prefixes = np.diff(offsets) - np.ceil(min_similarity * np.diff(offsets) - 1e-9).astype(np.int64) + 1
    prefixes[np.diff(offsets) == 0] = 0
    starts, rows, places = _index(tokens, offsets, prefixes)

    def join(first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        return _join(tokens, offsets, prefixes, starts, rows, places, min_similarity, first, num_threads)

    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(join, range(num_threads)))
    left, right, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    left, right = order[left], order[right]
    return np.minimum(left, right), np.maximum(left, right), similarity


def _sets(captions: pa.Array, shingling: Shingling) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The distinct shingles of each caption as numbers, rarest first, ascending: [members], [rows + 1]."""
    content, offsets = text_buffers(captions)
    hashes, ends = _hashes(content, offsets, shingling.size, shingling.by_word)
    by_hash = np.argsort(hashes)
    ordered = hashes[by_hash]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    counts = np.diff(np.append(starts, len(ordered)))
    ranks = np.empty(len(starts), np.int32)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(starts), dtype=np.int32)
    numbers = np.empty(len(hashes), np.int32)
    numbers[by_hash] = np.repeat(ranks, counts)
    _sort_each(numbers, ends)
    return numbers, ends


def _in_order(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    sizes = np.diff(offsets)[order]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    taken = np.repeat(offsets[:-1][order] - ends[:-1], sizes) + np.arange(len(tokens))
    return tokens[taken], ends


@compiled
def _hashes(
    content: NDArray[np.uint8], offsets: NDArray[np.int64], size: int, by_word: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    words, values = np.empty((longest // 2 + 1, 4), np.uint64), np.empty(longest + 1, np.uint64)
    out = np.empty(offsets[-1] - offsets[0] + 1, np.uint64)
    ends = np.zeros(len(offsets), np.int64)
    place = 0
    for row in range(len(offsets) - 1):
        count = shingle_polynomials(
            content, offsets[row], offsets[row + 1], size, by_word, points, places, words, values
        )
        ordered = np.sort(values[:count])
        for at in range(count):
            if at == 0 or ordered[at] != ordered[at - 1]:
                out[place] = ordered[at]
                place += 1
        ends[row + 1] = place
    return out[:place], ends


@compiled
def _sort_each(tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
    for row in range(len(offsets) - 1):
        tokens[offsets[row] : offsets[row + 1]] = np.sort(tokens[offsets[row] : offsets[row + 1]])


@compiled
def _index(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64], prefixes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Rows, ascending, whose prefix holds each token, and the token's place in it."""
    num_tokens = 0
    for token in tokens:
        num_tokens = max(num_tokens, token + 1)
    starts = np.zeros(num_tokens + 2, np.int64)
    for row in range(len(prefixes)):
        for at in range(offsets[row], offsets[row] + prefixes[row]):
            starts[tokens[at] + 2] += 1
    for token in range(1, num_tokens + 2):
        starts[token] += starts[token - 1]
    rows, places = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int32)
    for row in range(len(prefixes)):
        for place in range(prefixes[row]):
            token = tokens[offsets[row] + place]
            rows[starts[token + 1]] = row
            places[starts[token + 1]] = place
            starts[token + 1] += 1
    return starts, rows, places


@compiled
def _join(
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    prefixes: NDArray[np.int64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    places: NDArray[np.int32],
    min_similarity: float,
    first: int,
    step: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    room, count = 1 << 16, 0
    left, right, found = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float64)
    met = np.full(len(prefixes), -1, np.int32)
    share = min_similarity / (1.0 + min_similarity)
    for row in range(first, len(prefixes), step):
        size = offsets[row + 1] - offsets[row]
        for place in range(prefixes[row]):
            token = tokens[offsets[row] + place]
            for at in range(starts[token], starts[token + 1]):
                other = rows[at]
                if other >= row:
                    break
                if met[other] == row:
                    continue
                met[other] = row
                other_size = offsets[other + 1] - offsets[other]
                needed = np.int64(np.ceil(share * (size + other_size) - 1e-9))
                # This is the first token that both prefixes hold, so what they share lies from here on.
                if other_size < min_similarity * size - 1e-9 or min(size - place, other_size - places[at]) < needed:
                    continue
                a, b, shared = offsets[row] + place, offsets[other] + places[at], 0
                a_end, b_end = offsets[row + 1], offsets[other + 1]
                while a < a_end and b < b_end and shared + min(a_end - a, b_end - b) >= needed:
                    if tokens[a] == tokens[b]:
                        shared += 1
                        a += 1
                        b += 1
                    elif tokens[a] < tokens[b]:
                        a += 1
                    else:
                        b += 1
                similarity = shared / (size + other_size - shared)
                if similarity >= min_similarity:
                    if count == room:
                        left, right = np.append(left, left), np.append(right, right)
                        found = np.append(found, found)
                        room *= 2
                    left[count], right[count], found[count] = other, row, similarity
                    count += 1
    return left[:count], right[:count], found[:count]
