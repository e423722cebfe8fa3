"""Bits of a word."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataengine.dedup.kernels.compiling import inlined


@inlined
def popcount(value: Any) -> Any:
    """Bits set, as int64; LLVM knows this shape (Warren, Hacker's Delight, 5.1) as one instruction."""
    value = value - ((value >> np.uint64(1)) & np.uint64(0x5555555555555555))
    value = (value & np.uint64(0x3333333333333333)) + ((value >> np.uint64(2)) & np.uint64(0x3333333333333333))
    value = (value + (value >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((value * np.uint64(0x0101010101010101)) >> np.uint64(56))
