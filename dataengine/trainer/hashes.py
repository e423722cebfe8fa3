"""What the manifest says a sample's key and image hash are, for readers that check every sample.

A shard's columns are read from the samples table when its first sample is asked about, and kept for some shards.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import CorruptObject
from dataengine.trainer.index import Shards, read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from dataengine.trainer.manifest import Version

_KEPT_SHARDS = 256  # of 8,000 samples and 48 bytes each: 100 MB


class Hashes:
    """Keys and xxh3 of images by shard and place."""

    def __init__(self, version: Version, shards: Shards) -> None:
        self._version, self._shards = version, shards
        self._parts: dict[str, list[str]] | None = None
        self._kept: OrderedDict[int, tuple[pa.Array, pa.Array]] = OrderedDict()

    def of(self, shard: int, place: int) -> tuple[str, str]:
        """(key, xxh3) of the sample at `place` of `shard`. Raises CorruptObject when the table has no such row."""
        if shard not in self._kept:
            self._kept[shard] = self._load(self._shards.shards[shard].name)
            if len(self._kept) > _KEPT_SHARDS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shard)
        keys, hashes = self._kept[shard]
        if place >= len(keys):
            raise CorruptObject(
                f"{self._version.root.address('samples')}: has no row for sample {place} of shard "
                f"{self._shards.shards[shard].name}; run `dataengine verify` on it"
            )
        return str(keys[place].as_py()), str(hashes[place].as_py())

    def _load(self, shard: str) -> tuple[pa.Array, pa.Array]:
        import pyarrow as pa
        import pyarrow.compute as pc

        tables = []
        for path in self._parts_of(shard):
            table = read_table(self._version, path, ["shard", "index_in_shard", "key", "xxh3"])
            tables.append(table.filter(pc.equal(table.column("shard"), shard)))
        if not tables:
            return pa.array([], pa.string()), pa.array([], pa.string())
        rows = pa.concat_tables(tables).sort_by("index_in_shard").combine_chunks()
        places = rows.column("index_in_shard").to_numpy()
        if not np.array_equal(places, np.arange(len(rows))):
            raise CorruptObject(f"{self._version.root.address('samples')}: rows of shard {shard} are not 0 to its end")
        return rows.column("key").combine_chunks(), rows.column("xxh3").combine_chunks()

    def _parts_of(self, shard: str) -> list[str]:
        if self._parts is None:
            self._parts = {}
            for path in self._version.tables("samples"):
                for name in read_table(self._version, path, ["shard"]).column("shard").unique().to_pylist():
                    self._parts.setdefault(name, []).append(path)
        return self._parts.get(shard, [])
