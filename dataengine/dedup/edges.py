"""Verified near-duplicate pairs: as row numbers while they are searched for, as EDGE rows when written down.

Decides that a written pair is ordered, the table sorted, and no key paired with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.schemas import EDGE

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows and their exact similarity, column by column: [pairs] each."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """The chosen pairs."""
        return Pairs(self.left[chosen], self.right[chosen], self.similarity[chosen])

    @staticmethod
    def joined(parts: Sequence[Pairs]) -> Pairs:
        """All pairs of all parts, which may be none."""
        rows = np.zeros(0, np.int64)
        return Pairs(
            np.concatenate([rows, *(part.left for part in parts)]),
            np.concatenate([rows, *(part.right for part in parts)]),
            np.concatenate([np.zeros(0), *(part.similarity for part in parts)]),
        )


def edge_table(
    first: pa.Array,
    second: pa.Array,
    kind: str,
    similarity: NDArray[np.float64],
    phash_distance: pa.Array | None = None,
    against: pa.Array | None = None,
) -> pa.Table:
    """EDGE rows of pairs of keys, whichever way round they come; a key paired with itself is left out.

    Where `against` names the dataset that `second` lies in, the two are of different places: they stay as they come.
    """
    distance = pa.nulls(len(first), pa.int16()) if phash_distance is None else phash_distance
    datasets = pa.nulls(len(first), pa.string()) if against is None else against
    elsewhere = pc.is_valid(datasets)
    ordered = pc.or_(pc.less(first, second), elsewhere)
    edges = EDGE.table(
        {
            "left_key": pc.if_else(ordered, first, second),
            "right_key": pc.if_else(ordered, second, first),
            "kind": pa.repeat(kind, len(first)),
            "similarity": pa.array(similarity, pa.float32()),
            "phash_distance": distance,
            "against": datasets,
        }
    )
    distinct = edges.filter(pc.or_(pc.not_equal(edges["left_key"], edges["right_key"]), elsewhere))
    return distinct.sort_by([("left_key", "ascending"), ("right_key", "ascending")])
