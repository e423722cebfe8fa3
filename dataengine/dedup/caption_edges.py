"""Near-duplicate captions: candidate pairs whose texts are compared, as EDGE rows.

Texts and pairs of row numbers in, verified pairs out; it knows neither bands nor stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.dedup.caption_pairs import ends
from dataengine.dedup.edges import edge_table
from dataengine.dedup.numbering import Numbering
from dataengine.dedup.routed import flat, from_binary
from dataengine.dedup.shingles import Shingling, jaccard
from dataengine.keys import hex_keys
from dataengine.schemas import EDGE, TableSchema, column

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "caption_minhash"
COPY_KIND = "caption_exact"
PAIR_TEXTS = TableSchema(
    "pair_texts",
    pa.schema(
        [
            column("row", pa.uint32(), "number of the row"),
            column("key", pa.binary(16), "its key, as bytes"),
            column("caption", pa.large_string(), "normalised"),
        ]
    ),
    sorted_by=(),
)


@dataclass(frozen=True)
class PairTexts:
    """Captions of one part, and of the rows elsewhere that they are compared with."""

    own: pa.Table
    first_row: int
    """Number of the first row of `own`."""
    others: pa.Table
    """PAIR_TEXTS, by row."""

    @staticmethod
    def joined(own: pa.Table, first_row: int, sent: Sequence[pa.Table]) -> PairTexts:
        """With what the other parts sent, in any order."""
        others = pa.concat_tables([PAIR_TEXTS.empty(), *sent])
        order = np.argsort(others.column("row").to_numpy())
        return PairTexts(own, first_row, others.take(pa.array(order)).combine_chunks())

    def captions(self) -> pa.Array:
        """All captions: own first."""
        return pa.concat_arrays([flat(self.own.column("caption")), flat(self.others.column("caption"))])

    def keys(self) -> NDArray[np.uint8]:
        """All keys, in the order of `captions`: uint8 [rows, 16]."""
        return np.concatenate([from_binary(table.column("key"), np.uint8) for table in (self.own, self.others)])

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each numbered row stands in `captions`."""
        from dataengine.dedup.kernels.sorting import find_places

        places = rows - self.first_row
        away = np.flatnonzero((places < 0) | (places >= len(self.own)))
        found = np.empty(len(away), np.int64)
        find_places(self.others.column("row").to_numpy(), rows[away], found)
        places[away] = len(self.own) + found
        return places


@dataclass(frozen=True)
class CaptionEdges:
    """Verified pairs."""

    pairs: NDArray[np.uint64]
    """Lower row << 32 | higher row, ascending."""
    similarity: NDArray[np.float64]
    left_keys: NDArray[np.uint8]
    right_keys: NDArray[np.uint8]

    def table(self, rows: Numbering, datasets: Sequence[str | None]) -> pa.Table:
        """EDGE rows; `datasets` names, for each part, the dataset that it lies in when it is not this run."""
        parts = rows.part_of(ends(self.pairs)[1])
        names = pa.array(datasets, pa.string()).take(pa.array(parts))
        return edge_rows(self.left_keys, self.right_keys, self.similarity, names, KIND)


def caption_edges(
    texts: PairTexts, pairs: NDArray[np.uint64], shingling: Shingling, min_similarity: float, num_threads: int = 1
) -> CaptionEdges:
    """Those of `pairs` (lower row << 32 | higher row, ascending) that are alike."""
    lower, higher = ends(pairs)
    left, right, captions = texts.places(lower), texts.places(higher), texts.captions()
    similarity = jaccard(captions, left, right, shingling, min_similarity, num_threads)
    alike = np.flatnonzero(similarity >= min_similarity)
    keys = texts.keys()
    return CaptionEdges(pairs[alike], similarity[alike], keys[left[alike]], keys[right[alike]])


def against_copies(chosen: pa.Table, earlier: Iterable[tuple[str, pa.Table]]) -> pa.Table:
    """EDGE rows of captions that stand word for word in other datasets (name, CAPTION_ROWS); `chosen` is by hash."""
    hashes = sortable(from_binary(chosen.column("hash"), np.uint8))
    keys = from_binary(chosen.column("key"), np.uint8)
    found = [EDGE.empty()]
    for name, table in earlier:
        wanted = sortable(from_binary(table.column("hash"), np.uint8))
        places = np.minimum(np.searchsorted(hashes, wanted), max(len(hashes) - 1, 0))
        there = np.flatnonzero(hashes[places] == wanted) if len(hashes) else np.zeros(0, np.int64)
        right = from_binary(table.column("key"), np.uint8)[there]
        left, ones = keys[places[there]], np.ones(len(there))
        found.append(edge_rows(left, right, ones, pa.repeat(name, len(there)), COPY_KIND))
    return pa.concat_tables(found).sort_by([("left_key", "ascending"), ("right_key", "ascending")])


def sortable(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Digests as values that order as their bytes do."""
    # A trailing zero byte would be cut off by numpy's bytes type, which compares as if it were there.
    return np.ascontiguousarray(digests).view("S16").reshape(-1)


def edge_rows(
    left: NDArray[np.uint8], right: NDArray[np.uint8], similarity: NDArray[np.float64], against: pa.Array, kind: str
) -> pa.Table:
    """EDGE rows of keys as bytes: the smaller key left, unless the right one lies in another dataset."""
    first, second = hex_keys(left), hex_keys(right)
    return edge_table(first, second, kind, similarity, against=against)
