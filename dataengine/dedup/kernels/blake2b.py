"""BLAKE2b (RFC 7693) with a digest of 16 bytes and no key, over many texts at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined

_START = np.array(
    [
        *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
        *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
    ],
    np.uint64,
)
_ORDERS = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    ],
    np.int64,
)
_BLOCK_BYTES = 128
_PARAMETERS = np.uint64(0x01010000 ^ 16)  # fan-out 1, depth 1, no key, 16 bytes of digest
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@inlined
def _turn(word: Any, count: Any) -> Any:
    return (word >> np.uint64(count)) | (word << np.uint64(64 - count))


@inlined
def _mix(a: Any, b: Any, c: Any, d: Any, first: Any, second: Any) -> Any:
    a = a + b + first
    d = _turn(d ^ a, 32)
    c = c + d
    b = _turn(b ^ c, 24)
    a = a + b + second
    d = _turn(d ^ a, 16)
    c = c + d
    b = _turn(b ^ c, 63)
    return a, b, c, d


@compiled
def _compress(state: NDArray[np.uint64], words: NDArray[np.uint64], num_bytes: int, is_last: bool) -> None:
    a0, a1, a2, a3 = state[0], state[1], state[2], state[3]
    b0, b1, b2, b3 = state[4], state[5], state[6], state[7]
    c0, c1, c2, c3 = _START[0], _START[1], _START[2], _START[3]
    d0, d1, d2, d3 = _START[4] ^ np.uint64(num_bytes), _START[5], _START[6], _START[7]
    if is_last:
        d2 = d2 ^ _ALL
    for turn in range(12):
        order = _ORDERS[turn]
        a0, b0, c0, d0 = _mix(a0, b0, c0, d0, words[order[0]], words[order[1]])
        a1, b1, c1, d1 = _mix(a1, b1, c1, d1, words[order[2]], words[order[3]])
        a2, b2, c2, d2 = _mix(a2, b2, c2, d2, words[order[4]], words[order[5]])
        a3, b3, c3, d3 = _mix(a3, b3, c3, d3, words[order[6]], words[order[7]])
        a0, b1, c2, d3 = _mix(a0, b1, c2, d3, words[order[8]], words[order[9]])
        a1, b2, c3, d0 = _mix(a1, b2, c3, d0, words[order[10]], words[order[11]])
        a2, b3, c0, d1 = _mix(a2, b3, c0, d1, words[order[12]], words[order[13]])
        a3, b0, c1, d2 = _mix(a3, b0, c1, d2, words[order[14]], words[order[15]])
    state[0] ^= a0 ^ c0
    state[1] ^= a1 ^ c1
    state[2] ^= a2 ^ c2
    state[3] ^= a3 ^ c3
    state[4] ^= b0 ^ d0
    state[5] ^= b1 ^ d1
    state[6] ^= b2 ^ d2
    state[7] ^= b3 ^ d3


@compiled
def blake2b_128(content: NDArray[np.uint8], offsets: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
    """The digest of each text as two little-endian words, `digests` being uint64 [texts, 2]."""
    state = np.empty(8, np.uint64)
    block = np.zeros(_BLOCK_BYTES, np.uint8)
    words = block.view(np.uint64)
    for row in range(len(offsets) - 1):
        state[:] = _START
        state[0] ^= _PARAMETERS
        start, stop = offsets[row], offsets[row + 1]
        at = start
        while stop - at > _BLOCK_BYTES:
            block[:] = content[at : at + _BLOCK_BYTES]
            at += _BLOCK_BYTES
            _compress(state, words, at - start, False)
        block[: stop - at] = content[at:stop]
        block[stop - at :] = 0
        _compress(state, words, stop - start, True)
        digests[row, 0] = state[0]
        digests[row, 1] = state[1]
