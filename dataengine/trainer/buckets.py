"""Aspect buckets: which of a few shapes each picture is trained at, decided from the manifest's widths and heights.

In go widths and heights; out come bucket numbers and what fitting costs: how much is cut off, and how much is scaled
up. fit.py does it. Nearest in log ratio, as NovelAI's aspect ratio bucketing does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.errors import ConfigError
from dataengine.trainer import arguments
from dataengine.trainer.ranks import MAX_BATCH

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, int]
"""Width, height."""

_RATIOS = ((1, 2), (9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1))
_MAX_BUCKETS = 255
MAX_SIDE = 2**20
"""Pixels of a side, of shapes and of pictures."""


@dataclass(frozen=True)
class Buckets:
    """The shapes to train at. Batches are of one shape, the same on all ranks.

    `max_batch_pixels` bounds width × height × samples of a global batch: shapes with more pixels get smaller batches,
    in multiples of `batch_multiple`, which ranks must divide. Without it every batch has the loader's size.
    """

    shapes: tuple[Shape, ...]
    max_batch_pixels: int | None = None
    batch_multiple: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", _checked(self.shapes))
        ratios = [width / height for width, height in self.shapes]
        if sorted(set(ratios)) != ratios:
            raise ConfigError(f"buckets: shapes {self.shapes}: wanted ascending width / height, each ratio once")
        arguments.whole("buckets: batch_multiple", self.batch_multiple, 1, MAX_BATCH)
        if self.max_batch_pixels is not None:
            arguments.whole("buckets: max_batch_pixels", self.max_batch_pixels, 1)

    @classmethod
    def around(
        cls, side: int, *, multiple: int = 32, max_batch_pixels: int | None = None, batch_multiple: int = 8
    ) -> Buckets:
        """Shapes of ratios from 1:2 to 2:1 and about side × side pixels, in whole multiples of `multiple`.

        Eleven where multiples are fine enough to tell them apart; for sides of a few multiples some coincide, and the
        outer ones are as far off as rounding takes them.
        """
        side = arguments.whole("buckets: side", side, 1, MAX_SIDE)
        multiple = arguments.whole("buckets: multiple", multiple, 1, MAX_SIDE)
        shapes = []
        for across, down in _RATIOS:
            scale = side * (across / down) ** 0.5
            shapes.append((_rounded(scale, multiple), _rounded(side * side / scale, multiple)))
        return cls(_ascending(shapes), max_batch_pixels, batch_multiple)

    def assign(self, widths: NDArray[np.integer[Any]], heights: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The bucket of each picture of sides above 0: uint8 [pictures]."""
        ratios = np.array([width / height for width, height in self.shapes])
        # Cut at geometric means: roots and quotients round alike on every CPU, logs do not.
        return np.searchsorted(np.sqrt(ratios[:-1] * ratios[1:]), widths / heights, side="right").astype(np.uint8)

    def batch_size(self, bucket: int, global_batch_size: int) -> int:
        """Samples of a global batch of `bucket`. Raises ConfigError when the budget holds less than a multiple."""
        if self.max_batch_pixels is None:
            return global_batch_size
        width, height = self.shapes[bucket]
        multiples = min(global_batch_size, self.max_batch_pixels // (width * height)) // self.batch_multiple
        if global_batch_size < self.batch_multiple:
            raise ConfigError(
                f"buckets: batch_multiple={self.batch_multiple} is more than a global batch of {global_batch_size}; "
                "lower it, to a multiple of the ranks"
            )
        if not multiples:
            raise ConfigError(
                f"buckets: max_batch_pixels={self.max_batch_pixels} holds fewer than {self.batch_multiple} pictures of "
                f"{width} × {height}; raise it to {self.batch_multiple * width * height} or lower batch_multiple"
            )
        return multiples * self.batch_multiple

    def fitting(
        self, widths: NDArray[np.integer[Any]], heights: NDArray[np.integer[Any]], buckets: NDArray[np.uint8]
    ) -> list[dict[str, Any]]:
        """What fitting each bucket's pictures costs: a row per bucket, as `Plan.report` shows it."""
        table = []
        for bucket, (width, height) in enumerate(self.shapes):
            mine = buckets == bucket
            across, down = width / widths[mine], height / heights[mine]
            scale = np.maximum(across, down)
            lost = 1 - np.minimum(across, down) / scale
            table.append(
                {
                    "shape": f"{width}x{height}",
                    "samples": int(mine.sum()),
                    "crop_loss": float(lost.mean()) if lost.size else 0.0,
                    "upscaled": float((scale > 1).mean()) if scale.size else 0.0,
                    "max_upscale": float(scale.max(initial=0.0)),
                }
            )
        return table


def _checked(shapes: Any) -> tuple[Shape, ...]:
    try:
        pairs = [tuple(arguments.whole("side", side, 1, MAX_SIDE) for side in shape) for shape in shapes]
    except (TypeError, ConfigError):
        pairs = []
    if not 1 <= len(pairs) <= _MAX_BUCKETS or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(
            f"buckets: shapes {arguments.shown(shapes)}: wanted 1 to {_MAX_BUCKETS} pairs of width and height, 1 to "
            f"{MAX_SIDE}"
        )
    return tuple((width, height) for width, height in pairs)


def _rounded(side: float, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def _ascending(shapes: list[Shape]) -> tuple[Shape, ...]:
    """Shapes of different ratios: rounding may have made two alike."""
    by_ratio = {width / height: (width, height) for width, height in shapes}
    return tuple(by_ratio[ratio] for ratio in sorted(by_ratio))
