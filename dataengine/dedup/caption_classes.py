"""Exact copies of captions, and who represents them.

Rows are ordered by caption hash, then key; so the number of a representative, counted over all parts, does not depend
on how the rows were cut into parts. Hashes and keys in, an order and class boundaries out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.keys import hex_keys
from dataengine.schemas import CLASS, TableSchema, column

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_HASH_SLOTS = 256
"""Captions are routed by the first byte of their hash, and gathered again by runs of it."""
CAPTION_ROWS = TableSchema(
    "caption_rows",
    pa.schema(
        [
            column("key", pa.binary(16), "sample's key, as bytes"),
            column("hash", pa.binary(16), "BLAKE2b of the normalised caption"),
            column("caption", pa.large_string(), "normalised; never empty"),
        ]
    ),
    sorted_by=(),
)


@dataclass(frozen=True)
class Copies:
    """Rows in order of (hash, key), and where each class of equal hashes begins."""

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    """Places in `order` of the smallest key of each class: [classes]."""

    @property
    def representatives(self) -> NDArray[np.int64]:
        """The row of smallest key of each class, by hash: int64 [classes]."""
        return self.order[self.first]

    def table(self, keys: NDArray[np.uint8]) -> pa.Table:
        """CLASS rows of every class of at least two rows."""
        sizes = np.diff(np.append(self.first, len(self.order)))
        members = np.flatnonzero(np.repeat(sizes > 1, sizes))
        leaders = np.repeat(self.first, sizes)[members]
        columns = {
            "key": hex_keys(keys[self.order[members]]),
            "kind": pa.repeat("caption_exact", len(members)),
            "class_key": hex_keys(keys[self.order[leaders]]),
        }
        return CLASS.table(columns).sort_by([("class_key", "ascending"), ("key", "ascending")])


def find_copies(hashes: NDArray[np.uint8], keys: NDArray[np.uint8]) -> Copies:
    """The classes of rows with equal hashes; both are uint8 [rows, 16], in any order."""
    high, low = _words(hashes)
    order = np.argsort(high)
    ordered = high[order]
    tied = np.zeros(len(order), np.bool_)
    same = ordered[1:] == ordered[:-1]
    tied[1:] |= same
    tied[:-1] |= same
    rows = order[tied]
    key_high, key_low = _words(keys[rows])
    order[tied] = rows[np.lexsort((key_low, key_high, low[rows], high[rows]))]
    high, low = high[order], low[order]
    starts = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return Copies(order, np.flatnonzero(np.append(True, starts)[: len(order)]))


def _words(digests: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Big-endian halves, so that numbers order as bytes do."""
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 2).astype(np.uint64)
    return words[:, 0], words[:, 1]


def by_slot(rows: pa.Table, hashes: NDArray[np.uint8]) -> tuple[pa.Table, NDArray[np.int64]]:
    """`rows` ordered by the slot of their hash, each slot in the order of `rows`, and where each slot begins."""
    slots = hashes[:, 0]
    if (slots[1:] < slots[:-1]).any():
        rows = rows.take(pa.array(np.argsort(slots, kind="stable")))
    counts = np.bincount(slots, minlength=NUM_HASH_SLOTS)
    return rows, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
