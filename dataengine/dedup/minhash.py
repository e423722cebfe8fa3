"""MinHash signatures of captions, bit for bit those of datasketch 2.0.

A signature equals ``MinHash(num_perm, seed, scheme="affine32", hashfunc=H)`` of datasketch over the same shingles as
UTF-8, where H is the `shingle_hash32` that `dataengine.dedup.shingles` documents, or datasketch's own ``sha1_hash32``
(Broder 1997; the permutations a·h + b mod 2**32 with odd a are datasketch's). Normalised captions in, a matrix out; it
knows neither bands nor keys.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dataengine.dedup.captions import NORMALISATION, text_buffers
from dataengine.dedup.shingles import Shingling
from dataengine.keys import salt64

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

RECORDS = "row-hash-sketch/2"
"""Names what `bands.RECORD` holds; part of every signature's description, and raised when it changes."""
EMPTY = np.uint32(0xFFFFFFFF)
"""Every slot of a caption without shingles; such rows must not be banded."""


@dataclass(frozen=True)
class SignatureSpec:
    """Everything that a signature and its bands depend on but the caption: tables of two specs must never meet."""

    shingling: Shingling
    hash: Literal["poly32", "sha1"]
    seed: int
    num_bands: int
    rows_per_band: int

    @property
    def num_perm(self) -> int:
        """Slots of a signature."""
        return self.num_bands * self.rows_per_band

    def to_json(self) -> dict[str, Any]:
        """As stored with every table of signatures or bands."""
        named = {"scheme": "affine32", "normalisation": NORMALISATION, "records": RECORDS}
        return {**named, "num_perm": self.num_perm, **asdict(self)}


def signatures(captions: pa.Array, spec: SignatureSpec) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """One signature per normalised caption, uint32 [rows, num_perm], and how many shingles it has, int64 [rows].

    A caption without shingles is `EMPTY` throughout.
    """
    from dataengine.dedup.kernels.signatures import sign_captions

    content, offsets = text_buffers(captions)
    multipliers, increments = permutations(spec.num_perm, spec.seed)
    matrix = np.empty((len(offsets) - 1, spec.num_perm), np.uint32)
    num_shingles = np.empty(len(offsets) - 1, np.int64)
    shingling, by_sha1 = spec.shingling, spec.hash == "sha1"
    sign_captions(
        content, offsets, shingling.size, shingling.by_word, by_sha1, salt64(0, "shingle"),
        multipliers, increments, matrix, num_shingles,
    )  # fmt: skip
    return matrix, num_shingles


@functools.lru_cache(maxsize=16)
def permutations(num_perm: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The a (odd) and b of each permutation, drawn as datasketch draws them: uint32 [num_perm] each."""
    # The legacy generator, because its stream is the one datasketch froze.
    stream = np.random.RandomState(seed % 2**32)
    multipliers = stream.randint(0, 1 << 31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, stream.randint(0, 1 << 32, num_perm, dtype=np.uint32)
