"""How many bands of how many rows find the pairs that are wanted.

Two captions of Jaccard similarity s agree on a band of r slots with probability s**r, and on at least one of b bands
with 1 - (1 - s**r)**b: the S-curve (Leskovec et al., Mining of Massive Datasets, 3.4.2). More rows make fewer wrong
candidates, and need more bands for the same recall. A candidate must also look alike in its sketch, one bit of each of
up to 64 slots, which agrees with probability (1 + s) / 2 (Li and König 2010); what that costs in recall is within the
figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dataengine.errors import ConfigError

SKETCH_BITS = 64
_SKETCH_SHARE = 0.05  # of the pairs that may be missed at the threshold: those whose sketches differ too much


@dataclass(frozen=True)
class Banding:
    """A way to cut signatures, and how alike the sketches of a candidate must be."""

    num_bands: int
    rows_per_band: int
    max_differ: int
    """Sketch bits in which two candidates may differ."""

    @staticmethod
    def of(num_bands: int, rows_per_band: int, min_similarity: float, loss: float) -> Banding:
        """With sketches that refuse at most the share `loss` of the pairs at `min_similarity`."""
        num_bits = sketch_bits(num_bands * rows_per_band)
        differ = next(most for most in range(num_bits + 1) if alike(min_similarity, most, num_bits) >= 1.0 - loss)
        return Banding(num_bands, rows_per_band, differ)

    def recall(self, similarity: float) -> float:
        """The share of pairs of this similarity that become candidates."""
        num_bits = sketch_bits(self.num_bands * self.rows_per_band)
        return banded(similarity, self.num_bands, self.rows_per_band) * alike(similarity, self.max_differ, num_bits)

    def curve(self) -> list[tuple[float, float]]:
        """(similarity, share of such pairs that become candidates) from 0.1 to 1.0."""
        return [(step / 20, self.recall(step / 20)) for step in range(2, 21)]


def choose_banding(
    min_similarity: float,
    target_recall: float,
    max_perm: int,
    num_bands: int | None = None,
    rows_per_band: int | None = None,
) -> Banding:
    """The longest bands that find `target_recall` of the pairs at `min_similarity` within `max_perm` slots.

    Given numbers are taken as they are. Raises ConfigError when no banding reaches the recall.
    """
    loss = _SKETCH_SHARE * (1.0 - target_recall)
    if num_bands is not None and rows_per_band is not None:
        return Banding.of(num_bands, rows_per_band, min_similarity, loss)
    for rows in [rows_per_band] if rows_per_band is not None else range(32, 0, -1):
        bands = num_bands or _bands_for(min_similarity, rows, target_recall / (1.0 - loss), max_perm)
        if bands * rows <= max_perm:
            chosen = Banding.of(bands, rows, min_similarity, loss)
            if chosen.recall(min_similarity) >= target_recall:
                return chosen
    raise ConfigError(
        f"dedup.captions: no bands within max_perm {max_perm} find {target_recall} of the pairs at {min_similarity}; "
        "raise max_perm, or lower target_recall"
    )


def banded(similarity: float, num_bands: int, rows_per_band: int) -> float:
    """The probability of agreeing on at least one band."""
    return 1.0 - (1.0 - similarity**rows_per_band) ** num_bands


def alike(similarity: float, max_differ: int, num_bits: int) -> float:
    """The probability that sketches of `num_bits` differ in at most `max_differ` of them."""
    same = (1.0 + similarity) / 2.0
    return math.fsum(
        math.comb(num_bits, differ) * (1.0 - same) ** differ * same ** (num_bits - differ)
        for differ in range(max_differ + 1)
    )


def sketch_bits(num_perm: int) -> int:
    """Bits of a sketch that say something: a slot of the signature gives one at most."""
    return min(num_perm, SKETCH_BITS)


def _bands_for(similarity: float, rows: int, target: float, max_perm: int) -> int:
    if target >= 1.0 or similarity >= 1.0:
        return 1 if similarity >= 1.0 else max_perm + 1
    agree = similarity**rows
    if agree < 1e-12:
        return max_perm + 1
    return max(1, math.ceil(math.log1p(-target) / math.log1p(-agree) - 1e-9))
