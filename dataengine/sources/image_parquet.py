"""Candidates of Parquet that holds the images themselves: an open file in, CANDIDATE rows out.

Where the image column stands in the file as it is, each image is located there and not read. Where it is compressed
or has a dictionary, its bytes have no place, so each image is handed over once, to be kept elsewhere. What is wrong
with a row or a row group becomes its `fault`. It knows no stores. Layout: Hugging Face `datasets`, the feature Image
(up to 4.5 its columns are compressed with Snappy, from 4.6 on they are not: huggingface/datasets#7976).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import pyarrow as pa

from dataengine.errors import InputError
from dataengine.keys import member_key
from dataengine.sources.parquet import MAX_CHUNK_BYTES
from dataengine.sources.parquet_fields import (
    GroupedParquet,
    GroupFault,
    open_groups,
    read_batches,
    read_fields,
    require_columns,
)
from dataengine.sources.parquet_footer import Chunk
from dataengine.sources.parquet_pages import PageFault, locate_values
from dataengine.sources.webdataset import MAX_DETAIL_CHARS, Row

if TYPE_CHECKING:
    from dataengine.config.sources import ImageParquetSource

Item = TypeVar("Item")

MAX_PART_ROWS = 10_000
MAX_PART_BYTES = 512 * 2**20
"""Of the image column as it stands in the file. A row group is never split, so one may hold more of both."""

Place = tuple[str, int, int]
"""Object, offset, number of bytes."""

Keep = Callable[[str, bytes], Place]
"""Keeps the bytes of the image with this key, and says where."""


@dataclass(frozen=True)
class GroupRun:
    """Row groups `first_group`, ... of a file, `num_groups` of them: rows `first_row`, ... of it."""

    first_group: int
    num_groups: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class ImageFile:
    """An open Parquet file; the column at the dotted path `leaf` holds the bytes of the images."""

    parquet: GroupedParquet
    leaf: str

    def chunk(self, group: int) -> Chunk:
        """The images of a row group."""
        return self.parquet.chunks[group][self.leaf]


def open_images(file: BinaryIO, path: str, config: ImageParquetSource) -> ImageFile:
    """The file, its footer proven sane. Raises InputError naming `path` when a column is not there or not of use."""
    parquet = open_groups(file, path)
    require_columns(parquet, [config.image_column, *_columns(config)])
    kind = parquet.schema.field(config.image_column).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    inner = inner.value_type if pa.types.is_dictionary(inner) else inner
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_binary_view(inner)):
        raise InputError(
            f"{path}: image_column {config.image_column!r} is {str(kind)[:200]}, wanted binary or a struct with binary "
            f"bytes; name the column that holds the images"
        )
    leaf = f"{config.image_column}.bytes" if pa.types.is_struct(kind) else config.image_column
    for group, chunks in enumerate(parquet.chunks):
        if leaf not in chunks:
            raise InputError(f"{path}: row group {group} has no column {leaf!r}; fetch or write it again")
    return ImageFile(parquet, leaf)


def group_runs(images: ImageFile) -> list[GroupRun]:
    """The row groups of a file in runs of MAX_PART_ROWS rows or MAX_PART_BYTES bytes at most, one group at least."""
    runs: list[GroupRun] = []
    num_bytes = next_row = 0
    for group, num_rows in enumerate(images.parquet.num_rows):
        chunk_bytes = images.chunk(group).span[1]
        num_bytes += chunk_bytes
        last = runs[-1] if runs else None
        if last and last.num_rows + num_rows <= MAX_PART_ROWS and num_bytes <= MAX_PART_BYTES:
            runs[-1] = GroupRun(last.first_group, last.num_groups + 1, last.first_row, last.num_rows + num_rows)
        else:
            runs.append(GroupRun(group, 1, next_row, num_rows))
            num_bytes = chunk_bytes
        next_row += num_rows
    return runs or [GroupRun(0, 0, 0, 0)]


def index_rows(
    images: ImageFile, run: GroupRun, source: str, shard: str, object_url: str, config: ImageParquetSource, keep: Keep
) -> list[Row]:
    """The rows of `run` in the file at `object_url`, in order, for `candidate_table`.

    Faults: `missing_image` (null or no bytes), `corrupt_parquet` (from where a row group breaks to its end).
    """
    rows: list[Row] = []
    first_row = run.first_row
    for group in range(run.first_group, run.first_group + run.num_groups):
        num_rows = images.parquet.num_rows[group]
        keys = [member_key(source, shard, str(first_row + i), 0) for i in range(num_rows)]
        rows += _group_rows(images, group, keys, first_row, object_url, config, keep)
        first_row += num_rows
    return rows


def _group_rows(
    images: ImageFile,
    group: int,
    keys: Sequence[str],
    first_row: int,
    object_url: str,
    config: ImageParquetSource,
    keep: Keep,
) -> Iterator[Row]:
    name = images.parquet.path.rpartition("/")[2]
    fields, broken_fields = _sound(read_fields(images.parquet, group, _columns(config)), len(keys))
    if images.chunk(group).has_places:
        found = _located(images, group, len(keys), object_url)
    else:
        found = _kept(images, group, keys, keep)
    places, broken_places = _sound(found, len(keys))
    num_sound = min(len(fields), len(places))
    broken = f"{name}: row group {group}: {(broken_places or broken_fields)[:MAX_DETAIL_CHARS]}"
    for i, key in enumerate(keys):
        place = places[i] if i < num_sound else None
        row = _row(fields[i] if i < len(fields) else {}, place, config) | {"key": key, "fault": None, "detail": None}
        if i >= num_sound:
            row |= {"fault": "corrupt_parquet", "detail": broken}
        elif place is None:
            detail = f"{name}: row {first_row + i}: no bytes in column {config.image_column!r}"
            row |= {"fault": "missing_image", "detail": detail}
        yield row


def _sound(found: Iterator[Item], num_rows: int) -> tuple[list[Item], str]:
    """At most `num_rows` of what is found before it breaks, and how it breaks where they are fewer."""
    sound: list[Item] = []
    try:
        sound.extend(islice(found, num_rows))  # what came before a fault stays
    except (GroupFault, PageFault) as fault:
        return sound, str(fault)
    return sound, "" if len(sound) == num_rows else f"{len(sound)} rows, the footer says {num_rows}"


def _located(images: ImageFile, group: int, num_rows: int, object_url: str) -> Iterator[Place | None]:
    max_level = images.parquet.max_levels[images.leaf]
    for span in locate_values(images.parquet.file, images.chunk(group), num_rows, max_level):
        yield (object_url, *span) if span is not None and span[1] else None


def _kept(images: ImageFile, group: int, keys: Sequence[str], keep: Keep) -> Iterator[Place | None]:
    names = iter(keys)
    num_bytes = 0
    for batch in read_batches(images.parquet, group, [images.leaf]):
        column = batch.column(0)
        contents = column.flatten()[0] if pa.types.is_struct(column.type) else column
        # One by one: as a list, they would all take their memory twice.
        for key, value in zip(names, contents, strict=False):
            content = value.as_py()
            num_bytes += len(content or b"")
            if num_bytes > MAX_CHUNK_BYTES:  # of a dictionary: a few bytes can name one value a million times
                raise GroupFault(f"images of more than {MAX_CHUNK_BYTES} bytes")
            yield keep(key, content) if content else None


def _columns(config: ImageParquetSource) -> list[str]:
    """The columns read as text, each once."""
    single = [name for name in (config.url_column, config.caption_column) if name is not None]
    return list(dict.fromkeys([*single, *config.caption_columns.values(), *config.passthrough]))


def _row(fields: dict[str, str | None], place: Place | None, config: ImageParquetSource) -> Row:
    named = ((name, fields.get(config.caption_columns[name])) for name in sorted(config.caption_columns))
    extra = ((name, fields.get(name)) for name in sorted(config.passthrough))
    return {
        "url": None if config.url_column is None else fields.get(config.url_column),
        "caption": (config.caption_column and fields.get(config.caption_column)) or "",
        "captions": [(name, text) for name, text in named if text],
        "extra": [(name, text) for name, text in extra if text is not None],
        **dict(zip(("object", "offset", "nbytes"), place or (None, None, None), strict=True)),
    }
