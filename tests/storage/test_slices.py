from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest

from dataengine.errors import CorruptObject, MissingObject
from dataengine.schemas import TableSchema, column
from dataengine.storage.slices import SlicedObject, read_each, write_slices
from dataengine.storage.store import Root

SCHEMA = TableSchema(
    "words", pa.schema([column("word", pa.large_string(), "w"), column("number", pa.int32(), "n")]), sorted_by=()
)
ROWS = SCHEMA.table({"word": ["a", "bb", "", "é", "語"], "number": [1, 2, 3, 4, 5]})
CUTS = [(0, 2), (2, 2), (2, 3), (3, 5)]


def stored(root: Root, path: str = "object", metadata: dict[str, object] | None = None) -> bytes:
    sink = io.BytesIO()
    write_slices(sink, [ROWS.slice(start, stop - start) for start, stop in CUTS], metadata or {})
    root.put(path, sink.getvalue())
    return sink.getvalue()


def test_any_run_of_slices_is_read(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    stored(root, metadata={"spec": {"seed": 1}})
    found = SlicedObject.open(root, "object")
    assert (found.num_slices, found.metadata) == (4, {"spec": {"seed": 1}})
    for first in range(4):
        for stop in range(first, 5):
            wanted = ROWS.slice(CUTS[first][0] if first < 4 else 5, 0)
            wanted = ROWS.slice(
                CUTS[first][0], (CUTS[stop - 1][1] if stop > first else CUTS[first][0]) - CUTS[first][0]
            )
            assert found.read(SCHEMA, first, stop).equals(wanted)
    assert [batch and batch.num_rows for batch in found.batches(SCHEMA, 0, 4)] == [2, None, 1, 2]
    assert [len(table) for table in read_each([found, found], SCHEMA, 3, 4)] == [2, 2]


def test_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    assert stored(root) == stored(root, "again")


def test_many_slices_have_a_long_footer(tmp_path: Path) -> None:
    root, sink = Root(str(tmp_path)), io.BytesIO()
    write_slices(sink, [ROWS.slice(number % 5, 1) for number in range(5000)], {})
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
