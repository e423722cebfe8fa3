"""Tables and arrays as objects: what was written comes back, and what is broken or absent is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from dataengine.errors import CorruptObject, MissingObject
from dataengine.schemas import CELL
from dataengine.storage.rundir import ObjectRef
from dataengine.storage.store import Root
from dataengine.storage.tables import (
    bucketed_parquet_bytes,
    npy_bytes,
    parquet_bytes,
    read_bucket,
    read_npy,
    read_table,
)

TABLE = CELL.table({"key": [f"{row:032x}" for row in range(1000)], "cell": np.arange(1000)})
ARRAY = np.arange(6).reshape(2, 3)
XXH3 = xxhash.xxh3_64_hexdigest(npy_bytes(ARRAY))
ITEM = ObjectRef("object", len(npy_bytes(ARRAY)), "0" * 64, len(ARRAY), XXH3)
READERS = (
    lambda root: read_table(root, "object", CELL),
    lambda root: read_bucket(root, "object", CELL, 0),
    lambda root: read_npy(root, ITEM),
)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.put("table", parquet_bytes(TABLE))
    root.put("buckets", bucketed_parquet_bytes([TABLE.slice(0, 0), TABLE.slice(0, 7), TABLE.slice(7)]))
    root.put("object", npy_bytes(ARRAY))
    assert read_table(root, "table", CELL).equals(TABLE)
    assert read_table(root, "table", CELL, ["cell"]).column_names == ["cell"]
    assert [len(read_bucket(root, "buckets", CELL, bucket)) for bucket in range(3)] == [0, 7, 993]
    assert read_npy(root, ITEM).tolist() == ARRAY.tolist()


def test_only_columns_that_repeat_themselves_get_a_dictionary() -> None:
    keys = [f"{row:032x}" for row in range(2000)]
    file = pq.ParquetFile(io.BytesIO(parquet_bytes(CELL.table({"key": keys, "cell": np.arange(2000) % 5}))))
    encodings = {at: file.metadata.row_group(0).column(at).encodings for at in range(2)}
    assert "RLE_DICTIONARY" not in encodings[0]
    assert "RLE_DICTIONARY" in encodings[1]


@pytest.mark.parametrize("read", READERS)
def test_an_absent_object_is_named(read: Callable[[Root], object], tmp_path: Path) -> None:
    with pytest.raises(MissingObject, match="object"):
        read(Root(str(tmp_path)))


@pytest.mark.parametrize("read", READERS)
def test_a_broken_object_is_named(read: Callable[[Root], object], tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    sound = parquet_bytes(TABLE)
    flipped = bytearray(sound)
    flipped[len(sound) // 4] ^= 0xFF  # within a page, which only its checksum tells
    for content in (bytes(flipped), sound[: len(sound) // 2], b""):
        root.put("object", content)
        with pytest.raises(CorruptObject, match="object"):
            read(root)


def test_an_array_that_another_one_replaced_is_named(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.put("object", npy_bytes(ARRAY + 1))
    with pytest.raises(CorruptObject, match=XXH3):
        read_npy(root, ITEM)


def test_a_bucket_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.put("object", bucketed_parquet_bytes([TABLE]))
    with pytest.raises(CorruptObject, match="bucket 1"):
        read_bucket(root, "object", CELL, 1)
