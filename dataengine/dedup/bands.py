"""Band tables: what of a signature is stored and routed, so that rows which may be alike meet.

A signature is cut into bands; two captions that agree on all of one band share its hash. A record is one band of one
row: the hash, the row's number, and a sketch of the whole signature. Records are ordered by `slot`, the leading 10
bits of the hash, so that any run of slots can be read and reduced by itself, whatever the number of reducers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.dedup.minhash import SignatureSpec, signatures
from dataengine.dedup.routed import to_binary
from dataengine.schemas import TableSchema, column

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOT_BITS = 10
NUM_SLOTS = 1 << SLOT_BITS
BAND_ROWS = TableSchema(
    "band_rows",
    pa.schema(
        [
            # One column, because records are dealt out to a thousand places: three columns are three thousand pages.
            column(
                "record",
                pa.binary(16),
                "little-endian: uint32 row of the part's captions, uint32 bits 10 to 41 of the band hash (the first 10 "
                "are the slot), uint64 sketch (one bit of each of 64 slots of the signature)",
            ),
        ]
    ),
    sorted_by=(),
)
RECORD_BYTES = 16
_RECORD = np.dtype([("row", "<u4"), ("hash", "<u4"), ("sketch", "<u8")])
_CHUNK_ROWS = 4096  # their signatures (2 MB) stay in the cache until they are banded


@dataclass(frozen=True)
class BandTable:
    """Records of many rows, by slot."""

    records: NDArray[np.uint64]
    """As BAND_ROWS says: [records, 2]."""
    starts: NDArray[np.int64]
    """Records of slot s are `starts[s] : starts[s + 1]`: [NUM_SLOTS + 1]."""

    def slices(self) -> list[pa.Table]:
        """BAND_ROWS of each slot."""
        table = pa.Table.from_arrays([to_binary(self.records)], schema=BAND_ROWS.arrow)
        edges = self.starts.tolist()
        return [table.slice(start, stop - start) for start, stop in pairwise(edges)]


def band_table(captions: pa.Array, spec: SignatureSpec, first_row: int = 0) -> BandTable:
    """The records of normalised captions, numbered from `first_row`; those without shingles have none."""
    from dataengine.dedup.kernels.signatures import band_signatures

    pieces = []
    for start in range(0, len(captions), _CHUNK_ROWS):
        matrix, num_shingles = signatures(captions.slice(start, _CHUNK_ROWS), spec)
        hashes = np.empty((len(matrix), spec.num_bands), np.uint64)
        sketches = np.empty(len(matrix), np.uint64)
        band_signatures(matrix, spec.rows_per_band, hashes, sketches)
        rows = np.flatnonzero(num_shingles)
        pieces.append((hashes[rows], (rows + (start + first_row)).astype(np.uint32), sketches[rows]))
    if not pieces:
        pieces.append((np.empty((0, spec.num_bands), np.uint64), np.empty(0, np.uint32), np.empty(0, np.uint64)))
    return dealt(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def dealt(hashes: NDArray[np.uint64], rows: NDArray[np.uint32], sketches: NDArray[np.uint64]) -> BandTable:
    """Rows with all their band hashes (uint64 [rows, num_bands]) as records by slot."""
    from dataengine.dedup.kernels.signatures import deal_bands

    starts = np.zeros(NUM_SLOTS + 1, np.int64)
    records = np.empty((hashes.size, 2), np.uint64)
    deal_bands(hashes, rows, sketches, SLOT_BITS, starts, records)
    return BandTable(records, starts)


def read_records(batch: pa.RecordBatch) -> NDArray[np.void]:
    """The records of a slice of BAND_ROWS, as fields `row`, `hash` and `sketch`: [records]."""
    values = batch.column(0)
    content = values.buffers()[1]
    return np.frombuffer(content, _RECORD, len(values), values.offset * RECORD_BYTES)
