from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataengine.errors import CorruptObject, MissingObject
from dataengine.schemas import TableSchema, column
from dataengine.storage.slices import (
    SlicedObject,
    batch_slices,
    read_each,
    read_each_records,
    record_slices,
    write_slices,
)
from dataengine.storage.store import Root

SCHEMA = TableSchema(
    "words", pa.schema([column("word", pa.large_string(), "w"), column("number", pa.int32(), "n")]), sorted_by=()
)
ROWS = SCHEMA.table({"word": ["a", "bb", "", "é", "語"], "number": [1, 2, 3, 4, 5]})
EDGES = np.array([0, 2, 2, 3, 5])
RECORD = np.dtype([("number", "<u4"), ("half", "<u2")])
RECORDS = np.array([(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)], RECORD)


def stored(root: Root, path: str = "object", metadata: dict[str, object] | None = None) -> bytes:
    sink = io.BytesIO()
    write_slices(sink, batch_slices(ROWS, EDGES), metadata or {})
    root.put(path, sink.getvalue())
    return sink.getvalue()


def test_any_run_of_slices_is_read(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    stored(root, metadata={"spec": {"seed": 1}})
    found = SlicedObject.open(root, "object")
    assert (found.num_slices, found.metadata) == (4, {"spec": {"seed": 1}})
    for first in range(5):
        for stop in range(first, 5):
            begin, end = EDGES[first], EDGES[stop]
            assert found.read(SCHEMA, first, stop).equals(ROWS.slice(begin, end - begin))
    assert [len(table) for table in read_each([found, found], SCHEMA, 3, 4)] == [2, 2]


def test_any_run_of_records_is_read(tmp_path: Path) -> None:
    root, sink = Root(str(tmp_path)), io.BytesIO()
    write_slices(sink, record_slices(RECORDS, EDGES), {"of": "records"})
    root.put("object", sink.getvalue())
    found = SlicedObject.open(root, "object")
    for first in range(5):
        for stop in range(first, 5):
            records, starts = found.records(RECORD, first, stop)
            assert np.array_equal(records, RECORDS[EDGES[first] : EDGES[stop]])
            assert np.array_equal(starts, EDGES[first : stop + 1] - EDGES[first])
    assert [len(records) for records, _ in read_each_records([found, found], RECORD, 3, 4)] == [2, 2]
    with pytest.raises(CorruptObject, match="object: no records of 16 bytes"):
        found.records(np.dtype("V16"), 0, 1)
    root.put("object", sink.getvalue().replace(b"\x03", b"\x07", 1))
    with pytest.raises(CorruptObject, match="slice 0 is not what was written"):
        SlicedObject.open(Root(str(tmp_path)), "object").records(RECORD, 0, 4)


def test_no_records_are_slices_too(tmp_path: Path) -> None:
    root, sink = Root(str(tmp_path)), io.BytesIO()
    write_slices(sink, record_slices(RECORDS[:0], np.zeros(4, np.int64)), {})
    root.put("object", sink.getvalue())
    records, starts = SlicedObject.open(root, "object").records(RECORD, 0, 3)
    assert (len(records), starts.tolist()) == (0, [0, 0, 0, 0])


def test_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    assert stored(root) == stored(root, "again")


def test_many_slices_have_a_long_footer(tmp_path: Path) -> None:
    root, sink = Root(str(tmp_path)), io.BytesIO()
    many = pa.concat_tables([ROWS] * 1000)
    write_slices(sink, batch_slices(many, np.arange(5001)), {})
    root.put("object", sink.getvalue())
    assert SlicedObject.open(root, "object").read(SCHEMA, 4998, 5000)["number"].to_pylist() == [4, 5]


@pytest.mark.parametrize("place", [3, 100, -20, -40, -70])
def test_a_changed_byte_is_found(tmp_path: Path, place: int) -> None:
    root = Root(str(tmp_path))
    content = bytearray(stored(root))
    content[place] ^= 1
    root.put("object", bytes(content))
    with pytest.raises(CorruptObject, match=r"object: (slice|the footer|not a sliced)"):
        SlicedObject.open(root, "object").read(SCHEMA, 0, 4)


def test_what_is_no_sliced_object_is_refused(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.put("short", b"x")
    root.put("cut", stored(root)[:-9])
    for name in ("short", "cut"):
        with pytest.raises(CorruptObject, match="not a sliced object"):
            SlicedObject.open(root, name)
    with pytest.raises(MissingObject, match="absent"):
        SlicedObject.open(root, "absent")
