"""Exact Jaccard similarity of pairs of captions, from their text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined
from dataengine.dedup.kernels.counting import popcount
from dataengine.dedup.kernels.shingles import shingle_polynomials

NUM_MARKS = 8192
"""Values of a mark; their table of one byte each stays in the first-level cache."""


@compiled
def mark_shingles(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    wanted: NDArray[np.bool_],
    size: int,
    by_word: bool,
    starts: NDArray[np.int64],
    maps: NDArray[np.uint64],
) -> NDArray[np.uint16]:
    """One mark, 13 bits of its hash, for each distinct shingle of the `wanted` captions.

    Row r's marks are `starts[r] : starts[r + 1]` of what is returned; `starts` is int64 [rows + 1]. `maps`, uint64
    [rows, 8] and zero on entry, has the bit set that the first 9 bits of each mark name.
    """
    longest, total = 0, 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
        total += (offsets[row + 1] - offsets[row]) * wanted[row]
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    words, values = np.empty((longest // 2 + 1, 4), np.uint64), np.empty(longest + 1, np.uint64)
    room = 64
    while room < 2 * (longest + 1):
        room *= 2
    table, stamps = np.empty(room, np.uint64), np.full(room, -1, np.int64)
    marks = np.empty(total, np.uint16)
    end = 0
    starts[0] = 0
    for row in range(len(offsets) - 1):
        if wanted[row]:
            count = shingle_polynomials(
                content, offsets[row], offsets[row + 1], size, by_word, points, places, words, values
            )
            for at in range(count):
                place = _find(table, stamps, row, values[at], room - 1)
                if stamps[place] != row:
                    stamps[place] = row
                    table[place] = values[at]
                    mark = (values[at] * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(51)
                    marks[end] = mark
                    end += 1
                    maps[row, np.int64(mark >> np.uint64(10))] |= np.uint64(1) << (
                        (mark >> np.uint64(4)) & np.uint64(63)
                    )
        starts[row + 1] = end
    return marks[:end]


@compiled
def screen(
    marks: NDArray[np.uint16],
    starts: NDArray[np.int64],
    maps: NDArray[np.uint64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    min_similarity: float,
    passes: NDArray[np.bool_],
) -> None:
    """Say which pairs of captions may be alike: those that share enough bits of their maps, and enough marks.

    A shared shingle is a shared mark and a shared bit, so no pair that is alike is refused. Fastest when equal `left`
    follow each other.
    """
    set_bits = np.zeros(len(maps), np.int64)
    for row in range(len(maps)):
        if starts[row] < starts[row + 1]:
            for word in range(8):
                set_bits[row] += popcount(maps[row, word])
    present = np.zeros(NUM_MARKS, np.uint8)
    share = min_similarity / (1.0 + min_similarity)
    last = -1
    for pair in range(len(left)):
        row, other = left[pair], right[pair]
        size, other_size = starts[row + 1] - starts[row], starts[other + 1] - starts[other]
        needed = share * (size + other_size) - 1e-9
        shared = np.int64(0)
        for word in range(8):
            shared += popcount(maps[row, word] & maps[other, word])
        # Shared shingles that set one bit together show once: at most those a caption has without a bit of their own.
        shared += min(size - set_bits[row], other_size - set_bits[other])
        passes[pair] = shared >= needed and size >= needed and other_size >= needed
        if not passes[pair]:
            continue
        if row != last:
            if last >= 0:
                for at in range(starts[last], starts[last + 1]):
                    present[marks[at]] = 0
            for at in range(starts[row], starts[row + 1]):
                present[marks[at]] = 1
            last = row
        missing = 0
        begin, end = starts[other], starts[other + 1]
        while begin < end and missing <= other_size - needed:
            stop = min(begin + 16, end)  # a test for each mark would cost more than the marks
            for at in range(begin, stop):
                missing += 1 - present[marks[at]]
            begin = stop
        passes[pair] = missing <= other_size - needed


@inlined
def _find(table: Any, stamps: Any, stamp: Any, value: Any, mask: Any) -> Any:
    """Where `value` lies in the open-addressed `table`, or the free place where it belongs."""
    place = np.int64((value * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(40)) & mask
    while stamps[place] == stamp and table[place] != value:
        place = (place + 1) & mask
    return place


@compiled
def similarities(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    size: int,
    by_word: bool,
    min_similarity: float,
    out: NDArray[np.float64],
) -> None:
    """Write |A ∩ B| / |A ∪ B| of the shingle sets of each pair of captions, or -1 where it is below `min_similarity`.

    Fastest when equal `left` follow each other: the set of the left caption is made once, the right one's shingles are
    looked up in it as they are read.
    """
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    words, values = np.empty((longest // 2 + 1, 4), np.uint64), np.empty(longest + 1, np.uint64)
    room = 64
    while room < 2 * (longest + 1):
        room *= 2
    mask = room - 1
    table, stamps = np.empty(room, np.uint64), np.zeros(room, np.int64)
    seen = np.zeros(room, np.int64)
    others, other_stamps = np.empty(room, np.uint64), np.zeros(room, np.int64)
    stamp, last, num_left = 0, -1, 0
    for pair in range(len(left)):
        if left[pair] != last:
            last = left[pair]
            stamp += 1
            num_left = 0
            count = shingle_polynomials(
                content, offsets[last], offsets[last + 1], size, by_word, points, places, words, values
            )
            for at in range(count):
                place = _find(table, stamps, stamp, values[at], mask)
                if stamps[place] != stamp:
                    stamps[place] = stamp
                    table[place] = values[at]
                    num_left += 1
        row = right[pair]
        count = shingle_polynomials(
            content, offsets[row], offsets[row + 1], size, by_word, points, places, words, values
        )
        shared, alone = 0, 0
        for at in range(count):
            # Each shingle still to come can at most be one more of the shared ones.
            if shared + (count - at) < min_similarity * (num_left + alone) - 1e-9:
                break
            place = _find(table, stamps, stamp, values[at], mask)
            if stamps[place] == stamp:
                if seen[place] != pair + 1:
                    seen[place] = pair + 1
                    shared += 1
            else:
                place = _find(others, other_stamps, pair + 1, values[at], mask)
                if other_stamps[place] != pair + 1:
                    other_stamps[place] = pair + 1
                    others[place] = values[at]
                    alone += 1
        union = num_left + alone
        similarity = shared / union if union > 0 else 0.0
        out[pair] = similarity if similarity >= min_similarity else -1.0
