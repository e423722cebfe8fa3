"""Caption tables of a child version: those of its parent without what nobody in the child has as a caption any more.

A caption stays while any sample that is left has it, under the smallest key of these.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.analyst.dataset import Dataset
from dataengine.dedup.bands import NUM_SLOTS, RECORD, BandTable
from dataengine.dedup.caption_classes import CAPTION_ROWS, by_slot
from dataengine.dedup.captions import normalise_captions
from dataengine.dedup.routed import from_binary, to_binary
from dataengine.keys import hex_keys, key_bytes
from dataengine.storage.slices import SlicedObject, batch_slices, record_slices, write_slices
from dataengine.storage.store import Root

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def cut_captions(
    root: Root, folder: str, parent: Dataset, removed: pl.Series
) -> tuple[dict[str, Any] | None, Iterator[tuple[str, bytes]]]:
    """What the manifest says of caption tables, and (path, content) of each; None where the parent carries none.

    `folder` is the parent's, `removed` the keys that were taken out of it.
    """
    told = parent.manifest.get("captions")
    if told is None:
        return None, iter(())
    heirs, gone = _heirs(parent, removed), set(removed)
    parts, files = [], []
    for part in told["parts"]:
        rows = _rows(SlicedObject.open(root, f"{folder}/{part['captions']}"))
        keys = hex_keys(from_binary(rows.column("key"), np.uint8)).to_pylist()
        texts = rows.column("caption").to_pylist()
        owners = [heirs.get(text) if key in gone else key for key, text in zip(keys, texts, strict=True)]
        stays = np.array([key is not None for key in owners], np.bool_)
        parts.append(dict(part) | {"num_rows": int(stays.sum())})
        files.append((part["captions"], _captions(rows.filter(pa.array(stays)), list(filter(None, owners)))))
        files += [(path, _bands(SlicedObject.open(root, f"{folder}/{path}"), stays)) for path in part["bands"]]
    return dict(told) | {"parts": parts}, iter(files)


def _rows(table: SlicedObject) -> pa.Table:
    return table.read(CAPTION_ROWS, 0, table.num_slices).combine_chunks()


def _captions(rows: pa.Table, owners: list[str]) -> bytes:
    keys = to_binary(key_bytes(pa.array(owners, pa.string())) if owners else np.zeros((0, 16), np.uint8))
    owned = CAPTION_ROWS.table({"key": keys, "hash": rows.column("hash"), "caption": rows.column("caption")})
    return _sliced(batch_slices(*by_slot(owned, from_binary(owned.column("hash"), np.uint8))), {})


def _bands(table: SlicedObject, stays: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    assert table.num_slices == NUM_SLOTS
    bands = BandTable(*table.records(RECORD, 0, NUM_SLOTS)).of_rows(stays)
    return _sliced(record_slices(bands.records, bands.starts), table.metadata)


def _sliced(slices: Iterable[memoryview], metadata: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    write_slices(sink, slices, metadata)
    return sink.getvalue()


def _heirs(parent: Dataset, removed: pl.Series) -> dict[str, str]:
    """Normalised caption → smallest key among what is left, for captions of what is `removed`."""
    keys = removed.implode()
    texts = parent.samples().select("key", "caption")
    lost = texts.filter(pl.col("key").is_in(keys)).collect(engine="streaming")
    left = texts.filter(~pl.col("key").is_in(keys)).collect(engine="streaming").sort("key")
    wanted = set(_plain(lost))
    heirs: dict[str, str] = {}
    for key, text in zip(left["key"], _plain(left), strict=True):
        if text in wanted:
            heirs.setdefault(text, key)
    return heirs


def _plain(texts: pl.DataFrame) -> list[str]:
    return list(normalise_captions(texts["caption"].to_arrow()).to_pylist())
