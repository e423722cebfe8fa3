"""Band tables: what of a signature is stored and routed, so that rows which may be alike meet.

A signature is cut into bands; two captions that agree on all of one band share its hash. A record is one band of one
row, `RECORD`: the hash, the row's number, and a sketch of the whole signature. Records are ordered by `slot`, the
leading 10 bits of the hash, so that any run of slots can be read and reduced by itself, whatever the number of
reducers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.dedup.minhash import SignatureSpec, signatures

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

SLOT_BITS = 10
NUM_SLOTS = 1 << SLOT_BITS
RECORD = np.dtype([("row", "<u4"), ("hash", "<u4"), ("sketch", "<u8")])
"""Row of the part's captions; bits 10 to 41 of the band hash, of which the first 10 are the slot; one bit of each of 64
slots of the signature."""
_CHUNK_ROWS = 2048  # their signatures (1 MB) stay in the cache until they are banded


@dataclass(frozen=True)
class BandTable:
    """Records of many rows, by slot, then row."""

    records: NDArray[np.void]
    """`RECORD`: [records]."""
    starts: NDArray[np.int64]
    """Records of slot s are `starts[s] : starts[s + 1]`: [NUM_SLOTS + 1]."""

    def of_rows(self, stays: NDArray[np.bool_]) -> BandTable:
        """The records of the rows that stay (bool [rows]), which are numbered anew."""
        there = stays[self.records["row"]]
        records = self.records[there]
        records["row"] = (np.cumsum(stays) - 1).astype(np.uint32)[records["row"]]
        return BandTable(records, np.concatenate([np.zeros(1, np.int64), np.cumsum(there)])[self.starts])


def band_table(captions: pa.Array, spec: SignatureSpec, first_row: int = 0) -> BandTable:
    """The records of normalised captions, numbered from `first_row`; those without shingles have none."""
    from dataengine.dedup.kernels.signatures import band_signatures

    num_shingles = np.empty(len(captions), np.int64)
    hashes, sketches = np.empty((len(captions), spec.num_bands), np.uint64), np.empty(len(captions), np.uint64)
    for start in range(0, len(captions), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        matrix, num_shingles[chunk] = signatures(captions.slice(start, _CHUNK_ROWS), spec)
        band_signatures(matrix, spec.rows_per_band, hashes[chunk], sketches[chunk])
    return dealt(hashes, sketches, num_shingles > 0, first_row)


def dealt(
    hashes: NDArray[np.uint64], sketches: NDArray[np.uint64], stands: NDArray[np.bool_], first_row: int
) -> BandTable:
    """The rows that `stands` marks, with all their band hashes (uint64 [rows, num_bands]), as records by slot."""
    from dataengine.dedup.kernels.signatures import deal_bands

    starts = np.zeros(NUM_SLOTS + 1, np.int64)
    records = np.empty((int(np.count_nonzero(stands)) * hashes.shape[1], 2), np.uint64)
    deal_bands(hashes, sketches, stands, first_row, SLOT_BITS, starts, records)
    return BandTable(records.view(RECORD).reshape(-1), starts)
