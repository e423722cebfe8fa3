"""Caption sets: captions without images, such as the prompts of a benchmark, in the tables that `dedup.against` reads.

Lines or a column of a Parquet file in; a folder with `manifest.json` and the caption tables of a published version out.
It is signed as one config says, and a run of that config drops what copies it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataengine.dedup.against import put_bands, put_captions
from dataengine.dedup.bands import band_table
from dataengine.dedup.caption_classes import find_copies
from dataengine.dedup.routed import flat, from_binary
from dataengine.dedup.text_steps import routed_captions
from dataengine.errors import InputError

if TYPE_CHECKING:
    from dataengine.dedup.minhash import SignatureSpec
    from dataengine.storage.store import Root

_BANDED_ROWS = 1 << 17


def read_captions(root: Root, address: str, column: str) -> pa.ChunkedArray:
    """The captions of a file: lines of UTF-8 text, or `column` of a `.parquet` file; string [rows], null where empty.

    Raises InputError for a file that is neither.
    """
    content = root.get(address)
    if not address.endswith(".parquet"):
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{address}: not UTF-8 text at byte {error.start}; give lines of UTF-8") from error
        return pa.chunked_array([pa.array(_lines(text), pa.string())])
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if column not in file.schema_arrow.names:
            there = ", ".join(file.schema_arrow.names)
            raise InputError(f"{address}: no column {column!r}; it has {there}: name one with --column")
        return file.read([column]).column(column).cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"{address}: not a Parquet file with strings in {column!r}: {error}") from error


def _lines(text: str) -> list[str]:
    """As editors number them: `str.splitlines` would also end a line at U+2028, U+0085 and the like."""
    lines = text.replace("\r\n", "\n").removesuffix("\n")
    return lines.split("\n") if lines else []


def write_caption_set(root: Root, folder: str, captions: pa.ChunkedArray, spec: SignatureSpec) -> int:
    """Write the tables, then the manifest; how many different captions the set holds.

    Row n has as its key the number n, in decimal digits. Raises InputError when no caption says anything.
    """
    chosen = _chosen(captions)
    if not len(chosen):
        raise InputError(f"no caption in {len(captions):,} rows says anything; name files that hold captions")
    put_captions(root, f"{folder}/captions/part-000000.captions", chosen)
    bands = []
    for number, start in enumerate(range(0, len(chosen), _BANDED_ROWS)):
        table = band_table(flat(chosen.column("caption")).slice(start, _BANDED_ROWS), spec, start)
        bands.append(f"captions/part-000000.bands-{number:03d}")
        put_bands(root, f"{folder}/{bands[-1]}", table, spec.to_json())
    part = {"captions": "captions/part-000000.captions", "bands": bands, "num_rows": len(chosen)}
    manifest = {
        "name": folder.rstrip("/").rpartition("/")[2],
        "version": 1,
        "num_captions": len(chosen),
        "captions": {"spec": spec.to_json(), "parts": [part]},
    }
    root.put(f"{folder}/manifest.json", json.dumps(manifest, indent=2, sort_keys=True).encode())
    return len(chosen)


def _chosen(captions: pa.ChunkedArray) -> pa.Table:
    """CAPTION_ROWS of the different captions, by hash."""
    keys = pa.array([f"{number:032d}" for number in range(1, len(captions) + 1)], pa.string())
    rows = routed_captions(pa.table({"key": keys, "caption": captions}))[0].combine_chunks()
    hashes, keys_read = (from_binary(rows.column(name), np.uint8) for name in ("hash", "key"))
    return rows.take(pa.array(find_copies(hashes, keys_read).representatives)).combine_chunks()
