"""Aspect-ratio buckets: which common ratio a picture is nearest to.

Widths and heights go in, names such as `4:3` come out. Batch shapes and resolutions are the trainer's
business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

BUCKETS = ("1:3", "1:2", "9:16", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "3:1")
"""Width to height, narrowest first."""

_RATIOS = np.array([int(name.split(":")[0]) / int(name.split(":")[1]) for name in BUCKETS])
# Nearest in log ratio is a cut at geometric means: roots and quotients round alike on every CPU, logs do not.
_CUTS = np.sqrt(_RATIOS[:-1] * _RATIOS[1:])


def nearest_bucket(width: ArrayLike, height: ArrayLike) -> pa.Array:
    """The bucket nearest in log ratio to each width / height: string [rows].

    A tie goes to the wider one. Raises ValueError when a width or height is not positive.
    """
    widths, heights = np.asarray(width, dtype=np.float64), np.asarray(height, dtype=np.float64)
    if not (np.all(widths > 0) and np.all(heights > 0)):
        raise ValueError("widths and heights must be positive")
    places = np.searchsorted(_CUTS, widths / heights, side="right")
    return pa.array(BUCKETS, pa.string()).take(pa.array(places, pa.int64()))
