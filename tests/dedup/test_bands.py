from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.bands import NUM_SLOTS, RECORD, BandTable, band_table, dealt
from dataengine.dedup.kernels.signatures import unpack_records
from dataengine.dedup.minhash import SignatureSpec, signatures
from dataengine.dedup.shingles import Shingling

ROWS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans()), max_size=12)


def arrays_of(rows: list[tuple[int, int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hashes = np.array([[one, one ^ (two >> 50)] for one, two, _ in rows], np.uint64).reshape(-1, 2)
    return hashes, np.array([two for _, two, _ in rows], np.uint64), np.array([there for _, _, there in rows], np.bool_)


@given(ROWS, st.integers(0, 2**31))
def test_records_stand_by_slot_then_row(rows: list[tuple[int, int, bool]], first_row: int) -> None:
    hashes, sketches, stands = arrays_of(rows)
    table = dealt(hashes, sketches, stands, first_row)
    wanted = sorted(
        (int(value) >> 54, first_row + row, band, (int(value) >> 22) & 0xFFFFFFFF, int(sketches[row]))
        for row in np.flatnonzero(stands).tolist()
        for band, value in enumerate(hashes[row])
    )
    assert table.records["row"].tolist() == [row for _, row, _, _, _ in wanted]
    assert table.records["hash"].tolist() == [value for _, _, _, value, _ in wanted]
    assert table.records["sketch"].tolist() == [sketch for _, _, _, _, sketch in wanted]
    slots = [slot for slot, *_ in wanted]
    assert table.starts.tolist() == np.searchsorted(slots, np.arange(NUM_SLOTS + 1)).tolist()


@given(ROWS, st.integers(0, NUM_SLOTS), st.integers(0, NUM_SLOTS))
def test_records_are_read_with_their_slot(rows: list[tuple[int, int, bool]], one: int, other: int) -> None:
    table, first, stop = dealt(*arrays_of(rows), 0), min(one, other), max(one, other)
    starts = table.starts[first : stop + 1]
    size = int(starts[-1] - starts[0])
    hashes, numbers, sketches = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty(size, np.uint64)
    unpack_records(table.records.view(np.uint64).reshape(-1, 2), starts, first, 7, hashes, numbers, sketches)
    chosen = table.records[starts[0] : starts[-1]]
    assert ((hashes >> np.uint64(32)) == np.repeat(np.arange(first, stop), np.diff(starts))).all()
    assert ((hashes & np.uint64(0xFFFFFFFF)) == chosen["hash"]).all()
    assert (numbers == chosen["row"] + 7).all()
    assert (sketches == chosen["sketch"]).all()


@given(ROWS, st.randoms())
def test_of_some_rows_are_those_made_of_them_alone(rows: list[tuple[int, int, bool]], random: object) -> None:
    hashes, sketches, stands = arrays_of(rows)
    stays = np.array([random.random() < 0.5 for _ in rows], np.bool_)  # type: ignore[attr-defined]
    found = dealt(hashes, sketches, stands, 0).of_rows(stays)
    wanted = dealt(hashes[stays], sketches[stays], stands[stays], 0)
    assert np.array_equal(found.records, wanted.records)
    assert np.array_equal(found.starts, wanted.starts)


def test_a_caption_shorter_than_a_shingle_has_no_records() -> None:
    spec = SignatureSpec(Shingling("word", 3), "poly32", 1, 17, 4)
    captions = pa.array(["two words", "a caption of many words", "", "one"] * 3000)  # of several chunks
    table = band_table(captions, spec, first_row=5)
    assert len(table.records) == 17 * 3000
    assert set(table.records["row"].tolist()) == {5 + row for row in range(1, 12000, 4)}
    assert table.records.dtype == RECORD
    assert signatures(captions.slice(0, 2), spec)[1].tolist() == [0, 3]
    assert len(band_table(captions.slice(0, 0), spec).records) == 0
    assert isinstance(table, BandTable)
