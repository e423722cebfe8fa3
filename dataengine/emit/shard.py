"""One shard: rows and image bytes in, the bytes of a tar out, with the place of every member.

A sample is three adjacent members named by its key: the image as stored, `txt` (the primary caption) and
`json` (everything a trainer may ask of the sample). The tar is a pure function of the rows, so an emit that
is killed and run again writes the same bytes. Where images come from and where the tar goes is the caller's
business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from dataengine.errors import CorruptObject
from dataengine.storage import tar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

MEMBERS = ("image", "txt", "json")
TEXT_FIELDS = ("key", "source", "url", "caption", "format", "bucket", "sha256", "phash")
NUMBER_FIELDS = ("width", "height")
NO_TEXT = ""
NO_NUMBER = -1
"""What stands in the json for a missing value: readers that infer types from samples cannot take nulls."""

SCORE_DECIMALS = 6


@dataclass(frozen=True)
class ShardContent:
    """What was written.

    `columns` are MANIFEST's member columns, int64 [samples] each, such as `image_offset`. `sample_offsets` is
    uint64 [samples + 1]: the first header of each sample, and the end of the last one.
    """

    num_samples: int
    columns: dict[str, NDArray[np.int64]]
    sample_offsets: NDArray[np.uint64]
    nbytes: int


def build_shard(
    rows: pa.Table,
    images: Iterator[bytes],
    write: Callable[[bytes], object],
    *,
    caption_names: Sequence[str] = (),
    extra_names: Sequence[str] = (),
) -> ShardContent:
    """Write the tar of `rows`, in their order, and say where everything lies in it.

    `rows` holds MANIFEST's columns but those about places in the tar; every float column is a score. `images`
    yields the stored bytes of each row; `write` takes the tar piece by piece. `caption_names` and
    `extra_names` are present in every json, also where a row lacks them. Raises CorruptObject, naming the
    key, when an image is not the one that its row's xxh3 names; ValueError when there are more or fewer
    images than rows.
    """
    keys, formats, hashes = (rows.column(name).to_pylist() for name in ("key", "format", "xxh3"))
    texts = [caption.encode() for caption in rows.column("caption").to_pylist()]
    jsons = encode_jsons(rows, caption_names, extra_names)
    image_sizes = np.zeros(len(rows), dtype=np.int64)
    for row, (key, image) in enumerate(zip(keys, images, strict=True)):
        _check_image(key, image, hashes[row])
        image_sizes[row] = len(image)
        write(tar.header(f"{key}.{formats[row]}", len(image)))
        write(image)  # on its own: joining the pieces would copy every image
        write(tar.padding(len(image)) + _member(f"{key}.txt", texts[row]) + _member(f"{key}.json", jsons[row]))
    write(tar.END)
    return _content(np.stack([image_sizes, _lengths(texts), _lengths(jsons)], axis=1))


def place_members(
    rows: pa.Table, image_sizes: NDArray[np.int64], *, caption_names: Sequence[str], extra_names: Sequence[str]
) -> ShardContent:
    """What `build_shard` would return for images of `image_sizes` bytes, without reading or writing one."""
    texts = [caption.encode() for caption in rows.column("caption").to_pylist()]
    jsons = encode_jsons(rows, caption_names, extra_names)
    return _content(np.stack([image_sizes, _lengths(texts), _lengths(jsons)], axis=1))


def encode_jsons(rows: pa.Table, caption_names: Sequence[str], extra_names: Sequence[str]) -> list[bytes]:
    """The json member of each row: UTF-8, fields in fixed order, no nulls, scores rounded to 6 decimals."""
    columns: dict[str, Iterable[Any]] = {}
    columns |= {name: _filled(rows.column(name), NO_TEXT) for name in TEXT_FIELDS}
    columns |= {name: _filled(rows.column(name), NO_NUMBER) for name in NUMBER_FIELDS}
    columns["captions"] = _texts(rows.column("captions"), caption_names)
    columns["extra"] = _texts(rows.column("extra"), extra_names)
    scores = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    columns |= {name: _rounded(rows.column(name)) for name in scores}
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
    return [encode(dict(zip(columns, row, strict=True))).encode() for row in zip(*columns.values(), strict=True)]


def _member(name: str, content: bytes) -> bytes:
    return tar.header(name, len(content)) + content + tar.padding(len(content))


def _check_image(key: str, image: bytes, wanted: str) -> None:
    found = xxhash.xxh3_64_hexdigest(image)
    if found != wanted:
        raise CorruptObject(
            f"image of sample {key}: {len(image)} bytes with xxh3 {found}, wanted {wanted}; its object "
            "changed after download. Restore it, or remove the download commit of its part to fetch it again."
        )


def _content(sizes: NDArray[np.int64]) -> ShardContent:
    """`sizes` is int64 [samples, members], in the order of the tar."""
    spans = tar.BLOCK + sizes + -sizes % tar.BLOCK
    ends = np.cumsum(spans, dtype=np.int64).reshape(spans.shape)
    offsets = ends - spans + tar.BLOCK
    columns: dict[str, NDArray[np.int64]] = {}
    for place, member in enumerate(MEMBERS):
        columns |= {f"{member}_offset": offsets[:, place], f"{member}_nbytes": sizes[:, place]}
    sample_offsets = np.concatenate([[0], ends[:, -1]]).astype(np.uint64)
    return ShardContent(len(sizes), columns, sample_offsets, int(sample_offsets[-1]) + len(tar.END))


def _lengths(contents: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, contents), dtype=np.int64, count=len(contents))


def _filled(values: pa.ChunkedArray | pa.Array, missing: str | int) -> list[Any]:
    return pc.fill_null(values, missing).to_pylist()


def _texts(values: pa.ChunkedArray, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Each row's map as a dict: `names` first, present in every row, then the others in the map's order.

    One dict at a time, from flat lists: ten thousands of live dicts would cost the garbage collector 15 µs a
    sample.
    """
    maps, blank = values.combine_chunks(), dict.fromkeys(names, NO_TEXT)
    keys, texts, offsets = maps.keys.to_pylist(), _filled(maps.items, NO_TEXT), maps.offsets.to_pylist()
    for begin, end in pairwise(offsets):
        yield blank | dict(zip(keys[begin:end], texts[begin:end], strict=True))


def _rounded(values: pa.ChunkedArray) -> list[float]:
    numbers = pc.fill_null(values, float(NO_NUMBER)).to_numpy().astype(np.float64)
    rounded: list[float] = (np.round(numbers, SCORE_DECIMALS) + 0.0).tolist()  # + 0.0: no minus zero
    return rounded
