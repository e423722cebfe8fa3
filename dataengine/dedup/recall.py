"""How many of the true near-duplicate images a search found, measured on a sample.

Sampled rows are compared with every row there is, without cells; the pairs that this names are looked up among the
edges found. Pairs of a row whose dense neighbourhood was bounded are counted apart, since not all of them are wanted.
Rows and EDGE tables in, a share with its interval out; it does not know how the edges were found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.keys import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_MIN_ROWS = 500
_MIN_SHARE = 0.01
_ENDS = ["left_key", "right_key"]


@dataclass(frozen=True)
class Recall:
    """The share of true pairs that were found, with its 95 % interval."""

    num_found: int
    num_pairs: int
    low: float
    high: float
    num_bounded: int
    """True pairs beside these of rows whose neighbourhood was bounded."""
    num_lost: int
    """Sampled rows that have true pairs, of either kind, and no edge at all."""

    @property
    def value(self) -> float | None:
        """num_found / num_pairs; None when there was nothing to find."""
        return self.num_found / self.num_pairs if self.num_pairs else None


def sample_size(num_rows: int, recall_rows: int) -> int:
    """How many rows to search exactly: `recall_rows`, or 1 % of the rows where that is less, but no fewer than 500."""
    return min(recall_rows, max(_MIN_ROWS, math.ceil(num_rows * _MIN_SHARE)))


def recall_sample(keys: pa.Array, num_rows: int, recall_rows: int, seed: int) -> NDArray[np.bool_]:
    """Which rows to search exactly: bool [rows], about the `sample_size` of the `num_rows` of all parts."""
    return draws(keys, seed, "recall") < sample_size(num_rows, recall_rows) / max(num_rows, 1)


def measure(exact: pa.Table, found: pa.Table, sample: pa.Array, bounded: pa.Array) -> Recall:
    """How many of the distinct pairs in `exact` are in `found` (both EDGE).

    `exact` holds true pairs of the rows in `sample` (keys), all of them or some drawn without regard to what was found,
    a pair of two sampled rows perhaps twice; `bounded` holds the keys of rows with more neighbours than they kept.
    """
    pairs = exact.group_by(_ENDS).aggregate([])
    dense = pc.or_(pc.is_in(pairs["left_key"], bounded), pc.is_in(pairs["right_key"], bounded))
    counted = pairs.filter(pc.invert(dense))
    num_found = len(counted.join(found.select(_ENDS), keys=_ENDS, join_type="left semi"))
    low, high = wilson(num_found, len(counted), _effective(counted, sample))
    lost = _num_lost(pairs, found, sample)
    return Recall(num_found, len(counted), low, high, len(pairs) - len(counted), lost)


def _effective(pairs: pa.Table, sample: pa.Array) -> float:
    """How many independent pairs these are worth: (Σm)² / Σm² over sampled rows with m pairs each (Kish 1965).

    Pairs come in families: where one of a row's pairs is missed, the others are likelier to be.
    """
    left = pairs["left_key"]
    owners = pc.if_else(pc.is_in(left, sample), left, pairs["right_key"])
    sizes = np.asarray(pc.value_counts(owners.combine_chunks()).field("counts"), np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if len(sizes) else 0.0


def _num_lost(pairs: pa.Table, found: pa.Table, sample: pa.Array) -> int:
    ends = pa.chunked_array([*pairs["left_key"].chunks, *pairs["right_key"].chunks], pa.string())
    known = pa.chunked_array([*found["left_key"].chunks, *found["right_key"].chunks], pa.string())
    paired = pc.unique(ends).filter(pc.is_in(pc.unique(ends), sample))
    return len(paired) - int(pc.sum(pc.is_in(paired, known)).as_py() or 0)


def wilson(found: int, total: int, effective: float | None = None) -> tuple[float, float]:
    """The 95 % score interval of the share found / total (Wilson 1927), (0, 1) when total is 0.

    `effective` is the number of independent trials that the `total` are worth; as many by default.
    """
    if not total:
        return 0.0, 1.0
    trials = total if effective is None else effective
    share, weight = found / total, _Z95**2 / trials
    centre = share + weight / 2
    spread = _Z95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low, high = (centre - spread) / (1 + weight), (centre + spread) / (1 + weight)
    return max(low, 0.0), min(high, 1.0)
