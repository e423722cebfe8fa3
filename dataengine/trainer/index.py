"""Loads where every sample of a version lies: from the samples and shards tables into a few flat arrays.

In goes a `Version`; out comes a `SampleIndex` of about 12 bytes per row and member, shared by forked workers
and holding no Python object per row. Keys stay in the table (the tar's own headers give them back) until an
error must name one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataengine.errors import InputError
from dataengine.trainer.manifest import Version

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMBERS = ("image", "txt", "json")
_MAX_MEMBER_BYTES = 2**32 - 1


@dataclass(frozen=True)
class Shard:
    """One tar: its name, its source, and the path that the version's root opens."""

    name: str
    source: str
    path: str


@dataclass(frozen=True)
class SampleIndex:
    """Every row of the samples table, in its order, as columns.

    `shard` int32 [rows] numbers `shards`; `offsets` int64 and `nbytes` uint32, both [rows, members], place
    each member's content in the tar; `wanted` bool [rows] marks the split; `repeat` int32 [rows];
    `part_starts` int64 [parts + 1].
    """

    version: Version
    members: tuple[str, ...]
    shards: tuple[Shard, ...]
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    nbytes: NDArray[np.uint32]
    wanted: NDArray[np.bool_]
    repeat: NDArray[np.int32]
    part_starts: NDArray[np.int64]

    def key_of(self, row: int) -> str:
        """The key of `row`, read from the table: slow, for messages."""
        part = int(np.searchsorted(self.part_starts, row, side="right")) - 1
        keys = read_table(self.version, self.version.tables("samples")[part], ["key"]).column("key")
        return str(keys[row - int(self.part_starts[part])].as_py())


def load_index(version: Version, members: Sequence[str], split: str) -> SampleIndex:
    """The index of `version` for the given members (of image, txt, json).

    Raises InputError when a table lacks a column, names an unknown shard, or holds other counts than the
    manifest.
    """
    shards = load_shards(version)
    names = pa.array([shard.name for shard in shards], pa.string())
    columns = [f"{member}_{what}" for what in ("offset", "nbytes") for member in members]
    paths = version.tables("samples")
    parts = [_Part.read(version, path, ["shard", "split", "repeat", *columns], names, split) for path in paths]
    index = SampleIndex(
        version=version,
        members=tuple(members),
        shards=shards,
        shard=np.concatenate([part.shard for part in parts]),
        offsets=np.concatenate([part.numbers[:, : len(members)] for part in parts]),
        nbytes=np.concatenate([part.numbers[:, len(members) :].astype(np.uint32) for part in parts]),
        wanted=np.concatenate([part.wanted for part in parts]),
        repeat=np.concatenate([part.repeat for part in parts]),
        part_starts=np.cumsum([0, *(len(part.shard) for part in parts)]),
    )
    expected = int(version.manifest["counts"]["num_samples"])
    if len(index.shard) != expected:
        raise InputError(
            f"{version.root.address('samples')}: holds {len(index.shard)} rows, the manifest says "
            f"{expected}; run `dataengine verify` on it"
        )
    return index


def load_shards(version: Version) -> tuple[Shard, ...]:
    """The version's shards, in the order of shards.parquet."""
    table = read_table(version, "shards.parquet", ["shard", "source", "path"])
    columns = (table.column(name).to_pylist() for name in ("shard", "source", "path"))
    return tuple(Shard(name, source, version.locate(path)) for name, source, path in zip(*columns, strict=True))


def read_table(version: Version, path: str, columns: list[str]) -> pa.Table:
    """The named columns of one Parquet file; raises InputError when it cannot be read or lacks one."""
    with version.root.open(version.locate(path)) as file:
        try:
            parquet = pq.ParquetFile(file)
            table = parquet.read(columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            where = version.root.address(path)
            raise InputError(
                f"{where}: not a readable Parquet file ({error}); run `dataengine verify` on it"
            ) from error
    missing = set(columns) - set(table.column_names)
    if missing:
        raise InputError(
            f"{version.root.address(path)}: lacks the columns {sorted(missing)}; "
            f"it has {parquet.schema_arrow.names}; read it with the dataengine that wrote it"
        )
    return table


@dataclass(frozen=True)
class _Part:
    shard: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    repeat: NDArray[np.int32]
    numbers: NDArray[np.int64]

    @classmethod
    def read(cls, version: Version, path: str, columns: list[str], names: pa.Array, split: str) -> _Part:
        table = read_table(version, path, columns).combine_chunks()
        shard = pc.index_in(table.column("shard"), value_set=names)
        numbers = np.empty((len(table), len(columns) - 3), dtype=np.int64)
        for position, column in enumerate(columns[3:]):
            numbers[:, position] = table.column(column).to_numpy()
        where = version.root.address(path)
        if shard.null_count:
            stray = table.column("shard").filter(pc.is_null(shard))[0].as_py()
            raise InputError(
                f"{where}: names shard {stray!r}, which shards.parquet lacks; run `dataengine verify` on it"
            )
        if numbers.size and (numbers.min() < 0 or numbers[:, numbers.shape[1] // 2 :].max() > _MAX_MEMBER_BYTES):
            raise InputError(f"{where}: an offset or size is negative or over 4 GiB; run `dataengine verify` on it")
        return cls(
            shard.to_numpy().astype(np.int32),
            pc.equal(table.column("split"), split).to_numpy(),
            table.column("repeat").to_numpy().astype(np.int32),
            numbers,
        )
