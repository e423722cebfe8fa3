"""Captions as bytes, normalised in one pass: plain ASCII, and what a table of code points tells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled
from dataengine.dedup.kernels.shingles import decode

UNKNOWN = np.uint8(255)
"""In the place of a number of bytes: what this code point becomes depends on those around it."""
_SPACE = np.uint8(32)
_SYMBOLS = b"$+<=>^`|~"  # the ASCII of \\p{S}; what else is no letter or digit is punctuation, space or control

ASCII_FOLDED = np.full(256, _SPACE, np.uint8)
"""What an ASCII byte becomes: lower case, itself, or the space that stands for a separator."""
for _byte in range(128):
    if chr(_byte).isalnum() or _byte in _SYMBOLS:
        ASCII_FOLDED[_byte] = ord(chr(_byte).lower())


@compiled
def count_wide(content: NDArray[np.uint8]) -> int:
    """How many bytes lie beyond ASCII."""
    count = 0
    for byte in content:
        count += byte >> np.uint8(7)
    return count


@compiled
def normalise(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    folded: NDArray[np.uint8],
    forms: NDArray[np.uint8],
    begins: NDArray[np.int32],
    sizes: NDArray[np.uint8],
    out: NDArray[np.uint8],
    out_offsets: NDArray[np.int64],
    is_other: NDArray[np.bool_],
) -> None:
    """Write each caption's normal form to `out`, single spaces between words and none at the ends.

    Code point p becomes `forms[begins[p] : begins[p] + sizes[p]]`; a caption with one that is `UNKNOWN`, or beyond
    these [65536], is written as empty and marked in `is_other`. `out` holds what the caption may become and one byte
    more; `out_offsets` is int64 [rows + 1], `folded` is `ASCII_FOLDED`.
    """
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    place = 0
    out_offsets[0] = 0
    for row in range(len(offsets) - 1):
        begin = place
        after_gap = True  # so that none stands at the beginning
        highest = np.uint8(0)
        for at in range(offsets[row], offsets[row + 1]):
            byte = content[at]
            highest |= byte
            letter = folded[byte]
            gap = letter == 32
            # Every byte is written, and kept by moving on: a branch per word would be mispredicted as often.
            out[place] = letter
            place += not (gap and after_gap)
            after_gap = gap
        if highest >= 128:
            place, after_gap = begin, True
            for at in range(decode(content, offsets[row], offsets[row + 1], points, places)):
                point = points[at]
                if point >= len(sizes) or sizes[point] == UNKNOWN:
                    is_other[row] = True
                    place, after_gap = begin, True
                    break
                for piece in range(begins[point], begins[point] + sizes[point]):
                    gap = forms[piece] == 32
                    out[place] = forms[piece]
                    place += not (gap and after_gap)
                    after_gap = gap
        if after_gap and place > begin:
            place -= 1
        out_offsets[row + 1] = place
