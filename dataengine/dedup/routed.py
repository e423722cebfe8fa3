"""Rows on their way between dedup steps: what each exchange carries, as schemas and fixed-size binary columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.dedup.neighbours import ImageRows
from dataengine.schemas import TableSchema, column

IMAGE_ROWS = TableSchema(
    "image_bytes_rows",
    pa.schema(
        [
            column("key", pa.string(), "sample's key"),
            column("content_hash", pa.string(), "SHA-256 of the bytes as fetched"),
        ]
    ),
    sorted_by=(),
)

KEYS = TableSchema(
    "keys",
    pa.schema([column("key", pa.string(), "one of a set of samples")]),
)

PIXEL_ROWS = TableSchema(
    "pixel_rows",
    pa.schema(
        [
            column("key", pa.string(), "sample's key"),
            column("content_hash", pa.string(), "of size and RGB pixels"),
        ]
    ),
    sorted_by=(),
)


def image_rows_schema(dim: int) -> TableSchema:
    """Images with their float16 embedding of `dim` values."""
    return TableSchema("image_rows", pa.schema(_image_fields(dim)), sorted_by=())


def placed_rows_schema(dim: int) -> TableSchema:
    """Images with their home and all their looks."""
    fields = [
        *_image_fields(dim),
        column("home", pa.int32(), "cell of the nearest centroid"),
        column("looks", pa.list_(pa.field("item", pa.int32(), nullable=False)), "further cells it looks into"),
        column("rungs", pa.list_(pa.field("item", pa.int8(), nullable=False)), "of each look: 1 past the first border"),
    ]
    return TableSchema("placed_rows", pa.schema(fields), sorted_by=())


def _image_fields(dim: int) -> list[pa.Field]:
    return [
        column("key", pa.string(), "sample's key"),
        column("phash", pa.string(), "perceptual hash", nullable=True),
        column("embedding", pa.binary(2 * dim), "float16 values"),
    ]


def to_binary(matrix: NDArray[Any]) -> pa.Array:
    """Each row of `matrix` as a fixed-size binary value."""
    rows = np.ascontiguousarray(matrix)
    kind = pa.binary(rows.itemsize * rows.shape[1])
    return pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])


def from_binary(values: pa.ChunkedArray, dtype: type) -> NDArray[Any]:
    """The matrix that `to_binary` turned into `values`: [rows, width]."""
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps a chunked array of no chunks as it is
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], values.type)
    itemsize = np.dtype(dtype).itemsize
    width = array.type.byte_width // itemsize
    start = array.offset * array.type.byte_width
    content = memoryview(array.buffers()[1] or b"")[start : start + len(array) * array.type.byte_width]
    return np.frombuffer(content, dtype=dtype).reshape(len(array), width)


def image_rows(table: pa.Table) -> ImageRows:
    """The rows of an image_rows or placed_rows table as arrays."""
    return ImageRows(
        flat(table.column("key")),
        from_binary(table.column("embedding"), np.float16),
        flat(table.column("phash")),
    )


def flat(values: pa.ChunkedArray) -> pa.Array:
    """`values` as one array."""
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
