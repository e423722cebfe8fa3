from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import CorruptObject, MissingObject
from dataengine.schemas import TableSchema, column
from dataengine.storage.ranges import range_pieces, read_range
from dataengine.storage.store import Root

ROWS = TableSchema(
    "rows",
    pa.schema(
        [
            column("key", pa.string(), "who"),
            column("hash", pa.string(), "perhaps", nullable=True),
            column("vector", pa.binary(4), "values"),
            column("looks", pa.list_(pa.field("item", pa.int32(), nullable=False)), "numbers"),
        ]
    ),
    sorted_by=(),
)


def table(numbers: list[int]) -> pa.Table:
    return ROWS.table(
        {
            "key": [str(number) for number in numbers],
            "hash": [None if number % 3 else "x" * number for number in numbers],
            "vector": [number.to_bytes(4, "little") for number in numbers],
            "looks": [list(range(number % 5)) for number in numbers],
        }
    )


def write(root: Root, tables: list[pa.Table]) -> None:
    with root.writer("rows.ranges") as writer:
        for piece in range_pieces(ROWS, tables):
            writer.write(piece)


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), min_size=1, max_size=6))
def test_each_range_is_read_alone(tmp_path_factory: pytest.TempPathFactory, contents: list[list[int]]) -> None:
    root = Root(str(tmp_path_factory.mktemp("ranges")))
    tables = [table(numbers) for numbers in contents]
    write(root, tables)
    assert [read_range(root, "rows.ranges", ROWS, number) for number in range(len(tables))] == tables


def test_a_table_of_several_chunks_is_one_batch(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    write(root, [pa.concat_tables([table([1, 2]), table([3])]).slice(1)])
    assert read_range(root, "rows.ranges", ROWS, 0).column("key").to_pylist() == ["2", "3"]


def test_ranges_on_an_object_store(s3_server: dict[str, str]) -> None:
    root = Root("s3://lake/ranges", tuple(sorted(s3_server.items())))
    write(root, [table([]), table([5, 6, 7])])
    assert read_range(root, "rows.ranges", ROWS, 1) == table([5, 6, 7])
    assert read_range(root, "rows.ranges", ROWS, 0) == table([])


@pytest.mark.parametrize("place", [3, 30, 100, -1])
def test_a_flipped_byte_is_found(tmp_path: Path, place: int) -> None:
    root = Root(str(tmp_path))
    write(root, [table([4, 5, 6])])
    content = bytearray((tmp_path / "rows.ranges").read_bytes())
    content[place] ^= 0x40
    (tmp_path / "rows.ranges").write_bytes(content)
    with pytest.raises(CorruptObject, match=r"rows\.ranges"):
        read_range(root, "rows.ranges", ROWS, 0)


@pytest.mark.parametrize("nbytes", [0, 10, 24, 60])
def test_a_short_object_is_found(tmp_path: Path, nbytes: int) -> None:
    root = Root(str(tmp_path))
    write(root, [table([4, 5, 6])])
    content = (tmp_path / "rows.ranges").read_bytes()
    (tmp_path / "rows.ranges").write_bytes(content[:nbytes])
    with pytest.raises(CorruptObject, match=r"rows\.ranges"):
        read_range(root, "rows.ranges", ROWS, 0)


def test_an_absent_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingObject, match=r"rows\.ranges"):
        read_range(Root(str(tmp_path)), "rows.ranges", ROWS, 0)
