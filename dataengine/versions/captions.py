"""Caption tables of a child version: those of its parent without what nobody in the child has as a caption any more.

A caption stays while any sample that is left has it, under the smallest key of these. Tables of which no row changes
hands are copied; memory is that of one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.analyst.dataset import Dataset
from dataengine.dedup.against import put_bands, put_captions, read_bands, read_captions
from dataengine.dedup.caption_classes import CAPTION_ROWS
from dataengine.dedup.captions import normalise_captions
from dataengine.dedup.routed import flat, from_binary, to_binary
from dataengine.emit.versions import VersionFiles
from dataengine.keys import hex_keys, key_bytes
from dataengine.schemas import manifest_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from dataengine.storage.hashing import HashingWriter


def cut_captions(files: VersionFiles, folder: str, parent: Dataset, removed: pl.DataFrame) -> dict[str, Any] | None:
    """Write the caption tables of a child, and say of them what its manifest does; None where the parent carries none.

    `folder` is the parent's, `removed` what was taken out of it, [key, caption] among others.
    """
    told = parent.manifest.get("captions")
    if told is None:
        return None
    heirs = _heirs(parent, removed)
    cutter = _Cutter(files, folder, parent, told["spec"], _plain(removed["key"]), heirs)
    return dict(told) | {"parts": [cutter.cut(part) for part in told["parts"]]}


@dataclass(frozen=True)
class _Cutter:
    files: VersionFiles
    folder: str
    parent: Dataset
    spec: Mapping[str, Any]
    gone: pa.Array
    heirs: Mapping[str, str]

    def cut(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Write one part; what the manifest says of it."""
        rows = read_captions(self.files.root, f"{self.folder}/{part['captions']}")
        keys = hex_keys(from_binary(rows.column("key"), np.uint8))
        lost = pc.is_in(keys, value_set=self.gone)
        if not pc.any(lost).as_py():
            for file in self.parent.version.files:
                if file.path in (part["captions"], *part["bands"]):
                    self.files.copy(self.folder, file.path, file.nbytes, file.sha256)
            return dict(part)
        heirs = [self.heirs.get(text) for text in rows.column("caption").filter(lost).to_pylist()]
        owners = pc.replace_with_mask(keys, lost, pa.array(heirs, pa.string()))
        self._put(part, rows, owners)
        return dict(part) | {"num_rows": len(owners) - owners.null_count}

    def _put(self, part: Mapping[str, Any], rows: pa.Table, owners: pa.Array) -> None:
        """Write the captions that have an owner, and their records."""
        stays = owners.is_valid()
        left = rows.filter(stays)
        columns = {name: left.column(name) for name in ("hash", "caption")}
        owned = CAPTION_ROWS.table(columns | {"key": to_binary(key_bytes(owners.drop_null()))})
        root, there = self.files.root, self.files.folder
        self._remember(part["captions"], put_captions(root, f"{there}/{part['captions']}", owned))
        for path in part["bands"]:
            bands = read_bands(root, f"{self.folder}/{path}", self.spec).of_rows(np.asarray(stays))
            self._remember(path, put_bands(root, f"{there}/{path}", bands, self.spec))

    def _remember(self, path: str, written: HashingWriter) -> None:
        self.files.remember(path, written.num_bytes, written.sha256)


def _heirs(parent: Dataset, removed: pl.DataFrame) -> dict[str, str]:
    """Normalised caption → smallest key among what is left, for captions of what is `removed`."""
    gone, wanted = _plain(removed["key"]), normalise_captions(_plain(removed["caption"]))
    heirs: dict[str, str] = {}
    for rows in parent.parts("samples", manifest_schema(()), ["key", "caption"]):
        keys, texts = flat(rows.column("key")), normalise_captions(rows.column("caption"))
        left = pc.and_not(pc.is_in(texts, value_set=wanted), pc.is_in(keys, value_set=gone))
        for key, text in zip(keys.filter(left).to_pylist(), texts.filter(left).to_pylist(), strict=True):
            heirs[text] = min(key, heirs.get(text, key))
    return heirs


def _plain(texts: pl.Series) -> pa.Array:
    return texts.to_arrow().cast(pa.string())
