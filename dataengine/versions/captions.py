"""Caption tables of a child version: those of its parent without what nobody in the child has as a caption any more.

A caption stays while any sample that is left has it, under the smallest key of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.analyst.dataset import Dataset
from dataengine.storage.slices import SlicedObject, write_slices

if TYPE_CHECKING:
    from dataengine.versions.place import DatasetPlace


class _Files(Protocol):
    place: DatasetPlace
    folder: str

    def put(self, path: str, content: bytes) -> None: ...
    def remember(self, path: str, nbytes: int, sha256: str) -> None: ...


def cut_captions(parent: Dataset, removed: pl.Series, files: _Files) -> dict[str, Any] | None:
    """Writes the tables and says where they lie, as the manifest does; None when the parent carries none."""
    told = parent.manifest.get("captions")
    if told is None:
        return None
    from dataengine.dedup.caption_classes import CAPTION_ROWS, NUM_HASH_SLOTS, by_slot, hash_slots
    from dataengine.dedup.publish_steps import kept_records
    from dataengine.dedup.bands import BAND_ROWS
    from dataengine.dedup.routed import from_binary, to_binary
    from dataengine.keys import hex_keys, key_bytes
    import io

    root = files.place.root
    folder = files.place.path(int(parent.manifest["version"]))
    heirs = _heirs(parent, removed)
    parts = []
    for part in told["parts"]:
        source = SlicedObject.open(root, f"{folder}/{part['captions']}")
        rows = source.read(CAPTION_ROWS, 0, source.num_slices).combine_chunks()
        keys = hex_keys(from_binary(rows.column("key"), np.uint8)).to_pylist()
        gone = set(removed)
        owner = [heirs.get(text) if key in gone else key for key, text in zip(keys, rows.column("caption").to_pylist(), strict=True)]
        stays = np.array([key is not None for key in owner], np.bool_)
        left = rows.filter(pa.array(stays))
        bytes_of = to_binary(np.ascontiguousarray(key_bytes(pa.array([k for k in owner if k is not None], pa.string()))))
        left = CAPTION_ROWS.table({"key": bytes_of, **{n: left.column(n) for n in ("hash", "caption")}})
        sink = io.BytesIO()
        write_slices(sink, by_slot(left, hash_slots(from_binary(left.column("hash"), np.uint8)), NUM_HASH_SLOTS), {})
        files.put(part["captions"], sink.getvalue())
        for path in part["bands"]:
            bands = SlicedObject.open(root, f"{folder}/{path}")
            sink = io.BytesIO()
            write_slices(sink, map(BAND_ROWS.check, kept_records(bands, stays)), bands.metadata)
            files.put(path, sink.getvalue())
        parts.append(part | {"num_rows": len(left)})
    return dict(told) | {"parts": parts}


def _heirs(parent: Dataset, removed: pl.Series) -> dict[str, str]:
    """Normalised caption → smallest key among what is left, for captions of what is `removed`."""
    from dataengine.dedup.captions import normalise

    keys = removed.implode()
    texts = parent.samples().select("key", "caption")
    wanted = {normalise(text) for text in texts.filter(pl.col("key").is_in(keys)).collect()["caption"]}
    heirs: dict[str, str] = {}
    for key, text in texts.filter(~pl.col("key").is_in(keys)).sort("key").collect(engine="streaming").iter_rows():
        if (plain := normalise(text)) in wanted:
            heirs.setdefault(plain, key)
    return heirs
