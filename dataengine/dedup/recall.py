"""How many of the true near-duplicate images a search found, measured on a sample.

Sampled rows are compared with every row there is; the pairs that the exact search names are looked up among
the edges found. Rows and EDGE tables in, a share with its Wilson interval out; it does not know how the
edges were found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.dedup.neighbours import ImageRows, cross_edges
from dataengine.keys import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.dedup import ImageDedupConfig

_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Recall:
    """The share of true pairs that were found, with its 95 % interval."""

    num_found: int
    num_pairs: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """num_found / num_pairs; 1 when there was nothing to find."""
        return self.num_found / self.num_pairs if self.num_pairs else 1.0


def recall_sample(keys: pa.Array, num_rows: int, recall_rows: int, seed: int) -> NDArray[np.bool_]:
    """Which rows to search exactly: bool [rows], about `recall_rows` of the `num_rows` of all parts."""
    return draws(keys, seed, "recall") < recall_rows / max(num_rows, 1)


def exact_pairs(sample: ImageRows, rows: ImageRows, config: ImageDedupConfig) -> pa.Table:
    """EDGE rows of the sample's true near-duplicates among `rows`: exact search, same confirmation.

    Call it block by block: a pair whose rows are both sampled may come from two blocks, which `measure`
    allows for.
    """
    return cross_edges(sample, rows, config).edges


def measure(exact: pa.Table, found: pa.Table) -> Recall:
    """How many of the distinct pairs in `exact` are in `found` (both EDGE)."""
    ends = ["left_key", "right_key"]
    true_pairs = exact.group_by(ends).aggregate([])
    num_found = len(true_pairs.join(found.select(ends), keys=ends, join_type="left semi"))
    return Recall(num_found, len(true_pairs), *wilson(num_found, len(true_pairs)))


def wilson(found: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927): (low, high), (0, 1) when total is 0."""
    if not total:
        return 0.0, 1.0
    share, weight = found / total, _Z95**2 / total
    centre = share + weight / 2
    spread = _Z95 * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    low, high = (centre - spread) / (1 + weight), (centre + spread) / (1 + weight)
    return max(low, 0.0), min(high, 1.0)
