"""Keys as numbers: 128 bits in two columns, found again by a table over their leading bits.

Keys are hashes, so their leading bits spread them evenly: a bucket of the table holds a handful of rows, and a look-up
costs two reads of memory, whatever the order of the rows. Hex text comes in and goes out; nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.errors import LedgerError
from dataengine.keys import KEY_CHARS, key_characters
from dataengine.select.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABSENT = -1
"""Stands for no row."""
_ROWS_AT_ONCE = 1 << 20
_HEX_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_HEX_VALUES = np.full(256, 16, np.uint64)  # 16: no digit
_HEX_VALUES[[*b"0123456789abcdef"]] = np.arange(16)


@dataclass(frozen=True)
class Keys:
    """Keys of rows: the high and the low half of each, uint64 [rows]."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.high)

    @staticmethod
    def parse(texts: pa.ChunkedArray | pa.Array) -> Keys:
        """The keys that hex texts spell. Raises ValueError when one is null or no key."""
        chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
        parsed = [_parse(key_characters(chunk)) for chunk in chunks]
        keys = Keys.joined([Keys(high, low) for high, low, _ in parsed])
        if not all(good for *_, good in parsed):
            raise ValueError(f"keys must be {KEY_CHARS} lower-case hex characters each")
        return keys

    @staticmethod
    def joined(parts: Sequence[Keys]) -> Keys:
        """All keys of all parts, which may be none."""
        none = np.zeros(0, np.uint64)
        return Keys(
            np.concatenate([none, *(part.high for part in parts)]),
            np.concatenate([none, *(part.low for part in parts)]),
        )

    def take(self, rows: NDArray[np.integer]) -> Keys:
        """The keys of some rows."""
        return Keys(self.high[rows], self.low[rows])

    def texts(self, rows: NDArray[np.integer]) -> pa.Array:
        """The hex texts of some rows' keys, null where the row is `ABSENT`: string [rows]."""
        there = rows >= 0
        characters = _format(self.high, self.low, rows.astype(np.int64))
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(there, dtype=np.int32) * KEY_CHARS]).astype(np.int32)
        nulls = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
        buffers = [nulls, pa.py_buffer(offsets), pa.py_buffer(characters[there] if nulls else characters)]
        return pa.Array.from_buffers(pa.string(), len(rows), buffers)

    def order(self) -> NDArray[np.int64]:
        """The rows in key order: int64 [rows]."""
        return np.lexsort((self.low, self.high))


@dataclass(frozen=True)
class KeyIndex:
    """Finds the rows of keys. Bucket `b` holds the rows `rows[starts[b]:starts[b + 1]]`."""

    keys: Keys
    starts: NDArray[np.int32]
    rows: NDArray[np.int32]
    shift: np.uint64

    @staticmethod
    def build(keys: Keys) -> KeyIndex:
        """The index of `keys`. Raises LedgerError when two rows have one key."""
        bits = max(1, (len(keys) - 1).bit_length())  # about one row a bucket
        shift = np.uint64(64 - bits)
        starts, rows = _fill(keys.high, shift, 1 << bits)
        twice = int(_first_twice(keys.high, keys.low, starts, rows))
        if twice != ABSENT:
            text = keys.texts(np.array([twice]))[0].as_py()
            raise LedgerError(f"select: two candidates have the key {text}; nothing was selected")
        return KeyIndex(keys, starts, rows, shift)

    def find(self, wanted: Keys, num_threads: int = 1) -> NDArray[np.int32]:
        """The row of each wanted key, `ABSENT` where there is none: int32 [wanted]."""
        found = np.empty(len(wanted), np.int32)

        def look(start: int) -> None:
            here = slice(start, start + _ROWS_AT_ONCE)
            keys = self.keys
            _find(keys.high, keys.low, self.starts, self.rows, self.shift, wanted.high[here], wanted.low[here],
                  found[here])  # fmt: skip

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(look, range(0, len(wanted), _ROWS_AT_ONCE)))
        return found


def _parse(characters: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64], bool]:
    high, low = np.empty(len(characters), np.uint64), np.empty(len(characters), np.uint64)
    return high, low, bool(_parse_into(characters, _HEX_VALUES, high, low))


@compiled
def _parse_into(
    characters: NDArray[np.uint8], values: NDArray[np.uint64], high: NDArray[np.uint64], low: NDArray[np.uint64]
) -> bool:
    bad = np.uint64(0)
    for row in range(len(characters)):
        left = right = np.uint64(0)
        for place in range(16):
            one, other = values[characters[row, place]], values[characters[row, place + 16]]
            bad |= one | other
            left, right = (left << np.uint64(4)) | one, (right << np.uint64(4)) | other
        high[row], low[row] = left, right
    return bool(bad < 16)


@compiled
def _format(high: NDArray[np.uint64], low: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    characters = np.empty((len(rows), 32), np.uint8)
    for place in range(len(rows)):
        if rows[place] < 0:
            continue
        left, right = high[rows[place]], low[rows[place]]
        for digit in range(15, -1, -1):
            characters[place, digit] = _HEX_DIGITS[left & np.uint64(15)]
            characters[place, digit + 16] = _HEX_DIGITS[right & np.uint64(15)]
            left, right = left >> np.uint64(4), right >> np.uint64(4)
    return characters


@compiled
def _fill(high: NDArray[np.uint64], shift: np.uint64, num_buckets: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    starts = np.zeros(num_buckets + 1, np.int32)
    for row in range(len(high)):
        starts[np.int64(high[row] >> shift) + 1] += 1
    for bucket in range(num_buckets):
        starts[bucket + 1] += starts[bucket]
    nexts = starts[:-1].copy()
    rows = np.empty(len(high), np.int32)
    for row in range(len(high)):
        place = nexts[np.int64(high[row] >> shift)]
        rows[place] = row
        nexts[np.int64(high[row] >> shift)] = place + 1
    return starts, rows


@compiled
def _first_twice(
    high: NDArray[np.uint64], low: NDArray[np.uint64], starts: NDArray[np.int32], rows: NDArray[np.int32]
) -> int:
    for bucket in range(len(starts) - 1):
        for one in range(starts[bucket], starts[bucket + 1]):
            for other in range(one + 1, starts[bucket + 1]):
                if high[rows[one]] == high[rows[other]] and low[rows[one]] == low[rows[other]]:
                    return int(rows[one])
    return -1


@compiled
def _find(
    high: NDArray[np.uint64], low: NDArray[np.uint64], starts: NDArray[np.int32], rows: NDArray[np.int32],
    shift: np.uint64, wanted_high: NDArray[np.uint64], wanted_low: NDArray[np.uint64], found: NDArray[np.int32],
) -> None:  # fmt: skip
    for place in range(len(wanted_high)):
        bucket = np.int64(wanted_high[place] >> shift)
        found[place] = -1
        for at in range(starts[bucket], starts[bucket + 1]):
            row = rows[at]
            if high[row] == wanted_high[place] and low[row] == wanted_low[place]:
                found[place] = row
                break
