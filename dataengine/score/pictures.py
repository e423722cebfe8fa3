"""Pictures: stored bytes in; what every scorer's tower reads, and the measures, out of one decode.

A picture is halved while it is decoded until its short side is 512 to 1,023 pixels, whoever looks at it, so that what
one scorer sees does not depend on the others. Only the exact preprocess asks for the full size. It knows no stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2

from dataengine.imaging import ImageFault, OpenImage, Reduced, open_image, reduce, render, whole
from dataengine.score.measures import Measures, measure
from dataengine.score.memory import is_short_of_memory
from dataengine.score.preprocess import MIN_SIDE, Preprocess

if TYPE_CHECKING:
    from dataengine.config.download import LimitsConfig


OK, UNDECODABLE, DECODER_MEMORY = "ok", "undecodable", "decoder_memory"


@dataclass(frozen=True)
class Prepared:
    """What was made of one picture."""

    pixels: dict[Preprocess, Any]
    """What each preprocess prepared; empty unless `status` is ok."""
    measures: Measures | None
    status: str = OK
    """ok, undecodable, or decoder_memory."""


@dataclass(frozen=True)
class Preparer:
    """Makes the same of every picture; called in many threads at once."""

    preprocesses: tuple[Preprocess, ...]
    limits: LimitsConfig
    measures: bool

    def __call__(self, content: bytes) -> Prepared:
        try:
            sizes = self._decode(content)
            pixels = {step: step.prepare(sizes[step.needs_full_size]) for step in self.preprocesses}
            return Prepared(pixels, measure(sizes[False].pixels) if self.measures else None)
        except ImageFault:
            return Prepared({}, None, UNDECODABLE)
        except (MemoryError, RuntimeError, cv2.error) as error:
            if not is_short_of_memory(error):
                raise
            return Prepared({}, None, DECODER_MEMORY)  # this one is large; others need not be

    def _decode(self, content: bytes) -> dict[bool, Reduced]:
        """The picture reduced (False) and at full size (True), as far as they are needed."""
        full_too = any(step.needs_full_size for step in self.preprocesses)
        reduced_too = self.measures or not all(step.needs_full_size for step in self.preprocesses)
        image = self._open(content)
        if min(image.width, image.height) < 2 * MIN_SIDE:
            pixels = whole(render(image))
            return {False: pixels, True: pixels}
        sizes = {}
        if reduced_too:
            sizes[False] = reduce(image, MIN_SIDE)
        if full_too:
            sizes[True] = whole(render(self._open(content)))
        return sizes

    def _open(self, content: bytes) -> OpenImage:
        return open_image(content, max_pixels=self.limits.max_pixels, max_side=self.limits.max_side)


def distinct(preprocesses: Sequence[Preprocess]) -> tuple[Preprocess, ...]:
    """Each preprocess once: scorers that read the same pixels share them."""
    return tuple(dict.fromkeys(preprocesses))
