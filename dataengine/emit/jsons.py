"""The json member of each sample: what a trainer may ask of it, built column by column.

Rows of a manifest go in, one JSON object per row comes out, as Python's own encoder would write it without spaces:
fields in fixed order, always all of them, no nulls. A row costs no Python object; a shard's texts are one buffer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT_FIELDS = ("key", "source", "url", "caption", "format", "bucket", "sha256", "phash")
NUMBER_FIELDS = ("width", "height")
NO_TEXT = ""
NO_NUMBER = -1
"""What stands in the json for a missing value: readers that infer types from samples cannot take nulls."""

SCORE_DECIMALS = 6

_ESCAPES = {chr(code): json.dumps(chr(code))[1:-1] for code in (*range(0x20), ord('"'), ord("\\"))}


@dataclass(frozen=True)
class Contents:
    """One content per row, end to end: row `i` is bytes `bounds[i]` to `bounds[i + 1]` of `data`."""

    data: memoryview
    bounds: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each row's content, int64 [rows]."""
        return np.diff(self.bounds)

    def __getitem__(self, row: int) -> bytes:
        return bytes(self.data[self.bounds[row] : self.bounds[row + 1]])


def contents_of(texts: pa.ChunkedArray | pa.Array) -> Contents:
    """The UTF-8 bytes of a column of strings without nulls."""
    column = texts.cast(pa.large_string())
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _, bounds, data = array.buffers()
    found = np.frombuffer(bounds, np.int64, len(array) + 1, 8 * array.offset) if len(array) else np.zeros(1, np.int64)
    return Contents(memoryview(data or b"").cast("B"), found)


def encode_jsons(rows: pa.Table, caption_names: Sequence[str], extra_names: Sequence[str]) -> Contents:
    """The json member of each row of `rows`, MANIFEST's columns but those about places; float columns are scores.

    `caption_names` and `extra_names` come first in their maps and are present in every row. Scores are rounded to 6
    decimals. Names in a row's map are taken to be unique. Raises ValueError for a score that is no number.
    """
    columns: dict[str, pl.Series] = {name: _strings(rows.column(name)) for name in TEXT_FIELDS}
    columns |= {name: _numbers(rows.column(name)) for name in NUMBER_FIELDS}
    columns["captions"] = _objects(rows.column("captions"), caption_names)
    columns["extra"] = _objects(rows.column("extra"), extra_names)
    scores = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    columns |= {name: _rounded(rows.column(name)) for name in scores}
    return contents_of(_object(columns).to_arrow())


def _object(columns: dict[str, pl.Series]) -> pl.Series:
    """Each row's object: the texts in `columns` are JSON already."""
    pieces: list[pl.Expr] = []
    for place, name in enumerate(columns):
        pieces += [pl.lit(f"{',' if place else '{'}{_quoted(name)}:"), pl.col(name)]
    frame = pl.DataFrame(columns)
    return frame.select(pl.concat_str(*pieces, pl.lit("}")).alias("json")).to_series()


def _strings(values: pa.ChunkedArray | pa.Array) -> pl.Series:
    """Each text as a JSON string."""
    texts = pl.Series(values.cast(pa.large_string())).fill_null(NO_TEXT)
    if texts.str.contains(r'["\\\x00-\x1f]').any():
        texts = texts.str.replace_many(list(_ESCAPES), list(_ESCAPES.values()))
    return pl.select(pl.concat_str(pl.lit('"'), texts, pl.lit('"'))).to_series()


def _numbers(values: pa.ChunkedArray) -> pl.Series:
    return pl.Series(values).fill_null(NO_NUMBER).cast(pl.String)


def _rounded(values: pa.ChunkedArray) -> pl.Series:
    numbers = np.round(pc.fill_null(values, float(NO_NUMBER)).to_numpy().astype(np.float64), SCORE_DECIMALS)
    if not np.isfinite(numbers).all():
        raise ValueError("a score is no number; write null instead")
    return pl.Series(list(map(repr, (numbers + 0.0).tolist())), dtype=pl.String)  # + 0.0: no minus zero


def _objects(values: pa.ChunkedArray, names: Sequence[str]) -> pl.Series:
    """Each row's map as a JSON object: `names` first, present in every row, then the others in the map's order."""
    maps = values.combine_chunks()
    bounds = maps.offsets.to_numpy()
    row = np.repeat(np.arange(len(maps)), np.diff(bounds))
    keys, texts = (part[bounds[0] : bounds[-1]] for part in (maps.keys, maps.items))
    columns = {name: _named(name, keys, texts, row, len(maps)) for name in names}
    known = pc.is_in(keys, value_set=pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
    if known.all():
        return _object(columns) if columns else pl.Series(["{}"] * len(maps), dtype=pl.String)
    others = _others(keys.filter(~known), texts.filter(~known), row[~known], len(maps))
    begun = _object(columns) if columns else None
    return _with_others(begun, others)


def _named(name: str, keys: pa.Array, texts: pa.Array, row: NDArray[np.int64], num_rows: int) -> pl.Series:
    """The text that each row's map has under `name`, as a JSON string."""
    place = np.full(num_rows, -1)
    found = pc.equal(keys, name).to_numpy(zero_copy_only=False)
    place[row[found]] = np.flatnonzero(found)
    return _strings(texts.take(pa.array(place, mask=place < 0)))


def _others(keys: pa.Array, texts: pa.Array, row: NDArray[np.int64], num_rows: int) -> pl.Series:
    """The entries of each row as `"key":"text","key":"text"`; empty where a row has none."""
    entries = pl.DataFrame({"row": row, "key": _strings(keys), "text": _strings(texts)})
    pairs = pl.concat_str("key", pl.lit(":"), "text")
    joined = entries.group_by("row", maintain_order=True).agg(pairs.str.join(","))
    every = pl.DataFrame({"row": np.arange(num_rows)}).join(joined, on="row", how="left", maintain_order="left")
    return every["key"].fill_null("")


def _with_others(begun: pl.Series | None, others: pl.Series) -> pl.Series:
    start = pl.lit("{") if begun is None else pl.concat_str(begun.str.strip_suffix("}"), pl.lit(","))
    whole = pl.concat_str(start, others, pl.lit("}"))
    nothing = pl.lit("{}") if begun is None else begun
    frame = pl.DataFrame({"others": others})
    return frame.select(pl.when(pl.col("others") == "").then(nothing).otherwise(whole).alias("json")).to_series()


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
