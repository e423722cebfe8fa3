"""SHA-1 (FIPS 180-4), its first 32 bits, of one short message."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined


@inlined
def _turn(word: Any, count: Any) -> Any:
    return np.uint32((word << np.uint32(count)) | (word >> np.uint32(32 - count)))


@compiled
def sha1_32(message: NDArray[np.uint8], num_bytes: int, words: NDArray[np.uint32]) -> np.uint32:
    """The first four bytes of the digest of `message[:num_bytes]`, read little-endian as datasketch reads them.

    `words` is scratch: uint32 [80].
    """
    h0, h1, h2 = np.uint32(0x67452301), np.uint32(0xEFCDAB89), np.uint32(0x98BADCFE)
    h3, h4 = np.uint32(0x10325476), np.uint32(0xC3D2E1F0)
    for block in range((num_bytes + 8) // 64 + 1):
        for word in range(16):
            value = np.uint32(0)
            for byte in range(4):
                at = block * 64 + word * 4 + byte
                part = np.uint32(0)
                if at < num_bytes:
                    part = np.uint32(message[at])
                elif at == num_bytes:
                    part = np.uint32(0x80)
                value = np.uint32((value << np.uint32(8)) | part)
            words[word] = value
        if block == (num_bytes + 8) // 64:
            words[14] = np.uint32(num_bytes >> 29)
            words[15] = np.uint32(num_bytes << 3)
        for word in range(16, 80):
            words[word] = _turn(words[word - 3] ^ words[word - 8] ^ words[word - 14] ^ words[word - 16], 1)
        a, b, c, d, e = h0, h1, h2, h3, h4
        for turn in range(80):
            if turn < 20:
                f, k = np.uint32((b & c) | (~b & d)), np.uint32(0x5A827999)
            elif turn < 40:
                f, k = np.uint32(b ^ c ^ d), np.uint32(0x6ED9EBA1)
            elif turn < 60:
                f, k = np.uint32((b & c) | (b & d) | (c & d)), np.uint32(0x8F1BBCDC)
            else:
                f, k = np.uint32(b ^ c ^ d), np.uint32(0xCA62C1D6)
            a, b, c, d, e = np.uint32(_turn(a, 5) + f + e + k + words[turn]), a, _turn(b, 30), c, d
        h0, h1, h2 = np.uint32(h0 + a), np.uint32(h1 + b), np.uint32(h2 + c)
        h3, h4 = np.uint32(h3 + d), np.uint32(h4 + e)
    swapped = (h0 >> np.uint32(24)) | ((h0 >> np.uint32(8)) & np.uint32(0xFF00))
    return np.uint32(swapped | ((h0 & np.uint32(0xFF00)) << np.uint32(8)) | (h0 << np.uint32(24)))
