"""The second witness: whether perceptual hashes agree that two images which CLIP holds for alike show one picture.

CLIP puts two products, flags or digits of one kind close together; their structure, which a perceptual hash sees,
differs. Hashes in, distances and verdicts out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from dataengine.config.dedup import ImageDedupConfig

NO_DISTANCE = -1


@dataclass(frozen=True)
class Hashes:
    """Perceptual hashes of some rows."""

    bits: NDArray[np.uint64]
    known: NDArray[np.bool_]
    """[rows] each"""

    @staticmethod
    def parse(phashes: pa.Array) -> Hashes:
        """SCORE's `phash`: string [rows], 16 hex characters or null."""
        text = "".join(phashes.fill_null("0" * 16).to_pylist())
        bits = np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
        return Hashes(bits, np.asarray(phashes.is_valid()))

    def distances(self, left: NDArray[np.int64], other: Hashes, right: NDArray[np.int64]) -> NDArray[np.int16]:
        """Bits that differ between rows of this and of the other, `NO_DISTANCE` where either is null: [pairs]."""
        differing = np.bitwise_count(self.bits[left] ^ other.bits[right]).astype(np.int16)
        return np.where(self.known[left] & other.known[right], differing, np.int16(NO_DISTANCE))


def confirmed(distances: NDArray[np.int16], config: ImageDedupConfig) -> NDArray[np.bool_]:
    """Which pairs the witness lets pass: bool [pairs]; a missing hash confirms nothing."""
    if config.confirm == "none":
        return np.ones(len(distances), bool)
    return (distances != NO_DISTANCE) & (distances <= config.max_phash_distance)
