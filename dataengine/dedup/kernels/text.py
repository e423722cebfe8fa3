"""Captions as bytes: those of plain ASCII are normalised in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled

_SPACE = np.uint8(32)
_SYMBOLS = b"$+<=>^`|~"  # the ASCII of \\p{S}; what else is no letter or digit is punctuation, space or control

ASCII_FOLDED = np.full(256, _SPACE, np.uint8)
"""What an ASCII byte becomes: lower case, itself, or the space that stands for a separator."""
for _byte in range(128):
    if chr(_byte).isalnum() or _byte in _SYMBOLS:
        ASCII_FOLDED[_byte] = ord(chr(_byte).lower())


@compiled
def normalise_ascii(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    folded: NDArray[np.uint8],
    out: NDArray[np.uint8],
    out_offsets: NDArray[np.int64],
    is_other: NDArray[np.bool_],
) -> None:
    """Write each caption's normal form to `out`, single spaces between words and none at the ends.

    A caption with a byte beyond ASCII is written as empty and marked in `is_other`. `out` holds one byte
    more than `content`; `out_offsets` is int64 [rows + 1], `folded` is `ASCII_FOLDED`.
    """
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
        if after_gap and place > begin:
            place -= 1
        if highest >= 128:
            is_other[row] = True
            place = begin
        out_offsets[row + 1] = place
