"""Caps per concept: of a concept with more rows than its cap, rows are left out at random until about so many remain.

Each row is kept with probability min(1, cap / count) (Xu et al., Demystifying CLIP Data, 2024, section 3.3), by its own
number: a row that is in for one cap is in for every larger one, and rows of other concepts change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.keys import draws_of_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import CapConfig


@dataclass(frozen=True)
class Capped:
    """What a cap says of some rows: [rows] each."""

    kept: NDArray[np.bool_]
    counts: NDArray[np.int64]
    """Rows of each row's concept; 0 for a row of none."""
    numbers: NDArray[np.float64]
    """In [0, 1); what decided."""


def cap(config: CapConfig, concepts: pl.Series, bits: NDArray[np.uint64], seed: int) -> Capped:
    """The cap among rows with these concepts and leading key bits; a null concept is under no cap."""
    counted = pl.DataFrame({"concept": concepts}).select(
        pl.when(pl.col("concept").is_not_null()).then(pl.len().over("concept")).otherwise(0)
    )
    counts = counted.to_series().cast(pl.Int64).to_numpy()
    numbers = draws_of_bits(bits, seed, f"cap.{config.by}")
    return Capped(numbers * counts < config.at, counts, numbers)
