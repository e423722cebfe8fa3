"""Row numbers over all parts of caption representatives: this run's, then those of earlier versions.

Arithmetic on counts; it opens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ROWS = 2**32


@dataclass(frozen=True)
class Numbering:
    """Where the rows of each part begin in one sequence: own parts first."""

    starts: NDArray[np.int64]
    """[parts + 1]"""
    num_own_parts: int

    @staticmethod
    def of(own: Sequence[int], others: Sequence[int]) -> Numbering:
        """From the numbers of rows. Raises ConfigError when they need more than 32 bits."""
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([*own, *others], dtype=np.int64)])
        if starts[-1] >= MAX_ROWS:
            raise ConfigError(
                f"dedup.captions: {starts[-1]} different captions, and at most {MAX_ROWS} can be compared in one run; "
                "split the sources over several runs, and name the earlier ones in dedup.against"
            )
        return Numbering(starts, len(own))

    @property
    def num_own(self) -> int:
        """Rows of this run."""
        return int(self.starts[self.num_own_parts])

    @property
    def num_parts(self) -> int:
        """Parts, those of earlier versions included."""
        return len(self.starts) - 1

    def part_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part that each row lies in."""
        return np.searchsorted(self.starts, rows, side="right") - 1
